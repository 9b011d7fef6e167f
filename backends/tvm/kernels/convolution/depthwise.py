"""Depthwise convolution of blocked activations: channels in lanes, no reduction over them.

So are float32 convolutions in groups of a few channels, as many in as out: each lane of a vector
takes the first channel of its group, then the second, and so on, by a permutation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from tvm import tirx

from .....ir.tensor import Array
from ...functions.rounding import PACKED, packs
from ...plan.blocked import Blocked
from ...plan.geometry import Geometry
from ...plan.programs import Program
from ...plan.sizes import is_open
from ...targets import Target
from ...tensorir.builder import KernelBuilder, cast, load, reinterpret, splat, tiles_of
from ...tensorir.types import BufferVar, Computed, Expr, Index, PrimFunc
from ..epilogue import Epilogue, Operand, declare, fill_border
from ..matrix.dot import SIGN_BITS, vpdpbusd
from ..matrix.neon import NeonDot
from .direct import _start
from .open_columns import Widths, choose_widths, each_width, samples
from .windows import Windows


@dataclasses.dataclass(frozen=True)
class Depthwise:
    """One depthwise kernel, or one of groups of `width` channels; 8-bit inputs accumulate in
    int32."""

    input: Blocked
    input_dtype: str
    output: Blocked
    geometry: Geometry
    program: Program
    operands: tuple[Operand, ...]

    weight_range: tuple[int, int] = (-128, 127)
    width: int = 1

    @property
    def accumulator(self) -> str:
        return "float32" if self.input_dtype == "float32" else "int32"

    def by_dot_product(self, target: Target) -> bool:
        """Whether four horizontal taps at a time go through vpdpbusd."""
        low, high = self.weight_range
        return (
            "vnni" in target.features
            and self.input_dtype != "float32"
            and self.input.block == target.lanes
            and self.geometry.dilations[1] == 1
            and low >= -128
            and high <= 127
        )

    def windows(self, target: Target) -> Windows | None:
        """How ARM's dot products take the taps of a row, where they do."""
        taps, stride = self.geometry.kernel[1], self.geometry.strides[1]
        if (
            "dotprod" not in target.features
            or not self.by_pairs(target)
            or taps == 1
            or self.geometry.dilations[1] != 1
            or is_open(self.output.width)
        ):
            return None
        return Windows(taps, stride)

    def window_dot(self, target: Target) -> NeonDot:
        return NeonDot(4, self.input_dtype, "i8mm" in target.features)

    def by_pairs(self, target: Target) -> bool:
        """Whether NEON multiplies bytes, eight channels and two taps at a time."""
        low, high = self.weight_range
        return (
            "neon" in target.features
            and self.input_dtype != "float32"
            and self.input.block == 8
            and low >= -128
            and high <= 127
        )

    def input_offset(self, target: Target) -> int:
        """What is added to each input element: corrected in the bias."""
        if self.by_dot_product(target):
            return 128 if self.input_dtype == "int8" else 0
        if self.windows(target) is not None:
            return self.window_dot(target).input_offset
        return -128 if self.by_pairs(target) and self.input_dtype == "uint8" else 0


def extra_columns(kernel_w: int) -> int:
    """Pixels that loads of four taps read past the window."""
    return -kernel_w % 4


def takes_groups(width: int, layout: Blocked, target: Target) -> bool:
    """Whether groups of `width` channels lie in the lanes of vectors, and leave some of a block's
    channels to others."""
    lanes = min(target.lanes, layout.block)
    return 1 < width < layout.block and lanes % width == 0


