"""Functions that kernels may call: a call of any other proves nothing."""

from __future__ import annotations

from ..tensorir.bfloat import FUNCTIONS

_LIBM = frozenset(
    name + suffix
    for name in (
        "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "copysign", "cos", "cosh", "erf",
        "exp", "expm1", "fabs", "floor", "fmod", "log", "log1p", "pow", "rint", "round", "sin",
        "sinh", "sqrt", "tan", "tanh", "trunc",
    )
    for suffix in ("", "f")
)  # fmt: skip

PURE = _LIBM | set(FUNCTIONS) | {
    "call_llvm_pure_intrin", "isnan", "log2", "nearbyint", "reinterpret", "secateur_fail",
    "sigmoid", "tvm_throw_last_error",
}  # fmt: skip
"""Functions of numbers alone, which touch none of the kernel's memory."""
