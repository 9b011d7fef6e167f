"""Winograd convolution F(4x4, 3x3): 36 multiplications where the direct form has 144.

After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), with
interpolation points 0, 1, -1, 2, -2. Its rounding error of floats is a few times that of the
direct form (about 1e-5 relative); sums of bytes are exact, where 16-bit pairs are multiplied
(`transforms.py`). Weights are transformed while compiling, which takes four times their bytes, or
by the kernel in each run, group by group, a tenth of its time or so (`fresh`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from tvm import tirx

from .....ir.symbolic.expressions import minimum
from .....ir.tensor import Array
from ...plan.blocked import Blocked
from ...plan.geometry import Geometry
from ...plan.programs import Program
from ...plan.sizes import as_one, is_open, size_of, stand_in, typical
from ...targets import Target
from ...tensorir.builder import (
    KernelBuilder,
    as_int,
    constant,
    load,
    smaller,
    tiles_of,
)
from ...tensorir.types import BufferVar, Computed, Expr, Index, PrimFunc
from ..epilogue import Epilogue, Operand, declare, fill_border
from .open_columns import choose_widths, each_width
from .tiles import divisors
from .transforms import FLOATS, INPUT, Floats, combine, transform_weights

_SCRATCH = 2 * 2**20
"""Bytes of transformed input and products that are kept at a time, where that is enough for
`_REUSE` tiles: a pass over them goes through one of their 36 parts after the other."""


@dataclasses.dataclass(frozen=True)
class Winograd:
    """One 3x3 convolution of stride 1; input padding reaches the last tile's edge."""

    input: Blocked
    output: Blocked
    geometry: Geometry
    program: Program
    operands: tuple[Operand, ...]
    groups: int = 1
    fresh: bool = False
    by: Floats = FLOATS

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of 4 x 4 output tiles."""
        return (self.output.height + 3) // 4, (self.output.width + 3) // 4

    @property
    def is_open(self) -> bool:
        """Whether a run fixes rows or columns."""
        return self.output.is_open

    @property
    def chunk_rows(self) -> int:
        """Rows of tiles that are transformed and multiplied at a time: few chunks, of which the
        last computes little again."""
        rows, columns = self.tiles
        moved = (self.input, self.by.element), (self.output, self.by.accumulator)
        per_tile = 36 * sum(x.padded_channels * np.dtype(dtype).itemsize for x, dtype in moved)
        most = max(1, min(rows, max(_REUSE, _SCRATCH // per_tile) // columns))
        return min(range(1, most + 1), key=lambda r: -(-rows // r) * (r * columns + _CHUNK))

    @property
    def chunk(self) -> int:
        """Tiles that are transformed and multiplied at a time."""
        rows, columns = self.tiles
        if self.is_open:
            return stand_in(minimum(size_of(as_one(rows * columns)), _REUSE))
        return self.chunk_rows * columns

    @property
    def scratch(self) -> list[tuple[tuple[int, ...], str]]:
        """Shapes and types of the transformed input and of the products."""
        return [
            ((36, self.input.blocks * self.chunk, self.input.block), self.by.element),
            ((36, self.output.blocks * self.chunk, self.output.block), self.by.accumulator),
        ]

    def vectors(self) -> int:
        """Blocks of output channels multiplied together."""
        return max(v for v in divisors(self.output.blocks // self.groups) if v <= 2)

    @property
    def depth(self) -> int:
        """Input channels, padding included, that are multiplied for an output channel."""
        return self.input.padded_channels // self.groups

    @property
    def steps(self) -> int:
        """Multiplications for an output channel."""
        return self.depth // self.by.together


_REUSE = 64
"""Tiles that each number of the weights is worth loading, or transforming, for."""

_CHUNK = 6
"""Tiles that take as long as what each chunk of them takes besides."""

_APART = 16
"""Elements between transformed weights of different products, which would share a cache's sets."""

WHOLE = 16
"""Channels that whole blocks of any target have: groups of convolutions have some of these."""


