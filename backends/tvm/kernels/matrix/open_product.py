"""Products of two run-time tensors some of whose sizes only a run fixes.

As `product.py`, but for the edges: rows that are left over make tiles of fewer rows, columns that
are left over vectors of their own, of which only the columns that there are get stored. Bytes are
multiplied by `open_bytes.py`, or come as floats, of whose products as many are added as a float
holds exactly, then integers. A few rows don't pay for packing the right operand: they read it as it
is, as attention does its cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from ...functions.program_code import ProgramCode
from ...plan.sizes import cascade_of, is_open, typical
from ...targets import Target
from ...tensorir.builder import KernelBuilder, as_int, cast, constant, load, splat
from ...tensorir.types import BufferVar, Computed, Expr, PrimFunc
from ..movement.transposition import transpose
from . import product as static
from .matmul import MatrixTile
from .pack import Packer
from .product import BatchedProduct
from .reduction import multiply

UNROLL = 4
"""Steps along the depth without a test in between."""

FEW = 4
"""Rows for which the right operand isn't packed."""

VECTORS = 4
"""Accumulators of a row that reads the right operand as it is, where its columns are neighbours."""


EXACT = 256
"""Products of whole numbers up to 255 whose sum a float holds, whatever they are."""


def has_open_sizes(product: BatchedProduct) -> bool:
    """Whether a run fixes any size of a product."""
    return is_open(product.rows, product.depth, product.columns, *product.batch)


