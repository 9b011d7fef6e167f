"""Direct convolution of blocked activations with packed weights (floats and bytes)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from tvm import tirx

from .....ir.tensor import Array
from ...plan.geometry import Upsampling
from ...plan.sizes import is_open
from ...targets import Target
from ...tensorir.builder import KernelBuilder, as_int, constant, join, load, splat, tiles_of
from ...tensorir.types import BufferVar, Computed, Expr, Index, PrimFunc
from ..epilogue import Epilogue, declare, fill_border
from ..matrix.dot import PairedDot, bind
from ..matrix.neon import NeonMatrix
from ..matrix.reduction import multiply, runs
from .open_columns import each_width
from .tiles import Convolution, Tile, as_rows, flat_extent, open_widths


def start_table(conv: Convolution, target: Target, tile: Tile) -> Array | None:
    """First input block per group, None where it is a multiple of the group's index."""
    starts, _ = conv.input_blocks(target, tile)
    slope = _slope(starts)
    return None if slope is not None else np.asarray(starts, np.int32)


def _slope(starts: Sequence[int]) -> int | None:
    slope = starts[1] - starts[0] if len(starts) > 1 else 0
    affine = all(s == slope * i for i, s in enumerate(starts))
    return slope if affine else None


def build(
    conv: Convolution, target: Target, tile: Tile, parallel: bool = False, rest: int = 0
) -> PrimFunc:
    """The kernel. Arguments: input, weights, bias, operands, [block starts], output; before it, of
    weights with so many steps for a rest, these and their places."""
    return _DirectBuilder(conv, target, tile, parallel, rest).build()


