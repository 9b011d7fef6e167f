"""LSTM, GRU and RNN against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from .graphs import Net, feeds, reference
from .test_networks import SETTINGS, TARGETS, run

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@st.composite
def layers(draw: Any) -> onnx.ModelProto:
    kind = draw(st.sampled_from(sorted(_GATES)))
    steps, batch, size, hidden = (draw(st.integers(1, n)) for n in (4, 9, 12, 40))
    direction = draw(st.sampled_from(("forward", "reverse", "bidirectional")))
    directions = 2 if direction == "bidirectional" else 1
    net = Net(draw, draw(st.integers(0, 9)))
    gates = _GATES[kind] * hidden
    inputs = ["x", net.weight(directions, gates, size), net.weight(directions, gates, hidden)]
    inputs.append(net.weight(directions, 2 * gates) if draw(st.booleans()) else "")
    shapes: dict[str, tuple[int, ...]] = {"x": (steps, batch, size)}
    if draw(st.booleans()):
        inputs += ["", "h"]
        shapes["h"] = (directions, batch, hidden)
        if kind == "LSTM" and draw(st.booleans()):
            inputs.append("c")
            shapes["c"] = (directions, batch, hidden)
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if draw(st.booleans()):
        attributes["clip"] = 0.5
    if kind == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    if draw(st.booleans()):
        names = {"RNN": ["Relu"], "GRU": ["Sigmoid", "Relu"], "LSTM": ["Sigmoid", "Relu", "Tanh"]}
        attributes["activations"] = names[kind] * directions
    outputs = ["y", "last_h"] + (["last_c"] if kind == "LSTM" else [])
    net.nodes.append(helper.make_node(kind, inputs, outputs, name="layer", **attributes))
    return net.model(shapes, outputs)


@settings(SETTINGS, max_examples=8)
@given(layers(), st.sampled_from(TARGETS))
def test_layers_match(tmp_path: Path, model: onnx.ModelProto, target: str) -> None:
    inputs = feeds(model, 1)
    expected = reference(model, inputs)
    found = run(model, target, tmp_path, inputs)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-5, atol=1e-5)


def test_layers_compile_for_arm(tmp_path: Path) -> None:
    net = Net(None, 1)
    weights = [net.weight(1, 40, 7), net.weight(1, 40, 10)]
    value = net.node("LSTM", "x", *weights, hidden_size=10)
    model = net.model({"x": (3, 2, 7)}, [value])
    compile_model(from_proto(model), parse_target("aarch64"), tmp_path / "model.so")


def test_peepholes_are_each_gate_s_own(tmp_path: Path) -> None:
    """Numbers that differ: ONNX's own case has the same in all three."""
    random = np.random.default_rng(0)
    shapes = {"w": (2, 12, 4), "r": (2, 12, 3), "b": (2, 24), "p": (2, 9)}
    constants = {n: random.uniform(-1, 1, s).astype(np.float32) for n, s in shapes.items()}
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "b", "", "", "", "p"], ["y", "h", "c"],
        hidden_size=3, direction="bidirectional",
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "peepholes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 2, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = random.standard_normal((5, 2, 4)).astype(np.float32)
    compile_model(from_proto(model), parse_target("native"), tmp_path / "lstm.so")
    found = Runtime(tmp_path / "lstm.so").run({"x": x})
    for name, want in reference(model, {"x": x}).items():
        np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=1e-5, err_msg=name)
