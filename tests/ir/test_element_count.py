"""Counts of elements that files claim: bounded, whatever the sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from secateur.ir.element_count import MOST_AXES, MOST_ELEMENTS, element_count
from secateur.ir.errors import ModelError
from secateur.ir.tensor import Tensor
from secateur.ir.text import parse_model

SIZES = st.sampled_from((-(2**63), -2, -1, 0, 1, 2, 3, 2**20, 2**31, 2**32 + 1, 2**62, 2**63 - 1))

IMPOSSIBLE = (
    [-1],
    [-2, -2],
    [0, -1],
    [2**32, 2**32],
    [2**62, 4],
    [2**63 - 1] * 8,
    [0, 2**62],
    [0] + [2**20] * 4,
    [1] * 65,
)


@given(st.lists(SIZES, max_size=8), st.sampled_from((1, 4, 2**31, MOST_ELEMENTS)))
def test_counts_are_products_within_bounds(shape: list[int], most: int) -> None:
    count = element_count(shape, most)
    possible = min(shape, default=0) >= 0 and math.prod(s for s in shape if s) <= most
    assert count == (math.prod(shape) if possible else None)


@given(st.lists(SIZES, max_size=8))
def test_numpy_takes_what_counts(shape: list[int]) -> None:
    if element_count(shape) is None:
        return
    assert np.broadcast_to(np.float32(0), shape).size == math.prod(shape)


def test_long_shapes_cost_nothing() -> None:
    sizes = iter([2**62 - 1, *[1] * 10**6])
    assert element_count(sizes) is None
    assert sum(1 for _ in sizes) > 10**6 - MOST_AXES


@pytest.mark.parametrize("shape", IMPOSSIBLE)
@pytest.mark.parametrize("kind", ["float", "int4", "string", "bool"])
def test_impossible_shapes_are_errors_of_the_model(shape: list[int], kind: str) -> None:
    sizes = ", ".join(map(str, shape))
    element = '"a"' if kind == "string" else "true" if kind == "bool" else "1"
    elements = ", ".join([element] * 4)
    text = f"""model <ir_version = 9, opset = ["" = 18]>
graph g (%x: float[4]) -> (%y: float[4]) {{
  const %w: {kind}[{sizes}] = [{elements}]
  %y = Identity(%x)
}}
"""
    with pytest.raises(ModelError, match="do not fill the shape"):
        parse_model(text)
    proto = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape, float_data=[1] * 4)
    with pytest.raises(ModelError, match=r"shape \["):
        Tensor.from_proto(proto)
