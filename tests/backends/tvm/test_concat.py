"""Concatenations and slices that share buffers with their operands."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.library import Library
from secateur.backends.tvm.emission import work

from .graphs import Net, feeds, quantize, reference
from .test_networks import SETTINGS, TARGETS, run

KINDS = ("conv", "conv", "depthwise", "max", "average", "Sigmoid", "Add", "slice")
JOINS = ("concat", "concat", *KINDS)


@st.composite
def joined(draw: Any) -> onnx.ModelProto:
    """Operators of one image size whose results are joined again and again, some returned."""
    batch = draw(st.sampled_from((1, 1, 1, 2)))
    sizes = [draw(st.integers(3, 9)) for _ in range(draw(st.sampled_from((1, 2, 2))))]
    net = Net(draw, draw(st.integers(0, 99)), batch)
    channels = draw(st.sampled_from((3, 16, 20)))
    values: list[tuple[str, int]] = [("x", channels)]
    values.append(_convolution(draw, net, values[0], len(sizes)))
    for _ in range(draw(st.integers(2, 7))):
        kind = draw(st.sampled_from(JOINS))
        value, count = values[draw(st.integers(-3, -1)) % len(values)]
        if kind == "concat":
            parts = [draw(st.sampled_from(values)) for _ in range(draw(st.integers(2, 4)))]
            if sum(c for _, c in parts) <= 160:
                name = net.node("Concat", *(v for v, _ in parts), axis=1)
                values.append((name, sum(c for _, c in parts)))
        elif kind in ("conv", "depthwise"):
            group = count if kind == "depthwise" else 1
            values.append(_convolution(draw, net, (value, count), len(sizes), group))
        elif kind in ("max", "average"):
            op_type = "MaxPool" if kind == "max" else "AveragePool"
            window = {"kernel_shape": [3] * len(sizes), "pads": [1] * 2 * len(sizes)}
            values.append((net.node(op_type, value, **window), count))
        elif kind == "slice":
            values.append(_slice(draw, net, value, count))
        elif kind == "Add":
            equal = [v for v, c in values if c == count]
            values.append((net.node("Add", value, draw(st.sampled_from(equal))), count))
        else:
            values.append((net.node(kind, value), count))
    made = [v for v, _ in values[1:]]
    outputs = dict.fromkeys([made[-1], *(v for v in made if draw(st.integers(0, 4)) == 0)])
    return net.model({"x": (batch, channels, *sizes)}, list(outputs))


def _convolution(
    draw: Any, net: Net, value: tuple[str, int], rank: int, group: int = 1
) -> tuple[str, int]:
    name, channels = value
    kernel = draw(st.sampled_from((1, 3)))
    out = channels if group > 1 else draw(st.sampled_from((5, 16, 16, 32, 32, 24)))
    weights = net.weight(out, channels // group, *[kernel] * rank)
    pads = [kernel // 2] * 2 * rank
    return net.node("Conv", name, weights, group=group, pads=pads), out


def _slice(draw: Any, net: Net, value: str, channels: int) -> tuple[str, int]:
    start = draw(st.sampled_from([s for s in (0, 8, 16, 32, 3) if s < channels]))
    ends = [e for e in (16, 32, 48, channels, start + 5) if start < e <= channels]
    end = draw(st.sampled_from(ends))
    names = []
    for bound in (start, end, 1):
        names.append(f"i{len(net.constants)}")
        net.constants[names[-1]] = np.asarray([bound], np.int64)
    return net.node("Slice", value, *names), end - start


@settings(SETTINGS, max_examples=8)
@given(joined(), st.sampled_from(TARGETS))
def test_joined_networks_match(tmp_path: Path, model: onnx.ModelProto, target: str) -> None:
    inputs = feeds(model, 1)
    found = run(model, target, tmp_path, inputs)
    for name, array in reference(model, inputs).items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=2e-5 * scale)


@settings(SETTINGS, max_examples=7)
@given(joined(), st.sampled_from(TARGETS))
def test_quantized_joined_networks_are_bit_identical(
    tmp_path: Path, model: onnx.ModelProto, target: str
) -> None:
    model = quantize(model)
    inputs = feeds(model, 1)
    found = run(model, target, tmp_path, inputs)
    for name, array in reference(model, inputs).items():
        np.testing.assert_array_equal(found[name], array)


def dense() -> onnx.ModelProto:
    """Every layer reads all before it, by one concatenation of them all."""
    net = Net(None, 3)
    values = [net.node("Conv", "x", net.weight(32, 3, 3, 3), pads=[1, 1, 1, 1])]
    for depth in range(1, 5):
        value = net.node("Concat", *values, axis=1) if depth > 1 else values[0]
        value = net.node("Conv", value, net.weight(64, 32 * depth, 1, 1))
        weights = net.weight(32, 64, 3, 3)
        values.append(net.node("Conv", value, weights, pads=[1, 1, 1, 1]))
    return net.model({"x": (1, 3, 20, 20)}, [net.node("Concat", *values, axis=1)])


def split() -> onnx.ModelProto:
    """Halves of a convolution's channels: one convolved further, then all three joined."""
    net = Net(None, 4)
    whole = net.node("Conv", "x", net.weight(64, 3, 3, 3), pads=[1, 1, 1, 1])
    for name, bound in (("zero", 0), ("half", 32), ("end", 64), ("axis", 1)):
        net.constants[name] = np.asarray([bound], np.int64)
    first = net.node("Slice", whole, "zero", "half", "axis")
    second = net.node("Slice", whole, "half", "end", "axis")
    third = net.node("Conv", second, net.weight(32, 32, 3, 3), pads=[1, 1, 1, 1])
    value = net.node("Concat", first, second, third, axis=1)
    return net.model({"x": (1, 3, 20, 20)}, [net.node("Conv", value, net.weight(16, 96, 1, 1))])


