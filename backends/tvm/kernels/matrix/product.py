"""Batched matrix product of two tensors that are both computed at run time.

The right operand is packed first, as weights are at compile time; then a register tile
runs over it as for constant weights. Both operands are read through strides, so that
transposed heads and slices need no copies. Where the last tile of rows or columns would
pass the edge, it overlaps its neighbour.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tvm import tirx

from ...functions.program_code import ProgramCode
from ...plan.programs import Program
from ...plan.sizes import is_open
from ...targets import Target
from ...tensorir.builder import KernelBuilder, as_int, cast, constant, load, smaller, splat
from ...tensorir.types import BufferVar, Computed, Expr, PrimFunc
from .dot import Dot, FourBytes
from .matmul import MatrixTile
from .pack import Packer
from .reduction import choose, multiply, runs, stays_in_registers, unrolled


@dataclasses.dataclass(frozen=True)
class Matrices:
    """A batch of matrices in a flat buffer of `elements`; a stride of 0 broadcasts."""

    dtype: str
    elements: int
    batch: tuple[int, ...]
    row: int
    column: int
    offset: int = 0

    def base(self, index: Sequence[Expr]) -> Expr:
        """Where the matrix with this index in the batch begins."""
        at: Expr = self.offset
        for i, stride in zip(index, self.batch, strict=True):
            at = at + i * stride
        return at


@dataclasses.dataclass(frozen=True)
class BatchedProduct:
    """left [*batch, rows, depth] @ right [*batch, depth, columns], then a program.

    8-bit operands have zero points; of those that a run computes the types are given. `output`
    has columns next to each other.
    """

    batch: tuple[int, ...]
    rows: int
    depth: int
    columns: int
    left: Matrices
    right: Matrices
    left_zero: int | str
    right_zero: int | str
    program: Program
    operands: tuple[Matrices, ...]
    output: Matrices

    @property
    def adds_whole(self) -> bool:
        """Whether floats that hold whole numbers of up to 9 bits are multiplied, and sums are
        integers."""
        return self.left.dtype == "float32" and self.program.operands[0] == "int32"

    def dot(self, target: Target) -> Dot:
        few = self.rows == 1 or (not is_open(self.depth) and self.depth <= 4)
        pairs = None if few else False
        return choose(target, self.left.dtype, pairs=pairs)

    def offsets(self, target: Target) -> tuple[int, int]:
        """What is added to the operands' bytes, as the instruction takes them."""
        dot = self.dot(target)
        signed = isinstance(dot, FourBytes) and self.right.dtype == "uint8"
        return dot.input_offset, -128 if signed else 0

    def corrects(self, target: Target) -> tuple[bool, bool]:
        """Whether sums of columns count, for the left zero point, and sums of rows."""
        zeros = zip((self.left_zero, self.right_zero), self.offsets(target), strict=True)
        left, right = (isinstance(zero, str) or zero + offset != 0 for zero, offset in zeros)
        return left, right

    def scratch(self, target: Target, tile: MatrixTile) -> list[tuple[tuple[int, ...], str]]:
        """Packed right operand, then sums of its columns and of the left one's rows."""
        dot = self.dot(target)
        count = math.prod(self.batch)
        groups = column_groups(self, target, tile)
        steps = -(-self.depth // dot.depth)
        left, right = self.corrects(target)
        width = tile.vectors * target.lanes
        packed = (count * groups, steps, tile.vectors * dot.weights_per_step)
        shapes: list[tuple[tuple[int, ...], str]] = [(packed, dot.weight_dtype)]
        if left:
            shapes.append(((count * groups * width,), "int32"))
        if right:
            shapes.append(((count * self.rows,), "int32"))
        return shapes


def column_groups(product: BatchedProduct, target: Target, tile: MatrixTile) -> int:
    return -(-product.columns // (tile.vectors * target.lanes))


def choose_tile(product: BatchedProduct, target: Target) -> MatrixTile:
    """The tile with the fewest estimated cycles, overlapping parts counted in full."""
    budget = target.registers - 2
    dot = product.dot(target)
    double = dot.parts
    wide = max(1, product.columns // target.lanes)
    found = []
    for vectors in range(1, min(wide, 8) + 1):
        for rows in range(1, min(product.rows, 16) + 1):
            groups = -(-product.columns // (vectors * target.lanes))
            tiles = groups * -(-product.rows // rows)
            if dot.by_instructions:
                if stays_in_registers(dot, target, vectors, rows):
                    cost = tiles * dot.instructions(vectors, rows)
                    found.append((cost, MatrixTile(vectors, rows, dot.unroll)))
                continue
            extra = vectors * double + (double if target.registers < 32 else 0)
            if vectors * rows + extra > budget and vectors * rows > 1:
                continue
            loads = (vectors + rows) * double
            cost = tiles * max(vectors * rows * double / 2, loads / 2, 4.0)
            found.append((cost, MatrixTile(vectors, rows)))
    return min(found, key=lambda f: f[0])[1]


def build(
    product: BatchedProduct, target: Target, tile: MatrixTile, parallel: bool = False
) -> PrimFunc:
    """The kernel. Arguments: left, right, zero points that a run computes, operands, output,
    scratch (`BatchedProduct.scratch`)."""
    return _Product(product, target, tile, parallel=parallel).build()


class _Product:
    """One kernel being built."""

    def __init__(
        self, product: BatchedProduct, target: Target, tile: MatrixTile, *, parallel: bool
    ) -> None:
        self.product, self.target, self.tile, self.parallel = product, target, tile, parallel
        self.dot = product.dot(target)
        self.lanes = target.lanes
        self.groups = column_groups(product, target, tile)
        self.width = tile.vectors * self.lanes
        left, right = product.corrects(target)
        k = self.k = KernelBuilder()
        self.x = k.parameter("X", (product.left.elements,), product.left.dtype)
        self.w = k.parameter("W", (product.right.elements,), product.right.dtype)
        self.left_zero, self.right_zero = (
            self.zero(name, zero, offset)
            for name, zero, offset in zip(
                ("ZX", "ZW"),
                (product.left_zero, product.right_zero),
                product.offsets(target),
                strict=True,
            )
        )
        self.buffers = [
            k.parameter(f"P{i}", (o.elements,), o.dtype) for i, o in enumerate(product.operands)
        ]
        self.y = k.parameter("Y", (product.output.elements,), product.program.dtype)
        shapes = product.scratch(target, tile)
        made = [k.parameter(f"S{i}", shape, dtype) for i, (shape, dtype) in enumerate(shapes)]
        self.packed = made.pop(0)
        self.column_sums = made.pop(0) if left else None
        self.row_sums = made.pop(0) if right else None

    def zero(self, name: str, given: int | str, offset: int) -> Computed:
        """A zero point of what is multiplied, in 32 bits."""
        if isinstance(given, int):
            return tirx.const(given + offset, "int32")
        return cast(load(self.k.parameter(name, (1,), given), 0), "int32", 1) + offset

    def build(self) -> PrimFunc:
        k, product = self.k, self.product
        count = math.prod(product.batch)
        with k.outer(count, self.groups, parallel=self.parallel) as (n, group):
            self.pack(n, group)
        if self.row_sums is not None:
            self.sum_rows(self.row_sums)
        tiles = -(-product.rows // self.tile.rows)
        with k.outer(count * self.groups, tiles, parallel=self.parallel) as (outer, i):
            self.multiply(outer // self.groups, outer, outer % self.groups, i)
        return k.finish()

    def index(self, n: Expr) -> list[Expr]:
        """Position in the batch of its n-th matrix."""
        result: list[Expr] = []
        for size in reversed(self.product.batch):
            if size == 1:
                result.insert(0, 0)
                continue
            result.insert(0, n % size)
            n = n // size
        return result

    def column(self, group: Expr) -> Expr:
        """First column of a group; the last one overlaps its neighbour where it can."""
        last = max(0, self.product.columns - self.width)
        return smaller(group * self.width, last)

    def pack(self, n: Expr, group: Expr) -> None:
        product, dot = self.product, self.dot
        packer = Packer(self.k, dot, product.right.dtype, product.right.row, product.right.column)
        base = product.right.base(self.index(n)) + self.column(group) * product.right.column
        outer = n * self.groups + group
        for v in range(self.tile.vectors):
            columns = min(self.lanes, product.columns - v * self.lanes)
            at = base + v * self.lanes * product.right.column
            packer.pack(
                self.w,
                at,
                product.depth,
                columns,
                self.packed,
                outer,
                v * dot.weights_per_step,
            )
        if self.column_sums is not None:
            self.sum_columns(outer)

    def sum_columns(self, outer: Expr) -> None:
        """What the left operand's zero point adds to each column."""
        k, dot, product = self.k, self.dot, self.product
        assert self.column_sums is not None
        steps = -(-product.depth // dot.depth)
        fixed = splat(self.left_zero * self.right_zero * product.depth, self.lanes)
        for v in range(self.tile.vectors):
            sums = sum_columns(k, dot, self.packed, outer, steps, v * dot.weights_per_step)
            total = fixed - sums * splat(self.left_zero, self.lanes)
            first = outer * self.width + v * self.lanes
            k.store(self.column_sums, total, first, lanes=self.lanes)

    def sum_rows(self, sums: BufferVar) -> None:
        """What the right operand's zero point takes from each row, without the fixed part."""
        k, product = self.k, self.product
        count = math.prod(product.batch)
        with k.outer(count, product.rows, parallel=self.parallel) as (n, row):
            base = product.left.base(self.index(n)) + row * product.left.row
            total = sum_row(k, self.x, base, product.left.column, product.depth, self.dot)
            at = n * product.rows + row
            k.store(sums, total * (0 - self.right_zero), at)

    def multiply(self, n: Expr, outer: Expr, group: Expr, i: Expr) -> None:
        k, product, dot, tile = self.k, self.product, self.dot, self.tile
        row = smaller(i * tile.rows, product.rows - tile.rows)
        index = self.index(n)
        acc = k.local(dot.accumulators(tile.vectors, tile.rows) * self.lanes, dot.accumulator)
        self.start(acc, n, outer, row)
        dot.enter(k, acc, tile.vectors, tile.rows)
        base = product.left.base(index) + row * product.left.row

        def reduce(at: Expr, count: int, tail: int) -> None:
            def read(r: int) -> list[Computed]:
                position = base + r * product.left.row + at * dot.depth * product.left.column
                return self.read(position, count, tail)

            def weights(i: int, v: int) -> list[Computed]:
                return dot.weights(k, self.packed, outer, at + i, v * dot.weights_per_step)

            multiply(k, dot, acc, count, tile.vectors, tile.rows, read, weights)

        full, rest = divmod(product.depth, dot.depth)
        unroll = unrolled(dot, full, tile.unroll, whole=False)
        together = dot.together if product.left.column == 1 else 1
        if full:
            with k.loop(full // unroll, "ko") as ko:
                for first, count in runs(unroll, together):
                    reduce(ko * unroll + first, count, 0)
            for first, count in runs(full % unroll, together):
                reduce(full - full % unroll + first, count, 0)
        if rest:
            reduce(full, 1, rest)
        dot.leave(k, acc, tile.vectors, tile.rows)
        self.write(acc, index, self.column(group), row)

    def read(self, position: Expr, steps: int, tail: int) -> list[Computed]:
        """Elements of one row along the depth; the last few without reading past them."""
        if not tail:
            return self.dot.read(self.k, steps, self.x, position)
        last = self.k.local(self.dot.depth, self.dot.input_dtype, "last")
        for i in range(self.dot.depth):
            value = load(self.x, position + i) if i < tail else tirx.const(0, self.dot.input_dtype)
            self.k.store(last, value, i)
        return self.dot.read(self.k, 1, last, 0)

    def start(self, acc: BufferVar, n: Expr, outer: Expr, row: Expr) -> None:
        k, tile, lanes = self.k, self.tile, self.lanes
        for v in range(tile.vectors):
            first = constant(0, self.dot.accumulator, lanes)
            if self.column_sums is not None:
                first = load(self.column_sums, outer * self.width + v * lanes, lanes=lanes)
            for r in range(tile.rows):
                value = first
                if self.row_sums is not None:
                    own = load(self.row_sums, n * self.product.rows + row + r)
                    value = value + splat(own, lanes)
                k.store(acc, value, (v * tile.rows + r) * lanes, lanes=lanes)

    def write(self, acc: BufferVar, index: list[Expr], column: Expr, row: Expr) -> None:
        """Apply the program and store."""
        k, product, tile = self.k, self.product, self.tile

        def one(v: int, r: int, width: int, lane: Expr) -> None:
            code = ProgramCode(k, self.target, width)
            at = column + v * self.lanes + lane
            values = [load(acc, (v * tile.rows + r) * self.lanes + lane, lanes=width)]
            for operand, buffer in zip(product.operands, self.buffers, strict=True):
                start = operand.base(index) + (row + r) * operand.row + at * operand.column
                if operand.column == 0:
                    values.append(splat(load(buffer, start), width))
                else:
                    values.append(load(buffer, start, lanes=width))
            value = code.evaluate(product.program, values)
            target = product.output.base(index) + (row + r) * product.output.row + at
            k.store(self.y, value, target, lanes=width)

        for v in range(tile.vectors):
            for r in range(tile.rows):
                if product.columns >= self.width:
                    one(v, r, self.lanes, 0)
                else:
                    with k.loop(product.columns - v * self.lanes, "t") as t:
                        one(v, r, 1, t)


def sum_columns(
    k: KernelBuilder, dot: Dot, packed: BufferVar, outer: Expr, steps: int, at: int
) -> Computed:
    """Sums along the depth of the columns of packed[outer, step, at ...], one in each lane."""
    acc = k.local(dot.accumulators(1, 1) * dot.lanes, "int32", "sums")
    k.store(acc, constant(0, "int32", dot.lanes), 0, lanes=dot.lanes)
    dot.enter(k, acc, 1, 1)
    with k.loop(steps, "k") as step:
        weights = dot.weights(k, packed, outer, step, at)
        for number, own in dot.shares(0, 0, 1, 1, weights):
            place = number * dot.lanes
            total = dot.step(load(acc, place, lanes=dot.lanes), dot.ones(), own)
            k.store(acc, total, place, lanes=dot.lanes)
    dot.leave(k, acc, 1, 1)
    return load(acc, 0, lanes=dot.lanes)


def sum_row(
    k: KernelBuilder, x: BufferVar, base: Expr, stride: int, depth: int, dot: Dot
) -> Computed:
    """The sum of `depth` bytes from `base` on, as the instruction takes them."""
    total = k.local(1, "int32", "total")
    offset = dot.input_offset
    first = as_int(depth) * offset if is_open(depth) else constant(depth * offset, "int32")
    k.store(total, first, 0)
    with k.loop(depth, "k") as step:
        value = load(x, base + step * stride)
        k.store(total, load(total, 0) + cast(value, "int32", 1), 0)
    return load(total, 0)
