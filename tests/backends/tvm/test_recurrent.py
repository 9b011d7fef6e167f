"""LSTM, GRU and RNN against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

pytest.importorskip("tvm")

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


@settings(SETTINGS, max_examples=12)
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