def padded() -> onnx.ModelProto:
    """Fills differ: the border of the maximum's input is not that of the convolution's."""
    net = Net(None, 5)
    first = net.node("Conv", "x", net.weight(32, 3, 1, 1))
    second = net.node("Conv", first, net.weight(32, 32, 3, 3), pads=[1, 1, 1, 1])
    value = net.node("Concat", first, second, axis=1)
    window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    return net.model({"x": (1, 3, 20, 20)}, [net.node("MaxPool", value, **window)])


@pytest.mark.parametrize("target", TARGETS[::3])
@pytest.mark.parametrize(("build", "copies"), [(dense, 0), (split, 0), (padded, 1)])
def test_only_what_must_be_copied_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Any, copies: int, target: str
) -> None:
    """Besides the copies into rows and out of them, at the model's borders."""
    monkeypatch.setattr(work, "PARALLEL_OPERATIONS", 0)
    model = build()
    inputs = feeds(model, 1)
    found = run(model, target, tmp_path, inputs, threads=2)
    for name, array in reference(model, inputs).items():
        scale = float(np.abs(array).max())
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=2e-5 * scale)
    calls = Library(tmp_path / "model.so", 1).metadata["calls"]
    moving = [c for c in calls if c["kernel"].startswith(("elementwise", "concat"))]
    assert len(moving) == 2 + copies


@pytest.mark.parametrize("named", [True, False])
def test_parts_that_nobody_reads(tmp_path: Path, named: bool) -> None:
    """Any of three, with a name or without."""
    nodes, wanted = [], []
    for used in itertools.product((False, True), repeat=3):
        name = "".join(map(str, map(int, used)))
        parts = [f"p{name}{i}" if u or named else "" for i, u in enumerate(used)]
        nodes.append(helper.make_node("Split", ["x", "sizes"], parts, axis=1))
        for part, is_used in zip(parts, used, strict=True):
            if is_used:
                nodes.append(helper.make_node("Relu", [part], [f"y{part}"]))
                wanted.append(f"y{part}")
    graph = helper.make_graph(
        [node for node in nodes if any(node.output)],
        "parts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 9, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted],
        [numpy_helper.from_array(np.int64([2, 3, 4]), "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.random.default_rng(0).standard_normal((2, 9, 4)).astype(np.float32)
    found = run(model, TARGETS[-1], tmp_path, {"x": x})
    for name, array in reference(model, {"x": x}).items():
        np.testing.assert_array_equal(found[name], array, name)
