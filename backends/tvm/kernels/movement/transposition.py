"""Transposing squares of vectors in registers, by interleaving halves.

A square of n rows is transposed in log2(n) rounds of two-vector shuffles, which is what
layout changes and packing cost instead of one load and store for each element.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from ...tensorir.builder import KernelBuilder, vector_type
from ...tensorir.types import Computed


def transpose(k: KernelBuilder, rows: Sequence[Computed], dtype: str) -> list[Computed]:
    """The columns of a square: n vectors of n lanes, n a power of two.

    Row i interleaved with row i + n/2, log2(n) times over, is the transposition.
    """
    size = len(rows)
    half = size // 2
    current = list(rows)
    for _ in range(size.bit_length() - 1):
        pairs = [interleave(k, current[i], current[i + half], dtype, size) for i in range(half)]
        current = [part for pair in pairs for part in pair]
    return current


def interleave(
    k: KernelBuilder, a: Computed, b: Computed, dtype: str, lanes: int
) -> tuple[Computed, Computed]:
    """a0 b0 a1 b1 ... as two vectors."""
    half = lanes // 2
    low = [i + side * lanes for i in range(half) for side in (0, 1)]
    high = [i + half for i in low]
    a, b = _named(k, a, dtype, lanes), _named(k, b, dtype, lanes)
    return (
        _named(k, tirx.Shuffle([a, b], low), dtype, lanes),
        _named(k, tirx.Shuffle([a, b], high), dtype, lanes),
    )


def _named(k: KernelBuilder, value: Computed, dtype: str, lanes: int) -> Computed:
    if isinstance(value, tirx.Var):
        return value
    variable = tirx.Var("s", vector_type(dtype, lanes))
    k.statement(tirx.Bind(variable, value))
    return variable
