"""Tensors in other orders: transpositions, layout changes, blocks of channels."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from secateur.backends.tvm.emission import work

from ..graphs import Net, feeds, quantize, reference
from ..joined import Part, compile_parts
from ..test_networks import SETTINGS, TARGETS, run


@st.composite
def transpositions(draw: Any) -> onnx.ModelProto:
    shape = [draw(st.sampled_from((1, 2, 5, 8, 17, 33))) for _ in range(draw(st.integers(2, 4)))]
    net = Net(draw, 0)
    value = net.node("Transpose", "x", perm=draw(st.permutations(range(len(shape)))))
    if draw(st.booleans()):
        value = net.node("Sigmoid", value)
    return net.model({"x": tuple(shape)}, [value])


@settings(SETTINGS, max_examples=15)
@given(transpositions(), st.sampled_from(TARGETS), st.booleans())
def test_transpositions_match(
    tmp_path: Path, model: onnx.ModelProto, target: str, quantized: bool
) -> None:
    model = quantize(model) if quantized else model
    inputs = feeds(model, 1)
    found = run(model, target, tmp_path, inputs)
    for name, array in reference(model, inputs).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6)


@st.composite
def branches(draw: Any) -> onnx.ModelProto:
    """A convolution whose channels are sliced, some used again, joined, and left as rows."""
    channels = draw(st.sampled_from((17, 32, 48, 40)))
    sizes = [draw(st.integers(1, 9)), draw(st.integers(1, 18))]
    net = Net(draw, draw(st.integers(0, 9)))
    kernel = draw(st.sampled_from((1, 3)))
    pads = [kernel // 2] * 4
    whole = net.node("Conv", "x", net.weight(channels, 5, kernel, kernel), pads=pads)
    net.constants["axis"] = np.asarray([1], np.int64)
    parts = []
    for i in range(2):
        start = draw(st.sampled_from((0, 8, 16, 3)))
        end = draw(st.integers(start + 1, channels))
        net.constants[f"start{i}"] = np.asarray([start], np.int64)
        net.constants[f"end{i}"] = np.asarray([end], np.int64)
        part = net.node("Slice", whole, f"start{i}", f"end{i}", "axis")
        count = end - start
        if draw(st.booleans()):
            weights = net.weight(count, count, kernel, kernel)
            part = net.node("Conv", part, weights, pads=pads)
        elif draw(st.booleans()):
            part = net.node("Mul", part, net.node("Sigmoid", part))
        parts.append(part)
    value = net.node("Concat", whole, *parts, axis=1)
    return net.model({"x": (draw(st.integers(1, 2)), 5, *sizes)}, [value, parts[1]])


@settings(SETTINGS, max_examples=8)
@given(branches(), st.sampled_from(TARGETS))
def test_slices_of_channels_match(tmp_path: Path, model: onnx.ModelProto, target: str) -> None:
    inputs = feeds(model, 1)
    found = run(model, target, tmp_path, inputs)
    for name, array in reference(model, inputs).items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("target", TARGETS[::3])
@pytest.mark.parametrize("size", [(1, 33), (7, 7), (9, 20)])
def test_layouts_change_in_parallel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, size: tuple[int, int]
) -> None:
    """In and out of blocks of bytes and floats, beside a border, with ragged channels."""
    monkeypatch.setattr(work, "PARALLEL_OPERATIONS", 0)
    net = Net(None, 1)
    value = net.node("Relu", net.node("Conv", "x", net.weight(21, 21, 1, 1)))
    padded = net.node("Conv", value, net.weight(5, 21, 3, 3), pads=[1, 1, 1, 1])
    model = net.model({"x": (2, 21, *size)}, [value, padded])
    for source, limit in ((model, 1e-5), (quantize(model), 0.0)):
        inputs = feeds(source)
        found = run(source, target, tmp_path, inputs, 2)
        for name, array in reference(source, inputs).items():
            np.testing.assert_allclose(found[name], array, rtol=limit, atol=limit)


@pytest.mark.parametrize("target", TARGETS[::3])
def test_images_of_one_channel_scale_all_others(tmp_path: Path, target: str) -> None:
    """Both in blocks, of which those of the one channel hold nothing else; and one row or pixel."""
    net = Net(None, 1)
    whole = net.node("Conv", "x", net.weight(20, 5, 3, 3))
    one = net.node("Conv", "x", net.weight(1, 5, 3, 3))
    ends = [net.node("Mul", whole, net.node("Sigmoid", one))]
    for axis in (2, 3):
        ends.append(net.node("Add", whole, net.node("ReduceMax", whole, axes=[axis])))
    ends.append(net.node("Mul", whole, net.node("GlobalAveragePool", whole)))
    model = net.model({"x": (2, 5, 7, 9)}, ends)
    inputs = feeds(model)
    found = run(model, target, tmp_path, inputs)
    for name, array in reference(model, inputs).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4)


SMALL_IMAGES = {
    "MaxPool<kernel_shape = [2, 3], pads = [1, 0, 0, 0]>(v)": (1, 3, 2),
    "AveragePool<kernel_shape = [2, 3], pads = [1, 0, 0, 0]>(v)": (1, 3, 2),
    "GlobalAveragePool(v)": (1, 1, 1),
    "GlobalMaxPool(v)": (1, 1, 1),
    "Conv<group = GROUPS, pads = [1, 0, 0, 0]>(v, w)": (1, 3, 2),
    'Resize<mode = "linear">(v, , s)': (1, 6, 8),
    "Concat<axis = 1>(v, v)": (2, 3, 4),
    "Sigmoid(v)": (1, 3, 4),
}
"""Operators on [2, channels, 3, 4]: how many times as many channels, height and width follow."""


def small_image(operator: str, channels: int, kinds: tuple[str, str]) -> Part:
    """A node between floats or quantized values of few channels."""
    (x, y), (times, height, width) = kinds, SMALL_IMAGES[operator]
    random = np.random.default_rng(channels)
    image = random.uniform(-1, 1, (2, channels, 3, 4)).astype(np.float32)
    weights = ", ".join(f"{w:.3f}" for w in random.uniform(-1, 1, 6 * channels))
    name = f"{operator} {channels} {kinds}"
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    small ({x}[2, {channels}, 3, 4] x) => ({y}[2, {times * channels}, {height}, {width}] y)
        <float q = {{0.05}}, int8 a = {{7}}, {y if y != "float" else "int8"} b = {{9}},
         float[4] s = {{1, 1, 2, 2}}, float[{channels}, 1, 2, 3] w = {{{weights}}}> {{
        v = {"Identity(x)" if x == "float" else "DequantizeLinear(x, q, a)"}
        f = {operator.replace("GROUPS", str(channels))}
        y = {"Identity(f)" if y == "float" else "QuantizeLinear(f, q, b)"}
    }}"""
    feed = image if x == "float" else (image * 20).astype(np.int8)
    return Part(name, onnx.parser.parse_model(text), {"x": feed})


def test_blocks_of_few_channels_differ_by_type(tmp_path: Path) -> None:
    """Those of bytes hold at least four channels, those of floats as few as there are."""
    types = [("float", "uint8"), ("int8", "int8")]
    refused: dict[str, str] = {}
    parts = [small_image(*c) for c in itertools.product(SMALL_IMAGES, (1, 3), types)]
    for joined in compile_parts(parts, tmp_path, len(parts), refused):
        found = joined.run({prefix: part.feeds for prefix, part in joined.parts.items()})
        for prefix, part in joined.parts.items():
            expected = part.reference(part.feeds)
            assert expected is not None, part.name
            have, want = (np.asarray(r["y"], np.float32) for r in (found[prefix], expected))
            step = 0 if expected["y"].dtype == np.float32 else 1
            np.testing.assert_allclose(have, want, 1e-5, 1e-5 + step, err_msg=part.name)
    assert not refused
