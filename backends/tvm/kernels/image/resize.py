"""Resizing rows and columns of blocked activations by tables of taps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from tvm import tirx

from ...functions.program_code import ProgramCode
from ...plan.blocked import Blocked
from ...plan.programs import Program
from ...targets import Target
from ...tensorir.builder import SHARES, KernelBuilder, constant, load, splat
from ...tensorir.types import Computed, Expr, PrimFunc
from ..epilogue import Epilogue, Operand, declare, fill_border

UNROLLED = 8
"""Up to so many taps are spelled out."""


@dataclasses.dataclass(frozen=True)
class Resize:
    """One kernel; `taps` are the numbers of rows and of columns that a pixel takes.

    `order` is how the products with weights are summed:

    - "none": there are no weights, and one tap
    - "blended": rows are summed into a buffer, then its columns
    - "nested": the columns of each row, then these sums
    - "corners": all taps in turn, each with the product of its two weights

    The last two round as ONNX Runtime does for cubic and linear interpolation, for
    floats to be quantized. `element` is what is done to each input element first. With
    `repeats` each input column comes that often in a row, and with `groups` so many output
    columns lie between the first input column and the second, between all others, and after
    the last; then there is no table of columns.
    """

    input: Blocked
    input_dtype: str
    output: Blocked
    taps: tuple[int, int]
    order: str
    repeats: int
    groups: tuple[int, int, int] | None
    element: Program
    program: Program
    operands: tuple[Operand, ...]

    @property
    def moves(self) -> bool:
        """Whether elements are only copied."""
        return self.order == "none" and self.element.is_identity and self.program.is_identity

    @property
    def has_columns(self) -> bool:
        """Whether there is a table of columns."""
        return not self.repeats and self.groups is None

    def run(self, *, parallel: bool) -> int:
        """Rows that are made one after the other: a divisor of the output's height."""
        height = self.output.height
        if not parallel or self.output.batch * self.output.blocks >= SHARES:
            return height
        sizes = [d for d in range(1, height + 1) if height % d == 0 and height // d >= SHARES]
        return max(sizes, default=1)


def build(kernel: Resize, target: Target, parallel: bool = False) -> PrimFunc:
    """The kernel.

    Arguments: input, positions of rows [out, taps], positions of columns [out, taps] where
    there is a table of them, weights of rows [out, taps] and of columns [taps, out] where
    there are any, operands, output. Positions of rows are those of their first pixel.
    """
    return _Builder(kernel, target).build(parallel=parallel)


class _Builder:
    """One kernel being built."""

    def __init__(self, kernel: Resize, target: Target) -> None:
        self.kernel, self.target = kernel, target
        self.k = k = KernelBuilder()
        x, y, (ty, tx) = kernel.input, kernel.output, kernel.taps
        widest = y.block if kernel.moves else target.lanes
        self.lanes = min(widest, x.block, y.block)
        self.parts = y.block // self.lanes
        self.x = k.parameter("X", x.shape, kernel.input_dtype)
        self.rows = k.parameter("ROWS", (y.height * ty,), "int32")
        self.columns = None
        if kernel.has_columns:
            self.columns = k.parameter("COLUMNS", (y.width * tx,), "int32")
        self.row_weights = self.column_weights = None
        if kernel.order != "none":
            self.row_weights = k.parameter("ROW_WEIGHTS", (y.height * ty,), "float32")
            self.column_weights = k.parameter("COLUMN_WEIGHTS", (tx * y.width,), "float32")
        buffers = declare(k, kernel.operands, y, y.padded_channels)
        self.y = k.parameter("Y", y.shape, kernel.program.dtype)
        fill_border(k, self.y, y, kernel.program.dtype)
        self.epilogue = Epilogue(
            k, target, kernel.program, kernel.operands, buffers, y, self.y, self.lanes
        )

    def build(self, *, parallel: bool) -> PrimFunc:
        k, y = self.k, self.kernel.output
        run = self.kernel.run(parallel=parallel)
        extents = (y.batch, y.blocks, y.height // run, 1)
        with k.nest(extents, parallel=parallel) as (n, block, piece, _):
            row = _Row(self, n, block)
            with k.loop(run, "r") as r:
                row.make(piece * run + r)
        return k.finish()


class _Row:
    """One block of channels of an image, row by row."""

    def __init__(self, builder: _Builder, n: Expr, block: Expr) -> None:
        self.b, self.k, self.kernel = builder, builder.k, builder.kernel
        self.lanes, self.parts = builder.lanes, builder.parts
        self.n, self.block = n, block
        self.at = n * self.kernel.input.blocks + block
        self.oh: Expr = 0
        kernel, (ty, tx) = self.kernel, self.kernel.taps
        self.size = kernel.input.width * kernel.input.block
        if kernel.order != "none" and kernel.groups is None:
            kept = 1 if kernel.order == "blended" else ty
            self.rows = self.k.local(kept * self.size, "float32", "rows")
        if kernel.order == "corners":
            self.corners = self.k.local(ty * tx * kernel.output.width, "float32", "corners")

    def make(self, oh: Expr) -> None:
        """One row of output pixels."""
        kernel = self.kernel
        self.oh = oh
        if kernel.repeats and kernel.moves:
            self.copy()
        elif kernel.repeats:
            self.repeat()
        elif kernel.groups is not None:
            self.stream()
        elif kernel.order == "none":
            first = load(self.b.rows, oh)
            self.pixels(lambda w, lane: self.load(first + self.column(w, 0), lane, self.lanes))
        else:
            self.fill_rows()
            if kernel.order == "corners":
                self.fill_corners()
            self.pixels(self.weighted)

    def pixels(self, value: Callable[[Expr, Expr], Computed]) -> None:
        """Finish a row of pixels, as many at a time as the epilogue takes."""
        width = self.kernel.output.width
        together = 1 if self.kernel.moves else min(self.b.epilogue.width, width)

        def finish(w: Expr, count: int) -> None:
            with self.k.loop(self.parts, "part") as part:
                lane = part * self.lanes
                self.finish([value(w + i, lane) for i in range(count)], w, lane)

        with self.k.loop(width // together, "w") as w:
            finish(w * together, together)
        if width % together:
            finish(width - width % together, width % together)

    def finish(self, values: list[Computed], w: Expr, lane: Expr) -> None:
        """Store neighbouring pixels."""
        channel = self.block * self.kernel.output.block + lane
        self.b.epilogue.finish(values, self.n, channel, self.oh, w)

    def repeat(self) -> None:
        """A row whose every input pixel is several output pixels."""
        first, factor = load(self.b.rows, self.oh), self.kernel.repeats
        with (
            self.k.loop(self.kernel.input.width, "w") as w,
            self.k.loop(self.parts, "part") as part,
        ):
            lane = part * self.lanes
            value = self.load(first + w, lane, self.lanes)
            self.finish([value] * factor, w * factor, lane)

    def copy(self) -> None:
        """As `repeat`, of bytes that stay as they are: a vector is loaded, or stored, at a time."""
        k, kernel, y = self.k, self.kernel, self.kernel.output
        width, factor, block = kernel.input.width, kernel.repeats, y.block
        first, at = load(self.b.rows, self.oh), self.n * y.blocks + self.block
        room = max(1, self.b.target.lanes * 4 // (block * np.dtype(kernel.input_dtype).itemsize))
        count = min(width, max(1, room // factor))
        copies = max(d for d in range(1, factor + 1) if factor % d == 0 and d <= max(1, room))

        def pixels(w: Expr) -> None:
            value = load(self.b.x, self.at, first + w, 0, lanes=count * block)
            value = ProgramCode(k, self.b.target, count * block).bind(value, kernel.input_dtype)
            order = [
                p * block + c for p in range(count) for _ in range(copies) for c in range(block)
            ]
            value = tirx.Shuffle([value] * copies, order) if len(order) > 1 else value
            for i in range(0, factor, copies):
                position = y.position(self.oh, w * factor + i)
                k.store(self.b.y, value, at, position, 0, lanes=len(order))

        with k.loop(width // count, "w") as w:
            pixels(w * count)
        if width % count:  # the last vector overlaps the one before
            pixels(width - count)

    def load(self, position: Expr, lane: Expr, lanes: int) -> Computed:
        """A vector of the input, as floats or as it is."""
        value = load(self.b.x, self.at, position, lane, lanes=lanes)
        return ProgramCode(self.k, self.b.target, lanes).evaluate(self.kernel.element, [value])

    def column(self, w: Expr, tap: Expr) -> Computed:
        """The input column of a tap of output column `w`."""
        return load(self.b.columns, w * self.kernel.taps[1] + tap)

    def fill_rows(self) -> None:
        """The input rows of an output row: their weighted sum, or each of them."""
        kernel, ty = self.kernel, self.kernel.taps[0]

        def fill(place: Expr, lanes: int) -> None:
            if kernel.order == "blended":
                self.k.store(self.rows, self.blend(place, lanes), place, lanes=lanes)
                return
            with self.k.loop(ty, "t") as t:
                value = self.load(load(self.b.rows, self.oh * ty + t), place, lanes)
                self.k.store(self.rows, value, t * self.size + place, lanes=lanes)

        self.vectors(self.size, fill)

    def vectors(self, size: int, body: Callable[[Expr, int], None]) -> None:
        """A body for each vector of a row; the last vector may overlap the one before."""
        lanes = min(self.b.target.lanes, 1 << (size.bit_length() - 1))
        with self.k.loop(size // lanes, "v") as v:
            body(v * lanes, lanes)
        if size % lanes:
            body(size - lanes, lanes)

    def blend(self, place: Expr, lanes: int) -> Computed:
        """The weighted sum of the input rows at an element of them."""
        ty = self.kernel.taps[0]

        def term(t: Expr) -> Computed:
            value = self.load(load(self.b.rows, self.oh * ty + t), place, lanes)
            return value * splat(load(self.b.row_weights, self.oh * ty + t), lanes)

        return self.total(ty, term, lanes, fenced=False)

    def stream(self) -> None:
        """A row whose pixels lie between two input columns, which stay in registers."""
        k, kernel, lanes = self.k, self.kernel, self.lanes
        size, width = kernel.input.block, kernel.output.width
        assert kernel.groups is not None
        first, each, last = kernel.groups
        with k.loop(self.parts, "part") as part:
            lane = part * lanes
            kept = k.local(lanes, "float32", "left")

            def between(left: Computed, right: Computed, w: Expr, count: int) -> None:
                values = []
                for i in range(count):
                    a, b = (load(self.b.column_weights, tap * width + w + i) for tap in (0, 1))
                    values.append(left * splat(a, lanes) + right * splat(b, lanes))
                self.finish(values, w, lane)

            left, right = (self.blend(w * size + lane, lanes) for w in (0, 1))
            between(left, right, 0, first)
            k.store(kept, right, 0, lanes=lanes)
            with k.loop(kernel.input.width - 2, "w") as w:
                left = load(kept, 0, lanes=lanes)
                right = self.blend((w + 2) * size + lane, lanes)
                between(left, right, first + w * each, each)
                k.store(kept, right, 0, lanes=lanes)
            left = load(kept, 0, lanes=lanes)
            between(left, left, width - last, last)

    def fill_corners(self) -> None:
        """The products of the weights of rows and columns, for one output row."""
        (ty, tx), width = self.kernel.taps, self.kernel.output.width
        for t in range(ty):
            for tap in range(tx):

                def fill(w: Expr, lanes: int, t: int = t, tap: int = tap) -> None:
                    column = load(self.b.column_weights, tap * width + w, lanes=lanes)
                    row = splat(load(self.b.row_weights, self.oh * ty + t), lanes)
                    self.k.store(
                        self.corners, column * row, (t * tx + tap) * width + w, lanes=lanes
                    )

                self.vectors(width, fill)

    def weighted(self, w: Expr, lane: Expr) -> Computed:
        """The weighted sum of a pixel's taps, from the rows kept."""
        order, (ty, tx), width = self.kernel.order, self.kernel.taps, self.kernel.output.width
        lanes, size = self.lanes, self.kernel.input.block

        def sample(t: Expr, tap: Expr) -> Computed:
            place = t * self.size + self.column(w, tap) * size + lane
            return load(self.rows, place, lanes=lanes)

        def across(t: Expr) -> Computed:
            def term(tap: Expr) -> Computed:
                weight = load(self.b.column_weights, tap * width + w)
                return sample(t, tap) * splat(weight, lanes)

            return self.total(tx, term, lanes, fenced=order == "nested")

        def down(t: Expr) -> Computed:
            return across(t) * splat(load(self.b.row_weights, self.oh * ty + t), lanes)

        def corner(i: Expr) -> Computed:
            return sample(i // tx, i % tx) * splat(load(self.corners, i * width + w), lanes)

        if order == "blended":
            return across(0)
        if order == "nested":
            return self.total(ty, down, lanes, fenced=True)
        return self.total(ty * tx, corner, lanes, fenced=True)

    def total(
        self, count: int, term: Callable[[Expr], Computed], lanes: int, *, fenced: bool
    ) -> Computed:
        """The sum of terms, each rounded where they are fenced."""
        code = ProgramCode(self.k, self.b.target, lanes)

        def rounded(t: Expr) -> Computed:
            return code.fence(term(t)) if fenced else term(t)

        if count <= UNROLLED:
            value = rounded(0)
            for t in range(1, count):
                value = value + rounded(t)
            return code.bind(value, "float32")
        acc = self.k.local(lanes, "float32")
        self.k.store(acc, constant(0.0, "float32", lanes), 0, lanes=lanes)
        with self.k.loop(count, "t") as tap:
            self.k.store(acc, load(acc, 0, lanes=lanes) + rounded(tap), 0, lanes=lanes)
        return load(acc, 0, lanes=lanes)
