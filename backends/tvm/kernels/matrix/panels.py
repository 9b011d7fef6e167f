"""Rows of activations packed for products by one element of a register (AArch64).

A panel holds a tile's rows: for every four steps of the depth, and of every four rows, the elements
of the first step, then those of the next ones. So a step reads a register for four rows, where rows
as they lie take one each: more sums stay in registers. Packing takes less than an instruction for
each element, once for all columns.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from ...tensorir.builder import KernelBuilder, load
from ...tensorir.types import BufferVar, Computed, Expr
from .dot import Dot, bind, copies

WIDTH = 4
"""Rows, and steps, of a square that is packed at once."""

UNROLL = 16
"""Steps that the body of the innermost loop takes."""

_BYTES = 160 * 1024
"""Of the panels that are packed at a time, and then stay cached for all columns."""

_PACKING = 0.5
"""Instructions that packing takes for an element."""

_SPARE = 3
"""Registers that LLVM needs beside those that a tile holds."""


def held(vectors: int, rows: int) -> int:
    """Registers that a tile's reduction takes."""
    return vectors * rows + vectors + rows // WIDTH + _SPARE


def parts(rows: int, height: int) -> list[tuple[int, int, int]]:
    """First row, number of rows and height of panels: one part, and one of lower panels where that
    computes fewer rows again."""
    rest = rows % height
    lower = -(-rest // WIDTH) * WIDTH
    if rest == 0 or lower == height or rows < height:
        return [(0, rows, height)]
    return [(0, rows - rest, height), (rows - lower, lower, lower)]


def at_a_time(panels: int, depth: int, height: int) -> int:
    """Panels that are packed together: few times, of which the last packs little again."""
    most = max(1, min(panels, _BYTES // (4 * depth * height)))
    return min(range(1, most + 1), key=lambda n: -(-panels // n) * (n + 0.5))


def shape(rows: int, depth: int, height: int) -> tuple[int, int, int]:
    """Of the panels that are packed together."""
    _, most, _ = parts(rows, height)[0]
    return at_a_time(-(-most // height), depth, height), depth // WIDTH, WIDTH * height


def instructions(rows: int, depth: int, vectors: int, height: int, groups: int) -> float:
    """Instructions of a step of all tiles of one of so many groups, with its share in packing."""
    total = 0.0
    for _, count, own in parts(rows, height):
        tiles = -(-count // own)
        size = at_a_time(tiles, depth, own)
        loads = (vectors + own / WIDTH) / 2
        total += -(-tiles // size) * size * (vectors * own + loads + own * _PACKING / groups)
    return total


def pack(
    k: KernelBuilder, x: BufferVar, row: Expr, depth: int, rows: int, panels: BufferVar, panel: Expr
) -> None:
    """Rows of a matrix from `row` on."""
    order = [step + row * WIDTH for step in range(WIDTH) for row in range(WIDTH)]
    with k.loop(depth // WIDTH, "kp") as square:
        for first in range(0, rows, WIDTH):
            starts = [(row + first + r) * depth + square * WIDTH for r in range(WIDTH)]
            parts = [load(x, start, lanes=WIDTH) for start in starts]
            packed = tirx.Shuffle(parts, order)
            k.store(panels, packed, panel, square, first * WIDTH, lanes=WIDTH * WIDTH)


def reduce(
    k: KernelBuilder,
    dot: Dot,
    acc: BufferVar,
    size: tuple[int, int],
    panels: BufferVar,
    at: tuple[Expr, Expr],
    weights: Callable[[Expr, int], list[Computed]],
) -> None:
    """Four steps of a tile of so many vectors and rows, by the squares `at` a panel and its place
    there; `weights(step, vector)` are one vector's of one step."""
    vectors, rows = size
    panel, square = at
    for step in range(WIDTH):
        factors = [weights(square * WIDTH + step, v) for v in range(vectors)]
        for r in range(rows):
            if r % WIDTH == 0:
                value = load(panels, panel, square, r * WIDTH + step * WIDTH, lanes=WIDTH)
                read = bind(k, value, "float32", WIDTH)
            factor = [copies(read, WIDTH, r % WIDTH, dot.lanes)]
            for v in range(vectors):
                own = (v * rows + r) * dot.lanes
                total = dot.step(load(acc, own, lanes=dot.lanes), factor, factors[v])
                k.store(acc, total, own, lanes=dot.lanes)
