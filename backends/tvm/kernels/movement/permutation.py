"""Elementwise programs that read one row-major tensor in another order of axes.

Squares of elements are transposed in registers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...functions.program_code import ProgramCode
from ...targets import Target
from ...tensorir.builder import KernelBuilder, load, smaller
from ...tensorir.types import BufferVar, Computed, Expr
from .sources import Elementwise
from .transposition import transpose

SMALLEST = 4
"""Elements on a side below which squares don't pay."""


def fits(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether another axis than the last has neighbouring elements, both long enough."""
    axis = _axis(sizes, strides)
    return axis is not None and strides[-1] not in (0, 1) and sizes[-1] >= SMALLEST


def _axis(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    found = [a for a, s in enumerate(strides[:-1]) if s == 1 and sizes[a] >= SMALLEST]
    return found[0] if found else None


def build(
    k: KernelBuilder,
    kernel: Elementwise,
    target: Target,
    buffer: BufferVar,
    result: BufferVar,
    sizes: Sequence[int],
    strides: Sequence[int],
    *,
    parallel: bool,
) -> None:
    """The body of a kernel; `sizes` and `strides` are collapsed."""
    axis = _axis(sizes, strides)
    assert axis is not None
    source, last = kernel.sources[0], len(sizes) - 1
    bytes_ = source.dtype in ("uint8", "int8")
    limit = min(16 if bytes_ else max(target.lanes, SMALLEST), sizes[axis], sizes[last])
    side = 1 << (limit.bit_length() - 1)
    outputs = [1] * len(sizes)
    for a in reversed(range(last)):
        outputs[a] = outputs[a + 1] * sizes[a + 1]
    others = [a for a in range(last) if a != axis]
    rows, columns = (-(-sizes[a] // side) for a in (last, axis))
    # Squares of a row of the input follow each other, so that its cache lines are used up.
    extents = (math.prod(sizes[a] for a in others), 1, rows, columns)
    with k.nest(extents, parallel=parallel) as (rest, _, i, j):
        at = {last: _start(i, side, sizes[last]), axis: _start(j, side, sizes[axis])}
        for a in reversed(others):
            at[a] = rest % sizes[a]
            rest = rest // sizes[a]
        base: Expr = source.offset
        target_at: Expr = 0
        for a in range(len(sizes)):
            base = base + at[a] * strides[a]
            target_at = target_at + at[a] * outputs[a]
        vectors = [load(buffer, base + n * strides[last], lanes=side) for n in range(side)]
        code = ProgramCode(k, target, side)
        square = [[row] for row in transpose(k, vectors, source.dtype)]

        def write(n: Expr, value: Computed) -> None:
            k.store(result, value, target_at + n * outputs[axis], lanes=side)

        code.evaluate_each(kernel.program, square, write)


def _start(index: Expr, side: int, size: int) -> Expr:
    """First element of a square, moved back where it would pass the edge."""
    if size % side == 0:
        return index * side
    return smaller(index * side, size - side)
