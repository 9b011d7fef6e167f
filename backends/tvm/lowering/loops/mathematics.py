"""Scalar functions as expressions: C's mathematics library, or a few operations."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from ...functions.definitions import Function
from ...tensorir.builder import llvm
from .base import dtype_of, is_float, number, select, to


def libm(name: str, *arguments: Any) -> Any:
    """OperatorCall a function of C's mathematics library in the arguments' precision."""
    dtype = dtype_of(arguments[0])
    wide = "float64" if dtype == "float64" else "float32"
    values = [to(a, wide) for a in arguments]
    suffix = "" if wide == "float64" else "f"
    return to(tirx.call_pure_extern(wide, name + suffix, *values), dtype)


def lit(value: float, like: Any) -> Any:
    return number(value, dtype_of(like))


def factor(value: float, like: Any) -> Any:
    """A literal to multiply with: TVM takes products with a literal zero for zero."""
    dtype = dtype_of(like)
    if value != 0 or not is_float(dtype):
        return lit(value, like)
    suffix = "f64" if dtype == "float64" else "f32"
    return llvm(f"llvm.fabs.{suffix}", dtype, lit(0, like))


def fence(x: Any) -> Any:
    """Keep LLVM from contracting a product into a fused multiply-add."""
    dtype = dtype_of(x)
    return llvm(f"llvm.arithmetic.fence.{'f64' if dtype == 'float64' else 'f32'}", dtype, x)


def convert(x: Any, dtype: str) -> Any:
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


def _truncated(x: Any, bits: int) -> Any:
    """A float towards zero as a signed integer; the lowest one where there is none."""
    dtype = f"int{bits}"
    return select(x < lit(2.0 ** (bits - 1), x), to(x, dtype), tirx.min_value(dtype))


def exp(x: Any) -> Any:
    return libm("exp", x)


def log(x: Any) -> Any:
    return libm("log", x)


def sqrt(x: Any) -> Any:
    return libm("sqrt", x)


def tanh(x: Any) -> Any:
    return libm("tanh", x)


def sigmoid(x: Any) -> Any:
    return lit(1, x) / (lit(1, x) + exp(lit(0, x) - x))


def softplus(x: Any) -> Any:
    """log(1 + exp(x)) without overflow."""
    return largest(x, lit(0, x)) + libm("log1p", exp(lit(0, x) - absolute(x)))


def absolute(x: Any) -> Any:
    if is_float(dtype_of(x)):
        return libm("fabs", x)
    return x if dtype_of(x).startswith("uint") else select(x < lit(0, x), lit(0, x) - x, x)


def is_nan(x: Any) -> Any:
    return tirx.isnan(x)


def largest(a: Any, b: Any) -> Any:
    """The larger one, NaN if any is."""
    if not is_float(dtype_of(a)):
        return tirx.max(a, b)
    return select(tirx.any(a > b, is_nan(a)), a, b)


def smallest(a: Any, b: Any) -> Any:
    if not is_float(dtype_of(a)):
        return tirx.min(a, b)
    return select(tirx.any(a < b, is_nan(a)), a, b)


def round_even(x: Any) -> Any:
    return libm("rint", x)


def sign(x: Any) -> Any:
    zero, one = lit(0, x), lit(1, x)
    if dtype_of(x).startswith("uint"):
        return select(x > zero, one, zero)
    return select(x > zero, one, select(x < zero, zero - one, x))


class ScalarArithmetic:
    """Formulas on expressions of one type."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def number(self, value: float) -> Any:
        return number(value, self.dtype)

    def parameter(self, value: float) -> Any:
        return factor(value, self.number(value))

    def named(self, x: Any) -> Any:
        return x

    kept = named

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        return select(condition, x, y)

    def at_least(self, x: Any, bound: Any) -> Any:
        return select(x < bound, bound, x)

    def at_most(self, x: Any, bound: Any) -> Any:
        return select(x > bound, bound, x)

    def negative(self, x: Any) -> Any:
        return x * lit(-1, x) if is_float(self.dtype) else lit(0, x) - x

    def magnitude(self, x: Any) -> Any:
        return absolute(x)

    def floor(self, x: Any) -> Any:
        return libm("floor", x) if is_float(self.dtype) else x

    def ceil(self, x: Any) -> Any:
        return libm("ceil", x) if is_float(self.dtype) else x

    def round(self, x: Any) -> Any:
        return libm("rint", x) if is_float(self.dtype) else x

    def sqrt(self, x: Any) -> Any:
        return sqrt(x)

    def exp(self, x: Any) -> Any:
        return exp(x)

    def decay(self, x: Any) -> Any:
        return exp(x) - lit(1, x)

    def log(self, x: Any) -> Any:
        return log(x)

    def tanh(self, x: Any) -> Any:
        return tanh(x)

    def erf(self, x: Any) -> Any:
        return libm("erf", x)

    def sigmoid(self, x: Any) -> Any:
        return sigmoid(x)

    def softplus(self, x: Any) -> Any:
        return softplus(x)


def evaluate(function: Function, x: Any, **parameters: float) -> Any:
    """A function of an expression."""
    return function.formula(ScalarArithmetic(dtype_of(x)), x, **parameters)


def power(x: Any, y: Any) -> Any:
    """x to the y; integers by way of doubles, as ONNX Runtime."""
    dtype = dtype_of(x)
    if is_float(dtype):
        wide = "float64" if dtype == "float64" or dtype_of(y) == "float64" else "float32"
        suffix = "" if wide == "float64" else "f"
        return to(tirx.call_pure_extern(wide, "pow" + suffix, to(x, wide), to(y, wide)), dtype)
    result = tirx.call_pure_extern("float64", "pow", to(x, "float64"), to(y, "float64"))
    return convert(result, dtype)


def saturate(x: Any, dtype: str) -> Any:
    """A rounded float as an integer type, limited to its range; NaN as its lowest number."""
    import numpy as np

    info = np.iinfo(dtype)
    low, high = lit(int(info.min), x), lit(int(info.max), x)
    return to(to(tirx.min(tirx.max(x, low), high), "int32"), dtype)
