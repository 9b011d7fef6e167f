"""Dynamic quantization with a scale for each row of activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.ir.verify import verify
from secateur.passes.base import Context
from secateur.passes.quantize import Quantize, QuantizeDynamic, RestoreFloat
from secateur.passes.quantize.restore import is_integer
from tests.passes.test_equalization import node, sqnr
from tests.passes.test_quantize_integer import build, random

SHAPES: dict[str, list[Any]] = {
    "rows": ["N", 16],
    "texts": ["N", "S", 16],
    "one row": [16],
    "heads": [2, "N", "S", 16],
}


def quantized(proto: onnx.ModelProto, **options: Any) -> Model:
    model = from_proto(proto)
    QuantizeDynamic(per_token=True, **options).run(model)
    verify(model)
    onnx.checker.check_model(to_proto(model), full_check=True)
    return model


def by_hand(x: Any, weights: Any, limit: int = 127) -> Any:
    """Rows within 127 steps of their own, columns within as many as `limit`."""
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30))
    integers = np.rint(x * (np.float32(127) / largest))
    steps = np.abs(weights).max(0) / limit
    return (integers @ np.rint(weights / steps)) * steps * (largest / np.float32(127))


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_computed_by_hand(name: str, opset: int) -> None:
    """Rows from 1e-3 to 1e3 and one of zeros, each as exact as if it were alone."""
    weights, shape = random(1, 16, 24), SHAPES[name]
    model = quantized(build([node("MatMul", "x w", "y")], {"w": weights}, shape, opset))
    sizes = [{"N": 3, "S": 5}.get(s, s) for s in shape]
    x = random(2, *sizes) * np.float32(10) ** random(3, *sizes[:-1], 1)
    if len(sizes) > 1:
        x[0] = 0
    found = Session(model).run({"x": x})["y"]
    np.testing.assert_allclose(found, by_hand(x, weights), rtol=2e-6, atol=1e-30)


def test_rows_dont_change_each_other() -> None:
    """A row of large numbers leaves others as they are, which one scale for all does not."""
    proto = build([node("MatMul", "x w", "y")], {"w": random(1, 16, 24)}, ["N", 16])
    model = quantized(proto)
    small, x = random(2, 1, 16), np.concatenate([random(2, 1, 16), 1000 * random(3, 1, 16)])
    alone = Session(model).run({"x": small})["y"]
    np.testing.assert_array_equal(Session(model).run({"x": x})["y"][:1], alone)
    whole = from_proto(proto)
    QuantizeDynamic().run(whole)
    assert np.abs(Session(whole).run({"x": x})["y"][:1] - alone).max() > 0.1


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_row(value: float) -> None:
    model = quantized(build([node("MatMul", "x w", "y")], {"w": random(1, 16, 24)}, ["N", 16]))
    x = random(2, 3, 16)
    x[1, 4] = value
    found = Session(model).run({"x": x})["y"]
    others = Session(model).run({"x": x[[0, 2]]})["y"]
    np.testing.assert_array_equal(found[[0, 2]], others)


@pytest.mark.parametrize("options", [{}, {"per_channel": False}, {"reduce_range": True}], ids=str)
def test_products_with_biases_beside_a_convolution(options: Any) -> None:
    """Both Gemms read rows that are rounded once; the convolution has no rows."""
    nodes = [
        node("Conv", "x k", "c"),
        node("Flatten", "c", "f"),
        node("Gemm", "f a b", "p", transB=1, alpha=0.5),
        node("Gemm", "f d b", "q", transB=1, beta=2.0),
        node("Add", "p q", "y"),
    ]
    constants = {
        "k": random(1, 4, 2, 3, 3),
        "a": random(2, 7, 16),
        "b": random(3, 7),
        "d": random(4, 7, 16),
    }
    proto = build(nodes, constants, ["N", 2, 4, 4])
    model = quantized(proto, **options)
    kinds = [n.op_type for n in model.graph.nodes]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("MatMulInteger") == 2
    assert kinds.count("DynamicQuantizeLinear") == kinds.count("ConvInteger") == 1
    x = random(5, 6, 2, 4, 4)
    want, have = (Session(m).run({"x": x})["y"] for m in (from_proto(proto), model))
    assert sqnr(want, have) > 30


def test_the_scheme_by_its_name_and_back() -> None:
    nodes = [
        node("MatMul", "x a", "f"),
        node("Relu", "f", "g"),
        node("Gemm", "g b c", "y"),
    ]
    constants = {"a": random(1, 16, 9), "b": random(2, 9, 5), "c": random(3, 5)}
    proto = build(nodes, constants, ["N", 16])
    model = from_proto(proto)
    result = Quantize(scheme="dynamic-per-token").run(model, Context())
    assert result.statistics["quantized"] == {"Gemm": 1, "MatMul": 1}
    x = random(4, 50, 16)
    want, rounded = (Session(m).run({"x": x})["y"] for m in (from_proto(proto), model))
    found = RestoreFloat().run(model)
    verify(model)
    assert found.statistics["restored"] == {"products": 2}
    assert not any(is_integer(n) for n in model.graph.nodes)
    assert [n.op_type for n in model.graph.nodes] == ["MatMul", "Relu", "MatMul", "Add"]
    assert sqnr(want, Session(model).run({"x": x})["y"]) > sqnr(want, rounded) > 30
