"""Matrix product of row-major activations with packed constant weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
from tvm import tirx

from .....ir.tensor import Array
from ...functions.program_code import ProgramCode
from ...plan.programs import Program
from ...plan.sizes import cascade, is_open, typical
from ...targets import Target
from ...tensorir.builder import KernelBuilder, as_int, cast, constant, load, splat
from ...tensorir.types import BufferVar, Computed, Expr, PrimFunc
from ..convolution.direct import _start
from ..convolution.tiles import divisors
from . import paired, panels
from .dot import Dot, FourBytes, PairedDot
from .reduction import choose, multiply, runs, stays_in_registers, unrolled


@dataclasses.dataclass(frozen=True)
class MatrixOperand:
    """An operand of the fused program: [rows, columns] with strides, or per column.

    A stride of 0 broadcasts. `elements` is the size of the row-major buffer.
    """

    dtype: str
    elements: int
    row_stride: int
    column_stride: int


@dataclasses.dataclass(frozen=True)
class MatMul:
    """[rows, depth] @ [depth, columns]; per-column operands are padded to whole vectors.

    With `weight_zeros` each column's weights have a zero point, which is multiplied with the sum
    of a row's inputs, as the instruction takes them, and taken off.
    """

    rows: int
    depth: int
    columns: int
    input_dtype: str
    program: Program
    operands: tuple[MatrixOperand, ...]
    weight_range: tuple[int, int] = (-128, 127)
    weight_zeros: bool = False
    joined: int = 0

    def dot(self, target: Target) -> Dot:
        pairs = None if self.rows == 1 or self.depth <= 4 else False
        return choose(target, self.input_dtype, *self.weight_range, self.joined, pairs)

    def vectors(self, target: Target) -> int:
        return -(-self.columns // target.lanes)


@dataclasses.dataclass(frozen=True)
class MatrixTile:
    """Register tile: `vectors` of columns times `rows`, which may be packed first."""

    vectors: int
    rows: int
    unroll: int = 4
    packed: bool = False


def choose_tile(matmul: MatMul, target: Target) -> MatrixTile:
    """The register tile that a small model of the inner loop finds fastest."""
    return min(estimate_tiles(matmul, target), key=lambda found: found[0])[1]


def fits(matmul: MatMul, target: Target, tile: MatrixTile) -> bool:
    """Whether a tile makes a kernel of this product."""
    return (
        min(tile.vectors, tile.rows, tile.unroll) > 0
        and matmul.vectors(target) % tile.vectors == 0
        and tile.rows <= matmul.rows
        and tile.vectors * tile.rows <= 2 * target.registers
        and tile.unroll <= 16
        and (not tile.packed or (_may_pack(matmul, target) and tile.rows % panels.WIDTH == 0))
    )


def _may_pack(matmul: MatMul, target: Target) -> bool:
    """Whether rows can be packed."""
    known = not is_open(matmul.rows) and matmul.depth % panels.WIDTH == 0
    return known and target.machine == "aarch64" and matmul.input_dtype == "float32"


def estimate_tiles(matmul: MatMul, target: Target) -> list[tuple[float, MatrixTile]]:
    """As for convolutions: most multiply-adds per load that the registers hold."""
    may_pack = _may_pack(matmul, target)
    if is_open(matmul.rows):
        matmul = dataclasses.replace(matmul, rows=typical(matmul.rows))
    dot = matmul.dot(target)
    double = dot.parts
    budget = target.registers - 2
    found = []
    for v in divisors(matmul.vectors(target)):
        for rows in range(1, min(matmul.rows, 16) + 1):
            if dot.by_instructions:
                if stays_in_registers(dot, target, v, rows):
                    count = -(-matmul.rows // rows) * (matmul.vectors(target) // v)
                    tile = MatrixTile(v, rows, dot.unroll)
                    found.append((count * dot.instructions(v, rows), tile))
                fits_packed = panels.held(v, rows) <= target.registers
                if may_pack and fits_packed and rows % panels.WIDTH == 0:
                    groups = matmul.vectors(target) // v
                    cost = groups * panels.instructions(matmul.rows, matmul.depth, v, rows, groups)
                    found.append((cost, MatrixTile(v, rows, panels.UNROLL, packed=True)))
                continue
            extra = v * double + (double if target.registers < 32 else 0)
            if v > 16 or v * rows + extra > budget:
                continue
            tiles = -(-matmul.rows // rows) * (matmul.vectors(target) // v)
            loads = (v + rows) * double / 2
            step = max(v * rows * double / 2, loads, 4.0)
            if target.vector_bytes == 64:
                group = -(-matmul.depth // dot.depth) * v * dot.weights_per_step
                group *= np.dtype(dot.weight_dtype).itemsize
                far = sum(group > size for size in _CACHES)
                step = max(step, loads + far * v * double) + _BESIDE * loads
            found.append((tiles * step, MatrixTile(v, rows)))
    return found


_CACHES = (32 * 1024, 512 * 1024)
"""Bytes of a group's weights that caches keep from one tile of rows to the next: beyond each a
load of 64 bytes takes a cycle more."""

_BESIDE = 0.1
"""Share of a step's loads that its products don't hide."""


def estimate(matmul: MatMul, target: Target) -> float:
    """About how many cycles the kernel takes with the tile that is fastest."""
    lanes, columns = target.lanes, matmul.columns
    steps = -(-matmul.depth // matmul.dot(target).depth)
    step = min(cost for cost, _ in estimate_tiles(matmul, target))
    finish = 4.0 + len(matmul.program.instructions)
    single = columns % lanes  # columns past the last whole vector are written one by one
    return steps * step + matmul.rows * finish * (columns // lanes + single)


def pack_weights(matmul: MatMul, target: Target, tile: MatrixTile, weights: Array) -> list[Array]:
    """[depth, columns] to [group, step, vector * element]; where joined words leave a rest, that,
    its words, each [vector, number], and how many each vector has."""
    dot, lanes = matmul.dot(target), target.lanes
    steps = -(-matmul.depth // dot.depth)
    groups = matmul.vectors(target) // tile.vectors
    padded = np.zeros((steps * dot.depth, matmul.vectors(target) * lanes), weights.dtype)
    padded[: matmul.depth, : matmul.columns] = weights
    dense = padded.reshape(steps, dot.depth, groups, tile.vectors, lanes).transpose(2, 0, 3, 4, 1)
    rest: list[Array] = []
    if isinstance(dot, PairedDot):
        found = paired.split(dense)
        assert found is not None  # since the words were joined
        dense, rest = found.weights, [found.rest, found.words, found.counts]
    packed = dot.pack(dense).reshape(groups, steps, tile.vectors * dot.weights_per_step)
    return [np.ascontiguousarray(packed), *(rest if rest and rest[0].size else [])]


def scratch(matmul: MatMul, tile: MatrixTile) -> list[tuple[tuple[int, ...], str]]:
    """Sums of the rows, where weights have zero points; or packed rows."""
    if tile.packed:
        return [(panels.shape(matmul.rows, matmul.depth, tile.rows), "float32")]
    return [((matmul.rows,), "int32")] if matmul.weight_zeros else []


def build(
    matmul: MatMul, target: Target, tile: MatrixTile, parallel: bool = False, rest: int = 0
) -> PrimFunc:
    """The kernel. Arguments: input, weights, bias, zero points of weights where they have any,
    operands, output (row-major, flat), then `scratch`; before the output, of weights with a rest of
    up to so many words, that, its words and counts."""
    dot, lanes = matmul.dot(target), target.lanes
    steps = -(-matmul.depth // dot.depth)
    groups = matmul.vectors(target) // tile.vectors
    rows, columns = matmul.rows, matmul.columns
    k = KernelBuilder()
    x = k.parameter("X", (rows * matmul.depth,), matmul.input_dtype)
    w = k.parameter("W", (groups, steps, tile.vectors * dot.weights_per_step), dot.weight_dtype)
    bias = k.parameter("B", (matmul.vectors(target) * lanes,), dot.accumulator)
    if matmul.weight_zeros:
        zeros = k.parameter("Z", (matmul.vectors(target) * lanes,), dot.accumulator)
    buffers = [k.parameter(f"P{i}", (o.elements,), o.dtype) for i, o in enumerate(matmul.operands)]
    apart: list[BufferVar] = []
    if rest:
        vectors = matmul.vectors(target)
        apart = [
            k.parameter("R", (vectors, rest, 4 * lanes), "int8"),
            k.parameter("U", (vectors, rest), "int32"),
            k.parameter("N", (vectors,), "int32"),
        ]
    y = k.parameter("Y", (rows * columns,), matmul.program.dtype)
    if tile.packed:
        packed = k.parameter("S", *scratch(matmul, tile)[0])
        _each_packed(k, matmul, target, tile, (x, w, bias, buffers, y), packed, parallel=parallel)
        return k.finish()
    sums: BufferVar | None = None
    if matmul.weight_zeros:
        sums = k.parameter("S", (rows,), dot.accumulator)
        with k.loop(rows, "row", parallel=parallel) as row:
            _sum_row(k, matmul, dot, x, sums, row)
    full = matmul.depth // dot.depth
    unroll = unrolled(dot, full, tile.unroll)

    def compute(tile: MatrixTile, group: Expr, row: Expr) -> None:
        """A tile of rows from `row` on."""
        acc = _biased(k, dot, tile, bias, group)
        dot.enter(k, acc, tile.vectors, tile.rows)

        def reduce(step: Expr, count: int, tail: int) -> None:
            def read(r: int) -> list[Computed]:
                at = (row + r) * matmul.depth + step * dot.depth
                return _partial(k, dot, x, at, tail) if tail else dot.read(k, count, x, at)

            def weights(i: int, v: int) -> list[Computed]:
                return dot.weights(k, w, group, step + i, v * dot.weights_per_step)

            multiply(k, dot, acc, count, tile.vectors, tile.rows, read, weights)

        if full:
            with k.loop(full // unroll, "ko") as ko:
                for first, count in runs(unroll, dot.together):
                    reduce(ko * unroll + first, count, 0)
        if matmul.depth % dot.depth:
            reduce(full, 1, matmul.depth % dot.depth)
        dot.leave(k, acc, tile.vectors, tile.rows)
        if apart:
            _reduce_rest(k, matmul, lanes, tile, acc, x, apart, group, row)
        if sums is not None:
            for v in range(tile.vectors):
                zero = load(zeros, (group * tile.vectors + v) * lanes, lanes=lanes)
                for r in range(tile.rows):
                    own = (v * tile.rows + r) * lanes
                    total = load(acc, own, lanes=lanes)
                    total = total - splat(load(sums, row + r), lanes) * zero
                    k.store(acc, total, own, lanes=lanes)
        write(k, matmul, target, tile, acc, buffers, y, group, row)

    each_tile(k, tile, rows, groups, compute, parallel=parallel)
    return k.finish()


def _biased(
    k: KernelBuilder, dot: Dot, tile: MatrixTile, bias: BufferVar, group: Expr
) -> BufferVar:
    """A tile's accumulators, with the bias of their columns."""
    lanes = dot.lanes
    acc = k.local(dot.accumulators(tile.vectors, tile.rows) * lanes, dot.accumulator)
    for v in range(tile.vectors):
        start = load(bias, (group * tile.vectors + v) * lanes, lanes=lanes)
        for r in range(tile.rows):
            k.store(acc, start, (v * tile.rows + r) * lanes, lanes=lanes)
    return acc