def choose_tile(product: BatchedProduct, target: Target) -> MatrixTile:
    """The tile for sizes that the product may well have, of few columns if these are open."""
    usual = dataclasses.replace(
        product,
        rows=typical(product.rows),
        depth=typical(product.depth),
        columns=min(typical(product.columns), 2 * target.lanes)
        if is_open(product.columns)
        else product.columns,
    )
    tile = static.choose_tile(usual, target)
    vectors = max(1, product.columns // target.lanes) if not is_open(product.columns) else 2
    return dataclasses.replace(tile, vectors=min(tile.vectors, vectors))


def scratch(
    product: BatchedProduct, target: Target, tile: MatrixTile
) -> list[tuple[tuple[int, ...], str]]:
    """The packed right operand: [matrix * group of columns, depth, columns of a group]."""
    width = tile.vectors * target.lanes
    return [((matrices(product) * groups_of(product, width), product.depth, width), "float32")]


def matrices(product: BatchedProduct) -> int:
    """How many products of matrices there are."""
    count = 1
    for size in product.batch:
        count = count * size
    return count


def reads_unpacked(product: BatchedProduct, target: Target) -> bool:
    """Whether a few rows can read the right operand as it is: whole vectors of columns, or of the
    depth along which both operands have neighbours."""
    left, right, lanes = product.left, product.right, target.lanes
    if product.adds_whole:
        return False
    if right.column == 1:
        return not is_open(product.columns) and product.columns % lanes == 0
    known = not is_open(product.depth) and product.depth % lanes == 0
    return known and right.row == left.column == 1 and product.depth > 0


def groups_of(product: BatchedProduct, width: int) -> int:
    """Groups of `width` columns, the last of which may be short."""
    return (product.columns + (width - 1)) // width


def build(
    product: BatchedProduct, target: Target, tile: MatrixTile, parallel: bool = False
) -> PrimFunc:
    """The kernel. Arguments: left, right, operands, output, scratch."""
    return OpenProduct(product, target, tile).build(parallel=parallel)


class OpenProduct:
    """One kernel being built."""

    def __init__(self, product: BatchedProduct, target: Target, tile: MatrixTile) -> None:
        self.product, self.target, self.tile = product, target, tile
        self.dot = product.dot(target)
        self.lanes = target.lanes
        self.width = tile.vectors * self.lanes
        self.whole = product.columns // self.width
        rest = product.columns - self.whole * self.width
        self.rest: Expr = as_int(rest) if is_open(rest) else rest
        k = self.k = KernelBuilder()
        self.x = k.parameter("X", (product.left.elements,), product.left.dtype)
        self.w = k.parameter("W", (product.right.elements,), product.right.dtype)
        self.buffers = [
            k.parameter(f"P{i}", (o.elements,), o.dtype) for i, o in enumerate(product.operands)
        ]
        self.y = k.parameter("Y", (product.output.elements,), product.program.dtype)
        self.declare_scratch()

    def declare_scratch(self) -> None:
        """The last arguments."""
        ((shape, dtype),) = scratch(self.product, self.target, self.tile)
        self.packed = self.k.parameter("S", shape, dtype)

    @property
    def reads_unpacked(self) -> bool:
        """Whether a few rows read the right operand as it is."""
        return reads_unpacked(self.product, self.target)

    @property
    def has_rest(self) -> bool:
        """Whether there may be columns that make no whole group."""
        return not isinstance(self.rest, int) or self.rest != 0

    def build(self, *, parallel: bool) -> PrimFunc:
        k, rows = self.k, self.product.rows
        if not self.reads_unpacked:
            self.build_packed(parallel=parallel)
        elif not is_open(rows):
            (self.build_few if rows <= FEW else self.build_packed)(parallel=parallel)
        else:
            with k.when(as_int(rows) <= FEW):
                self.build_few(parallel=parallel)
            with k.when(as_int(rows) > FEW):
                self.build_packed(parallel=parallel)
        return k.finish()

    def build_packed(self, *, parallel: bool) -> None:
        """Pack the right operand, then multiply tiles."""
        k = self.k
        groups = groups_of(self.product, self.width)
        batched = any(size != 1 for size in self.product.batch)
        with self.matrices(parallel=parallel and batched) as (index, n):
            with k.loop(self.whole, "group") as group:
                self.pack(index, n * groups + group, group * self.width)
            if self.has_rest:
                with k.loop(groups - self.whole, "last"):
                    self.pack_rest(index, n * groups + self.whole)
            self.prepare(index, n)
        with self.matrices(parallel=parallel and batched) as (index, n):
            for count, rows, start in cascade_of(self.product.rows, self.tile.rows):
                shares = parallel and not batched and rows == self.tile.rows
                with k.loop(count, "i", parallel=shares) as i:
                    self.compute(index, n, start + i * rows, rows)

    def prepare(self, index: Sequence[Expr], n: Expr) -> None:
        """What else is made of a matrix before it is multiplied."""

    def build_few(self, *, parallel: bool) -> None:
        """Multiply row by row by what the right operand has in memory."""
        batched = any(size != 1 for size in self.product.batch)
        with (
            self.matrices(parallel=parallel and batched) as (index, _),
            self.k.loop(self.product.rows, "few") as row,
        ):
            if self.product.right.column != 1:
                self.add_columns(index, row)
                return
            for count, vectors, start in cascade_of(self.product.columns // self.lanes, VECTORS):
                with self.k.loop(count, "group") as group:
                    self.add_rows(index, row, (group * vectors + start) * self.lanes, vectors)

    def add_rows(self, index: Sequence[Expr], row: Expr, column: Expr, vectors: int) -> None:
        """Some columns of a row: rows of the right operand times numbers of the left one."""
        k, lanes = self.k, self.lanes
        left, right = self.product.left, self.product.right
        acc = k.local(vectors * lanes, "float32")
        for v in range(vectors):
            k.store(acc, constant(0, "float32", lanes), v * lanes, lanes=lanes)
        base, start = left.base(index) + row * left.row, right.base(index) + column
        with k.loop(self.product.depth, "k") as step:
            factor = splat(load(self.x, base + step * left.column), lanes)
            for v in range(vectors):
                value = load(self.w, start + step * right.row + v * lanes, lanes=lanes)
                total = load(acc, v * lanes, lanes=lanes) + factor * value
                k.store(acc, total, v * lanes, lanes=lanes)
        for v in range(vectors):
            self.write(index, acc, v * lanes, row, column + v * lanes, lanes)

    def add_columns(self, index: Sequence[Expr], row: Expr) -> None:
        """All columns of a row: sums along the depth of as many columns as a vector has, then of
        those that are left over."""
        k, lanes = self.k, self.lanes
        columns = self.product.columns
        with k.loop(columns // lanes, "group") as group:
            sums = self.along_depth(index, row, group * lanes, lanes)
            parts = [load(sums, c * lanes, lanes=lanes) for c in range(lanes)]
            turned = transpose(k, parts, "float32")
            total = turned[0]
            for part in turned[1:]:
                total = total + part
            acc = k.local(lanes, "float32", "total")
            k.store(acc, total, 0, lanes=lanes)
            self.write(index, acc, 0, row, group * lanes, lanes)
        with k.loop(columns - columns // lanes * lanes, "last") as last:
            column = columns // lanes * lanes + last
            sums = self.along_depth(index, row, column, 1)
            acc = k.local(1, "float32", "total")
            k.store(acc, constant(0, "float32"), 0)
            with k.loop(lanes, "t") as t:
                k.store(acc, load(acc, 0) + load(sums, t), 0)
            self.write(index, acc, 0, row, column, 1)

    def along_depth(
        self, index: Sequence[Expr], row: Expr, column: Expr, columns: int
    ) -> BufferVar:
        """A vector for each of some columns whose elements add up to the product."""
        k, lanes = self.k, self.lanes
        left, right = self.product.left, self.product.right
        sums = k.local(columns * lanes, "float32", "sums")
        for c in range(columns):
            k.store(sums, constant(0, "float32", lanes), c * lanes, lanes=lanes)
        base = left.base(index) + row * left.row
        start = right.base(index) + column * right.column
        with k.loop(self.product.depth // lanes, "k") as step:
            factor = load(self.x, base + step * lanes, lanes=lanes)
            for c in range(columns):
                value = load(self.w, start + c * right.column + step * lanes, lanes=lanes)
                total = load(sums, c * lanes, lanes=lanes) + factor * value
                k.store(sums, total, c * lanes, lanes=lanes)
        return sums

    @contextlib.contextmanager
    def matrices(self, *, parallel: bool) -> Iterator[tuple[list[Expr], Expr]]:
        """Loops over the batch: a matrix's index and its number."""
        index: list[Expr] = []
        number: Expr = 0
        with contextlib.ExitStack() as stack:
            for axis, size in enumerate(self.product.batch):
                outermost = all(s == 1 for s in self.product.batch[:axis])
                loop = self.k.loop(size, f"n{axis}", parallel=parallel and outermost)
                i = stack.enter_context(loop)
                index.append(i)
                number = number * size + i
            yield index, number

    # --- packing ---

    def pack(self, index: Sequence[Expr], outer: Expr, column: Expr) -> None:
        """A whole group of columns from `column` on."""
        right = self.product.right
        base = right.base(index) + column * right.column
        if is_open(self.product.depth):
            with self.k.loop(self.product.depth, "k") as step:
                at = base + step * right.row
                if right.column == 1:
                    for v in range(self.tile.vectors):
                        value = load(self.w, at + v * self.lanes, lanes=self.lanes)
                        self.k.store(
                            self.packed, value, outer, step, v * self.lanes, lanes=self.lanes
                        )
                else:
                    with self.k.loop(self.width, "c") as c:
                        value = load(self.w, at + c * right.column)
                        self.k.store(self.packed, value, outer, step, c)
            return
        packer = Packer(self.k, self.dot, "float32", right.row, right.column)
        for v in range(self.tile.vectors):
            at = base + v * self.lanes * right.column
            first = v * self.lanes
            packer.pack(self.w, at, self.product.depth, self.lanes, self.packed, outer, first)

    def pack_rest(self, index: Sequence[Expr], outer: Expr) -> None:
        """The columns that make no whole group, and zeros behind them."""
        k, right = self.k, self.product.right
        base = right.base(index) + self.whole * self.width * right.column
        with k.loop(self.product.depth, "k") as step, k.loop(self.width, "c") as c:
            with k.when(c < self.rest):
                value = load(self.w, base + step * right.row + c * right.column)
                k.store(self.packed, value, outer, step, c)
            with k.when(c >= self.rest):
                k.store(self.packed, constant(0, "float32"), outer, step, c)

    # --- multiplying ---

    def compute(self, index: Sequence[Expr], n: Expr, row: Expr, rows: int) -> None:
        """All columns of some rows of the n-th matrix."""
        k = self.k
        outer = n * groups_of(self.product, self.width)
        with k.loop(self.whole, "group") as group:
            tile = MatrixTile(self.tile.vectors, rows)
            acc = self.accumulate(index, n, outer + group, row, tile, 0)
            for v in range(tile.vectors):
                for r in range(rows):
                    at = (v * rows + r) * self.lanes
                    column = group * self.width + v * self.lanes
                    self.write(index, acc, at, row + r, column, self.lanes)
        if not self.has_rest:
            return
        for v in range(self.tile.vectors):
            if isinstance(self.rest, int) and self.rest <= v * self.lanes:
                continue
            with self.k.when(as_int(self.rest) > v * self.lanes):
                one = MatrixTile(1, rows)
                acc = self.accumulate(index, n, outer + self.whole, row, one, v)
                for r in range(rows):
                    with k.loop(self.lanes, "t") as t, k.when(t < self.rest - v * self.lanes):
                        column = self.whole * self.width + v * self.lanes + t
                        self.write(index, acc, r * self.lanes + t, row + r, column, 1)

    def accumulate(
        self,
        index: Sequence[Expr],
        n: Expr,
        outer: Expr,
        row: Expr,
        tile: MatrixTile,
        first: int,
    ) -> BufferVar:
        """A tile's sums: `rows` times `vectors` of the group's vectors from `first` on."""
        k, left, lanes = self.k, self.product.left, self.lanes
        parts = [part * lanes for part in range(tile.vectors * tile.rows)]
        acc = k.local(len(parts) * lanes, "float32")
        base = left.base(index) + row * left.row

        def reduce(at: Expr) -> None:
            def read(r: int) -> list[Computed]:
                return self.dot.read(k, 1, self.x, base + r * left.row + at * left.column)

            def weights(i: int, v: int) -> list[Computed]:
                return self.dot.weights(k, self.packed, outer, at + i, (first + v) * lanes)

            multiply(k, self.dot, acc, 1, tile.vectors, tile.rows, read, weights)

        def add(start: Expr, depth: int) -> None:
            for part in parts:
                k.store(acc, constant(0, "float32", lanes), part, lanes=lanes)
            with k.loop(depth // UNROLL, "ko") as ko:
                for i in range(UNROLL):
                    reduce(start + (ko * UNROLL + i))
            with k.loop(depth - depth // UNROLL * UNROLL, "k") as step:
                reduce(start + (depth // UNROLL * UNROLL + step))

        if not self.product.adds_whole:
            add(0, self.product.depth)
            return acc
        sums = k.local(len(parts) * lanes, "int32", "sums")
        for part in parts:
            k.store(sums, constant(0, "int32", lanes), part, lanes=lanes)

        def add_exactly(start: Expr, depth: int) -> None:
            add(start, depth)
            for part in parts:
                more = cast(load(acc, part, lanes=lanes), "int32", lanes)
                k.store(sums, load(sums, part, lanes=lanes) + more, part, lanes=lanes)

        depth = self.product.depth
        whole = depth // EXACT
        with k.loop(whole, "exact") as i:
            add_exactly(i * EXACT, EXACT)
        add_exactly(whole * EXACT, depth - whole * EXACT)
        return sums

    def write(
        self, index: Sequence[Expr], acc: BufferVar, at: Expr, row: Expr, column: Expr, lanes: int
    ) -> None:
        """Apply the program to sums and store them."""
        k, product = self.k, self.product
        values = [load(acc, at, lanes=lanes)]
        for operand, buffer in zip(product.operands, self.buffers, strict=True):
            start = operand.base(index) + row * operand.row + column * operand.column
            if operand.column == 0:
                values.append(splat(load(buffer, start), lanes))
            else:
                values.append(load(buffer, start, lanes=lanes))
        value = ProgramCode(k, self.target, lanes).evaluate(product.program, values)
        where = product.output.base(index) + row * product.output.row + column
        k.store(self.y, value, where, lanes=lanes)
