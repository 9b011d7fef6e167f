"""Winograd convolution F(4x4, 3x3): 36 multiplications where the direct form has 144.

After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), with
interpolation points 0, 1, -1, 2, -2. Its rounding error is a few times that of the direct
form (about 1e-5 relative). Weights are transformed while compiling, which takes four times their
bytes, or by the kernel in each run, group by group, a tenth of its time or so (`fresh`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

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
    splat,
    tiles_of,
)
from ...tensorir.types import BufferVar, Computed, Expr, Index, PrimFunc
from ..epilogue import Epilogue, Operand, declare, fill_border
from ..matrix.dot import bind
from .open_columns import choose_widths, each_width
from .tiles import divisors

_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
_WEIGHTS = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
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
        per_tile = 36 * 4 * (self.input.padded_channels + self.output.padded_channels)
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
    def scratch(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the transformed input and of the products."""
        return (
            (36, self.input.blocks * self.chunk, self.input.block),
            (36, self.output.blocks * self.chunk, self.output.block),
        )

    def vectors(self) -> int:
        """Blocks of output channels multiplied together."""
        return max(v for v in divisors(self.output.blocks // self.groups) if v <= 2)

    @property
    def depth(self) -> int:
        """Input channels, padding included, that are multiplied for an output channel."""
        return self.input.padded_channels // self.groups


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
    products = 36 * tiles * y.blocks * per_vector * conv.depth / (1 if wide else 2)
    loads = products * (0.25 if conv.vectors() > 1 else 0.5)
    moved = per_vector * tiles * (x.blocks * 144 + y.blocks * (160 + 16 * FINISH))
    if conv.fresh:
        chunks = x.batch * -(-rows // conv.chunk_rows)
        moved += chunks * per_vector * y.blocks * conv.depth * TRANSFORM
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
    """[O, I / groups, 3, 3] to [36, group, I, vector * lane], transformed in double precision; or,
    as they are, to [group, I, 9, vector * lane]."""
    out_channels, in_channels = weights.shape[:2]
    y = conv.output
    if conv.fresh:
        taps = np.zeros((y.padded_channels, conv.depth, 9), np.float32)
        taps[:out_channels, :in_channels] = weights.reshape(out_channels, in_channels, 9)
        grouped = taps.reshape(-1, conv.vectors() * y.block, conv.depth, 9)
        return np.ascontiguousarray(grouped.transpose(0, 2, 3, 1))
    transformed = np.einsum("ik,ockl,jl->ijoc", _WEIGHTS, weights.astype(np.float64), _WEIGHTS)
    dense = np.zeros((36, y.padded_channels, conv.depth), np.float32)
    dense[:, :out_channels, :in_channels] = transformed.reshape(36, out_channels, in_channels)
    width = conv.vectors() * y.block
    packed = dense.reshape(36, y.padded_channels // width, width, conv.depth)
    return np.ascontiguousarray(packed.transpose(0, 1, 3, 2))


def build(conv: Winograd, target: Target, parallel: bool = False) -> PrimFunc:
    """The kernel. Arguments: input, weights, bias, operands; results, two scratch buffers."""
    x, y = conv.input, conv.output
    width = conv.vectors() * y.block
    k = KernelBuilder()
    source = k.parameter("X", x.shape, "float32")
    groups = y.padded_channels // width
    kept, taps = (36, groups, conv.depth, width), (groups, conv.depth, 9, width)
    weights = k.parameter("W", taps if conv.fresh else kept, "float32")
    bias = k.parameter("B", (y.padded_channels,), "float32")
    buffers = declare(k, conv.operands, y, y.padded_channels)
    result = k.parameter("Y", y.shape, conv.program.dtype)
    first, second = conv.scratch
    transformed = k.parameter("V", first, "float32")
    products = k.parameter("M", second, "float32")
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

        def each_tile(multiply: _Multiply, own: Any = own) -> None:
            acc = k.local(size, "float32")
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


def _combine(coefficients: Sequence[int], values: Sequence[Computed], lanes: int) -> Computed:
    """The linear combination, without multiplications by one."""
    total: Computed | None = None
    for c, value in zip(coefficients, values, strict=True):
        if c == 0:
            continue
        if total is None:
            total = value if c == 1 else value * constant(float(c), "float32", lanes)
        elif c == 1:
            total = total + value
        elif c == -1:
            total = total - value
        else:
            total = total + value * constant(float(c), "float32", lanes)
    assert total is not None  # no row of the transformations is zero
    return total


def _transform_input(
    k: KernelBuilder,
    conv: Winograd,
    source: Expr,
    transformed: Expr,
    n: Expr,
    cb: Expr,
    row: Expr,
    tw: Expr,
    at: Callable[[], Expr],
) -> None:
    """Transform one tile, to a place of the result."""
    x, lanes = conv.input, conv.input.block
    top, left = x.top - conv.geometry.pads[0], x.left - conv.geometry.pads[1]
    half = k.local(36 * lanes, "float32", "half")
    for j in range(6):
        values = []
        for i in range(6):
            h = row * 4 + i + top
            place: Index = (h, tw * 4 + j + left)
            if not x.is_open:
                place = h * x.columns + tw * 4 + j + left
            values.append(load(source, n * x.blocks + cb, place, 0, lanes=lanes))
        for i in range(6):
            k.store(half, _combine(_INPUT[i], values, lanes), (i * 6 + j) * lanes, lanes=lanes)
    for i in range(6):
        values = [load(half, (i * 6 + j) * lanes, lanes=lanes) for j in range(6)]
        for j in range(6):
            value = _combine(_INPUT[j], values, lanes)
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
    groups, lanes = conv.output.blocks // conv.vectors(), conv.output.block
    if not conv.fresh:
        with k.loop(36, "q", parallel=parallel) as q, k.loop(groups, "og") as group:

            def kept(c: Expr, v: int, q: Expr = q, group: Expr = group) -> Computed:
                return load(weights, q, group, c, v * lanes, lanes=lanes)

            each_tile(functools.partial(_multiply, k, conv, pair, count, kept, (q, group)))
        return
    depth, width = conv.depth, conv.vectors() * lanes
    step = depth * width + _APART
    with k.loop(groups, "og", parallel=parallel) as group:
        made = k.local(36 * step, "float32", "made")
        with k.loop(depth, "c") as c:
            for v in range(conv.vectors()):
                taps = [load(weights, group, c, t, v * lanes, lanes=lanes) for t in range(9)]
                _transform_weights(k, taps, made, c * width + v * lanes, step, lanes)
        with k.loop(36, "q") as q:

            def fresh(c: Expr, v: int, q: Expr = q) -> Computed:
                return load(made, q * step + c * width + v * lanes, lanes=lanes)

            each_tile(functools.partial(_multiply, k, conv, pair, count, fresh, (q, group)))


def _transform_weights(
    k: KernelBuilder,
    taps: Sequence[Computed],
    made: BufferVar,
    first: Expr,
    step: int,
    lanes: int,
) -> None:
    """Vectors of 3 x 3 taps to 36, each of which lies `step` after the one before."""
    half = k.local(18 * lanes, "float32", "half")

    def six(values: Sequence[Computed]) -> list[Computed]:
        """Three values by the matrix of weights, with what its rows share computed once."""

        def times(value: Computed, factor: float) -> Computed:
            return value * constant(factor, "float32", lanes)

        a, b, c = values
        ends = bind(k, times(a + c, -1 / 6), "float32", lanes)
        others = bind(k, times(a, 1 / 24) + times(c, 1 / 6), "float32", lanes)
        return [
            times(a, 1 / 4),
            ends + times(b, -1 / 6),
            ends + times(b, 1 / 6),
            others + times(b, 1 / 12),
            others + times(b, -1 / 12),
            c,
        ]

    taps = [bind(k, tap, "float32", lanes) for tap in taps]
    for j in range(3):
        for i, value in enumerate(six([taps[3 * r + j] for r in range(3)])):
            k.store(half, value, (i * 3 + j) * lanes, lanes=lanes)
    for i in range(6):
        row = [load(half, (i * 3 + j) * lanes, lanes=lanes) for j in range(3)]
        for j, value in enumerate(six(row)):
            k.store(made, value, first + (i * 6 + j) * step, lanes=lanes)


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
    lanes, vectors = conv.output.block, conv.vectors()
    unroll = 4
    blocks = conv.input.blocks // conv.groups
    together = conv.output.blocks // conv.groups // vectors
    start: Expr = group // together * blocks if conv.groups > 1 else 0
    if acc is None:
        acc = k.local(vectors * tiles * lanes, "float32")
    for i in range(vectors * tiles):
        k.store(acc, constant(0.0, "float32", lanes), i * lanes, lanes=lanes)
    with (
        k.loop(blocks, "ic") as ic,
        k.loop(conv.input.block // unroll, "ko") as ko,
    ):
        for u in range(unroll):
            c = ko * unroll + u
            w = [weight(ic * conv.input.block + c, v) for v in range(vectors)]
            for t in range(tiles):
                value = splat(load(transformed, q, (start + ic) * count + first + t, c), lanes)
                for v in range(vectors):
                    own = (v * tiles + t) * lanes
                    k.store(acc, load(acc, own, lanes=lanes) + value * w[v], own, lanes=lanes)
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
    lanes = conv.output.block
    half = k.local(24 * lanes, "float32", "half")
    for j in range(6):
        values = [load(products, i * 6 + j, at, 0, lanes=lanes) for i in range(6)]
        for i in range(4):
            k.store(half, _combine(_OUTPUT[i], values, lanes), (i * 6 + j) * lanes, lanes=lanes)
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
    y, lanes = conv.output, conv.output.block
    rows, columns = conv.tiles

    def pixel(i: int, j: int) -> None:
        values = [load(half, (i * 6 + c) * lanes, lanes=lanes) for c in range(6)]
        value = _combine(_OUTPUT[j], values, lanes) + load(bias, cb * lanes, lanes=lanes)
        h, w = row * 4 + i, tw * 4 + j
        epilogue.finish([value], n, cb * lanes, h, w)

    for i in range(4):
        for j in range(4):
            conditions: list[Expr] = []
            if y.is_open:
                if edge and (i or j):
                    conditions = [row * 4 + i < y.height, tw * 4 + j < y.width]
            else:
                if y.height % 4 and i >= y.height % 4:
                    conditions.append(row < rows - 1)
                if y.width % 4 and j >= y.width % 4:
                    conditions.append(tw < columns - 1)
            if any(c is False for c in conditions):
                continue
            conditions = [c for c in conditions if c is not True]
            if conditions:
                with k.when(conditions[0] if len(conditions) == 1 else tirx.all(*conditions)):
                    pixel(i, j)
            else:
                pixel(i, j)
