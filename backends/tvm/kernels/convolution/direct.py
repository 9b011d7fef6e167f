"""Direct convolution of blocked activations with packed weights (floats and bytes)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from tvm import tirx

from .....ir.tensor import Array
from ...functions.rounding import PACKED, packs
from ...plan.blocked import Blocked
from ...plan.geometry import Geometry, Upsampling
from ...plan.programs import Program
from ...plan.sizes import is_open, typical
from ...targets import Target
from ...tensorir.builder import KernelBuilder, as_int, constant, join, load, splat, tiles_of
from ...tensorir.types import BufferVar, Computed, Expr, Index, PrimFunc
from ..epilogue import Epilogue, Operand, declare, fill_border
from ..matrix.dot import Dot, bind
from ..matrix.reduction import choose, instructions, multiply, runs, stays_in_registers
from .open_columns import Widths, choose_widths, each_width, samples


@dataclasses.dataclass(frozen=True)
class Tile:
    """Output tile kept in registers: `vectors` of channels times `rows` * `columns` pixels.

    `unroll` is the number of reduction steps per innermost loop iteration.
    `channels_outer` walks all pixels for one channel group before the next group.
    """

    vectors: int
    rows: int
    columns: int
    unroll: int = 4
    channels_outer: bool = True


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution kernel: everything that its code depends on."""

    input: Blocked
    input_dtype: str
    output: Blocked
    geometry: Geometry
    groups: int
    program: Program
    operands: tuple[Operand, ...]
    weight_range: tuple[int, int] = (-128, 127)
    upsampling: Upsampling | None = None

    @property
    def is_flat(self) -> bool:
        """Whether the image can be walked as one long row."""
        whole = self.geometry.is_pointwise and not any(self.input.pads + self.output.pads)
        return whole and self.upsampling is None and _flat(self)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of positions that the kernel computes."""
        if self.upsampling is not None:
            return self.upsampling.size
        return self.output.height, self.output.width

    def dot(self, target: Target) -> Dot:
        return choose(target, self.input_dtype, *self.weight_range)

    def input_blocks(self, target: Target, tile: Tile) -> tuple[list[int], int]:
        """First input block that each group of output vectors reads, and how many."""
        block = self.input.block
        if self.groups == 1:
            return [0] * (self.vectors(target) // tile.vectors), self.input.blocks
        per_out = self.output.channels // self.groups
        per_in = self.input.channels // self.groups
        width = tile.vectors * target.lanes
        starts, ends = [], []
        for first in range(0, self.vectors(target) * target.lanes, width):
            last = min(first + width, self.output.channels) - 1
            first = min(first, self.output.channels - 1)
            starts.append(first // per_out * per_in // block)
            ends.append(-(-(last // per_out + 1) * per_in // block))
        count = max(e - s for s, e in zip(starts, ends, strict=True))
        return [min(s, self.input.blocks - count) for s in starts], count

    def block_steps(self, target: Target) -> tuple[int, int]:
        """Reduction steps of a tap in an input block, and in the last one.

        Channels beyond the last are not multiplied.
        """
        depth, block = self.dot(target).depth, self.input.block
        steps = block // depth
        if self.groups > 1:
            return steps, steps
        return steps, -(-(self.input.channels - (self.input.blocks - 1) * block) // depth)

    def vectors(self, target: Target) -> int:
        """Vectors of output channels in all phases, the last ones perhaps partly padding."""
        phases = self.upsampling.phases if self.upsampling is not None else 1
        return phases * self.phase_vectors(target)

    def phase_vectors(self, target: Target) -> int:
        return max(1, self.output.padded_channels // target.lanes)

    @property
    def windows(self) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
        """First tap and number of taps in rows and columns, of each phase."""
        if self.upsampling is None:
            kernel_h, kernel_w = self.geometry.kernel
            return (((0, kernel_h), (0, kernel_w)),)
        return tuple(self.upsampling.window(phase) for phase in range(self.upsampling.phases))

    def is_close(self, target: Target, tile: Tile) -> bool:
        """Whether the weights of a step follow those before without padding: where that is much.

        The last vector's load then reads into the next step, whose numbers it leaves out.
        """
        dot, channels = self.dot(target), self.output.channels
        plain = dot.depth == 1 and dot.weight_dtype == "float32" and self.upsampling is None
        if not plain or self.groups > 1 or self.vectors(target) > tile.vectors:
            return False
        spare = tile.vectors * target.lanes - channels
        rows = self.input.channels * math.prod(self.geometry.kernel)
        return 4 * spare >= channels and 4 * spare * rows >= _MUCH


_MUCH = 4096
"""Bytes of padding of weights that are worth leaving out."""


def start_table(conv: Convolution, target: Target, tile: Tile) -> Array | None:
    """First input block per group, None where it is a multiple of the group's index."""
    starts, _ = conv.input_blocks(target, tile)
    slope = _slope(starts)
    return None if slope is not None else np.asarray(starts, np.int32)


