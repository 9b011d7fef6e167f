"""Elementwise programs between blocked and row-major images, by squares of channels and pixels.

A square has as many pixels as a block has channels. Blocked tensors give it as vectors of
channels; row-major ones as vectors of pixels, which are transposed in registers; where
the program has run, so are its results for a row-major output.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from ...functions.program_code import ProgramCode
from ...plan.blocked import Blocked
from ...plan.sizes import is_open
from ...targets import Target
from ...tensorir.builder import KernelBuilder, as_int, load, smaller, splat, tiles_of
from ...tensorir.types import BufferVar, Computed, Expr, Index
from .images import load_row_major
from .sources import Elementwise, Source
from .transposition import transpose

FEW_PIXELS = 4
"""Of squares in rows that are shorter than a block has channels."""


def fits(
    kernel: Elementwise, strides: Sequence[Sequence[int]], size: tuple[int, int, int, int]
) -> bool:
    """Whether squares do; `strides` are those of each source along N, C, H and W."""
    layouts = _layouts(kernel)
    if not layouts or len({y.block for y in layouts}) != 1:
        return False
    if not is_open(size[2], size[3]) and size[2] * size[3] < 4:
        return False
    block = layouts[0].block
    if block & (block - 1) or block < 8:
        return False
    along = 3 if size[3] != 1 else 2
    return all(
        source.layout is not None or own[along] in (0, 1)
        for source, own in zip(kernel.sources, strides, strict=True)
    )


def _layouts(kernel: Elementwise) -> list[Blocked]:
    found = [kernel.layout, *(s.layout for s in kernel.sources)]
    return [y for y in found if y is not None]


class Squares:
    """The body of one kernel, whose buffers are declared already."""

    def __init__(
        self,
        k: KernelBuilder,
        kernel: Elementwise,
        target: Target,
        buffers: Sequence[BufferVar],
        result: BufferVar,
        strides: Sequence[Sequence[int]],
        size: tuple[int, int, int, int],
    ) -> None:
        self.k, self.kernel, self.target = k, kernel, target
        self.buffers, self.result, self.strides = buffers, result, strides
        self.batch, self.channels, self.height, self.width = size
        self.block = _layouts(kernel)[0].block
        pixel = [self._pixel_stride(*own) for own in zip(kernel.sources, strides, strict=True)]
        gapless = kernel.layout is None or not any(kernel.layout.pads)
        if gapless and None not in pixel:
            self.height, self.width = 1, self.height * self.width
            own = zip(strides, pixel, strict=True)
            self.strides = [(s[0], s[1], 0, p or 0) for s, p in own]
        self.pixels = self.block
        if not is_open(self.width):
            self.pixels = min(self.block, 1 << (self.width.bit_length() - 1))

    def _pixel_stride(self, source: Source, stride: Sequence[int]) -> int | None:
        """Elements between neighbouring pixels, row after row; None where there are gaps."""
        layout = source.layout
        if layout is not None:
            if (layout.height, layout.width) == (1, 1):
                return 0
            whole = (layout.height, layout.width) == (self.height, self.width)
            return 1 if whole and not any(layout.pads) else None
        _, _, h, w = stride
        if self.height == 1 or h == self.width * w:
            return w
        return h if self.width == 1 else None

    def build(self, *, parallel: bool) -> None:
        blocks = -(-self.channels // self.block)
        if is_open(self.width):
            self.open_columns(blocks, parallel=parallel)
            return
        steps = -(-self.width // self.pixels)
        with self.k.nest((self.batch, blocks, self.height, steps), parallel=parallel) as index:
            n, cb, h, step = index
            w = step * self.pixels
            if self.width % self.pixels:
                last = self.width - self.pixels
                w = min(w, last) if isinstance(w, int) else tirx.min(w, tirx.IntImm("int32", last))
            self.square(n, cb, h, w)

    def open_columns(self, blocks: int, *, parallel: bool) -> None:
        """Squares along rows whose length only a run fixes, of fewer pixels in short ones."""
        k, width = self.k, as_int(self.width)
        most: Expr | None = None
        for pixels in (self.block, FEW_PIXELS, 1):
            self.pixels = pixels
            within = [width >= pixels] if pixels > 1 else []
            within += [width < most] if most is not None else []
            with k.when(within[0] if len(within) == 1 else tirx.all(*within)):
                extents = (self.batch, blocks, self.height, tiles_of(self.width, pixels))
                with k.open_nest(extents, parallel=parallel) as (n, cb, h, step):
                    w = step if pixels == 1 else tirx.min(step * pixels, width - pixels)
                    self.square(n, cb, h, w)
            most = pixels

    def square(self, n: Expr, cb: Expr, h: Expr, w: Expr) -> None:
        k, kernel, block = self.k, self.kernel, self.block
        columns = [
            self.source(source, buffer, stride, n, cb, h, w)
            for source, buffer, stride in zip(
                kernel.sources, self.buffers, self.strides, strict=True
            )
        ]
        code = ProgramCode(k, self.target, block)
        pixels = [[c[p] for c in columns] for p in range(self.pixels)]
        y = kernel.layout
        if y is not None:

            def write(p: Expr, value: Computed) -> None:
                at = self.position(y, h, w + p)
                k.store(self.result, value, n * y.blocks + cb, at, 0, lanes=block)

            code.evaluate_each(kernel.program, pixels, write)
            return
        values = code.evaluate_all(kernel.program, pixels)
        values += [values[0]] * (block - self.pixels)
        rows = transpose(k, values, kernel.program.dtype)
        ragged = self.channels % block
        for i, row in enumerate(rows):
            short = row
            if self.pixels < block:
                short = tirx.Shuffle([row], list(range(self.pixels)))
            channel = cb * block + i
            if ragged and i >= ragged:
                if isinstance(channel, int):
                    continue
                with k.when(channel < self.channels):
                    self.put(short, n, channel, h, w)
            else:
                self.put(short, n, channel, h, w)

    def put(self, value: Computed, n: Expr, channel: Expr, h: Expr, w: Expr) -> None:
        at: Index = (n, channel, h, w)
        if not is_open(self.height, self.width):
            at = ((n * self.channels + channel) * self.height + h) * self.width + w
        self.k.store(self.result, value, at, lanes=self.pixels)

    def position(self, layout: Blocked, h: Expr, w: Expr) -> Expr:
        if (layout.height, layout.width) == (1, 1):
            return layout.position(0, 0)
        if self.height == 1 and layout.height != 1:
            return w  # without gaps
        return layout.position(0 if layout.height == 1 else h, 0 if layout.width == 1 else w)

    def source(
        self,
        source: Source,
        buffer: BufferVar,
        stride: Sequence[int],
        n: Expr,
        cb: Expr,
        h: Expr,
        w: Expr,
    ) -> list[Computed]:
        """The vector of channels of each pixel of the square."""
        k, block = self.k, self.block
        code = ProgramCode(k, self.target, block)
        if source.layout is not None:
            layout = source.layout
            image = n if layout.batch != 1 else 0
            outer = image * layout.blocks + source.first_block + cb
            found = []
            for p in range(self.pixels):
                at = self.position(layout, h, w + p)
                found.append(code.bind(load(buffer, outer, at, 0, lanes=block), source.dtype))
            return found
        base = source.offset + n * stride[0] + h * stride[2] + w * stride[3]
        if not stride[3]:
            value = self.across(source, buffer, base, stride[1], cb)
            return [value] * self.pixels
        if not stride[1]:
            return [splat(load(buffer, base + p), block) for p in range(self.pixels)]
        rows = []
        for i in range(block):
            place = (n, self.channel(cb, i), h, w)
            row = load_row_major(self.kernel, source, buffer, stride, place, self.pixels)
            if self.pixels < block:
                short = ProgramCode(k, self.target, self.pixels)
                row = short.bind(row, source.dtype)
                row = tirx.Shuffle([row] * (block // self.pixels), list(range(block)))
            rows.append(row)
        return transpose(k, rows, source.dtype)[: self.pixels]

    def across(
        self, source: Source, buffer: BufferVar, base: Expr, stride: int, cb: Expr
    ) -> Computed:
        """A vector of channels that all pixels share."""
        k, block = self.k, self.block
        if not stride:
            return splat(load(buffer, base), block)
        own = k.local(block, source.dtype, "own")
        for i in range(block):
            k.store(own, load(buffer, base + self.channel(cb, i) * stride), i)
        return ProgramCode(k, self.target, block).bind(load(own, 0, lanes=block), source.dtype)

    def channel(self, cb: Expr, i: int) -> Expr:
        """A channel of a block, the last one in place of those past it."""
        channel = cb * self.block + i
        if self.channels % self.block == 0:
            return channel
        return smaller(channel, self.channels - 1)
