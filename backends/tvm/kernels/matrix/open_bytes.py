"""Products of two run-time tensors of bytes some of whose sizes only a run fixes.

The edges are those of `open_product.py`. Instructions multiply four neighbours along the depth at
once. Of an open depth those that are left over make one step more, of which what isn't there counts
zero: there always is one, so that the number of steps is one expression.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...plan.sizes import is_open
from ...targets import Target
from ...tensorir.builder import as_int, constant, load, splat
from ...tensorir.types import BufferVar, Computed, Expr, PrimFunc
from .matmul import MatrixTile
from .open_product import UNROLL, OpenProduct, groups_of, matrices
from .pack import Packer, steps_of
from .product import BatchedProduct, sum_columns, sum_row
from .reduction import multiply


def multiplies(product: BatchedProduct) -> bool:
    """Whether this is the form of a product."""
    return product.left.dtype != "float32"


def scratch(
    product: BatchedProduct, target: Target, tile: MatrixTile
) -> list[tuple[tuple[int, ...], str]]:
    """The packed right operand: [matrix * group of columns, step, bytes of a group]; then sums of
    its columns and of the left one's rows, where zero points take them."""
    dot = product.dot(target)
    width = tile.vectors * target.lanes
    count = matrices(product)
    groups = count * groups_of(product, width)
    packed = (groups, steps_of(product.depth, dot), tile.vectors * dot.weights_per_step)
    shapes: list[tuple[tuple[int, ...], str]] = [(packed, dot.weight_dtype)]
    left, right = product.corrects(target)
    if left:
        shapes.append(((groups, width), "int32"))
    if right:
        shapes.append(((count, product.rows), "int32"))
    return shapes


def build(
    product: BatchedProduct, target: Target, tile: MatrixTile, parallel: bool = False
) -> PrimFunc:
    """The kernel. Arguments: left, right, operands, output, scratch."""
    return _OpenBytes(product, target, tile).build(parallel=parallel)


class _OpenBytes(OpenProduct):
    """One kernel being built."""

    def declare_scratch(self) -> None:
        product = self.product
        shapes = scratch(product, self.target, self.tile)
        made = [self.k.parameter(f"S{i}", shape, dtype) for i, (shape, dtype) in enumerate(shapes)]
        left, right = product.corrects(self.target)
        self.packed = made.pop(0)
        self.column_sums = made.pop(0) if left else None
        self.row_sums = made.pop(0) if right else None
        zeros = product.left_zero, product.right_zero
        both = zip(zeros, product.offsets(self.target), strict=True)
        self.left_zero, self.right_zero = (int(zero) + offset for zero, offset in both)
        self.full = product.depth // self.dot.depth
        w = product.right
        self.packer = Packer(self.k, self.dot, w.dtype, w.row, w.column)

    @property
    def reads_unpacked(self) -> bool:
        return False

    # --- packing ---

    def pack(self, index: Sequence[Expr], outer: Expr, column: Expr) -> None:
        right, dot = self.product.right, self.dot
        base = right.base(index) + column * right.column
        for v in range(self.tile.vectors):
            at = base + v * self.lanes * right.column
            first = v * dot.weights_per_step
            depth = self.product.depth
            self.packer.pack(self.w, at, depth, self.lanes, self.packed, outer, first)
        self.sum_columns(outer)

    def pack_rest(self, index: Sequence[Expr], outer: Expr) -> None:
        right, dot, depth = self.product.right, self.dot, self.product.depth
        base = right.base(index) + self.whole * self.width * right.column
        for v in range(self.tile.vectors):
            at = base + v * self.lanes * right.column
            first = v * dot.weights_per_step
            columns = as_int(self.rest) - v * self.lanes
            with self.k.loop(steps_of(depth, dot), "k") as step:
                self.packer.pack_step(self.w, at, depth, columns, step, self.packed, outer, first)
        self.sum_columns(outer)

    def sum_columns(self, outer: Expr) -> None:
        """What the left operand's zero point adds to each column of a group."""
        if self.column_sums is None:
            return
        k, dot, lanes, depth = self.k, self.dot, self.lanes, self.product.depth
        zeros = constant(self.left_zero * self.right_zero, "int32")
        fixed = splat(zeros * as_int(depth), lanes)
        left = splat(constant(self.left_zero, "int32"), lanes)
        for v in range(self.tile.vectors):
            at = v * dot.weights_per_step
            sums = sum_columns(k, dot, self.packed, outer, steps_of(depth, dot), at)
            k.store(self.column_sums, fixed - sums * left, outer, v * lanes, lanes=lanes)

    def prepare(self, index: Sequence[Expr], n: Expr) -> None:
        """What the right operand's zero point takes from each row, without the fixed part."""
        if self.row_sums is None:
            return
        k, left = self.k, self.product.left
        with k.loop(self.product.rows, "row") as row:
            base = left.base(index) + row * left.row
            total = sum_row(k, self.x, base, left.column, self.product.depth, self.dot)
            k.store(self.row_sums, total * constant(-self.right_zero, "int32"), n, row)

    # --- multiplying ---

    def accumulate(
        self,
        index: Sequence[Expr],
        n: Expr,
        outer: Expr,
        row: Expr,
        tile: MatrixTile,
        first: int,
    ) -> BufferVar:
        k, left, lanes, dot = self.k, self.product.left, self.lanes, self.dot
        acc = k.local(tile.vectors * tile.rows * lanes, "int32")
        for v in range(tile.vectors):
            start: Computed = constant(0, "int32", lanes)
            if self.column_sums is not None:
                start = load(self.column_sums, outer, (first + v) * lanes, lanes=lanes)
            for r in range(tile.rows):
                value = start
                if self.row_sums is not None:
                    value = value + splat(load(self.row_sums, n, row + r), lanes)
                k.store(acc, value, (v * tile.rows + r) * lanes, lanes=lanes)
        base = left.base(index) + row * left.row

        def reduce(at: Expr, *, part: bool = False) -> None:
            def read(r: int) -> list[Computed]:
                position = base + r * left.row + at * dot.depth
                if part:
                    return dot.read(k, 1, self.last(position, at), 0)
                return dot.read(k, 1, self.x, position)

            def weights(i: int, v: int) -> list[Computed]:
                return dot.weights(
                    k, self.packed, outer, at + i, (first + v) * dot.weights_per_step
                )

            multiply(k, dot, acc, 1, tile.vectors, tile.rows, read, weights)

        unrolled = self.full // UNROLL
        with k.loop(unrolled, "ko") as ko:
            for i in range(UNROLL):
                reduce(ko * UNROLL + i)
        with k.loop(self.full - unrolled * UNROLL, "k") as step:
            reduce(unrolled * UNROLL + step)
        if steps_of(self.product.depth, dot) != self.full:
            reduce(as_int(self.full) if is_open(self.full) else self.full, part=True)
        return acc

    def last(self, position: Expr, step: Expr) -> BufferVar:
        """The neighbours of the last step, zeros behind them."""
        k, dot = self.k, self.dot
        dtype = self.product.left.dtype
        own = k.local(dot.depth, dtype, "last")
        k.store(own, constant(0, dtype, dot.depth), 0, lanes=dot.depth)
        for i in range(dot.depth):
            with k.when(step * dot.depth + i < as_int(self.product.depth)):
                k.store(own, load(self.x, position + i), i)
        return own