def computes(shape: Sequence[int], out_channels: int, geometry: Geometry, groups: int) -> bool:
    """Whether a convolution has this form."""
    if groups > 1 and (shape[1] // groups % WHOLE or out_channels // groups % WHOLE):
        return False
    if geometry.kernel != (3, 3) or geometry.strides != (1, 1) or geometry.dilations != (1, 1):
        return False
    return len(shape) == 4 and shape[1] > 4


MORE = 3
"""How many times the bytes of its weights a convolution takes besides: 36 numbers for 9."""

CACHED = 12 * 2**20
"""Bytes of transformed weights that are worth reading for few tiles."""


def pays(
    shape: Sequence[int],
    out_channels: int,
    output: Sequence[int],
    geometry: Geometry,
    groups: int,
    *,
    fresh: bool = False,
) -> bool:
    """Whether this form is faster: enough channels, and weights used for enough tiles.

    The transformed weights take four times the memory; where they don't stay in a cache
    from one run to the next, few tiles don't make up for reading them. For few tiles and channels
    transforming them takes longer than it saves.
    """
    fewest = min(shape[1], out_channels)
    if not computes(shape, out_channels, geometry, groups) or fewest < 16:
        return False
    if groups > 1 and shape[1] // groups < 2 * WHOLE:
        return False  # the direct form is as fast
    height, width = typical(output[2]), typical(output[3])
    tiles = -(-height // 4) * -(-width // 4)
    wasted = 16 * tiles / (height * width)
    bytes_ = 36 * 4 * shape[1] * out_channels // groups
    few = fewest >= 2 * WHOLE if fresh else bytes_ <= CACHED
    return tiles >= (4 if few else 12) and wasted <= 2.0


def estimate(conv: Winograd, target: Target) -> float:
    """About how many cycles the kernel takes: both transformations, and 36 products."""
    x, y = conv.input, conv.output
    rows, columns = conv.tiles
    tiles = rows * columns * x.batch
    per_vector = max(1, x.block // target.lanes)
    wide = target.vector_bytes == 64
    products = 36 * tiles * y.blocks * per_vector * conv.steps / (1 if wide else 2)
    loads = products * (0.25 if conv.vectors() > 1 else 0.5)
    moved = per_vector * tiles * (x.blocks * 144 + y.blocks * (160 + 16 * FINISH))
    if conv.fresh:
        chunks = x.batch * -(-rows // conv.chunk_rows)
        moved += chunks * per_vector * y.blocks * conv.steps * TRANSFORM
    return products + loads + moved


TRANSFORM = 45
"""Cycles for the transformation of a vector of 3 x 3 weights."""


FINISH = 4
"""Cycles for each vector of results, besides the transformation."""


def needed_pads(
    shape: Sequence[int], output: Sequence[int], geometry: Geometry
) -> tuple[int, int, int, int]:
    """Padding that makes every 6 x 6 input tile readable."""
    top, left, bottom, right = geometry.pads
    if is_open(*output[2:]):
        past = [0 if size % 4 == 0 else 3 for size in output[2:]]  # the last tiles reach so far
        return top, left, bottom + past[0], right + past[1]
    bottom = -(-output[2] // 4) * 4 + 2 - top - shape[2]
    right = -(-output[3] // 4) * 4 + 2 - left - shape[3]
    return top, left, max(0, bottom), max(0, right)


def pack_weights(conv: Winograd, weights: Array) -> Array:
    """[O, I / groups, 3, 3] to [36, group, step, vector * element], transformed in double
    precision; or, as they are, to [group, step, 9, vector * element]."""
    out_channels, in_channels = weights.shape[:2]
    y, together, width = conv.output, conv.by.together, conv.vectors() * conv.output.block
    groups = y.padded_channels // width
    if conv.fresh:
        taps = np.zeros((y.padded_channels, conv.depth, 9), conv.by.taps)
        taps[:out_channels, :in_channels] = weights.reshape(out_channels, in_channels, 9)
        split = taps.reshape(groups, width, conv.steps, together, 9).transpose(0, 2, 4, 1, 3)
        return np.ascontiguousarray(split).reshape(groups, conv.steps, 9, width * together)
    dense = np.zeros((36, y.padded_channels, conv.depth), conv.by.element)
    dense[:, :out_channels, :in_channels] = conv.by.transform(weights)
    split = dense.reshape(36, groups, width, conv.steps, together).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(split).reshape(36, groups, conv.steps, width * together)


def build(conv: Winograd, target: Target, parallel: bool = False) -> PrimFunc:
    """The kernel. Arguments: input, weights, bias, operands; results, two scratch buffers."""
    x, y, by = conv.input, conv.output, conv.by
    width = conv.vectors() * y.block
    k = KernelBuilder()
    source = k.parameter("X", x.shape, by.source)
    groups, elements = y.padded_channels // width, width * by.together
    kept, taps = (36, groups, conv.steps, elements), (groups, conv.steps, 9, elements)
    weights = k.parameter("W", taps if conv.fresh else kept, by.taps if conv.fresh else by.element)
    bias = k.parameter("B", (y.padded_channels,), by.accumulator)
    buffers = declare(k, conv.operands, y, y.padded_channels)
    result = k.parameter("Y", y.shape, conv.program.dtype)
    transformed, products = (
        k.parameter(name, *kind) for name, kind in zip("VM", conv.scratch, strict=True)
    )
    fill_border(k, result, y, conv.program.dtype)
    if conv.is_open:
        arguments = (products, bias, result, buffers)
        _open_chunks(k, conv, target, (source, weights, transformed), arguments, parallel=parallel)
        return k.finish()
    rows, columns = conv.tiles
    count = conv.chunk
    chunks = -(-rows // conv.chunk_rows)
    with k.loop(y.batch, "n") as n, k.loop(chunks, "chunk") as chunk:
        start = _row(chunk, conv.chunk_rows, rows)
        with (
            k.outer(x.blocks, conv.chunk_rows, parallel=parallel) as (cb, r),
            k.loop(columns, "tw") as tw,
        ):

            def own(cb: Expr = cb, r: Expr = r, tw: Expr = tw) -> Expr:
                return cb * count + r * columns + tw

            _transform_input(k, conv, source, transformed, n, cb, start + r, tw, own)
        most = _most_tiles(conv, target)
        tiles = min(range(1, min(count, most) + 1), key=lambda t: (-(-count // t) * (t + 0.5), -t))

        def each_tile(multiply: _Multiply, tiles: int = tiles) -> None:
            with k.loop(-(-count // tiles), "tt") as tt:
                multiply(_row(tt, tiles, count), tiles, None)

        factors = (transformed, weights, products)
        _multiply_all(k, conv, factors, count, each_tile, parallel=parallel)
        with (
            k.outer(y.blocks, conv.chunk_rows, parallel=parallel) as (cb, r),
            k.loop(columns, "tw") as tw,
        ):
            at = cb * count + r * columns + tw
            half = _transform_columns(k, conv, products, at)
            epilogue = Epilogue(k, target, conv.program, conv.operands, buffers, y, result, y.block)
            _transform_output(k, conv, epilogue, bias, half, n, cb, start + r, tw)
    return k.finish()


def _open_chunks(
    k: KernelBuilder,
    conv: Winograd,
    target: Target,
    inputs: tuple[BufferVar, BufferVar, BufferVar],
    outputs: tuple[BufferVar, BufferVar, BufferVar, list[BufferVar]],
    *,
    parallel: bool,
) -> None:
    """All tiles of images whose size only a run fixes, so many at a time, row after row."""
    source, weights, transformed = inputs
    products, bias, result, buffers = outputs
    x, y, count = conv.input, conv.output, conv.chunk
    rows, columns = conv.tiles
    every = as_int(as_one(rows * columns))
    widths = choose_widths(
        tuple(t + 0.5 for t in range(1, _most_tiles(conv, target) + 1)),
        tuple(range(1, _REUSE + 1)),
    )[1]
    size = widths[0][0] * conv.vectors() * y.block

    def place(number: Expr) -> tuple[Expr, Expr]:
        """A tile's row and column, bounded by themselves, so that proofs needn't divide."""
        row = tirx.min(tirx.truncdiv(number, as_int(columns)), as_int(rows - 1))
        column = tirx.min(tirx.truncmod(number, as_int(columns)), as_int(columns - 1))
        return k.named(row, "row"), k.named(column, "tw")

    with k.loop(y.batch, "n") as n, k.loop(tiles_of(every, _REUSE), "chunk") as chunk:
        start = chunk * _REUSE
        own = tirx.min(as_int(count), every - start)
        with k.loop(x.blocks, "cb", parallel=parallel) as cb, k.loop(own, "t") as t:
            row, tw = place(start + t)
            at = k.named(as_int(cb * count + t), "at")
            _transform_input(k, conv, source, transformed, n, cb, row, tw, lambda: at)

        def each_tile(multiply: _Multiply, own: Expr = own) -> None:
            acc = k.local(size, conv.by.accumulator)
            for tiles in each_width(k, own, widths):
                with k.loop(tiles_of(own, tiles), "tt") as tt:
                    first = tirx.min(tt * tiles, own - tiles) if tiles > 1 else tt
                    multiply(first, tiles, acc)

        factors = (transformed, weights, products)
        _multiply_all(k, conv, factors, count, each_tile, parallel=parallel)
        with k.loop(y.blocks, "cb", parallel=parallel) as cb, k.loop(own, "t") as t:
            row, tw = place(start + t)
            half = _transform_columns(k, conv, products, cb * count + t)
            epilogue = Epilogue(k, target, conv.program, conv.operands, buffers, y, result, y.block)
            whole = tirx.all(row * 4 + 3 < y.height, tw * 4 + 3 < y.width)
            with k.when(whole):
                _transform_output(k, conv, epilogue, bias, half, n, cb, row, tw)
            with k.when(tirx.Not(whole)):
                _transform_output(k, conv, epilogue, bias, half, n, cb, row, tw, edge=True)


def _row(chunk: Expr, size: int, rows: int) -> Expr:
    return smaller(chunk * size, rows - size)


def _transform_input(
    k: KernelBuilder,
    conv: Winograd,
    source: BufferVar,
    transformed: BufferVar,
    n: Expr,
    cb: Expr,
    row: Expr,
    tw: Expr,
    at: Callable[[], Expr],
) -> None:
    """Transform one tile, to a place of the result."""
    x, lanes, by = conv.input, conv.input.block, conv.by
    top, left = x.top - conv.geometry.pads[0], x.left - conv.geometry.pads[1]
    half = k.local(36 * lanes, by.element, "half")
    for j in range(6):
        values = []
        for i in range(6):
            h = row * 4 + i + top
            place: Index = (h, tw * 4 + j + left)
            if not x.is_open:
                place = h * x.columns + tw * 4 + j + left
            values.append(by.pixel(source, n * x.blocks + cb, place, 0, lanes=lanes))
        for i in range(6):
            value = combine(INPUT[i], values, by.element, lanes)
            k.store(half, value, (i * 6 + j) * lanes, lanes=lanes)
    for i in range(6):
        values = [load(half, (i * 6 + j) * lanes, lanes=lanes) for j in range(6)]
        for j in range(6):
            value = combine(INPUT[j], values, by.element, lanes)
            k.store(transformed, value, i * 6 + j, at(), 0, lanes=lanes)


_Multiply: TypeAlias = Callable[[Expr, int, "BufferVar | None"], None]
"""Multiplies so many tiles from one on, with accumulators that there are or its own."""


def _multiply_all(
    k: KernelBuilder,
    conv: Winograd,
    factors: tuple[BufferVar, BufferVar, BufferVar],
    count: int,
    each_tile: Callable[[_Multiply], None],
    *,
    parallel: bool,
) -> None:
    """The 36 matrix products of up to `count` tiles: transformed input, weights, products."""
    transformed, weights, products = factors
    pair = (transformed, products)
    groups, by = conv.output.blocks // conv.vectors(), conv.by
    lanes = conv.output.block * by.together
    if not conv.fresh:
        with k.loop(36, "q", parallel=parallel) as q, k.loop(groups, "og") as group:

            def kept(c: Expr, v: int, q: Expr = q, group: Expr = group) -> Computed:
                return load(weights, q, group, c, v * lanes, lanes=lanes)

            each_tile(functools.partial(_multiply, k, conv, pair, count, kept, (q, group)))
        return
    width = conv.vectors() * lanes
    step = conv.steps * width + _APART
    with k.loop(groups, "og", parallel=parallel) as group:
        made = k.local(36 * step, by.element, "made")
        with k.loop(conv.steps, "c") as c:
            for v in range(conv.vectors()):
                taps = [load(weights, group, c, t, v * lanes, lanes=lanes) for t in range(9)]
                transform_weights(k, by, taps, made, c * width + v * lanes, step, lanes)
        with k.loop(36, "q") as q:

            def fresh(c: Expr, v: int, q: Expr = q) -> Computed:
                return load(made, q * step + c * width + v * lanes, lanes=lanes)

            each_tile(functools.partial(_multiply, k, conv, pair, count, fresh, (q, group)))


def _multiply(
    k: KernelBuilder,
    conv: Winograd,
    buffers: tuple[BufferVar, BufferVar],
    count: int,
    weight: Callable[[Expr, int], Computed],
    at: tuple[Expr, Expr],
    first: Expr,
    tiles: int,
    acc: BufferVar | None,
) -> None:
    """One of 36 matrix products, for one group of output channels and some of `count` tiles."""
    transformed, products = buffers
    q, group = at
    lanes, vectors, by = conv.output.block, conv.vectors(), conv.by
    steps = conv.input.block // by.together
    unroll = min(4, steps)
    blocks = conv.input.blocks // conv.groups
    together = conv.output.blocks // conv.groups // vectors
    start: Expr = group // together * blocks if conv.groups > 1 else 0
    if acc is None:
        acc = k.local(vectors * tiles * lanes, by.accumulator)
    for i in range(vectors * tiles):
        k.store(acc, constant(0, by.accumulator, lanes), i * lanes, lanes=lanes)
    with k.loop(blocks, "ic") as ic, k.loop(steps // unroll, "ko") as ko:
        factors = [
            by.factors(
                k,
                transformed,
                q,
                (start + ic) * count + first + t,
                ko * unroll * by.together,
                count=unroll,
                lanes=lanes,
            )
            for t in range(tiles)
        ]
        for u in range(unroll):
            w = [weight(ic * steps + ko * unroll + u, v) for v in range(vectors)]
            for t, each in enumerate(factors):
                for v in range(vectors):
                    own = (v * tiles + t) * lanes
                    total = by.step(load(acc, own, lanes=lanes), each[u], w[v], lanes)
                    k.store(acc, total, own, lanes=lanes)
    for v in range(vectors):
        for t in range(tiles):
            value = load(acc, (v * tiles + t) * lanes, lanes=lanes)
            column = (group * vectors + v) * count + first + t
            k.store(products, value, q, column, 0, lanes=lanes)


def _most_tiles(conv: Winograd, target: Target) -> int:
    """Tiles that registers hold the products of."""
    lanes, vectors = conv.output.block, conv.vectors()
    registers = target.registers * target.lanes // lanes
    return max(1, (registers - 2 - vectors) // vectors)


def _transform_columns(
    k: KernelBuilder, conv: Winograd, products: BufferVar, at: Expr
) -> BufferVar:
    """A tile's products, their columns transformed to four rows."""
    lanes, by = conv.output.block, conv.by
    half = k.local(24 * lanes, by.accumulator, "half")
    for j in range(6):
        values = [load(products, i * 6 + j, at, 0, lanes=lanes) for i in range(6)]
        for i in range(4):
            value = combine(by.output[i], values, by.accumulator, lanes)
            k.store(half, value, (i * 6 + j) * lanes, lanes=lanes)
    return half


def _transform_output(
    k: KernelBuilder,
    conv: Winograd,
    epilogue: Epilogue,
    bias: BufferVar,
    half: BufferVar,
    n: Expr,
    cb: Expr,
    row: Expr,
    tw: Expr,
    *,
    edge: bool = False,
) -> None:
    """Finish the pixels of a tile that lie inside; of images of open size all of them lie inside
    unless the tile is at the `edge`."""
    y, lanes, by = conv.output, conv.output.block, conv.by
    rows, columns = conv.tiles

    def pixels(i: int, first: int, count: int) -> None:
        """Neighbours in a row."""
        values = [load(half, (i * 6 + c) * lanes, lanes=lanes) for c in range(6)]
        found = []
        for j in range(first, first + count):
            total = combine(by.output[j], values, by.accumulator, lanes)
            value = by.finish(k, total, i, j, lanes)
            found.append(value + load(bias, cb * lanes, lanes=lanes))
        epilogue.finish(found, n, cb * lanes, row * 4 + i, tw * 4 + first)

    def under(condition: Expr) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if condition is True else k.when(condition)

    for i in range(4):
        if y.is_open and edge:
            for j in range(4):
                inside = [row * 4 + i < y.height, tw * 4 + j < y.width] if i or j else []
                with under(tirx.all(*inside) if inside else True):
                    pixels(i, j, 1)
            continue
        ragged = 0 if y.is_open else y.width % 4
        last = not y.is_open and y.height % 4 and i >= y.height % 4
        above = row < rows - 1 if last else True
        if above is False:
            continue
        with under(above):
            whole = tw < columns - 1 if ragged else True
            if whole is not False:
                with under(whole):
                    pixels(i, 0, 4)
            if whole is not True:
                with under(tw >= columns - 1 if whole is not False else True):
                    pixels(i, 0, ragged)
