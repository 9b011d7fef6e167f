"""Constant operands that a definition indexes by: what is out of range is refused."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.compile import one_sample
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.text import parse_model

TARGET = parse_target("x86-64-v3")


def rotary(positions: list[int]) -> str:
    """Two tokens of four channels, by tables of five positions."""
    return f"""model <ir_version = 11, opset = ["" = 23]>
graph g (%x: float[1, 1, 2, 4], %c: float[5, 2], %s: float[5, 2]) -> (%y: float[1, 1, 2, 4]) {{
  const %p: int64[1, 2] = [{positions}]
  %y = RotaryEmbedding(%x, %c, %s, %p)
}}"""


@pytest.mark.parametrize("positions", [[0, 4], [4, 0], [2, 2]])
def test_the_first_and_the_last_are_within(positions: list[int]) -> None:
    assert lower(one_sample(parse_model(rotary(positions)))[0], TARGET).operations


@pytest.mark.parametrize("positions", [[-1, 0], [0, 5], [5, -1], [2**62, 0]])
def test_others_are_not(positions: list[int]) -> None:
    with pytest.raises(SecateurError, match=r"y.*\(RotaryEmbedding\): 'p' is out of range"):
        lower(one_sample(parse_model(rotary(positions)))[0], TARGET)
