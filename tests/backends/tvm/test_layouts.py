"""Tensors in other orders: transpositions, layout changes, blocks of channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from secateur.backends.tvm.emission import work

from .graphs import Net, feeds, quantize, reference
from .test_networks import SETTINGS, TARGETS, run


@st.composite
def transpositions(draw: Any) -> onnx.ModelProto:
    shape = [draw(st.sampled_from((1, 2, 5, 8, 17, 33))) for _ in range(draw(st.integers(2, 4)))]
    net = Net(draw, 0)
    value = net.node("Transpose", "x", perm=draw(st.permutations(range(len(shape)))))
    if draw(st.booleans()):
        value = net.node("Sigmoid", value)
    return net.model({"x": tuple(shape)}, [value])


@settings(SETTINGS, max_examples=30)
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


@settings(SETTINGS, max_examples=25)
@given(branches(), st.sampled_from(TARGETS))
def test_slices_of_channels_match(tmp_path: Path, model: onnx.ModelProto, target: str) -> None:
    inputs = feeds(model, 1)
    found = run(model, target, tmp_path, inputs)
    for name, array in reference(model, inputs).items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("target", TARGETS)
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
