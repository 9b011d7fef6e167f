"""Pieces of vector code that instructions of programs are made of."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from tvm import tirx

from ..targets import Target
from .builder import KernelBuilder, cast, constant, llvm, load, vector_type
from .types import Computed, Expr


class VectorCode:
    """Computes with vectors of `lanes` elements inside a kernel.

    `deep` says that values being computed contain a function of many operations.
    """

    def __init__(self, builder: KernelBuilder, target: Target, lanes: int) -> None:
        self.builder = builder
        self.target = target
        self.lanes = lanes
        self.deep = False

    def bind(self, value: Computed, dtype: str) -> Computed:
        """Name a value, so that using it repeatedly doesn't repeat its computation."""
        if isinstance(value, tirx.Var):
            return value
        variable = tirx.Var("t", vector_type(dtype, self.lanes))
        self.builder.statement(tirx.Bind(variable, value))
        return variable

    def opaque(self, value: Computed) -> Computed:
        """A named float that conditions may depend on.

        TVM spells out names in conditions, whose size doubles with every name that is
        used twice. What follows another function is therefore kept in memory, which is
        slower, since not all of it becomes a register.
        """
        return self.in_memory(value) if self.deep else self.bind(value, "float32")

    def in_memory(self, value: Computed, dtype: str = "float32") -> Computed:
        buffer = self.builder.local(self.lanes, dtype, "t")
        self.builder.store(buffer, value, 0, lanes=self.lanes)
        return load(buffer, 0, lanes=self.lanes)

    def number(self, value: float, dtype: str = "float32") -> Computed:
        return constant(value, dtype, self.lanes)

    def literal(self, value: float) -> Computed:
        """Any float of a model. TVM takes products with a zero for zero, and divides by none."""
        if value == 0:
            return self._intrinsic(
                "copysign", self.number(0.0), self.number(math.copysign(1, value))
            )
        return self.number(value)

    def at_least(self, value: Computed, bound: Computed, dtype: str = "float32") -> Computed:
        """The larger one; NaN if `value` is. The bound must be no NaN.

        `tirx.max` is its second argument where one is NaN, as x86's instructions have it;
        NEON's is NaN then.
        """
        if dtype == "float32" and "neon" in self.target.features:
            return self._intrinsic("maximum", value, bound)
        return tirx.max(bound, value)

    def at_most(self, value: Computed, bound: Computed, dtype: str = "float32") -> Computed:
        """The smaller one; NaN if `value` is. The bound must be no NaN."""
        if dtype == "float32" and "neon" in self.target.features:
            return self._intrinsic("minimum", value, bound)
        return tirx.min(bound, value)

    def larger(self, a: Computed, b: Computed, dtype: str = "float32") -> Computed:
        """The larger one; NaN if any is."""
        if dtype != "float32" or "neon" in self.target.features:
            return self.at_least(a, b, dtype)
        a = self.opaque(a)
        return tirx.Select(self.is_number(a), tirx.max(a, b), a)

    def largest(self, values: Sequence[Computed], dtype: str) -> Computed:
        """The largest one; NaN if any is. One comparison finds NaN in two values."""
        if dtype != "float32" or "neon" in self.target.features or len(values) == 1:
            return functools.reduce(lambda a, b: self.larger(b, a, dtype), values)
        values = [self.opaque(value) for value in values]
        numbers = [self.is_number(value) for value in values]
        return tirx.Select(
            functools.reduce(lambda a, b: tirx.And(a, b), numbers),
            functools.reduce(lambda a, b: tirx.max(a, b), values),
            self.number(math.nan),
        )

    def smaller(self, a: Computed, b: Computed, dtype: str = "float32") -> Computed:
        """The smaller one; NaN if any is."""
        if dtype != "float32" or "neon" in self.target.features:
            return self.at_most(a, b, dtype)
        a = self.opaque(a)
        return tirx.Select(self.is_number(a), tirx.min(a, b), a)

    def is_number(self, value: Computed) -> Computed:
        """Whether a float is no NaN. TVM takes `value == value` for true."""
        return value <= self.number(math.inf)

    def magnitude(self, value: Computed) -> Computed:
        return self._intrinsic("fabs", value)

    def difference(self, a: Computed, b: Computed, dtype: str = "float32") -> Computed:
        """a - b. TVM takes `x - x` of floats for zero, and `x + y - y` for `x`."""
        return a + b * self.number(-1.0) if dtype == "float32" else a - b

    def _intrinsic(self, name: str, *arguments: Expr) -> Computed:
        suffix = "f32" if self.lanes == 1 else f"v{self.lanes}f32"
        return llvm(f"llvm.{name}.{suffix}", vector_type("float32", self.lanes), *arguments)

    def to_float(self, value: Computed) -> Computed:
        return cast(value, "float32", self.lanes)

    def fused_multiply_add(self, a: Computed, b: Computed, c: Expr) -> Computed:
        """a * b + c, rounded once where the target can."""
        if "fma" not in self.target.features:
            return self.fence(a * b) + c
        return self._intrinsic("fma", a, b, c)

    def fence(self, value: Computed) -> Computed:
        """Keep LLVM from contracting the product `value` into a fused multiply-add."""
        return self._intrinsic("arithmetic.fence", value)

    def by_vectors(
        self, function: Callable[[Computed], Computed], value: Computed, dtype: str
    ) -> list[Computed]:
        """`function` of each of the target's vectors that `value` is made of."""
        lanes = self.target.lanes
        if self.lanes <= lanes:
            return [function(value)]
        value = self.bind(value, dtype)
        starts = range(0, self.lanes, lanes)
        return [function(tirx.Shuffle([value], list(range(i, i + lanes)))) for i in starts]

    def integer_as_float(self, value: Computed, dtype: str) -> Computed:
        """An integer operand as a float, whichever way it was computed."""
        return value if dtype == "float32" else self.to_float(cast(value, "int32", self.lanes))


def folded(
    code: VectorCode,
    value: Computed,
    join: Callable[[VectorCode, Computed, Computed], Computed],
    dtype: str = "float32",
) -> Computed:
    """One number from the lanes of a vector, by halves."""
    lanes = code.lanes
    while lanes > 1:
        half = lanes // 2
        # TVM spells out a name, which halves would double
        value = VectorCode(code.builder, code.target, lanes).in_memory(value, dtype)
        low, high = (tirx.Shuffle([value], list(range(at, at + half))) for at in (0, half))
        lanes = half
        value = join(VectorCode(code.builder, code.target, lanes), high, low)
    return VectorCode(code.builder, code.target, 1).bind(value, dtype)
