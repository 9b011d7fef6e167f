"""Convolutions of images one column wide, as exporters write sequences: rows in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from .graphs import Net, feeds, quantize, reference
from .test_networks import TARGETS, built_convolutions, run


def chain(seed: int) -> onnx.ModelProto:
    """Convolutions along the rows, padded, strided, dilated, in groups, and a sum of two."""
    net = Net(None, seed, 2)
    first = net.node("Conv", "x", net.weight(20, 6, 5, 1), pads=[2, 0, 2, 0])
    first = net.node("Relu", first)
    second = net.node("Conv", first, net.weight(20, 20, 3, 1), pads=[4, 0, 4, 0], dilations=[4, 1])
    second = net.node("Relu", net.node("Add", first, second))
    third = net.node("Conv", second, net.weight(32, 10, 4, 1), strides=[2, 1], group=2)
    last = net.node("Conv", third, net.weight(7, 32, 1, 1))
    return net.model({"x": (2, 6, 37, 1)}, [second, last])


def turned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same along the columns of one row."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for node in found.graph.node:
        for attribute in node.attribute:
            values = list(attribute.ints)
            if attribute.name == "pads":
                attribute.ints[:] = [values[1], values[0], values[3], values[2]]
            elif values:
                attribute.ints[:] = values[::-1]
    for tensor in found.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.dims[2], tensor.dims[3] = tensor.dims[3], tensor.dims[2]
    sizes = found.graph.input[0].type.tensor_type.shape.dim
    sizes[2].dim_value, sizes[3].dim_value = sizes[3].dim_value, sizes[2].dim_value
    for value in (*found.graph.output, *found.graph.value_info):
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(found)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int8"])
def test_columns_are_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, target: str
) -> None:
    built = built_convolutions(monkeypatch)
    model = chain(3)
    if dtype != "float32":
        model = quantize(model, dtype)
    inputs = feeds(model)
    found = run(model, target, tmp_path, inputs)
    assert built
    assert all(conv.output.height == 1 for conv in built)
    row = {"x": inputs["x"].swapaxes(2, 3)}
    as_row = run(turned(model), target, tmp_path, row)
    for name, wanted in reference(model, inputs).items():
        np.testing.assert_array_equal(found[name], as_row[name].swapaxes(2, 3))
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)


def test_padding_beside_a_column_keeps_it_an_image(tmp_path: Path) -> None:
    net = Net(None, 5)
    wide = net.node("Conv", "x", net.weight(20, 6, 3, 3), pads=[1, 1, 1, 1])
    narrow = net.node("Conv", wide, net.weight(20, 20, 5, 1), pads=[2, 0, 2, 0])
    both = net.node("Conv", net.node("Add", wide, narrow), net.weight(9, 20, 3, 1))
    model = net.model({"x": (1, 6, 23, 1)}, [both])
    inputs = feeds(model)
    found = run(model, TARGETS[-1], tmp_path, inputs)
    for name, wanted in reference(model, inputs).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)
