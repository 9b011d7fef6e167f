"""Integer products in plans: weights of every range, with and without instructions for bytes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import ConvolutionOp, MatMulOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.text import parse_model

X = np.array([[7, 0, 255], [128, 3, 1]])
ZERO = 9

RANGES = [
    (dtype, low, high, zero)
    for dtype, lows, highs, zeros in (
        ("int8", (-128, -127, 0), (127, 1), (0, 1, -1, 127, -128)),
        ("uint8", (0, 1), (255, 127, 128), (0, 1, 127, 128, 129, 255)),
    )
    for low, high, zero in itertools.product(lows, highs, zeros)
]


def plan_of(node: str, interface: str, w: Any, dtype: str, zero: Any, target: str) -> Any:
    shape = list(w.shape)
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 17]>
graph g {interface} {{
  const %w: {dtype}{shape} = {w.tolist()}
  const %a: uint8[] = {ZERO}
  const %z: {dtype}[{len(zero)}] = {list(zero)}
  {node}
}}""")
    return lower(model, parse_target(target)).operations


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "aarch64-cortex-a76"])
@pytest.mark.parametrize(("dtype", "low", "high", "zero"), RANGES)
def test_products_are_those_of_the_definition(
    target: str, dtype: str, low: int, high: int, zero: int
) -> None:
    """Zero points of one column each; weights beyond signed bytes nowhere that they don't fit."""
    w = np.array([[low, high], [high, low], [low, low]])
    info = np.iinfo(dtype)
    zeros = np.array([zero, info.min if zero == info.max else zero + 1])
    interface = "(%x: uint8[2, 3]) -> (%y: int32[2, 2])"
    (op,) = plan_of(
        "%y = MatMulInteger(%x, %w, %a, %z)", interface, w, dtype, zeros.tolist(), target
    )
    assert isinstance(op, MatMulOp)
    own = 0 if op.weight_zeros is None else op.weight_zeros.astype(np.int64)
    found = X @ op.weights.astype(np.int64) + op.bias - own * X.sum(1, keepdims=True)
    np.testing.assert_array_equal(found, (X - ZERO) @ (w - zeros))
    effective = w - zeros
    fits = effective.min() >= -128 and effective.max() <= 127
    if parse_target(target).multiplies_bytes:
        assert op.weights.min() >= -128
        assert op.weights.max() <= 127
        assert (op.weight_zeros is None) == fits
    else:
        assert op.weight_zeros is None


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("dtype", "zero"), [("int8", -3), ("uint8", 128), ("uint8", 0)])
def test_convolutions_are_those_of_the_definition(
    dtype: str, zero: int, several: bool, groups: int
) -> None:
    random = np.random.default_rng(0)
    info = np.iinfo(dtype)
    w = random.integers(info.min, info.max + 1, (6, 3 // groups, 2, 2))
    zeros = np.arange(zero, zero + 6) if several else np.array([zero])
    interface = "(%x: uint8[1, 3, 5, 5]) -> (%y: int32[1, 6, 4, 4])"
    node = f"%y = ConvInteger(%x, %w, %a, %z) {{group = {groups}}}"
    (op,) = plan_of(node, interface, w, dtype, zeros.tolist(), "x86-64-v3")
    assert isinstance(op, ConvolutionOp)
    assert (op.fill, op.groups) == (ZERO, groups)
    expected = w - zeros[:, None, None, None]
    np.testing.assert_array_equal(op.weights, expected)
    np.testing.assert_array_equal(op.bias, -ZERO * expected.reshape(6, -1).sum(1))
