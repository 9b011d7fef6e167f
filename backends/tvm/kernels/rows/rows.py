"""Kernels that need all elements along an axis: Softmax, normalizations, reductions.

A row-major tensor is seen as [outer, size, inner], reduced over `size`. Where `inner` is
1, vectors lie along the row and are folded at the end; else they lie across the rows,
and each lane is a row of its own. Vectors that would pass the end overlap those before
them, and their lanes that were counted already are left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from tvm import tirx

from ...functions import mathematics
from ...functions.program_code import ProgramCode
from ...plan.programs import Program
from ...plan.sizes import greatest
from ...targets import Target
from ...tensorir.builder import KernelBuilder, constant, load, smaller, splat
from ...tensorir.types import Computed, Expr, PrimFunc
from ...tensorir.vectors import VectorCode, folded

CHAINS = 4
"""Partial results of a long row: they don't wait for each other, and round less."""

KEPT = 16384
"""Up to so many bytes of exponentials are kept from the sum to the quotient."""


@dataclasses.dataclass(frozen=True)
class RowOperand:
    """An operand of the fused program in a flat buffer, with strides along each axis."""

    dtype: str
    elements: int
    outer: int
    size: int
    inner: int


@dataclasses.dataclass(frozen=True)
class Rows:
    """One kernel on float32 [outer, size, inner].

    `kind` is softmax, log_softmax, normalize ((x - mean) / sqrt(variance + epsilon)) or
    root_mean_square (x / sqrt(mean square + epsilon)), followed by a program; or one of
    `REDUCTIONS`, whose result is [outer, inner].
    """

    kind: str
    outer: int
    size: int
    inner: int
    epsilon: float
    program: Program
    operands: tuple[RowOperand, ...]

    @property
    def reduces(self) -> bool:
        return self.kind in REDUCTIONS


Combine = Callable[[VectorCode, Computed, Computed], Computed]


@dataclasses.dataclass(frozen=True)
class RowReduction:
    """`term` of each element, joined from `start` on, and what becomes of the total."""

    join: Combine
    start: float
    term: Callable[[VectorCode, Computed], Computed] = lambda e, x: x
    finish: Callable[[Computed, Computed], Computed] = lambda total, count: total


def _add(e: VectorCode, element: Computed, total: Computed) -> Computed:
    return total + element


def _square(e: VectorCode, x: Computed) -> Computed:
    return x * x


REDUCTIONS: dict[str, RowReduction] = {
    "sum": RowReduction(_add, 0.0),
    "mean": RowReduction(_add, 0.0, finish=lambda total, count: total / count),
    "max": RowReduction(VectorCode.larger, -math.inf),
    "min": RowReduction(VectorCode.smaller, math.inf),
    "sum_square": RowReduction(_add, 0.0, _square),
    "l1": RowReduction(_add, 0.0, VectorCode.magnitude),
    "l2": RowReduction(_add, 0.0, _square, lambda total, count: tirx.sqrt(total)),
}

TOP = RowReduction(lambda e, element, total: tirx.max(total, element), -math.inf)
"""A row's largest number, anything where there is NaN: what the sum of a softmax needs."""


def mean_part(size: int) -> float:
    """What elements are multiplied with before they are summed for a mean.

    A power of two, which rounds nothing, so small that no sum of `size` elements overflows.
    """
    return 2.0 ** -(greatest(size) - 1).bit_length()


def build(rows: Rows, target: Target, parallel: bool = False) -> PrimFunc:
    """The kernel, of rows of known length. Arguments: input, operands, output."""
    return _Rows(rows, target, parallel=parallel).build()


