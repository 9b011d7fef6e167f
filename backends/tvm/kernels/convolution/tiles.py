"""Direct convolutions, and the tiles of registers that suit them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...functions.rounding import PACKED, packs
from ...plan.blocked import Blocked
from ...plan.geometry import Geometry, Upsampling
from ...plan.programs import Program
from ...plan.sizes import is_open, typical
from ...targets import Target
from ..epilogue import Epilogue, Operand
from ..matrix.dot import Dot
from ..matrix.reduction import choose, stays_in_registers
from .open_columns import Widths, choose_widths, samples


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
    joined: int = 0

    @property
    def is_flat(self) -> bool:
        """Whether the image can be walked as one long row."""
        whole = self.geometry.is_pointwise and not any(self.input.pads + self.output.pads)
        return whole and self.upsampling is None and _flat(self)

    @property
    def is_column(self) -> bool:
        """Whether images are one column wide, so that they are rows in memory, too."""
        layouts = (o.layout for o in self.operands)
        images = [y for y in layouts if y is not None and (y.height, y.width) != (1, 1)]
        whole = all(layout.is_column for layout in (self.input, self.output, *images))
        return whole and self.output.height > 1 and self.upsampling is None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of positions that the kernel computes."""
        if self.upsampling is not None:
            return self.upsampling.size
        return self.output.height, self.output.width

    def dot(self, target: Target) -> Dot:
        pairs = None
        if self.input.block % 8 == 0 and flat_extent(self) != (1, 1):
            pairs = self.input.block == 8 and self.geometry.strides[1] == 1
        return choose(target, self.input_dtype, *self.weight_range, self.joined, pairs)

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


def _flat(conv: Convolution) -> bool:
    """Whether all operands allow the image to be walked as one long row."""
    return all(
        o.layout is None or (o.layout.height, o.layout.width) == (1, 1) or not any(o.layout.pads)
        for o in conv.operands
    )


def flat_extent(conv: Convolution) -> tuple[int, int]:
    """Output rows and columns as the kernel walks them (one row where it can)."""
    height, width = conv.size
    return (1, height * width) if conv.is_flat else (height, width)


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


def columns_as_rows(conv: Convolution) -> Convolution:
    """The same of images of one column: tiles of a row's pixels are finished together."""
    return dataclasses.replace(as_rows(conv), geometry=conv.geometry.transposed)


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

    They must stay cached, the more of them where taps lie so far apart that each reads the image
    from memory again, for each group of channels. Where the reduction is so short that its weights
    stay in registers from tile to tile, one group of channels after the other is faster.
    """
    dot = conv.dot(target)
    steps = _steps(conv, target)
    weights = steps * conv.vectors(target) * dot.weights_per_step
    most = _MANY_WEIGHTS if _tap_distance(conv) > _FAR else _WEIGHTS
    return steps >= 16 and weights * np.dtype(dot.weight_dtype).itemsize <= most


_WEIGHTS, _MANY_WEIGHTS = 128 * 1024, 512 * 1024
"""Bytes of weights that stay cached beside an image, and beside one that doesn't."""

_FAR = 96 * 1024
"""Bytes of the image between taps that no cache keeps from one to the next."""


def _tap_distance(conv: Convolution) -> int:
    """Bytes of the image that are read between those of one tap and of the next one."""
    (kernel_h, kernel_w), dilations = conv.geometry.kernel, conv.geometry.dilations
    pixel = conv.input.padded_channels // conv.groups * np.dtype(conv.input_dtype).itemsize
    if is_open(*conv.input.shape):
        return 0
    rows = dilations[0] * conv.input.columns if kernel_h > 1 else 0
    return pixel * max(rows, dilations[1] if kernel_w > 1 else 0)


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
            tile = Tile(v, rows, columns, dot.unroll)
            if dot.by_instructions:
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
    step = dot.instructions(tile.vectors, pixels) + 4 / tile.unroll
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
