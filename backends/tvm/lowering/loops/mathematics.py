"""Scalar functions as expressions: C's mathematics library, or a few operations."""

from __future__ import annotations

from tvm import tirx

from ...functions.definitions import ScalarFunction
from ...tensorir.builder import llvm
from ...tensorir.types import Computed, Expr
from .base import dtype_of, is_float, number, select, to


def libm(name: str, *arguments: Expr) -> Computed:
    """Call a function of C's mathematics library in the arguments' precision."""
    dtype = dtype_of(arguments[0])
    wide = "float64" if dtype == "float64" else "float32"
    values = [to(a, wide) for a in arguments]
    suffix = "" if wide == "float64" else "f"
    return to(tirx.call_pure_extern(wide, name + suffix, *values), dtype)


def lit(value: float, like: Expr) -> Computed:
    return number(value, dtype_of(like))


def factor(value: float, like: Expr) -> Computed:
    """A literal to multiply with: TVM takes products with a literal zero for zero."""
    dtype = dtype_of(like)
    if value != 0 or not is_float(dtype):
        return lit(value, like)
    suffix = "f64" if dtype == "float64" else "f32"
    return llvm(f"llvm.fabs.{suffix}", dtype, lit(0, like))


def fence(x: Expr) -> Computed:
    """Keep LLVM from contracting a product into a fused multiply-add."""
    dtype = dtype_of(x)
    return llvm(f"llvm.arithmetic.fence.{'f64' if dtype == 'float64' else 'f32'}", dtype, x)


def convert(x: Expr, dtype: str) -> Expr:
    """Convert as ONNX Runtime does on x86. `x` is evaluated several times.

    Floats that int32 and int64 don't hold, NaN included, become their lowest number.
    Narrower types take the low bits of the int32; unsigned ones the bits of the signed
    number, from half of their range on of what is left of it.
    """
    own = dtype_of(x)
    if not is_float(own) or is_float(dtype) or dtype == "bool":
        return to(x, dtype)
    bits = int("".join(c for c in dtype if c.isdigit()))
    if bits < 32:
        return to(_truncated(x, 32), dtype)
    if not dtype.startswith("uint"):
        return _truncated(x, bits)
    half = lit(2.0 ** (bits - 1), x)
    upper = to(_truncated(x - half, bits), dtype) + number(2 ** (bits - 1), dtype)
    return select(x >= half, upper, to(_truncated(x, bits), dtype))


def _truncated(x: Expr, bits: int) -> Expr:
    """A float towards zero as a signed integer; the lowest one where there is none."""
    dtype = f"int{bits}"
    return select(x < lit(2.0 ** (bits - 1), x), to(x, dtype), tirx.min_value(dtype))


def exp(x: Expr) -> Computed:
    return libm("exp", x)


def log(x: Expr) -> Computed:
    return libm("log", x)


def sqrt(x: Expr) -> Computed:
    return libm("sqrt", x)


def tanh(x: Expr) -> Computed:
    return libm("tanh", x)


def sigmoid(x: Expr) -> Computed:
    return lit(1, x) / (lit(1, x) + exp(lit(0, x) - x))


def softplus(x: Expr) -> Computed:
    """log(1 + exp(x)) without overflow."""
    return largest(x, lit(0, x)) + libm("log1p", exp(lit(0, x) - absolute(x)))


def absolute(x: Expr) -> Expr:
    if is_float(dtype_of(x)):
        return libm("fabs", x)
    return x if dtype_of(x).startswith("uint") else select(x < lit(0, x), lit(0, x) - x, x)


def is_nan(x: Expr) -> Computed:
    return tirx.isnan(x)


def largest(a: Expr, b: Expr) -> Expr:
    """The larger one, NaN if any is."""
    if not is_float(dtype_of(a)):
        return tirx.max(a, b)
    return select(tirx.any(a > b, is_nan(a)), a, b)


def smallest(a: Expr, b: Expr) -> Expr:
    if not is_float(dtype_of(a)):
        return tirx.min(a, b)
    return select(tirx.any(a < b, is_nan(a)), a, b)


def round_even(x: Expr) -> Computed:
    return libm("rint", x)


def sign(x: Expr) -> Expr:
    zero, one = lit(0, x), lit(1, x)
    if dtype_of(x).startswith("uint"):
        return select(x > zero, one, zero)
    return select(x > zero, one, select(x < zero, zero - one, x))


class ScalarArithmetic:
    """Formulas on expressions of one type."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def number(self, value: float) -> Computed:
        return number(value, self.dtype)

    def parameter(self, value: float) -> Computed:
        return factor(value, self.number(value))

    def named(self, x: Computed) -> Computed:
        return x

    kept = named

    def where(self, condition: Computed, x: Computed, y: Computed) -> Computed:
        return select(condition, x, y)

    def at_least(self, x: Computed, bound: Computed) -> Computed:
        return select(x < bound, bound, x)

    def at_most(self, x: Computed, bound: Computed) -> Computed:
        return select(x > bound, bound, x)

    def negative(self, x: Computed) -> Computed:
        return x * lit(-1, x) if is_float(self.dtype) else lit(0, x) - x

    def magnitude(self, x: Computed) -> Computed:
        return to(absolute(x), self.dtype)

    def floor(self, x: Computed) -> Computed:
        return libm("floor", x) if is_float(self.dtype) else x

    def ceil(self, x: Computed) -> Computed:
        return libm("ceil", x) if is_float(self.dtype) else x

    def round(self, x: Computed) -> Computed:
        return libm("rint", x) if is_float(self.dtype) else x

    def sqrt(self, x: Computed) -> Computed:
        return sqrt(x)

    def exp(self, x: Computed) -> Computed:
        return exp(x)

    def decay(self, x: Computed) -> Computed:
        return exp(x) - lit(1, x)

    def log(self, x: Computed) -> Computed:
        return log(x)

    def tanh(self, x: Computed) -> Computed:
        return tanh(x)

    def erf(self, x: Computed) -> Computed:
        return libm("erf", x)

    def sigmoid(self, x: Computed) -> Computed:
        return sigmoid(x)

    def softplus(self, x: Computed) -> Computed:
        return softplus(x)


def evaluate(function: ScalarFunction, x: Expr, **parameters: float) -> Computed:
    """A function of an expression."""
    return function.formula(ScalarArithmetic(dtype_of(x)), to(x, dtype_of(x)), **parameters)


def power(x: Expr, y: Expr) -> Expr:
    """x to the y; integers by way of doubles, as ONNX Runtime."""
    dtype = dtype_of(x)
    if is_float(dtype):
        wide = "float64" if dtype == "float64" or dtype_of(y) == "float64" else "float32"
        suffix = "" if wide == "float64" else "f"
        return to(tirx.call_pure_extern(wide, "pow" + suffix, to(x, wide), to(y, wide)), dtype)
    result = tirx.call_pure_extern("float64", "pow", to(x, "float64"), to(y, "float64"))
    return convert(result, dtype)


def saturate(x: Expr, dtype: str) -> Computed:
    """A rounded float as an integer type, limited to its range; NaN as its lowest number."""
    import numpy as np

    info = np.iinfo(dtype)
    low, high = lit(int(info.min), x), lit(int(info.max), x)
    return to(to(tirx.min(tirx.max(x, low), high), "int32"), dtype)