class _DirectBuilder:
    """One kernel being built."""

    def __init__(
        self, conv: Convolution, target: Target, tile: Tile, parallel: bool, rest: int
    ) -> None:
        if conv.is_flat and is_open(*conv.size):
            conv = as_rows(conv)
        self.conv, self.target, self.tile, self.parallel = conv, target, tile, parallel
        self.dot, self.rest = conv.dot(target), rest
        self.lanes = target.lanes
        self.k = KernelBuilder()
        x = conv.input
        self.height, self.width = flat_extent(conv)
        self.in_columns = self.width if conv.is_flat else x.columns
        assert tile.rows == 1 or self.height >= tile.rows
        assert is_open(self.width) or self.width >= tile.columns
        self.starts, self.count = conv.input_blocks(target, tile)
        self.acc: BufferVar | None = None  # one that all tiles share
        self.phase, self.window, self.before = 0, conv.windows[0], 0

    def build(self) -> PrimFunc:
        k, conv, tile = self.k, self.conv, self.tile
        groups = conv.phase_vectors(self.target) // tile.vectors
        self.x = k.parameter("X", conv.input.shape, conv.input_dtype)
        steps = sum(groups * self.steps_of(window) for window in conv.windows)
        shape = (1, steps, tile.vectors * self.dot.weights_per_step)
        if conv.upsampling is None:
            shape = (groups, self.steps_of(conv.windows[0]), shape[2])
        self.is_close = conv.is_close(self.target, tile)
        if self.is_close:
            shape = (1, 1, (steps - 1) * conv.output.channels + shape[2])
        self.w = k.parameter("W", shape, self.dot.weight_dtype)
        channels = conv.vectors(self.target) * self.lanes
        self.bias = k.parameter("B", (channels,), self.dot.accumulator)
        own = conv.phase_vectors(self.target) * self.lanes
        operands = declare(k, conv.operands, conv.output, own)
        self.slope = _slope(self.starts)
        if self.slope is None:
            self.table = k.parameter("S", (groups,), "int32")
        if self.rest:
            vectors = groups * tile.vectors
            self.more = k.parameter("R", (vectors, self.rest, 4 * self.lanes), "int8")
            self.places = [k.parameter(n, (vectors, self.rest), "int32") for n in "UVC"]
            self.counts = k.parameter("N", (vectors,), "int32")
        self.y = k.parameter("Y", conv.output.shape, conv.program.dtype)
        fill_border(k, self.y, conv.output, conv.program.dtype)
        program, output = conv.program, conv.output
        self.joined = Epilogue.joined(self.target, program.dtype, output, tile.vectors)
        lanes = self.joined * self.lanes
        self.epilogue = Epilogue(
            k, self.target, program, conv.operands, operands, output, self.y, lanes
        )
        batch = conv.output.batch
        if is_open(self.width):
            for _ in self.phases(groups):
                self.open_columns(batch, groups)
            return k.finish()
        rows = -(-self.height // tile.rows) if tile.rows > 1 else self.height
        columns = -(-self.width // tile.columns)
        if tile.channels_outer:
            for _ in self.phases(groups):
                with k.nest((batch, groups, rows, columns), parallel=self.parallel) as (n, g, i, j):
                    self.one_tile(n, g, i, j)
        elif conv.upsampling is None:
            with (
                k.nest((batch, 1, rows, columns), parallel=self.parallel) as (n, _, i, j),
                k.loop(groups, "og") as g,
            ):
                self.one_tile(n, g, i, j)
        else:
            with k.nest((batch, 1, rows, 1), parallel=self.parallel) as (n, _, i, _):
                for _ in self.phases(groups):
                    with k.loop(groups, "og") as g, k.loop(columns, "column") as j:
                        self.one_tile(n, g, i, j)
        return k.finish()

    def phases(self, groups: int) -> Iterator[None]:
        """Each phase, of so many groups of vectors, while `self.window` has its taps, and
        `self.before` how many steps lie before those of its weights."""
        self.before = 0
        for phase, window in enumerate(self.conv.windows):
            self.phase, self.window = phase, window
            yield
            self.before += groups * self.steps_of(window)

    def steps_of(self, window: tuple[tuple[int, int], tuple[int, int]]) -> int:
        """Reduction steps of a window's taps."""
        steps, last = self.conv.block_steps(self.target)
        return window[0][1] * window[1][1] * ((self.count - 1) * steps + last)

    def open_columns(self, batch: int, groups: int) -> None:
        """All tiles of rows whose length only a run fixes."""
        k, tile = self.k, self.tile
        outer = groups if tile.channels_outer else 1
        widths = open_widths(self.conv, self.target, tile.vectors)[1]
        with k.shares(batch, outer, parallel=self.parallel) as (n, group, piece, pieces):
            by_rows = 1 if self.height == 1 else pieces
            size = self.dot.accumulators(tile.vectors, widths[0][0]) * self.lanes
            self.acc = k.local(size, self.dot.accumulator)
            for width in each_width(k, self.width, widths):
                self.tile = dataclasses.replace(tile, columns=width)
                tiles = tiles_of(self.width, width)
                with (
                    k.piece(self.height, piece, by_rows, "row") as i,
                    k.piece(tiles, piece, pieces // by_rows, "column") as j,
                    k.loop(1 if tile.channels_outer else groups, "og") as g,
                ):
                    self.one_tile(n, group if tile.channels_outer else g, i, j)
        self.tile = tile

    def one_tile(self, n: Expr, group: Expr, i: Expr, j: Expr) -> None:
        """Accumulate and write one output tile; the last tiles overlap their neighbours."""
        k, tile, conv = self.k, self.tile, self.conv
        row = _start(i, tile.rows, self.height)
        column = _start(j, tile.columns, self.width)
        pixels = tile.rows * tile.columns
        acc = self.acc
        if acc is None:
            size = self.dot.accumulators(tile.vectors, pixels) * self.lanes
            acc = k.local(size, self.dot.accumulator)
        phase = self.phase * conv.phase_vectors(self.target)
        for v in range(tile.vectors):
            channel = (phase + group * tile.vectors + v) * self.lanes
            start = load(self.bias, channel, lanes=self.lanes)
            for p in range(pixels):
                k.store(acc, start, (v * pixels + p) * self.lanes, lanes=self.lanes)
        self.dot.enter(k, acc, tile.vectors, pixels)
        self.reduce(acc, n, group, row, column)
        self.dot.leave(k, acc, tile.vectors, pixels)
        for v in range(0, tile.vectors, self.joined):
            vector = group * tile.vectors + v
            for r in range(tile.rows):
                values = [
                    self.result(acc, v, r * tile.columns + c, pixels) for c in range(tile.columns)
                ]
                if conv.upsampling is None:
                    self.epilogue.finish(values, n, vector * self.lanes, row + r, column)
                    continue
                channel = vector * self.lanes
                for c, value in self.epilogue.each(values):
                    self.write_phase(conv.upsampling, value, n, channel, row + r, column + c)

    def result(self, acc: BufferVar, vector: int, pixel: int, pixels: int) -> Computed:
        """A pixel's channels from a vector on, as many as are finished together."""
        places = [(v * pixels + pixel) * self.lanes for v in range(vector, vector + self.joined)]
        return join([load(acc, at, lanes=self.lanes) for at in places], self.lanes)

    def write_phase(
        self, up: Upsampling, value: Computed, n: Expr, channel: Expr, h: Expr, w: Expr
    ) -> None:
        """Write where the phase of the pixel lies, if that is inside the image."""
        first = [r + o for r, o in zip(divmod(self.phase, up.factors[1]), up.offset, strict=True)]
        y, x = up.factors[0] * h + first[0], up.factors[1] * w + first[1]
        inside = []
        extents = ((y, self.conv.output.height, 0), (x, self.conv.output.width, 1))
        for at, extent, axis in extents:
            if first[axis] < 0:
                inside.append(at >= 0)
            end = up.factors[axis] * (up.size[axis] - 1) + first[axis]
            if is_open(end, extent) or end >= extent:
                inside.append(at < extent)
        if not inside:
            self.epilogue.finish([value], n, channel, y, x)
            return
        with self.k.when(tirx.all(*inside) if len(inside) > 1 else inside[0]):
            self.epilogue.finish([value], n, channel, y, x)

    def reduce(self, acc: BufferVar, n: Expr, group: Expr, row: Expr, column: Expr) -> None:
        """Sum over all taps of the input's blocks; of the last one over its channels alone."""
        steps, last = self.conv.block_steps(self.target)
        first = load(self.table, group) if self.slope is None else group * self.slope
        block = n * self.conv.input.blocks + first
        whole = self.count if last == steps else self.count - 1
        if whole:
            with self.k.loop(whole, "ic") as ic:
                self.reduce_block(acc, group, ic, block + ic, steps, row, column)
        if last != steps:
            ic = self.count - 1
            self.reduce_block(acc, group, ic, block + ic, last, row, column)
        if self.rest:
            self.reduce_rest(acc, group, block, row, column)

    def reduce_rest(
        self, acc: BufferVar, group: Expr, block: Expr, row: Expr, column: Expr
    ) -> None:
        """Sum what was taken off the weights, by words of channels that a table tells."""
        k, tile, x, (stride_h, stride_w) = self.k, self.tile, self.x, self.conv.geometry.strides
        dot = PairedDot(self.lanes, self.conv.input_dtype)
        top = self.conv.input.top - self.conv.geometry.pads[0]
        left = self.conv.input.left - self.conv.geometry.pads[1]
        pixels = tile.rows * tile.columns
        for v in range(tile.vectors):
            vector = k.named(as_int(group * tile.vectors + v), "vector")
            with k.loop(load(self.counts, vector), "more") as number:
                own, pixel, channel = (
                    k.named(load(table, vector, number), name)
                    for table, name in zip(self.places, ("block", "pixel", "channel"), strict=True)
                )
                factor = dot.weights(k, self.more, vector, number, 0)
                for p in range(pixels):
                    h = (row + p // tile.columns) * stride_h + top
                    w = (column + p % tile.columns) * stride_w + left
                    place = h * self.in_columns + w + pixel
                    value = dot.read(k, 1, x, block + own, place, channel)
                    at = (v * pixels + p) * self.lanes
                    total = dot.step(load(acc, at, lanes=self.lanes), value, factor)
                    k.store(acc, total, at, lanes=self.lanes)

    def reduce_block(
        self,
        acc: BufferVar,
        group: Expr,
        ic: Expr,
        block: Expr,
        count: int,
        row: Expr,
        column: Expr,
    ) -> None:
        """Sum over the taps and the `count` steps of one block, the last one's perhaps fewer."""
        k, tile = self.k, self.tile
        (top, kernel_h), (left, kernel_w) = self.window
        before = kernel_h * kernel_w * self.conv.block_steps(self.target)[0] * ic
        unroll = max(u for u in range(1, tile.unroll + 1) if count % u == 0)
        short = count < tile.unroll and kernel_w * count <= 6 * tile.unroll
        # Steps of several instructions each are too many for LLVM to keep a tile in registers.
        taps = kernel_w if short and kernel_w and self.dot.multiplies == 1 else 1
        if taps > 1 and self.taps_adjoin(count):
            with k.loop(kernel_h, "kh") as kh:
                for first, together in runs(taps * count, self.dot.together):
                    at = before + kh * kernel_w * count + first
                    pixel = (row, column, top + kh, left + first // count)
                    self.multiply(acc, together, group, at, block, first % count, *pixel)
            return
        with (
            k.loop(kernel_h, "kh") as kh,
            k.loop(kernel_w // taps, "kw") as outer,
            k.loop(count // unroll, "ko") as ko,
        ):
            for tap in range(taps):
                kw = tap if taps > 1 else outer
                for first, together in runs(unroll, self.dot.together):
                    step = ko * unroll + first
                    index = before + (kh * kernel_w + kw) * count + step
                    place = (top + kh, left + kw)
                    self.multiply(acc, together, group, index, block, step, row, column, *place)

    def taps_adjoin(self, count: int) -> bool:
        """Whether a row's taps of `count` steps each lie side by side in the image."""
        whole = count * self.dot.depth == self.conv.input.block
        return whole and self.conv.geometry.dilations[1] == 1 and not self.conv.input.is_open

    def multiply(
        self,
        acc: BufferVar,
        steps: int,
        group: Expr,
        index: Expr,
        block: Expr,
        step: Expr,
        row: Expr,
        column: Expr,
        kh: Expr,
        kw: Expr,
    ) -> None:
        """Some reduction steps of the whole tile, whose channels lie together."""
        k, tile, geometry, x, dot = self.k, self.tile, self.conv.geometry, self.conv.input, self.dot
        stride_h, stride_w = geometry.strides
        top = x.top - geometry.pads[0]
        left = x.left - geometry.pads[1]

        def place(p: int) -> tuple[Expr, Index, Expr]:
            h = (row + p // tile.columns) * stride_h + kh * geometry.dilations[0] + top
            w = (column + p % tile.columns) * stride_w + kw * geometry.dilations[1] + left
            at: Index = (h, w) if x.is_open else h * self.in_columns + w
            return block, at, step * dot.depth

        def read(p: int) -> list[Computed]:
            return dot.read(k, steps, self.x, *place(p))

        def read_both(p: int) -> list[Computed] | None:
            same_row = p % tile.columns + 1 < tile.columns
            if isinstance(dot, NeonMatrix) and dot.adjacent and same_row:
                return dot.read_both(k, self.x, *place(p))
            return None

        def weights(i: int, v: int) -> list[Computed]:
            if self.is_close:
                return [self.close_weights(index + i, v)]
            place = (group, index + i)
            if self.conv.upsampling is not None:
                place = (0, self.before + group * self.steps_of(self.window) + index + i)
            return dot.weights(k, self.w, *place, v * dot.weights_per_step)

        pixels = tile.rows * tile.columns
        multiply(k, dot, acc, steps, tile.vectors, pixels, read, weights, read_both)

    def close_weights(self, index: Expr, vector: int) -> Computed:
        """A vector of weights of a step, zero past the last channel."""
        lanes, channels = self.lanes, self.conv.output.channels
        value = load(self.w, 0, 0, index * channels + vector * lanes, lanes=lanes)
        rest = channels - vector * lanes
        if rest < lanes:
            own = tirx.Ramp(as_int(0), as_int(1), lanes) < splat(as_int(rest), lanes)
            value = tirx.Select(own, value, constant(0.0, "float32", lanes))
        return bind(self.k, value, "float32", lanes)


def _start(index: Expr, size: int, extent: int) -> Expr:
    """First pixel of a tile, moved back where the tile would pass the edge."""
    if is_open(extent):
        return index if size == 1 else tirx.min(as_int(index * size), as_int(extent - size))
    if isinstance(index, int):
        return as_int(min(index * size, extent - size))
    if extent % size == 0:
        return index * size
    return tirx.min(index * size, as_int(extent - size))