class _Rows:
    """One kernel being built."""

    def __init__(self, rows: Rows, target: Target, *, parallel: bool) -> None:
        self.rows, self.target, self.parallel = rows, target, parallel
        self.across = rows.inner != 1
        walked = rows.inner if self.across else rows.size
        self.lanes = min(target.lanes, 1 << (walked.bit_length() - 1))
        k = self.k = KernelBuilder()
        total = rows.outer * rows.size * rows.inner
        self.x = k.parameter("X", (total,), "float32")
        self.buffers = [
            k.parameter(f"P{i}", (o.elements,), o.dtype) for i, o in enumerate(rows.operands)
        ]
        count = rows.outer * rows.inner if rows.reduces else total
        self.y = k.parameter("Y", (count,), rows.program.dtype)
        self.code = ProgramCode(k, target, self.lanes)

    def build(self) -> PrimFunc:
        k, rows = self.k, self.rows
        vectors = -(-rows.inner // self.lanes) if self.across else 1
        with k.outer(rows.outer, vectors, parallel=self.parallel) as (outer, v):
            inner: Expr = 0
            if self.across:
                inner = smaller(v * self.lanes, rows.inner - self.lanes)
            if rows.reduces:
                self.reduction(outer, inner)
            elif rows.kind in ("softmax", "log_softmax"):
                self.softmax(outer, inner)
            else:
                self.normalization(outer, inner)
        return k.finish()

    # --- walking a row ---

    def each(self, function: Callable[[Expr, Expr, Expr | None], None]) -> None:
        """`function(number, first element, lanes that count)` for every vector of a row.

        The lanes are a mask, or None where all count.
        """
        self.each_part(lambda number, s, mask, _: function(number, s, mask), 1)

    def each_part(
        self, function: Callable[[Expr, Expr, Computed | None, int], None], parts: int
    ) -> None:
        """As `each`, with which of `parts` independent chains the vector belongs to."""
        step = 1 if self.across else self.lanes
        full, rest = divmod(self.rows.size, step)
        with self.k.loop(full // parts, "s") as s:
            for part in range(parts):
                number = s * parts + part
                function(number, number * step, None, part)
        for number in range(full - full % parts, full):
            function(number, number * step, None, 0)
        if rest:
            lane = tirx.Ramp(tirx.IntImm("int32", 0), tirx.IntImm("int32", 1), self.lanes)
            mask = lane >= constant(self.lanes - rest, "int32", self.lanes)
            function(full, self.rows.size - self.lanes, mask, 0)

    @property
    def vectors(self) -> int:
        """How often `each` calls."""
        return self.rows.size if self.across else -(-self.rows.size // self.lanes)

    def position(self, outer: Expr, s: Expr, inner: Expr) -> Expr:
        return (outer * self.rows.size + s) * self.rows.inner + inner

    def fold(
        self,
        reduction: RowReduction,
        element: Callable[[Expr, Expr], Computed],
    ) -> Computed:
        """All elements of the row joined; `element(number, first)` is a vector of them."""
        k, lanes = self.k, self.lanes
        parts = CHAINS if self.vectors >= 2 * CHAINS else 1
        acc = k.local(parts * lanes, "float32", "total")
        for part in range(parts):
            k.store(acc, self.number(reduction.start), part * lanes, lanes=lanes)

        def join(number: Expr, s: Expr, mask: Computed | None, part: int) -> None:
            value = element(number, s)
            if mask is not None:
                value = tirx.Select(mask, value, self.number(reduction.start))
            before = load(acc, part * lanes, lanes=lanes)
            joined = reduction.join(self.code, value, before)
            k.store(acc, joined, part * lanes, lanes=lanes)

        self.each_part(join, parts)
        value = load(acc, 0, lanes=lanes)
        for part in range(1, parts):
            other = load(acc, part * lanes, lanes=lanes)
            value = reduction.join(self.code, other, value)
        return value if self.across else splat(folded(self.code, value, reduction.join), lanes)

    def number(self, value: float) -> Computed:
        return constant(value, "float32", self.lanes)

    def bind(self, value: Computed) -> Computed:
        return self.code.bind(value, "float32")

    def store(self, value: Computed, outer: Expr, s: Expr, inner: Expr) -> None:
        """Apply the program to a vector of results and store it."""
        values = [value]
        for operand, buffer in zip(self.rows.operands, self.buffers, strict=True):
            at = outer * operand.outer + s * operand.size + inner * operand.inner
            along = operand.inner if self.across else operand.size
            if along:
                values.append(load(buffer, at, lanes=self.lanes))
            else:
                values.append(splat(load(buffer, at), self.lanes))
        result = self.code.evaluate(self.rows.program, values)
        self.k.store(self.y, result, self.position(outer, s, inner), lanes=self.lanes)

    # --- kinds ---

    def softmax(self, outer: Expr, inner: Expr) -> None:
        k, lanes, logarithm = self.k, self.lanes, self.rows.kind == "log_softmax"
        kept = not logarithm and self.vectors * lanes * 4 <= KEPT
        row = k.local(self.vectors * lanes, "float32", "row") if kept else None

        def element(s: Expr) -> Computed:
            return load(self.x, self.position(outer, s, inner), lanes=lanes)

        top = self.bind(self.fold(TOP, lambda _, s: element(s)))

        def exponential(number: Expr, s: Expr) -> Computed:
            value = self.bind(mathematics.exp_nonpositive(self.code, element(s) - top))
            if row is not None:
                k.store(row, value, number * lanes, lanes=lanes)
            return value

        total = self.bind(self.fold(REDUCTIONS["sum"], exponential))
        if logarithm:
            shift = self.bind(tirx.log(total))  # apart from `top`, in which it may vanish

            def difference(number: Expr, s: Expr, _: Expr | None) -> None:
                self.store(self.bind(element(s) - top) - shift, outer, s, inner)

            self.each(difference)
            return
        factor = self.bind(self.number(1.0) / total)

        def quotient(number: Expr, s: Expr, _: Expr | None) -> None:
            if row is not None:
                value = load(row, number * lanes, lanes=lanes)
            else:
                value = mathematics.exp_nonpositive(self.code, element(s) - top)
            self.store(value * factor, outer, s, inner)

        self.each(quotient)

    def normalization(self, outer: Expr, inner: Expr) -> None:
        lanes, count = self.lanes, self.number(float(self.rows.size))
        part = mean_part(self.rows.size)

        def element(s: Expr) -> Computed:
            return load(self.x, self.position(outer, s, inner), lanes=lanes)

        mean: Expr | None = None
        if self.rows.kind == "normalize":
            parts = self.fold(REDUCTIONS["sum"], lambda _, s: element(s) * self.number(part))
            mean = self.bind(parts / self.number(self.rows.size * part))

        def centred(s: Expr) -> Computed:
            return element(s) if mean is None else element(s) - mean

        def square(_: Expr, s: Expr) -> Computed:
            value = self.bind(centred(s))
            return value * value

        variance = self.fold(REDUCTIONS["sum"], square) / count
        root = tirx.sqrt(variance + self.number(self.rows.epsilon))
        factor = self.bind(self.number(1.0) / root)
        self.each(lambda number, s, _: self.store(centred(s) * factor, outer, s, inner))

    def reduction(self, outer: Expr, inner: Expr) -> None:
        reduction = REDUCTIONS[self.rows.kind]

        def term(_: Expr, s: Expr) -> Computed:
            value = load(self.x, self.position(outer, s, inner), lanes=self.lanes)
            return reduction.term(self.code, self.bind(value))

        total = self.bind(self.fold(reduction, term))
        result = reduction.finish(total, self.number(float(self.rows.size)))
        at = outer * self.rows.inner + inner
        if self.across:
            values = [result, *(splat(load(b, 0), self.lanes) for b in self.buffers)]
            self.k.store(
                self.y, self.code.evaluate(self.rows.program, values), at, lanes=self.lanes
            )
            return
        one = ProgramCode(self.k, self.target, 1)
        single = tirx.Shuffle([self.bind(result)], [0]) if self.lanes > 1 else result
        values = [one.bind(single, "float32"), *(load(b, 0) for b in self.buffers)]
        self.k.store(self.y, one.evaluate(self.rows.program, values), at)
