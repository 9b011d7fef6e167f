"""Kernels over rows whose length only a run fixes: Softmax, normalizations, reductions.

As `rows.py`, for rows of neighbouring elements: whole vectors first, then what is left over in
vectors of half, a quarter, and so on, each at most once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tvm import tirx

from ...functions import mathematics
from ...functions.program_code import ProgramCode
from ...plan.sizes import OpenSizeError, cascade
from ...plan.strides import row_major
from ...targets import Target
from ...tensorir.builder import KernelBuilder, as_int, cast, constant, load, splat
from ...tensorir.types import Computed, Expr, PrimFunc
from ...tensorir.vectors import folded
from .rows import CHAINS, REDUCTIONS, TOP, Combine, RowReduction, Rows, mean_part

Element = Callable[[ProgramCode, Expr], Computed]
"""A vector of what is folded, of as many lanes as the code's, from a position of the row on."""


def build(rows: Rows, target: Target, parallel: bool = False) -> PrimFunc:
    """The kernel. Arguments: input, operands, output."""
    return _OpenRows(rows, target).build(parallel=parallel)


class _OpenRows:
    """One kernel being built."""

    def __init__(self, rows: Rows, target: Target) -> None:
        if rows.inner != 1:
            raise OpenSizeError("rows across others")
        self.rows, self.target = rows, target
        k = self.k = KernelBuilder()
        total = row_major((rows.outer, rows.size))[0] * rows.outer
        self.x = k.parameter("X", (total,), "float32")
        self.buffers = [
            k.parameter(f"P{i}", (o.elements,), o.dtype) for i, o in enumerate(rows.operands)
        ]
        self.y = k.parameter("Y", (rows.outer if rows.reduces else total,), rows.program.dtype)
        self.count = cast(as_int(rows.size), "float32", 1)

    def build(self, *, parallel: bool) -> PrimFunc:
        rows = self.rows
        with self.k.loop(rows.outer, "outer", parallel=parallel) as outer:
            if rows.reduces:
                self.reduction(outer)
            elif rows.kind in ("softmax", "log_softmax"):
                self.softmax(outer)
            else:
                self.normalization(outer)
        return self.k.finish()

    # --- walking a row ---

    def pieces(self) -> Iterator[tuple[int, ProgramCode, int]]:
        """(how many vectors, the code of one, where the first begins), for each length."""
        for count, lanes, start in cascade(self.rows.size, self.target.lanes):
            yield count, ProgramCode(self.k, self.target, lanes), start

    def each(self, function: Callable[[ProgramCode, Expr], None]) -> None:
        """`function(code, first element)` for every vector of a row."""
        for count, code, start in self.pieces():
            with self.k.loop(count, "s") as s:
                function(code, start + s * code.lanes)

    def load(self, code: ProgramCode, outer: Expr, s: Expr) -> Computed:
        return load(self.x, outer * self.rows.size + s, lanes=code.lanes)

    def fold(self, reduction: RowReduction, element: Element) -> Computed:
        """All elements of the row joined to one number."""
        k = self.k
        result = k.local(1, "float32", "result")
        k.store(result, constant(reduction.start, "float32"), 0)

        def finish(value: Computed, code: ProgramCode, combine: Combine) -> None:
            total = folded(code, value, combine)
            joined = combine(ProgramCode(k, self.target, 1), total, load(result, 0))
            k.store(result, joined, 0)

        for count, code, start in self.pieces():
            lanes = code.lanes
            if lanes < self.target.lanes:
                with k.loop(count, "s") as s:
                    finish(element(code, start + s * lanes), code, reduction.join)
                continue
            finish(self.fold_vectors(reduction, element, code, count, start), code, reduction.join)
        return load(result, 0)

    def fold_vectors(
        self, reduction: RowReduction, element: Element, code: ProgramCode, count: int, start: int
    ) -> Computed:
        """Whole vectors joined to one, in chains that don't wait for each other."""
        k, lanes = self.k, code.lanes
        acc = k.local(CHAINS * lanes, "float32", "total")
        for part in range(CHAINS):
            k.store(acc, constant(reduction.start, "float32", lanes), part * lanes, lanes=lanes)

        def join(number: Expr, part: int) -> None:
            value = element(code, start + number * lanes)
            joined = reduction.join(code, value, load(acc, part * lanes, lanes=lanes))
            k.store(acc, joined, part * lanes, lanes=lanes)

        with k.loop(count // CHAINS, "s") as s:
            for part in range(CHAINS):
                join(s * CHAINS + part, part)
        with k.loop(count - count // CHAINS * CHAINS, "last") as s:
            join(count // CHAINS * CHAINS + s, 0)
        value = load(acc, 0, lanes=lanes)
        for part in range(1, CHAINS):
            value = reduction.join(code, load(acc, part * lanes, lanes=lanes), value)
        return value

    def bind(self, value: Computed) -> Computed:
        return ProgramCode(self.k, self.target, 1).bind(value, "float32")

    def kept(self, value: Computed) -> Computed:
        """A number in memory of its own: it is read in loops that come later."""
        cell = self.k.local(1, "float32", "kept")
        self.k.store(cell, value, 0)
        return load(cell, 0)

    def store(self, code: ProgramCode, value: Computed, outer: Expr, s: Expr) -> None:
        """Apply the program to a vector of results and store it."""
        values = [value]
        for operand, buffer in zip(self.rows.operands, self.buffers, strict=True):
            at = outer * operand.outer + s * operand.size
            if operand.size == 0:
                values.append(splat(load(buffer, at), code.lanes))
            else:
                values.append(load(buffer, at, lanes=code.lanes))
        result = code.evaluate(self.rows.program, values)
        self.k.store(self.y, result, outer * self.rows.size + s, lanes=code.lanes)

    # --- kinds ---

    def softmax(self, outer: Expr) -> None:
        logarithm = self.rows.kind == "log_softmax"
        keeps = not logarithm and self.rows.program.is_identity
        top = self.kept(self.fold(TOP, lambda code, s: self.load(code, outer, s)))

        def exponential(code: ProgramCode, s: Expr) -> Computed:
            difference = self.load(code, outer, s) - splat(top, code.lanes)
            return code.bind(mathematics.exp_nonpositive(code, difference), "float32")

        def term(code: ProgramCode, s: Expr) -> Computed:
            value = exponential(code, s)
            if keeps:  # until the sum is known
                self.k.store(self.y, value, outer * self.rows.size + s, lanes=code.lanes)
            return value

        total = self.kept(self.fold(REDUCTIONS["sum"], term))
        if logarithm:
            shift = self.kept(tirx.log(total))  # apart from `top`, in which it may vanish

            def finish(code: ProgramCode, s: Expr) -> None:
                own = code.bind(self.load(code, outer, s) - splat(top, code.lanes), "float32")
                self.store(code, own - splat(shift, code.lanes), outer, s)

        else:
            factor = self.kept(constant(1.0, "float32") / total)

            def finish(code: ProgramCode, s: Expr) -> None:
                if keeps:
                    value = load(self.y, outer * self.rows.size + s, lanes=code.lanes)
                else:
                    value = exponential(code, s)
                self.store(code, value * splat(factor, code.lanes), outer, s)

        self.each(finish)

    def normalization(self, outer: Expr) -> None:
        mean: Computed | None = None
        if self.rows.kind == "normalize":
            part = mean_part(self.rows.size)
            parts = self.fold(
                REDUCTIONS["sum"],
                lambda code, s: self.load(code, outer, s) * constant(part, "float32", code.lanes),
            )
            mean = self.kept(parts / (self.count * constant(part, "float32")))

        def centred(code: ProgramCode, s: Expr) -> Computed:
            value = self.load(code, outer, s)
            return value if mean is None else value - splat(mean, code.lanes)

        def square(code: ProgramCode, s: Expr) -> Computed:
            value = code.bind(centred(code, s), "float32")
            return value * value

        variance = self.fold(REDUCTIONS["sum"], square) / self.count
        root = tirx.sqrt(variance + constant(self.rows.epsilon, "float32"))
        factor = self.kept(constant(1.0, "float32") / root)
        self.each(
            lambda code, s: self.store(code, centred(code, s) * splat(factor, code.lanes), outer, s)
        )

    def reduction(self, outer: Expr) -> None:
        reduction = REDUCTIONS[self.rows.kind]

        def term(code: ProgramCode, s: Expr) -> Computed:
            return reduction.term(code, code.bind(self.load(code, outer, s), "float32"))

        total = self.kept(self.fold(reduction, term))
        one = ProgramCode(self.k, self.target, 1)
        result = self.kept(reduction.finish(total, self.count))
        values = [result, *(load(b, 0) for b in self.buffers)]
        self.k.store(self.y, one.evaluate(self.rows.program, values), outer)