def _slope(starts: Sequence[int]) -> int | None:
    slope = starts[1] - starts[0] if len(starts) > 1 else 0
    affine = all(s == slope * i for i, s in enumerate(starts))
    return slope if affine else None


def build(conv: Convolution, target: Target, tile: Tile, parallel: bool = False) -> PrimFunc:
    """The kernel. Arguments: input, weights, bias, operands, [block starts], output."""
    return _DirectBuilder(conv, target, tile, parallel).build()


class _DirectBuilder:
    """One kernel being built."""

    def __init__(self, conv: Convolution, target: Target, tile: Tile, parallel: bool) -> None:
        if conv.is_flat and is_open(*conv.size):
            conv = as_rows(conv)
        self.conv, self.target, self.tile, self.parallel = conv, target, tile, parallel
        self.dot = conv.dot(target)
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
        self.table = k.parameter("S", (groups,), "int32") if self.slope is None else None
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
            size = tile.vectors * widths[0][0] * self.lanes
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
            acc = k.local(tile.vectors * pixels * self.lanes, self.dot.accumulator)
        phase = self.phase * conv.phase_vectors(self.target)
        for v in range(tile.vectors):
            channel = (phase + group * tile.vectors + v) * self.lanes
            start = load(self.bias, channel, lanes=self.lanes)
            for p in range(pixels):
                k.store(acc, start, (v * pixels + p) * self.lanes, lanes=self.lanes)
        self.reduce(acc, n, group, row, column)
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
                for c, value in enumerate(values):
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

        def read(p: int) -> list[Computed]:
            h = (row + p // tile.columns) * stride_h + kh * geometry.dilations[0] + top
            w = (column + p % tile.columns) * stride_w + kw * geometry.dilations[1] + left
            at: Index = (h, w) if x.is_open else h * self.in_columns + w
            return dot.read(k, steps, self.x, block, at, step * dot.depth)

        def weights(i: int, v: int) -> list[Computed]:
            if self.is_close:
                return [self.close_weights(index + i, v)]
            place = (group, index + i)
            if self.conv.upsampling is not None:
                place = (0, self.before + group * self.steps_of(self.window) + index + i)
            return dot.weights(k, self.w, *place, v * dot.weights_per_step)

        multiply(k, dot, acc, steps, tile.vectors, tile.rows * tile.columns, read, weights)

    def close_weights(self, index: Expr, vector: int) -> Computed:
        """A vector of weights of a step, zero past the last channel."""
        lanes, channels = self.lanes, self.conv.output.channels
        value = load(self.w, 0, 0, index * channels + vector * lanes, lanes=lanes)
        rest = channels - vector * lanes
        if rest < lanes:
            own = tirx.Ramp(as_int(0), as_int(1), lanes) < splat(as_int(rest), lanes)
            value = tirx.Select(own, value, constant(0.0, "float32", lanes))
        return bind(self.k, value, "float32", lanes)


def _flat(conv: Convolution) -> bool:
    """Whether all operands allow the image to be walked as one long row."""
    return all(
        o.layout is None or (o.layout.height, o.layout.width) == (1, 1) or not any(o.layout.pads)
        for o in conv.operands
    )


def as_rows(conv: Convolution) -> Convolution:
    """The same of images that are walked as one row."""
    operands = tuple(
        o
        if o.layout is None or (o.layout.height, o.layout.width) == (1, 1)
        else dataclasses.replace(o, layout=o.layout.as_row)
        for o in conv.operands
    )
    return dataclasses.replace(
        conv, input=conv.input.as_row, output=conv.output.as_row, operands=operands
    )


def _start(index: Expr, size: int, extent: int) -> Expr:
    """First pixel of a tile, moved back where the tile would pass the edge."""
    if is_open(extent):
        return index if size == 1 else tirx.min(as_int(index * size), as_int(extent - size))
    if isinstance(index, int):
        return as_int(min(index * size, extent - size))
    if extent % size == 0:
        return index * size
    return tirx.min(index * size, as_int(extent - size))


def flat_extent(conv: Convolution) -> tuple[int, int]:
    """Output rows and columns as the kernel walks them (one row where it can)."""
    height, width = conv.size
    return (1, height * width) if conv.is_flat else (height, width)


def divisors(n: int) -> Sequence[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def choose_tile(conv: Convolution, target: Target) -> Tile:
    """The register tile that a small model of the inner loop finds fastest."""
    if is_open(flat_extent(conv)[1]):
        every = divisors(conv.phase_vectors(target))
        best = min(every, key=lambda v: open_widths(conv, target, v)[0] / v)
        tile = Tile(best, 1, open_widths(conv, target, best)[1][0][0])
    else:
        tile = min(estimate_tiles(conv, target), key=lambda found: found[0])[1]
    return dataclasses.replace(tile, channels_outer=not _keeps_weights(conv, target))


def _keeps_weights(conv: Convolution, target: Target) -> bool:
    """Whether to pass over the image once, reading all weights again for each of its tiles.

    They must stay cached. Where the reduction is so short that its weights stay in
    registers from tile to tile, one group of channels after the other is faster.
    """
    dot = conv.dot(target)
    steps = _steps(conv, target)
    weights = steps * conv.vectors(target) * dot.weights_per_step
    return steps >= 16 and weights * np.dtype(dot.weight_dtype).itemsize <= 128 * 1024


def _steps(conv: Convolution, target: Target, vectors: int = 1) -> int:
    """Reduction steps of a tile of so many vectors, which reads the blocks of all their groups; of
    tiles of several phases the mean."""
    _, blocks = conv.input_blocks(target, Tile(vectors, 1, 1))
    steps, last = conv.block_steps(target)
    up = conv.upsampling
    taps, phases = (up.taps, up.phases) if up else (math.prod(conv.geometry.kernel), 1)
    return -(-taps * ((blocks - 1) * steps + last) // phases)


def fits(conv: Convolution, target: Target, tile: Tile) -> bool:
    """Whether a tile makes a kernel of this convolution."""
    height, width = flat_extent(conv)
    if is_open(height, width):
        return False  # what is measured is measured at a size
    return (
        min(tile.vectors, tile.rows, tile.columns, tile.unroll) > 0
        and conv.phase_vectors(target) % tile.vectors == 0
        and tile.rows <= height
        and tile.columns <= width
        and tile.vectors * tile.rows * tile.columns <= 2 * target.registers
        and tile.unroll <= 16
    )


def estimate_tiles(conv: Convolution, target: Target) -> list[tuple[float, Tile]]:
    """Register tiles with about how many cycles the kernel takes by each.

    A reduction step costs its multiply-adds or its loads, whichever is more, and at
    least the latency of one multiply-add. Around the reduction each result costs its
    epilogue, and more where accumulators and the epilogue's constants together don't
    fit the registers: then tiles of about half the registers win, since the processor
    overlaps one tile's epilogue with the next tile's reduction. Pixels that
    overlapping tiles compute twice count in full.
    """
    height, width = flat_extent(conv)
    most_rows = 1 if is_open(height) else min(height, 8)
    vectors, found = conv.vectors(target), []
    for v in divisors(conv.phase_vectors(target)):
        for tile, cycles in _tiles_of_vectors(conv, target, v, most_rows, min(width, 28)):
            if tile.rows > 1 and tile.columns < width:
                continue
            rows = typical(height) if is_open(height) else -(-height // tile.rows)
            tiles = rows * -(-width // tile.columns) * (vectors // v)
            found.append((tiles * cycles, tile))
    return found


@functools.cache
def open_widths(conv: Convolution, target: Target, vectors: int) -> tuple[float, Widths]:
    """Widths of tiles of so many vectors, and what a column costs on average."""
    found = dict.fromkeys(range(1, 29), math.inf)
    for tile, cycles in _tiles_of_vectors(conv, target, vectors, 1, 28):
        found[tile.columns] = cycles
    most = max((c for c, cycles in found.items() if cycles < math.inf), default=0)
    if not most:
        return math.inf, ((1, 1),)
    costs = tuple(found[c] for c in range(1, most + 1))
    return choose_widths(costs, tuple(samples(flat=conv.is_flat)))


def _tiles_of_vectors(
    conv: Convolution, target: Target, v: int, most_rows: int, most_columns: int
) -> Iterator[tuple[Tile, float]]:
    """Tiles of so many vectors that fit the registers, with what one takes."""
    dot = conv.dot(target)
    per_step = dot.parts
    most = 16 if target.vector_bytes == 64 else target.registers - 4
    weight_bytes = dot.weights_per_step * np.dtype(dot.weight_dtype).itemsize
    costs = _SINGLE
    if packs(target, conv.program.dtype):
        costs = _TOGETHER_WIDE if target.vector_bytes == 64 else _TOGETHER
    steps = _steps(conv, target, v)
    for rows in range(1, most_rows + 1):
        for columns in range(1, most_columns + 1):
            pixels = rows * columns
            tile = Tile(v, rows, columns)
            if dot.together > 1:
                if not stays_in_registers(dot, target, v, pixels):
                    continue
                joined = Epilogue.joined(target, conv.program.dtype, conv.output, v)
                even = joined > 1 and columns % 2 == 0
                finish = 5.5 if even else 6.5 if joined > 1 else 10
                yield tile, _by_instructions(tile, dot, steps, finish)
                continue
            if v * (pixels + per_step) + per_step > target.registers - 1 and v * pixels > 1:
                continue
            yield tile, _tile_cycles(tile, steps, per_step, most, weight_bytes, costs, target)


@dataclasses.dataclass(frozen=True)
class _Costs:
    """Cycles that an output tile takes besides its multiply-accumulates.

    `tile` for each tile, `result` for each vector of results; `beyond` for each one after the
    eighth, since epilogues of many overlap less with the next tile's reduction; `ragged` for
    pixels that are finished in fewer than `PACKED`. `load` is the share of a reduction step's
    loads that multiply-accumulates don't hide.
    """

    tile: float
    result: float
    beyond: float
    ragged: float
    load: float


_SINGLE = _Costs(tile=12, result=4, beyond=0, ragged=0, load=0.15)
_TOGETHER = _Costs(tile=12, result=2.75, beyond=0, ragged=6, load=0.15)
_TOGETHER_WIDE = _Costs(tile=3, result=3.5, beyond=0.7, ragged=12, load=0.04)
"""Fitted to 24 convolutions of MobileNetV2 and ResNet-50 on Zen 4: 0.3 % above the best tiles."""


def _by_instructions(tile: Tile, dot: Dot, steps: int, finish: float) -> float:
    """About how many instructions a tile takes, `finish` for each of its results.

    For CPUs whose issue width is what limits them.
    """
    pixels = tile.rows * tile.columns
    step = instructions(dot, tile.vectors, pixels) + 1
    return steps * step + tile.vectors * pixels * finish + 2 * tile.vectors + 12


def _tile_cycles(
    tile: Tile,
    steps: int,
    per_step: int,
    most: int,
    weight_bytes: int,
    costs: _Costs,
    target: Target,
) -> float:
    """Estimated cycles of a tile; `weight_bytes` are those of one vector and step."""
    wide = target.vector_bytes == 64
    vectors, pixels = tile.vectors, tile.rows * tile.columns
    results = vectors * pixels
    multiplies = results * per_step / (1 if wide else 2)
    cached = steps * vectors * weight_bytes <= 24 * 1024
    per_load = (1.0 if cached else 3.0) if wide else (0.5 if cached else 1.0)
    loads = vectors * per_step * per_load + pixels * per_step * 0.6
    spilled = max(0, results - most)
    step = max(multiplies, loads, 4.0) + costs.load * loads
    ragged = costs.ragged if tile.columns % PACKED else 0
    epilogue = results * costs.result + max(0, results - 8) * costs.beyond
    return steps * step + 6 * spilled + epilogue + vectors * tile.rows * ragged + costs.tile
