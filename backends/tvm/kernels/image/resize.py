"""Resizing rows and columns of blocked activations by tables of taps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from tvm import tirx

from ...functions.program_code import ProgramCode
from ...plan.blocked import Blocked
from ...plan.programs import Program
from ...plan.sizes import cascade_of, is_open
from ...targets import Target
from ...tensorir.builder import SHARES, KernelBuilder, as_int, constant, load, splat
from ...tensorir.types import Computed, Expr, Index, PrimFunc
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

    Where only a run fixes sizes, so it does tables: of rows and columns of the image, and without
    rows that are kept, since nothing says how much memory they take.
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
    def is_open(self) -> bool:
        """Whether a run fixes sizes of images."""
        return self.input.is_open or self.output.is_open

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
    there are any, operands, output. Positions of rows are those of their first pixel. Where a
    run fixes sizes they are the rows' numbers, and weights of columns are [out, taps].
    """
    return _ResizeBuilder(kernel, target).build(parallel=parallel)


class _ResizeBuilder:
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
        if kernel.has_columns:
            self.columns = k.parameter("COLUMNS", (y.width * tx,), "int32")
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
        if is_open(y.batch, y.height):
            with k.nest((y.batch, y.blocks, y.height, 1), parallel=parallel) as (n, block, oh, _):
                _Row(self, n, block).make(oh)
            return k.finish()
        run = self.kernel.run(parallel=parallel)
        extents = (y.batch, y.blocks, y.height // run, 1)
        with k.nest(extents, parallel=parallel) as (n, block, piece, _):
            row = _Row(self, n, block)
            with k.loop(run, "r") as r:
                row.make(piece * run + r)
        return k.finish()


class _Row:
    """One block of channels of an image, row by row."""

    def __init__(self, builder: _ResizeBuilder, n: Expr, block: Expr) -> None:
        self.b, self.k, self.kernel = builder, builder.k, builder.kernel
        self.lanes, self.parts = builder.lanes, builder.parts
        self.n, self.block = n, block
        self.at = n * self.kernel.input.blocks + block
        self.oh: Expr = 0
        kernel, (ty, tx) = self.kernel, self.kernel.taps
        self.size = kernel.input.width * kernel.input.block
        self.keeps = kernel.order != "none" and kernel.groups is None and not kernel.is_open
        if self.keeps:
            kept = 1 if kernel.order == "blended" else ty
            self.rows = self.k.local(kept * self.size, "float32", "rows")
        if self.keeps and kernel.order == "corners":
            self.corners = self.k.local(ty * tx * kernel.output.width, "float32", "corners")

    def make(self, oh: Expr) -> None:
        """One row of output pixels."""
        kernel = self.kernel
        self.oh = oh
        if kernel.repeats and kernel.moves and not kernel.is_open:
            self.copy()
        elif kernel.repeats:
            self.repeat()
        elif kernel.groups is not None:
            self.stream()
        elif kernel.order == "none":
            row = self.row(oh)

            def value(w: Expr, lane: Expr) -> Computed:
                return self.load(self.pixel(row, self.column(w, 0)), lane, self.lanes)

            self.pixels(value)
        else:
            if self.keeps:
                self.fill_rows()
                if kernel.order == "corners":
                    self.fill_corners()
            self.pixels(self.weighted)

    def row(self, place: Expr) -> Computed:
        """Where the input row of a place in the table begins; its number where sizes are open."""
        at = load(self.b.rows, place)
        return self.within(at, self.kernel.input.height) if self.kernel.is_open else at

    def within(self, place: Computed, size: int) -> Computed:
        """A place that a kernel before this one computed, shown to lie in the image."""
        return tirx.max(tirx.min(place, as_int(size - 1)), 0)

    def pixels(self, value: Callable[[Expr, Expr], Computed]) -> None:
        """Finish a row of pixels, as many at a time as the epilogue takes."""
        width = self.kernel.output.width
        together = 1 if self.kernel.moves else self.b.epilogue.width
        if not is_open(width):
            together = min(together, width)

        def finish(w: Expr, count: int) -> None:
            with self.k.loop(self.parts, "part") as part:
                lane = part * self.lanes
                self.finish([value(w + i, lane) for i in range(count)], w, lane)

        for times, count, start in cascade_of(width, together):
            with self.k.loop(times, "w") as w:
                finish(start + w * count, count)

    def finish(self, values: list[Computed], w: Expr, lane: Expr) -> None:
        """Store neighbouring pixels."""
        channel = self.block * self.kernel.output.block + lane
        self.b.epilogue.finish(values, self.n, channel, self.oh, w)

    def repeat(self) -> None:
        """A row whose every input pixel is several output pixels."""
        row, factor = self.row(self.oh), self.kernel.repeats
        with (
            self.k.loop(self.kernel.input.width, "w") as w,
            self.k.loop(self.parts, "part") as part,
        ):
            lane = part * self.lanes
            value = self.load(self.pixel(row, w), lane, self.lanes)
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

    def pixel(self, row: Computed, column: Expr) -> Index:
        """Where a pixel of the input lies."""
        return self.kernel.input.position(row, column) if self.kernel.is_open else row + column

    def load(self, position: Index, lane: Expr, lanes: int) -> Computed:
        """A vector of the input, as floats or as it is."""
        value = load(self.b.x, self.at, position, lane, lanes=lanes)
        return ProgramCode(self.k, self.b.target, lanes).evaluate(self.kernel.element, [value])

    def column(self, w: Expr, tap: Expr) -> Computed:
        """The input column of a tap of output column `w`."""
        at = load(self.b.columns, w * self.kernel.taps[1] + tap)
        return self.within(at, self.kernel.input.width) if self.kernel.is_open else at

    def column_weight(self, w: Expr, tap: Expr, more: int = 0) -> Computed:
        """The weight of a tap of output column `w`, or of one `more` columns to the right."""
        taps, width = self.kernel.taps[1], self.kernel.output.width
        at = (w + more) * taps + tap if self.kernel.is_open else tap * width + w + more
        return load(self.b.column_weights, at)

    def fill_rows(self) -> None:
        """The input rows of an output row: their weighted sum, or each of them."""
        kernel, ty = self.kernel, self.kernel.taps[0]

        def fill(place: Expr, lanes: int) -> None:
            if kernel.order == "blended":
                self.k.store(self.rows, self.blend(0, place, lanes), place, lanes=lanes)
                return
            with self.k.loop(ty, "t") as t:
                value = self.load(self.row(self.oh * ty + t), place, lanes)
                self.k.store(self.rows, value, t * self.size + place, lanes=lanes)

        self.vectors(self.size, fill)

    def vectors(self, size: int, body: Callable[[Expr, int], None]) -> None:
        """A body for each vector of a row; the last vector may overlap the one before."""
        lanes = min(self.b.target.lanes, 1 << (size.bit_length() - 1))
        with self.k.loop(size // lanes, "v") as v:
            body(v * lanes, lanes)
        if size % lanes:
            body(size - lanes, lanes)

    def blend(self, column: Expr, lane: Expr, lanes: int) -> Computed:
        """The weighted sum of the input rows at a column."""
        ty, size = self.kernel.taps[0], self.kernel.input.block

        def term(t: Expr) -> Computed:
            row = self.row(self.oh * ty + t)
            if self.kernel.is_open:
                value = self.load(self.pixel(row, column), lane, lanes)
            else:
                value = self.load(row, column * size + lane, lanes)
            return value * splat(load(self.b.row_weights, self.oh * ty + t), lanes)

        return self.total(ty, term, lanes, fenced=False)

    def stream(self) -> None:
        """A row whose pixels lie between two input columns, which stay in registers."""
        k, kernel, lanes = self.k, self.kernel, self.lanes
        before, width = kernel.input.width, kernel.output.width
        assert kernel.groups is not None
        first, each, last = kernel.groups
        with k.loop(self.parts, "part") as part:
            lane = part * lanes
            kept = k.local(lanes, "float32", "left")

            def between(left: Computed, right: Computed, w: Expr, count: int) -> None:
                values = []
                for i in range(count):
                    a, b = (self.column_weight(w, tap, i) for tap in (0, 1))
                    values.append(left * splat(a, lanes) + right * splat(b, lanes))
                self.finish(values, w, lane)

            def columns() -> None:
                left, right = (self.blend(w, lane, lanes) for w in (0, 1))
                between(left, right, 0, first)
                k.store(kept, right, 0, lanes=lanes)
                with k.loop(before - 2, "w") as w:
                    left = load(kept, 0, lanes=lanes)
                    right = self.blend(w + 2, lane, lanes)
                    between(left, right, first + w * each, each)
                    k.store(kept, right, 0, lanes=lanes)
                left = load(kept, 0, lanes=lanes)
                between(left, left, width - last, last)

            if not is_open(before):
                columns()
                return
            with k.when(as_int(before) > 1):
                columns()
            with k.when(tirx.EQ(as_int(before), 1)):  # all lies at the only column
                only = self.blend(0, lane, lanes)
                between(only, only, 0, each)

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
            if not self.keeps:
                row = self.row(self.oh * ty + t)
                return self.load(self.pixel(row, self.column(w, tap)), lane, lanes)
            place = t * self.size + self.column(w, tap) * size + lane
            return load(self.rows, place, lanes=lanes)

        def across(t: Expr) -> Computed:
            def term(tap: Expr) -> Computed:
                return sample(t, tap) * splat(self.column_weight(w, tap), lanes)

            return self.total(tx, term, lanes, fenced=order == "nested")

        def down(t: Expr) -> Computed:
            return across(t) * splat(load(self.b.row_weights, self.oh * ty + t), lanes)

        def corner(i: Expr) -> Computed:
            t, tap = i // tx, i % tx
            if self.keeps:
                weight = load(self.corners, i * width + w)
            else:
                row = load(self.b.row_weights, self.oh * ty + t)
                weight = self.column_weight(w, tap) * row
            return sample(t, tap) * splat(weight, lanes)

        if order == "blended":
            return across(0) if self.keeps else self.total(ty, down, lanes, fenced=False)
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
