"""Matrix product with constant weights of a few bits, whose columns are made of blocks with scales.

Weights stay packed: 32-bit words, each of one column, are taken apart in registers. What all
columns share is prepared first for each row: activations in the form that the numbers in the words
take, and their sum over each block, by which zero points are taken off,
sum(x * (q - z)) = sum(x * q) - z * sum(x). Bytes without zero points are signed in their words, and
need none of that. For many rows a group of columns is taken apart once instead, to floats that a
product as any other multiplies (`spreads`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import tirx

from ...functions.rounding import MAGIC
from ...targets import Target
from ...tensorir.builder import (
    KernelBuilder,
    cast,
    constant,
    llvm,
    load,
    reinterpret,
    smaller,
    splat,
)
from ...tensorir.types import BufferVar, Computed, Expr, PrimFunc
from ...tensorir.vectors import VectorCode, folded
from .dot import MADD, MADD_BYTES, SIGN_BITS, bind, vpdpbusd
from .matmul import MatrixTile, each_tile, write
from .packed_blocks import BlockProduct

# --- the kernel ----------------------------------------------------------------------------


def scratch(product: BlockProduct) -> list[tuple[tuple[int, ...], str]]:
    """Prepared rows, sums of their blocks, and scales where they are bytes."""
    if product.spreads:
        return []
    padded = product.blocks * product.block
    parts = (product.rows * product.blocks,)
    if product.is_signed:
        return [((product.rows * padded,), "float32")]
    if not product.by_bytes:
        return [((product.rows * padded,), "float32"), (parts, "float32")]
    return [((product.rows * padded,), "int8"), (parts, "float32"), (parts, "float32")]


def build(
    product: BlockProduct, target: Target, tile: MatrixTile, parallel: bool = False
) -> PrimFunc:
    """The kernel. Arguments: input, words, scales, zero points where there are any, operands,
    output (row-major, flat), then `scratch`."""
    lanes, groups = target.lanes, product.vectors(target) // tile.vectors
    width = tile.vectors * lanes
    k = KernelBuilder()
    x = k.parameter("X", (product.rows * product.depth,), "float32")
    w = k.parameter("W", (groups, product.blocks, product.words, width), "int32")
    scales = k.parameter("S", (groups, product.blocks, width), "float32")
    zeros: BufferVar | None = None
    if product.zeros:
        packed = product.zeros == "uint8"
        count = -(-product.blocks * product.bits // 8) if packed else product.blocks
        zeros = k.parameter("Z", (groups, count, width), product.zeros)
    buffers = [k.parameter(f"P{i}", (o.elements,), o.dtype) for i, o in enumerate(product.operands)]
    y = k.parameter("Y", (product.rows * product.columns,), product.program.dtype)
    names = ("R", "T", "U")
    prepared = [k.parameter(n, s, d) for n, (s, d) in zip(names, scratch(product), strict=False)]
    if product.spreads:
        with k.loop(groups, "group", parallel=parallel) as group:
            made = _spread(k, product, target, tile, (w, scales, zeros), group)
            with k.loop(-(-product.rows // tile.rows), "i") as i:
                row = smaller(i * tile.rows, product.rows - tile.rows)
                acc = _multiply_floats(k, product, target, tile, x, made, row)
                write(k, product, target, tile, acc, buffers, y, group, row)
        return k.finish()
    with k.loop(product.rows, "row", parallel=parallel and product.rows != 1) as row:
        prepare = _prepare_bytes if product.by_bytes else _prepare_floats
        _prepare_row(k, product, target, x, row, lambda *at: prepare(k, product, *at, *prepared))
    multiply = _bytes_step if product.by_bytes else _floats_step
    accumulator = "int32" if product.by_bytes else "float32"

    def compute(tile: MatrixTile, group: Expr, row: Expr) -> None:
        """A tile of rows from `row` on."""
        count = tile.vectors * tile.rows
        acc = k.local(count * lanes, "float32")
        for i in range(count):
            k.store(acc, constant(0.0, "float32", lanes), i * lanes, lanes=lanes)
        with k.loop(product.blocks, "block") as block:
            parts = k.local(count * lanes, accumulator, "parts")
            for i in range(count):
                k.store(parts, constant(0, accumulator, lanes), i * lanes, lanes=lanes)
            with k.loop(product.words // _unrolled(product), "words") as outer:
                for inner in range(_unrolled(product)):
                    word = outer * _unrolled(product) + inner
                    words = [
                        bind(k, load(w, group, block, word, v * lanes, lanes=lanes), "int32", lanes)
                        for v in range(tile.vectors)
                    ]
                    at = [
                        ((row + r) * product.blocks + block) * product.block
                        + word * product.per_word
                        for r in range(tile.rows)
                    ]
                    multiply(k, product, target, parts, words, prepared[0], at)
            for v in range(tile.vectors):
                scale = load(scales, group, block, v * lanes, lanes=lanes)
                scale = bind(k, scale, "float32", lanes)
                zero = _negative_zero(product, target, zeros, group, block, v)
                zero = bind(k, zero, "float32", lanes)
                for r in range(tile.rows):
                    own = (v * tile.rows + r) * lanes
                    part = load(parts, own, lanes=lanes)
                    place = (row + r) * product.blocks + block
                    factor = scale
                    if product.by_bytes:
                        part = cast(part, "float32", lanes)
                        factor = scale * splat(load(prepared[2], place), lanes)
                    if not product.is_signed:
                        part = part + splat(load(prepared[1], place), lanes) * zero
                    total = load(acc, own, lanes=lanes) + part * factor
                    k.store(acc, total, own, lanes=lanes)
        write(k, product, target, tile, acc, buffers, y, group, row)

    each_tile(k, tile, product.rows, groups, compute, parallel=parallel)
    return k.finish()


_STEPS = 32
"""Numbers of a column that the innermost loop's body takes."""


