"""What kernels with blocked output share: fused programs, their operands, stores, borders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from tvm import tirx

from ..functions.program_code import ProgramCode
from ..functions.rounding import PACKED, packs
from ..plan.blocked import Blocked
from ..plan.programs import Program
from ..plan.tensors import PlanTensor
from ..targets import Target
from ..tensorir.builder import KernelBuilder, constant, join, load, splat
from ..tensorir.types import BufferVar, Computed, Expr


@dataclasses.dataclass(frozen=True)
class Operand:
    """An operand of a fused program beside the kernel's own result.

    With a `layout` it is a blocked tensor, of the output's size or 1 x 1 pixels;
    `per_channel` is a vector over the padded channels; otherwise it is one number.
    """

    dtype: str
    layout: Blocked | None = None
    per_channel: bool = False


def declare(
    builder: KernelBuilder, operands: Sequence[Operand], output: Blocked, channels: int
) -> list[BufferVar]:
    """Declare a kernel's operand parameters."""
    buffers = []
    for index, operand in enumerate(operands):
        if operand.layout is not None:
            shape: tuple[int, ...] = operand.layout.shape
        else:
            shape = (channels,) if operand.per_channel else (1,)
        buffers.append(builder.parameter(f"P{index}", shape, operand.dtype))
    return buffers


class Epilogue:
    """Evaluates a kernel's program on its results and stores them.

    Results are vectors of `lanes` channels, one of the target's vectors or `joined` ones. Bytes
    of neighbouring pixels are rounded and stored four of the target's vectors at a time where it
    has instructions for that and results are whole blocks.
    """

    def __init__(
        self,
        builder: KernelBuilder,
        target: Target,
        program: Program,
        operands: Sequence[Operand],
        buffers: Sequence[BufferVar],
        output: Blocked,
        result: BufferVar,
        lanes: int,
    ) -> None:
        self.builder, self.target, self.program = builder, target, program
        self.operands = list(zip(operands, buffers, strict=True))
        self.output, self.result, self.lanes = output, result, lanes
        together = packs(target, program.dtype) and output.block == lanes
        self.width = max(1, PACKED * target.lanes // lanes) if together else 1
        """Pixels that are finished together."""

    @staticmethod
    def joined(target: Target, dtype: str, output: Blocked, vectors: int) -> int:
        """How many of the target's vectors make a result, where `vectors` are neighbours."""
        count = output.block // target.lanes
        return count if count > 1 and packs(target, dtype) and vectors % count == 0 else 1

    def finish(self, values: Sequence[Computed], n: Expr, channel: Expr, h: Expr, w: Expr) -> None:
        """Store the results of neighbouring pixels of image n, from (h, w) on.

        A long program is there once for all of them.
        """
        if self.width == 1:
            for number, value in self.each(values):
                self._finish(value, n, channel, h, w + number, 1)
            return
        for first in range(0, len(values), self.width):
            run = values[first : first + self.width]
            self._finish(join(run, self.lanes), n, channel, h, w + first, len(run))

    def each(self, values: Sequence[Computed]) -> Iterator[tuple[Expr, Computed]]:
        """Numbers and values of pixels that are finished one by one: in a loop, so that what is
        made between two is there once, where the program is long."""
        single = ProgramCode(self.builder, self.target, self.lanes)
        if self.width > 1 or len(values) == 1 or not single.is_looped(self.program):
            yield from enumerate(values)
            return
        kept = single.kept(values, self.program.operands[0])
        with self.builder.loop(len(values), "each") as number:
            yield number, kept(number)

    def _finish(
        self, value: Computed, n: Expr, channel: Expr, h: Expr, w: Expr, pixels: int
    ) -> None:
        operands = [
            self._read(operand, buffer, n, channel, h, w, pixels)
            for operand, buffer in self.operands
        ]
        code = ProgramCode(self.builder, self.target, self.lanes * pixels)
        result = code.evaluate(self.program, [value, *operands])
        self._store(result, n, channel, self.output.position(h, w), pixels)

    def _read(
        self,
        operand: Operand,
        buffer: BufferVar,
        n: Expr,
        channel: Expr,
        h: Expr,
        w: Expr,
        pixels: int,
    ) -> Computed:
        """The operand's lanes for a run of pixels."""
        lanes, layout = self.lanes, operand.layout
        if layout is not None:
            image = n if layout.batch != 1 else 0
            block, lane = _split(channel, layout.block)
            at = image * layout.blocks + block
            if (layout.height, layout.width) == (1, 1):
                value = self._lanes(buffer, layout, at, layout.position(0, 0), lane)
                return join([value] * pixels, lanes)
            if pixels == 1:
                return self._lanes(buffer, layout, at, layout.position(h, w), lane)
            return load(buffer, at, layout.position(h, w), lane, lanes=lanes * pixels)
        if operand.per_channel:
            return join([load(buffer, channel, lanes=lanes)] * pixels, lanes)
        return splat(load(buffer, 0), lanes * pixels)

    def _lanes(
        self, buffer: BufferVar, layout: Blocked, at: Expr, position: Expr, lane: Expr
    ) -> Computed:
        """One pixel's vector; blocks shorter than a vector are repeated."""
        count = min(self.lanes, layout.block)
        value = load(buffer, at, position, lane, lanes=count)
        if count == self.lanes:
            return value
        if count == 1:
            return splat(value, self.lanes)
        return tirx.Shuffle([value] * -(-self.lanes // count), list(range(self.lanes)))

    def _store(self, value: Computed, n: Expr, channel: Expr, position: Expr, pixels: int) -> None:
        """Store vectors; blocks shorter than a vector take its first lanes."""
        layout, lanes = self.output, self.lanes * pixels
        if self.lanes > layout.block:
            value = tirx.Shuffle([value], list(range(layout.block)))
            lanes = layout.block
        block, lane = _split(channel, layout.block)
        at = n * layout.blocks + block
        self.builder.store(self.result, value, at, position, lane, lanes=lanes)


def _split(channel: Expr, block: int) -> tuple[Expr, Expr]:
    if isinstance(channel, int):
        return channel // block, channel % block
    return tirx.floordiv(channel, block), tirx.floormod(channel, block)


def fill_border(
    builder: KernelBuilder,
    buffer: BufferVar,
    layout: Blocked,
    dtype: str,
    fill: Computed | None = None,
) -> None:
    """Write the physical padding around each image; `fill` is what it holds at run time."""
    if not any(layout.pads):
        return
    if fill is not None:
        value = splat(fill, layout.block)
    else:
        assert not isinstance(layout.fill, PlanTensor)
        value = constant(layout.fill, dtype, layout.block)
    rows, columns = layout.rows, layout.columns
    with builder.loop(layout.shape[0], "b") as b:

        def run(count: int, start: Expr, row: Expr) -> None:
            if layout.is_open:
                with builder.loop(count, "r") as r, builder.loop(columns, "p") as p:
                    builder.store(buffer, value, b, (row + r, p), 0, lanes=layout.block)
            elif count != 0:
                with builder.loop(count * columns, "p") as p:
                    builder.store(buffer, value, b, start + p, 0, lanes=layout.block)

        run(layout.top, 0, 0)
        run(layout.bottom, (rows - layout.bottom) * columns, rows - layout.bottom)
        if layout.left or layout.right:
            with builder.loop(layout.height, "h") as h:
                right = (columns - layout.right + i for i in range(layout.right))
                for column in (*range(layout.left), *right):
                    at = layout.at(h + layout.top, column)
                    builder.store(buffer, value, b, at, 0, lanes=layout.block)
