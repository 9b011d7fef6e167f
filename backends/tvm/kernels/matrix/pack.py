"""Packing a matrix at run time into the order in which multiply-accumulates read it."""

from __future__ import annotations

from tvm import tirx

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
        steps = -(-depth // self.dot.depth)
        done = 0
        if columns == self.lanes and self._vectorises():
            if self.column == 1:
                done = full
                self._rows(x, base, full, result, outer, at)
            elif self.row == 1 and full >= self.lanes:
                done = full
                self._squares(x, base, full, result, outer, at)
        if done < steps:
            with self.k.loop(steps - done, "k") as rest:
                self._single(x, base, depth, columns, rest + done, result, outer, at)

    def pack_open(
        self, x: BufferVar, base: Expr, depth: int, result: BufferVar, outer: Expr, at: int
    ) -> None:
        """A whole vector of columns of a depth that a run fixes, and one step for what is left
        over of it."""
        full = depth // self.dot.depth
        if self.column == 1:
            self._rows(x, base, full, result, outer, at)
            self.pack_part(x, base, depth, self.lanes, as_int(full), result, outer, at)
            return
        with self.k.loop(full + 1, "k") as step:
            self.pack_part(x, base, depth, self.lanes, step, result, outer, at)

    def pack_part(
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
        """One step of a vector of columns of which a run has `columns`, all or fewer or none."""
        k, dot = self.k, self.dot
        nothing = 128 if self.dtype == "uint8" else 0
        size = self.lanes * dot.depth
        own = k.local(size, self.dtype, "own")
        k.store(own, constant(nothing, self.dtype, size), 0, lanes=size)
        for d in range(dot.depth):
            place = step * dot.depth + d
            # bounded by itself, so that proofs needn't follow where the step lies
            row = k.named(tirx.min(place, as_int(depth) - 1), "row")
            with k.when(place < as_int(depth)), k.loop(self.lanes, "c") as c:
                if isinstance(columns, int) and columns >= self.lanes:
                    k.store(
                        own, load(x, base + row * self.row + c * self.column), c * dot.depth + d
                    )
                    continue
                with k.when(c < columns):
                    k.store(
                        own, load(x, base + row * self.row + c * self.column), c * dot.depth + d
                    )
        words = reinterpret(load(own, 0, lanes=size), "int32", self.words)
        self._store_words(words, result, outer, step, at)

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

    def _single(
        self,
        x: BufferVar,
        base: Expr,
        depth: int,
        columns: int,
        step: Expr,
        result: BufferVar,
        outer: Expr,
        at: int,
    ) -> None:
        """One vector, element by element."""
        k, dot = self.k, self.dot
        as_words = dot.depth > 1
        dtype = self.dtype if as_words else dot.weight_dtype
        # What is past the edges counts zero: 128 of bytes whose sign bit is flipped.
        nothing = 128 if as_words and self.dtype == "uint8" else 0
        own = k.local(self.lanes * dot.depth, dtype, "own")
        k.store(
            own, constant(nothing, dtype, self.lanes * dot.depth), 0, lanes=self.lanes * dot.depth
        )
        with k.loop(dot.depth, "d") as d, k.loop(columns, "c") as c:
            inside = step * dot.depth + d < depth
            value = load(x, base + (step * dot.depth + d) * self.row + c * self.column)
            if isinstance(inside, bool):
                k.store(own, cast(value, dtype, 1), c * dot.depth + d)
            else:
                with k.when(inside):
                    k.store(own, cast(value, dtype, 1), c * dot.depth + d)
        if as_words:
            words = reinterpret(load(own, 0, lanes=dot.depth * self.lanes), "int32", self.words)
            self._store_words(words, result, outer, step, at)
        else:
            value = load(own, 0, lanes=self.lanes)
            k.store(result, value, outer, step, at, lanes=self.lanes)
