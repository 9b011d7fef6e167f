"""Packing a matrix at run time into the order in which multiply-accumulates read it."""

from __future__ import annotations

import contextlib

from tvm import tirx

from ...plan.sizes import is_open
from ...tensorir.builder import (
    KernelBuilder,
    as_int,
    cast,
    constant,
    join,
    load,
    reinterpret,
    splat,
)
from ...tensorir.types import BufferVar, Computed, Expr
from ..movement.transposition import transpose
from .dot import SIGN_BITS, Dot


def steps_of(depth: int, dot: Dot) -> int:
    """Steps of a depth, the last of which may have fewer elements; of an open one always one more
    than whole ones, so that their number is one expression."""
    more = is_open(depth) and dot.depth > 1
    return depth // dot.depth + 1 if more else -(-depth // dot.depth)


class Packer:
    """Packs vectors of columns of one matrix with given strides.

    Whole vectors where columns are neighbours, transposed squares where the depth's
    elements are, and single elements for what is left over.
    """

    def __init__(self, k: KernelBuilder, dot: Dot, dtype: str, row: int, column: int) -> None:
        self.k, self.dot, self.dtype, self.row, self.column = k, dot, dtype, row, column
        self.lanes = dot.lanes
        self.words = dot.lanes * max(1, dot.depth // 4)
        """32-bit elements of a step, of bytes and floats."""

    def pack(
        self,
        x: BufferVar,
        base: Expr,
        depth: int,
        columns: int,
        result: BufferVar,
        outer: Expr,
        at: int,
    ) -> None:
        """Columns from `base` on to result[outer, step, at ...], zero past `columns`."""
        full = depth // self.dot.depth
        done = 0
        if columns == self.lanes and self._vectorises():
            if self.column == 1:
                done = full
                self._rows(x, base, full, result, outer, at)
            elif self.row == 1 and not is_open(depth) and full >= self.lanes:
                done = full
                self._squares(x, base, full, result, outer, at)
        with self.k.loop(steps_of(depth, self.dot) - done, "k") as rest:
            step = rest + (as_int(done) if is_open(done) else done)
            self.pack_step(x, base, depth, columns, step, result, outer, at)

    def pack_step(
        self,
        x: BufferVar,
        base: Expr,
        depth: int,
        columns: Expr,
        step: Expr,
        result: BufferVar,
        outer: Expr,
        at: int,
    ) -> None:
        """One vector, element by element. Of columns that only a run knows there may be more than
        a vector has, or less than none."""
        k, dot = self.k, self.dot
        as_words = dot.depth > 1
        dtype = self.dtype if as_words else dot.weight_dtype
        # What is past the edges counts zero: 128 of bytes whose sign bit is flipped.
        nothing = 128 if as_words and self.dtype == "uint8" else 0
        size = self.lanes * dot.depth
        own = k.local(size, dtype, "own")
        k.store(own, constant(nothing, dtype, size), 0, lanes=size)
        known = isinstance(columns, int)
        with k.loop(dot.depth, "d") as d, k.loop(columns if known else self.lanes, "c") as c:
            row = step * dot.depth + d
            inside = [row < as_int(depth) if is_open(depth) else row < depth]
            if not known:
                inside.append(c < columns)
            if is_open(depth):  # bounded by itself, so that proofs needn't follow where it lies
                row = k.named(tirx.min(row, as_int(depth) - 1), "row")
            value = load(x, base + row * self.row + c * self.column)
            with contextlib.ExitStack() as conditions:
                for condition in inside:
                    if not isinstance(condition, bool):
                        conditions.enter_context(k.when(condition))
                k.store(own, cast(value, dtype, 1), c * dot.depth + d)
        if as_words:
            words = reinterpret(load(own, 0, lanes=size), "int32", self.words)
            self._store_words(words, result, outer, step, at)
        else:
            k.store(result, load(own, 0, lanes=self.lanes), outer, step, at, lanes=self.lanes)

    def _vectorises(self) -> bool:
        return self.dtype == "float32" or self.dot.depth > 1

    def _rows(
        self, x: BufferVar, base: Expr, full: int, result: BufferVar, outer: Expr, at: int
    ) -> None:
        """Vectors of columns; of those that are multiplied as words, as many rows interleaved."""
        k, lanes, dot = self.k, self.lanes, self.dot
        with k.loop(full, "k") as step:
            start = base + step * dot.depth * self.row
            if dot.depth == 1:
                k.store(result, load(x, start, lanes=lanes), outer, step, at, lanes=lanes)
                return
            rows = [load(x, start + i * self.row, lanes=lanes) for i in range(dot.depth)]
            order = [i + r * lanes for i in range(lanes) for r in range(dot.depth)]
            words = reinterpret(tirx.Shuffle(rows, order), "int32", self.words)
            self._store_words(words, result, outer, step, at)

    def _squares(
        self, x: BufferVar, base: Expr, full: int, result: BufferVar, outer: Expr, at: int
    ) -> None:
        """Squares of 32-bit elements, or words of smaller ones, transposed; the last overlaps."""
        k, lanes, dot = self.k, self.lanes, self.dot
        if self.words > lanes:
            with k.loop(full, "k") as step:
                starts = (base + i * self.column + step * dot.depth for i in range(lanes))
                parts = [load(x, start, lanes=dot.depth) for start in starts]
                words = reinterpret(join(parts, dot.depth), "int32", self.words)
                self._store_words(words, result, outer, step, at)
            return
        dtype = "float32" if dot.depth == 1 else "int32"
        with k.loop(-(-full // lanes), "k") as block:
            first = block * lanes
            if full % lanes and not isinstance(block, int):
                first = tirx.min(first, tirx.IntImm("int32", full - lanes))
            rows = []
            for i in range(lanes):
                start = base + i * self.column + first * dot.depth
                value = load(x, start, lanes=lanes * dot.depth)
                rows.append(reinterpret(value, "int32", lanes) if dtype == "int32" else value)
            for i, column in enumerate(transpose(k, rows, dtype)):
                if dtype == "int32":
                    self._store_words(column, result, outer, first + i, at)
                else:
                    k.store(result, column, outer, first + i, at, lanes=lanes)

    def _store_words(
        self, words: Computed, result: BufferVar, outer: Expr, step: Expr, at: int
    ) -> None:
        if self.dtype == "uint8":
            words = words ^ splat(tirx.const(SIGN_BITS, "int32"), self.words)
        parts = self.dot.pack_words(self.k, words)
        width = self.dot.weights_per_step // len(parts)
        for i, part in enumerate(parts):
            self.k.store(result, part, outer, step, at + i * width, lanes=width)