def _unrolled(product: BlockProduct) -> int:
    """Words of the innermost loop's body."""
    return min(product.words, max(1, _STEPS // product.per_word))


def _negative_zero(
    product: BlockProduct,
    target: Target,
    zeros: BufferVar | None,
    group: Expr,
    block: Expr,
    vector: int,
) -> Computed:
    """The opposite of a block's zero point, as the numbers in the words count."""
    lanes, offset = target.lanes, _offset(product, target)
    if zeros is None:
        return constant(float(offset - (1 << (product.bits - 1))), "float32", lanes)
    if product.zeros == "float32":
        point = load(zeros, group, block, vector * lanes, lanes=lanes)
        return constant(float(offset), "float32", lanes) + point * constant(-1.0, "float32", lanes)
    each = 8 // product.bits
    index = tirx.floordiv(block, each) if not isinstance(block, int) else block // each
    place = tirx.floormod(block, each) if not isinstance(block, int) else block % each
    found = cast(load(zeros, group, index, vector * lanes, lanes=lanes), "int32", lanes)
    if each > 1:
        shift = splat(tirx.const(product.bits, "int32") * place, lanes)
        found = (found >> shift) & constant(product.mask, "int32", lanes)
    return cast(constant(offset, "int32", lanes) - found, "float32", lanes)


# --- activations as floats -----------------------------------------------------------------


def _half(product: BlockProduct) -> int:
    """Numbers in half of a word."""
    return product.per_word // 2


def _floats_step(
    k: KernelBuilder,
    product: BlockProduct,
    target: Target,
    parts: BufferVar,
    words: list[Computed],
    rows: BufferVar,
    at: list[Expr],
) -> None:
    """All numbers of a word: each is masked where it lies in its half, signed ones are moved to the
    word's end, which multiplies them by powers of two that the prepared activations are divided
    by."""
    lanes = target.lanes

    def add(place: int, numbers: list[Computed]) -> None:
        numbers = [bind(k, cast(n, "float32", lanes), "float32", lanes) for n in numbers]
        for r, first in enumerate(at):
            value = bind(k, splat(load(rows, first + place), lanes), "float32", lanes)
            for v, number in enumerate(numbers):
                own = (v * len(at) + r) * lanes
                total = load(parts, own, lanes=lanes) + value * number
                k.store(parts, total, own, lanes=lanes)

    if product.is_signed:
        for i in range(4):
            add(i, [_byte_at_the_end(word, i, lanes) for word in words])
        return
    for half in (0, 1):
        if half:
            sixteen = constant(16, "int32", lanes)
            words = [bind(k, word >> sixteen, "int32", lanes) for word in words]
        for i in range(_half(product)):
            mask = constant(product.mask << i * product.bits, "int32", lanes)
            add(half * _half(product) + i, [word & mask for word in words])


def _byte_at_the_end(word: Computed, place: int, lanes: int) -> Computed:
    """A byte of a word times 2^24, signed."""
    moved = word << constant(24 - 8 * place, "int32", lanes) if place < 3 else word
    return moved & constant(-(2**24), "int32", lanes) if place else moved


def _prepare_floats(
    k: KernelBuilder,
    product: BlockProduct,
    code: VectorCode,
    source: BufferVar,
    first: Expr,
    place: Expr,
    rows: BufferVar,
    sums: BufferVar | None = None,
) -> None:
    """A block of a row, which `source` has from `first` on, as block `place`."""
    lanes = code.lanes
    if sums is None:
        with k.loop(product.block // lanes, "v") as v:
            value = load(source, first + v * lanes, lanes=lanes) * constant(
                2.0**-24, "float32", lanes
            )
            k.store(rows, value, place * product.block + v * lanes, lanes=lanes)
        return
    total = k.local(lanes, "float32", "total")
    k.store(total, constant(0.0, "float32", lanes), 0, lanes=lanes)
    period = max(_half(product), lanes)
    with k.loop(product.block // period, "v") as v:
        for start in range(0, period, lanes):
            value = code.bind(load(source, first + v * period + start, lanes=lanes), "float32")
            k.store(total, load(total, 0, lanes=lanes) + value, 0, lanes=lanes)
            powers = [
                constant(2.0 ** -(product.bits * ((start + i) % _half(product))), "float32")
                for i in range(lanes)
            ]
            factors = tirx.Shuffle(powers, list(range(lanes)))
            at = place * product.block + v * period + start
            k.store(rows, value * factors, at, lanes=lanes)
    k.store(sums, folded(code, load(total, 0, lanes=lanes), _add), place)


def _spread(
    k: KernelBuilder,
    product: BlockProduct,
    target: Target,
    tile: MatrixTile,
    packed: tuple[BufferVar, BufferVar, BufferVar | None],
    group: Expr,
) -> BufferVar:
    """A group's weights as floats, [number of the depth, vector * lane]."""
    w, scales, zeros = packed
    lanes, width = target.lanes, tile.vectors * target.lanes
    made = k.local(product.blocks * product.block * width, "float32", "made")
    mask = constant(product.mask, "int32", lanes)
    with k.loop(product.blocks, "block") as block:
        for v in range(tile.vectors):
            scale = load(scales, group, block, v * lanes, lanes=lanes)
            scale = bind(k, scale, "float32", lanes)
            zero = _negative_zero(product, target, zeros, group, block, v)
            zero = bind(k, zero, "float32", lanes)
            with k.loop(product.words, "word") as word:
                words = load(w, group, block, word, v * lanes, lanes=lanes)
                words = bind(k, words, "int32", lanes)
                for i in range(product.per_word):
                    if product.is_signed:
                        numbers = _byte_at_the_end(words, i, lanes) >> constant(24, "int32", lanes)
                        value = cast(numbers, "float32", lanes) * scale
                    else:
                        numbers = words >> constant(i * product.bits, "int32", lanes) & mask
                        value = (cast(numbers, "float32", lanes) + zero) * scale
                    at = block * product.block + word * product.per_word + i
                    k.store(made, value, at * width + v * lanes, lanes=lanes)
    return made


def _multiply_floats(
    k: KernelBuilder,
    product: BlockProduct,
    target: Target,
    tile: MatrixTile,
    x: BufferVar,
    made: BufferVar,
    row: Expr,
) -> BufferVar:
    """The sums of a tile of rows from `row` on, by weights that are floats."""
    lanes, unroll = target.lanes, 4
    acc = k.local(tile.vectors * tile.rows * lanes, "float32")
    for i in range(tile.vectors * tile.rows):
        k.store(acc, constant(0.0, "float32", lanes), i * lanes, lanes=lanes)

    def step(at: Expr) -> None:
        weights = [
            bind(k, load(made, (at * tile.vectors + v) * lanes, lanes=lanes), "float32", lanes)
            for v in range(tile.vectors)
        ]
        for r in range(tile.rows):
            value = splat(load(x, (row + r) * product.depth + at), lanes)
            for v in range(tile.vectors):
                own = (v * tile.rows + r) * lanes
                total = load(acc, own, lanes=lanes) + value * weights[v]
                k.store(acc, total, own, lanes=lanes)

    full, rest = divmod(product.depth, unroll)
    with k.loop(full, "d") as d:
        for u in range(unroll):
            step(d * unroll + u)
    for u in range(rest):
        step(full * unroll + u)
    return acc


# --- activations as bytes ------------------------------------------------------------------


def _offset(product: BlockProduct, target: Target) -> int:
    """What is taken off numbers of 8 bits, where an instruction takes them as signed."""
    return 128 if product.by_bytes and product.bits == 8 and "neon" in target.features else 0


def _bytes_step(
    k: KernelBuilder,
    product: BlockProduct,
    target: Target,
    parts: BufferVar,
    words: list[Computed],
    rows: BufferVar,
    at: list[Expr],
) -> None:
    """All numbers of a word, four at a time; of 8 bits in two halves, where whole ones may make
    sums that saturate."""
    lanes = target.lanes
    dot = _dot(target)
    bits = min(product.bits, 4) if dot is _pairs else product.bits
    mask = ((1 << bits) - 1) * 0x01010101
    for i in range(product.per_word // 4):
        fours = []
        for first in at:
            four = reinterpret(load(rows, first + 4 * i, lanes=4), "int32", 1)
            fours.append(bind(k, splat(four, lanes), "int32", lanes))
        for place in range(0, product.bits, bits):
            numbers = []
            for word in words:
                value = word
                if bits < 8:
                    shifted = word >> constant(i * product.bits + place, "int32", lanes)
                    value = shifted & constant(mask, "int32", lanes)
                elif _offset(product, target):
                    value = word ^ constant(SIGN_BITS, "int32", lanes)
                numbers.append(bind(k, value, "int32", lanes))
            for r, four in enumerate(fours):
                for v, number in enumerate(numbers):
                    own = (v * len(at) + r) * lanes
                    total = load(parts, own, lanes=lanes)
                    k.store(parts, dot(lanes, total, number, four, 1 << place), own, lanes=lanes)


def _vnni(
    lanes: int, total: Computed, numbers: Computed, activations: Computed, factor: int
) -> Computed:
    """Unsigned numbers by signed activations, at once."""
    pair = (reinterpret(numbers, "uint8", 4 * lanes), reinterpret(activations, "int8", 4 * lanes))
    return vpdpbusd(lanes, total, *pair)


def _sdot(
    lanes: int, total: Computed, numbers: Computed, activations: Computed, factor: int
) -> Computed:
    """Signed by signed, at once."""
    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
    pair = (reinterpret(value, "int8", 4 * lanes) for value in (numbers, activations))
    return llvm(name, f"int32x{lanes}", total, *pair)


def _pairs(
    lanes: int, total: Computed, numbers: Computed, activations: Computed, factor: int
) -> Computed:
    """Unsigned numbers of 4 bits by signed activations: sums of two products fit 16 bits, which
    are multiplied by a factor and added in pairs."""
    sums = llvm(
        MADD_BYTES[lanes],
        f"int16x{2 * lanes}",
        reinterpret(numbers, "uint8", 4 * lanes),
        reinterpret(activations, "int8", 4 * lanes),
    )
    factors = constant(factor, "int16", 2 * lanes)
    return total + llvm(MADD[lanes], f"int32x{lanes}", sums, factors)


def _dot(target: Target) -> Callable[[int, Computed, Computed, Computed, int], Computed]:
    """How four products of bytes are added to each lane; the last argument is a factor."""
    if "vnni" in target.features:
        return _vnni
    return _sdot if "dotprod" in target.features else _pairs


def _prepare_bytes(
    k: KernelBuilder,
    product: BlockProduct,
    code: VectorCode,
    source: BufferVar,
    first: Expr,
    place: Expr,
    rows: BufferVar,
    sums: BufferVar,
    scales: BufferVar,
) -> None:
    """A block of a row, rounded to -127 ... 127 as ONNX Runtime does: by its largest magnitude."""
    lanes, one = code.lanes, VectorCode(k, code.target, 1)
    most = k.local(lanes, "float32", "most")
    k.store(most, constant(0.0, "float32", lanes), 0, lanes=lanes)
    with k.loop(product.block // lanes, "v") as v:
        value = code.magnitude(load(source, first + v * lanes, lanes=lanes))
        k.store(most, code.larger(value, load(most, 0, lanes=lanes)), 0, lanes=lanes)
    greatest = folded(code, load(most, 0, lanes=lanes), VectorCode.larger)
    scale = one.in_memory(greatest * one.number(1 / 127))
    is_zero = tirx.EQ(scale, one.number(0.0))
    inverse = tirx.Select(
        is_zero, one.number(0.0), one.number(1.0) / tirx.Select(is_zero, one.number(1.0), scale)
    )
    inverse = splat(one.in_memory(inverse), lanes)
    total = k.local(lanes, "int32", "total")
    k.store(total, constant(0, "int32", lanes), 0, lanes=lanes)
    low = int(np.float32(MAGIC).view(np.int32))
    with k.loop(product.block // lanes, "v") as v:
        value = load(source, first + v * lanes, lanes=lanes) * inverse
        integers = reinterpret(code.fence(value) + code.number(MAGIC), "int32", lanes)
        integers = code.bind(integers - code.number(low, "int32"), "int32")
        k.store(total, load(total, 0, lanes=lanes) + integers, 0, lanes=lanes)
        k.store(rows, cast(integers, "int8", lanes), place * product.block + v * lanes, lanes=lanes)
    sum_ = folded(code, load(total, 0, lanes=lanes), _add, "int32")
    k.store(sums, cast(sum_, "float32", 1), place)
    k.store(scales, scale, place)


# --- both ----------------------------------------------------------------------------------


def _prepare_row(
    k: KernelBuilder,
    product: BlockProduct,
    target: Target,
    x: BufferVar,
    row: Expr,
    prepare: Callable[[VectorCode, BufferVar, Expr, Expr], None],
) -> None:
    """All blocks of a row, of which the last may be short: zeros follow it."""
    code = VectorCode(k, target, target.lanes)
    full, rest = divmod(product.depth, product.block)
    with k.loop(full, "b") as b:
        prepare(code, x, row * product.depth + b * product.block, row * product.blocks + b)
    if rest:
        own = k.local(product.block, "float32", "last")
        with k.loop(product.block // target.lanes, "v") as v:
            zero = constant(0.0, "float32", target.lanes)
            k.store(own, zero, v * target.lanes, lanes=target.lanes)
        with k.loop(rest, "i") as i:
            k.store(own, load(x, row * product.depth + full * product.block + i), i)
        prepare(code, own, 0, row * product.blocks + full)


def _add(code: VectorCode, element: Computed, total: Computed) -> Computed:
    return total + element