def pack_weights(conv: Depthwise, target: Target, weights: Array) -> Array:
    """[C, width, KH, KW] to [KH * KW * width, padded channels], or to four taps per channel."""
    channels, width, kernel_h, kernel_w = weights.shape
    if conv.by_dot_product(target):
        groups, block = -(-kernel_w // 4), conv.input.block
        dense = np.zeros((conv.output.padded_channels, kernel_h, groups * 4), np.int8)
        dense[:channels, :, :kernel_w] = weights[:, 0]
        dense = dense.reshape(-1, block, kernel_h * groups, 4).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(dense.reshape(-1, kernel_h * groups, 4 * block))
    windows = conv.windows(target)
    if windows is not None:
        return windows.pack(weights, conv.output.padded_channels)
    dtype = "int8" if conv.by_pairs(target) else conv.accumulator
    packed = np.zeros((kernel_h * kernel_w * width, conv.output.padded_channels), dtype)
    packed[:, :channels] = weights.transpose(2, 3, 1, 0).reshape(-1, channels)
    return packed


def build(conv: Depthwise, target: Target, parallel: bool = False) -> PrimFunc:
    """The kernel. Arguments: input, weights, bias, operands, output."""
    dot, pairs = conv.by_dot_product(target), conv.by_pairs(target)
    windows = conv.windows(target)
    x, y, geometry = conv.input, conv.output, conv.geometry
    kernel_h, kernel_w = geometry.kernel
    lanes = y.block if pairs else min(target.lanes, y.block)
    k = KernelBuilder()
    acc_dtype = conv.accumulator
    source = k.parameter("X", x.shape, conv.input_dtype)
    groups = -(-kernel_w // 4)
    if dot:
        weights = k.parameter("W", (y.blocks, kernel_h * groups, 4 * y.block), "int8")
    elif windows is not None:
        weights = k.parameter("W", (y.blocks, windows.steps(kernel_h), 4 * y.block), "int8")
    else:
        dtype = "int8" if pairs else acc_dtype
        rows = kernel_h * kernel_w * conv.width
        weights = k.parameter("W", (rows, y.padded_channels), dtype)
    bias = k.parameter("B", (y.padded_channels,), acc_dtype)
    buffers = declare(k, conv.operands, y, y.padded_channels)
    result = k.parameter("Y", y.shape, conv.program.dtype)
    fill_border(k, result, y, conv.program.dtype)
    epilogue = Epilogue(k, target, conv.program, conv.operands, buffers, y, result, lanes)
    top, left = x.top - geometry.pads[0], x.left - geometry.pads[1]

    def tile(n: Expr, vector: Expr, oh: Expr, column: Expr, columns: int, acc: BufferVar) -> None:
        parts = y.block // lanes
        cb, part = (vector, 0) if parts == 1 else (vector // parts, vector % parts)
        channel = cb * y.block + part * lanes
        start = load(bias, channel, lanes=lanes)
        for p in range(columns):
            k.store(acc, start, p * lanes, lanes=lanes)

        def place(kh: int, kw: int, p: int) -> tuple[Expr, Index]:
            h = oh * geometry.strides[0] + (kh * geometry.dilations[0] + top)
            offset = kw * geometry.dilations[1] + left
            w = (column + p) * geometry.strides[1]
            at: Index = (h, w + offset) if x.is_open else h * x.columns + w + offset
            return n * x.blocks + cb, at

        taps = [(kh, tap) for kh in range(kernel_h) for tap in range(groups if dot else kernel_w)]
        if windows is not None:
            own_dot = conv.window_dot(target)
            for kh in range(kernel_h):

                def read(output: int, pixel: int, kh: int = kh) -> Computed:
                    at = place(kh, pixel, output)
                    return _read(source, *at, 16, own_dot.input_offset)

                def factors(step: int) -> Computed:
                    return load(weights, cb, step, 0, lanes=4 * y.block)

                windows.multiply(k, own_dot, acc, columns, kh, read, factors)
            taps = []
        elif pairs:
            together = 2 if conv.weight_range[0] > -128 else 1
            for first in range(0, len(taps), together):
                own = taps[first : first + together]
                loaded = [load(weights, kh * kernel_w + kw, channel, lanes=8) for kh, kw in own]
                offset = conv.input_offset(target)
                for p in range(columns):
                    values = [_read(source, *place(*tap, p), 8, offset) for tap in own]
                    total = load(acc, p * 8, lanes=8) + _products(values, loaded)
                    k.store(acc, total, p * 8, lanes=8)
            taps = []
        if conv.width > 1:
            for kh, kw in taps:
                at = [place(kh, kw, p) for p in range(columns)]
                values = [load(source, *i, part * lanes, lanes=lanes) for i in at]
                for member in range(conv.width):
                    row = (kh * kernel_w + kw) * conv.width + member
                    w = load(weights, row, channel, lanes=lanes)
                    order = [i - i % conv.width + member for i in range(lanes)]
                    for p, value in enumerate(values):
                        total = load(acc, p * lanes, lanes=lanes)
                        k.store(
                            acc, total + tirx.Shuffle([value], order) * w, p * lanes, lanes=lanes
                        )
            taps = []
        for kh, tap in taps:
            at = [place(kh, 4 * tap if dot else tap, p) for p in range(columns)]
            if dot:
                w = load(weights, cb, kh * groups + tap, 0, lanes=4 * lanes)
                values = [_four_taps(conv, source, *i) for i in at]
            else:
                w = load(weights, kh * kernel_w + tap, channel, lanes=lanes)
                values = [load(source, *i, part * lanes, lanes=lanes) for i in at]
            for p, value in enumerate(values):
                total = load(acc, p * lanes, lanes=lanes)
                if dot:
                    total = vpdpbusd(lanes, total, value, w)
                elif acc_dtype == "int32":
                    total = total + cast(value, "int32", lanes) * w
                else:
                    total = total + value * w
                k.store(acc, total, p * lanes, lanes=lanes)
        values = [load(acc, p * lanes, lanes=lanes) for p in range(columns)]
        epilogue.finish(values, n, channel, oh, column)

    vectors = y.padded_channels // lanes
    if is_open(y.width):
        widths = open_widths(conv, target)
        with k.shares(y.batch, vectors, parallel=parallel) as (n, vector, piece, pieces):
            by_rows = 1 if y.height == 1 else pieces
            acc = k.local(widths[0][0] * lanes, acc_dtype)
            for columns in each_width(k, y.width, widths):
                with (
                    k.piece(y.height, piece, by_rows, "row") as oh,
                    k.piece(tiles_of(y.width, columns), piece, pieces // by_rows, "column") as j,
                ):
                    tile(n, vector, oh, _start(j, columns, y.width), columns, acc)
        return k.finish()
    columns = choose_columns(conv, target)
    extents = (y.batch, vectors, y.height, -(-y.width // columns))
    with k.nest(extents, parallel=parallel) as (n, vector, oh, j):
        acc = k.local(columns * lanes, acc_dtype)
        tile(n, vector, oh, _start(j, columns, y.width), columns, acc)
    return k.finish()


def _read(
    source: BufferVar, block: Expr, position: Index, lanes: int, input_offset: int
) -> Computed:
    """So many channels of pixels from one on, as the bytes that the instruction takes."""
    value = load(source, block, position, 0, lanes=lanes)
    if input_offset:
        words = reinterpret(value, "int32", lanes // 4)
        value = words ^ splat(tirx.const(SIGN_BITS, "int32"), lanes // 4)
    return reinterpret(value, "int8", lanes)


def _products(values: Sequence[Computed], factors: Sequence[Computed]) -> Computed:
    """The sum of products of bytes, of at most two that don't pass 16 bits together."""
    products = [
        cast(value, "int16", 8) * cast(factor, "int16", 8)
        for value, factor in zip(values, factors, strict=True)
    ]
    return cast(functools.reduce(lambda a, b: a + b, products), "int32", 8)


def _four_taps(conv: Depthwise, source: BufferVar, block: Expr, position: Index) -> Computed:
    """Four neighbouring pixels, as unsigned bytes, the taps of each channel together."""
    dtype, lanes = conv.input_dtype, conv.input.block
    flat = load(source, block, position, 0, lanes=4 * lanes)
    if dtype == "int8":
        words = reinterpret(flat, "int32", lanes) ^ splat(tirx.const(SIGN_BITS, "int32"), lanes)
        flat = reinterpret(words, "uint8", 4 * lanes)
    return tirx.Shuffle([flat], [(i % 4) * lanes + i // 4 for i in range(4 * lanes)])


_MOST_OF_WINDOWS = 5
"""Outputs of a tile whose sums and weights the registers hold."""


def choose_columns(conv: Depthwise, target: Target) -> int:
    """Pixels per tile.

    Few are wasted by the overlap of the last tile, many in flight. Where bytes are finished
    together, small tiles are faster: the next one begins while the last one is finished.
    """
    width = conv.output.width
    if conv.windows(target) is not None:
        most = range(1, min(width, _MOST_OF_WINDOWS) + 1)
        return min(most, key=lambda c: -(-width // c) * (c + 0.15 * (c % 2) + 0.6))
    if _packs(conv, target):
        return 2 * PACKED if width % (2 * PACKED) == 0 else min(width, PACKED)
    costs = _costs(conv, target)
    return min(range(1, min(width, len(costs)) + 1), key=lambda c: -(-width // c) * costs[c - 1])


def open_widths(conv: Depthwise, target: Target) -> Widths:
    """Widths of tiles of a row whose length only a run fixes."""
    if _packs(conv, target):
        return ((PACKED, 4), (2, 3), (1, 2))
    return choose_widths(_costs(conv, target), tuple(samples(flat=False)))[1]


def _packs(conv: Depthwise, target: Target) -> bool:
    """Whether bytes are multiplied and finished four pixels at a time."""
    return conv.by_dot_product(target) and packs(target, conv.program.dtype)


def _costs(conv: Depthwise, target: Target) -> tuple[float, ...]:
    """What tiles of 1, 2, ... pixels take, up to the most that registers hold."""
    if conv.by_pairs(target):
        most = 4 if target.registers < 32 else 6
        return tuple(c + c % 2 + 2 for c in range(1, most + 1))
    taps = conv.geometry.kernel[0] * conv.geometry.kernel[1]
    most = max(4, min(14, target.registers - min(taps, 9) - 2))
    return tuple(c + 1.5 for c in range(1, most + 1))