def _each_packed(
    k: KernelBuilder,
    matmul: MatMul,
    target: Target,
    tile: MatrixTile,
    buffers: tuple[BufferVar, BufferVar, BufferVar, list[BufferVar], BufferVar],
    packed: BufferVar,
    *,
    parallel: bool,
) -> None:
    """All tiles, of panels that are packed some at a time; the last rows in a smaller tile."""
    x, w, bias, operands, y = buffers
    dot, depth = matmul.dot(target), matmul.depth
    groups = matmul.vectors(target) // tile.vectors
    squares = depth // panels.WIDTH
    most = max(1, tile.unroll // panels.WIDTH)
    unroll = max(u for u in range(1, most + 1) if squares % u == 0)
    for first, rows, height in panels.parts(matmul.rows, tile.rows):
        lower = dataclasses.replace(tile, rows=height)
        tiles = -(-rows // height)
        size = panels.at_a_time(tiles, depth, height)
        with k.loop(-(-tiles // size), "chunk") as chunk:
            start = _start(chunk, size, tiles)
            with k.loop(size, "panel", parallel=parallel) as panel:
                row = first + _start(start + panel, height, rows)
                panels.pack(k, x, row, depth, height, packed, panel)
            with k.outer(groups, size, parallel=parallel) as (group, panel):
                acc = _biased(k, dot, lower, bias, group)

                def weights(step: Expr, v: int, group: Expr = group) -> list[Computed]:
                    return dot.weights(k, w, group, step, v * dot.weights_per_step)

                with k.loop(squares // unroll, "ko") as ko:
                    for u in range(unroll):
                        at = (panel, ko * unroll + u)
                        panels.reduce(k, dot, acc, (tile.vectors, height), packed, at, weights)
                row = first + _start(start + panel, height, rows)
                write(k, matmul, target, lower, acc, operands, y, group, row)


def _reduce_rest(
    k: KernelBuilder,
    matmul: MatMul,
    lanes: int,
    tile: MatrixTile,
    acc: BufferVar,
    x: BufferVar,
    apart: list[BufferVar],
    group: Expr,
    row: Expr,
) -> None:
    """Sum what was taken off the weights."""
    rest, words, counts = apart
    dot = PairedDot(lanes, matmul.input_dtype)
    for v in range(tile.vectors):
        vector = k.named(as_int(group * tile.vectors + v), "vector")
        with k.loop(load(counts, vector), "more") as number:
            word = k.named(load(words, vector, number), "word")
            factor = dot.weights(k, rest, vector, number, 0)
            for r in range(tile.rows):
                value = dot.read(k, 1, x, (row + r) * matmul.depth + word * 4)
                at = (v * tile.rows + r) * lanes
                total = dot.step(load(acc, at, lanes=lanes), value, factor)
                k.store(acc, total, at, lanes=lanes)


def each_tile(
    k: KernelBuilder,
    tile: MatrixTile,
    rows: int,
    groups: int,
    compute: Callable[[MatrixTile, Expr, Expr], None],
    *,
    parallel: bool,
) -> None:
    """Let `compute` make all tiles: it gets a tile, its group of columns, and its first row.

    Of known rows the last tile is moved back where it would pass the end; an open number of them
    is cut into tiles of several sizes.
    """
    if is_open(rows):
        for count, size, start in cascade(rows, tile.rows):
            part = dataclasses.replace(tile, rows=size)
            whole = parallel and size == tile.rows
            with (
                k.loop(count, "i", parallel=whole) as i,
                k.loop(groups, "group", parallel=parallel and not whole) as group,
            ):
                compute(part, group, start + i * size)
        return
    with k.outer(groups, -(-rows // tile.rows), parallel=parallel) as (group, i):
        compute(tile, group, _start(i, tile.rows, rows))


def _sum_row(
    k: KernelBuilder, matmul: MatMul, dot: Dot, x: BufferVar, sums: BufferVar, row: Expr
) -> None:
    """The sum of a row's bytes, as the instruction takes them."""
    assert isinstance(dot, FourBytes)
    lanes, depth = dot.lanes, matmul.depth
    width = 4 * lanes
    full, rest = divmod(depth, width)
    acc = k.local(lanes, "int32", "parts")
    k.store(acc, constant(0, "int32", lanes), 0, lanes=lanes)
    with k.loop(full, "v") as v:
        total = dot.sum_bytes(load(acc, 0, lanes=lanes), x, row * depth + v * width)
        k.store(acc, total, 0, lanes=lanes)
    whole = k.local(1, "int32", "whole")
    k.store(whole, tirx.const(rest * dot.input_offset, "int32"), 0)
    with k.loop(lanes, "lane") as lane:
        k.store(whole, load(whole, 0) + load(acc, lane), 0)
    with k.loop(rest, "last") as last:
        byte = cast(load(x, row * depth + full * width + last), "int32", 1)
        k.store(whole, load(whole, 0) + byte, 0)
    k.store(sums, load(whole, 0), row)


def _partial(k: KernelBuilder, dot: Dot, x: BufferVar, at: Expr, count: int) -> list[Computed]:
    """The last `count` elements of a row, too few for a step, read without those past them."""
    last = k.local(dot.depth, dot.input_dtype, "last")
    for i in range(dot.depth):
        k.store(last, load(x, at + i) if i < count else tirx.const(0, dot.input_dtype), i)
    return dot.read(k, 1, last, 0)


class _Finished(Protocol):
    """What is written by columns, after a program."""

    @property
    def columns(self) -> int: ...
    @property
    def program(self) -> Program: ...
    @property
    def operands(self) -> tuple[MatrixOperand, ...]: ...
    def vectors(self, target: Target) -> int: ...


def write(
    k: KernelBuilder,
    matmul: _Finished,
    target: Target,
    tile: MatrixTile,
    acc: BufferVar,
    buffers: list[BufferVar],
    y: BufferVar,
    group: Expr,
    row: Expr,
) -> None:
    """Apply the program and store; columns past the last vector's end are left out."""
    lanes, columns = target.lanes, matmul.columns
    ragged = columns % lanes
    results = acc
    if looped := not ragged and tile.rows > 1 and ProgramCode.is_looped(matmul.program):
        # What a loop reads can't be in registers, as sums have to be while they are made.
        results = k.local(tile.vectors * tile.rows * lanes, matmul.program.operands[0], "kept")
        for at in range(0, tile.vectors * tile.rows * lanes, lanes):
            k.store(results, load(acc, at, lanes=lanes), at, lanes=lanes)

    def one(v: int, r: Expr, column: Expr, width: int, lane: Expr) -> None:
        code = ProgramCode(k, target, width)
        values = [load(results, (v * tile.rows + r) * lanes + lane, lanes=width)]
        for operand, buffer in zip(matmul.operands, buffers, strict=True):
            at = (row + r) * operand.row_stride + column * operand.column_stride
            if operand.column_stride == 0:
                values.append(splat(load(buffer, at), width))
            else:
                values.append(load(buffer, at, lanes=width))
        value = code.evaluate(matmul.program, values)
        k.store(y, value, (row + r) * columns + column, lanes=width)

    def vector(v: int, r: Expr) -> None:
        one(v, r, (group * tile.vectors + v) * lanes, lanes, 0)

    def last(v: int, r: int) -> None:
        with k.loop(ragged, "t") as t:
            one(v, r, (group * tile.vectors + v) * lanes + t, 1, t)

    if looped:
        with k.loop(tile.rows, "each") as each:
            for v in range(tile.vectors):
                vector(v, each)
        return
    groups = matmul.vectors(target) // tile.vectors
    for v in range(tile.vectors):
        for r in range(tile.rows):
            if not ragged or v < tile.vectors - 1:
                vector(v, r)
            elif groups == 1:
                last(v, r)
            else:
                with k.when(group < as_int(groups - 1)):
                    vector(v, r)
                with k.when(group >= as_int(groups - 1)):
                    last(v, r)
