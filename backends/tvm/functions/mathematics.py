"""Vectorised elementary functions, since LLVM calls libm once per lane.

Each takes a `VectorCode` and a float32 vector. Errors are within a few units in the
last place over the range that float32 can represent.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx

from ..tensorir.builder import cast, constant, join, llvm, reinterpret
from ..tensorir.types import Computed
from ..tensorir.vectors import VectorCode

_LOG2E = 1.4426950408889634
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
"""Cephes' expf: minimax polynomial of (exp(r) - 1 - r) / r^2 on [-ln2/2, ln2/2]."""


def exp(e: VectorCode, x: Computed) -> Computed:
    """e^x: reduction to [-ln2/2, ln2/2], a polynomial, and the exponent's bits.

    Infinity above 88.73, zero below -86.99 (no subnormals): the bits of the limits' own
    exponents make them.
    """
    limited = e.at_least(e.opaque(x), e.number(-87.336544))
    return _exp(e, e.at_most(limited, e.number(89.0)))


def exp_nonpositive(e: VectorCode, x: Computed) -> Computed:
    """e^x for x <= 0."""
    return _exp(e, e.at_least(e.opaque(x), e.number(-87.336544)))


def _exp(e: VectorCode, x: Computed) -> Computed:
    """e^x within [-87.34, 89]."""
    x = e.bind(x, "float32")
    n = e.bind(tirx.nearbyint(x * e.number(_LOG2E)), "float32")
    r = x - n * e.number(_LN2_HIGH)
    r = e.bind(r - n * e.number(_LN2_LOW), "float32")
    y = _polynomial(e, r, _EXP) * r * r + r + e.number(1.0)
    # 2^n in two factors, since 2^128 is no float32; n = -126 gives zero.
    exponent = (cast(n, "int32", e.lanes) + e.number(126, "int32")) << e.number(23, "int32")
    return y * reinterpret(exponent, "float32", e.lanes) * e.number(2.0)


def sigmoid(e: VectorCode, x: Computed) -> Computed:
    """1 / (1 + e^-x), and zero below -88.73: what large numbers are multiplied by."""
    return _reciprocal(e, e.number(1.0) + exp(e, -x))


def _reciprocal(e: VectorCode, x: Computed) -> Computed:
    """1 / x for normal x and infinity, within about two units in the last place."""
    if "avx512" not in e.target.features or e.lanes % 16:
        return e.number(1.0) / x
    x = e.bind(x, "float32")
    mask, zero = tirx.const(-1, "int16"), constant(0.0, "float32", 16)
    name = "llvm.x86.avx512.rcp14.ps.512"
    parts = e.by_vectors(lambda v: llvm(name, "float32x16", v, zero, mask), x, "float32")
    first = e.bind(join(parts, 16), "float32")
    refined = first * (e.number(2.0) - x * first)
    return tirx.Select(e.number(math.inf) <= x, e.number(0.0), refined)


_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
"""Cephes' logf: (log(1 + f) - f + f^2 / 2) / f^3 for 1 + f in [sqrt(1/2), sqrt(2)]."""


def log(e: VectorCode, x: Computed) -> Computed:
    """Natural logarithm: -infinity at zero, NaN below, infinity and NaN as they are."""
    x = e.opaque(x)
    small = x < e.number(1.17549435e-38)
    scaled = e.bind(tirx.Select(small, x * e.number(2.0**24), x), "float32")
    bits = e.bind(reinterpret(scaled, "int32", e.lanes), "int32")
    # The exponent of the mantissa's neighbourhood of 1: from sqrt(1/2) to sqrt(2).
    moved = e.bind(bits - e.number(0x3F3504F3, "int32"), "int32")
    exponent = e.bind(moved >> e.number(23, "int32"), "int32")
    mantissa = bits - (exponent << e.number(23, "int32"))
    f = e.bind(reinterpret(mantissa, "float32", e.lanes) - e.number(1.0), "float32")
    n = cast(exponent, "float32", e.lanes) - tirx.Select(small, e.number(24.0), e.number(0.0))
    n = e.bind(n, "float32")
    square = e.bind(f * f, "float32")
    y = square * f * _polynomial(e, f, _LOG) + n * e.number(_LN2_LOW)
    y = e.bind(y - square * e.number(0.5) + f + n * e.number(_LN2_HIGH), "float32")
    infinity, nothing = e.number(math.inf), e.number(math.nan)
    y = tirx.Select(x < infinity, y, x)
    limit = tirx.Select(x < e.number(0.0), nothing, -infinity)
    return e.bind(tirx.Select(x <= e.number(0.0), limit, y), "float32")


def softplus(e: VectorCode, x: Computed) -> Computed:
    """log(1 + e^x): with u = 1 + y rounded, log(1 + y) is log(u) + (y - (u - 1)) / u."""
    x = e.opaque(x)
    y = e.bind(exp_nonpositive(e, -e.magnitude(x)), "float32")
    u = e.in_memory(e.fence(e.number(1.0) + y))
    lost = y - e.fence(u - e.number(1.0))
    return e.at_least(x, e.number(0.0)) + (log(e, u) + lost / u)


_TANH_P = (
    -5.70498872745e-3,
    2.06390887954e-2,
    -5.37397155531e-2,
    1.33314422036e-1,
    -3.33332819422e-1,
)
"""Cephes' tanhf on |x| < 0.625: x + x^3 * P(x^2)."""


def tanh(e: VectorCode, x: Computed) -> Computed:
    x = e.opaque(x)
    magnitude = e.bind(e.magnitude(x), "float32")
    square = e.bind(x * x, "float32")
    small = x + x * (square * _polynomial(e, square, _TANH_P))
    two = e.number(2.0)
    # 1 - 2 / (e^20 + 1) is 1. The reciprocal of e^88 is subnormal: some CPUs take long for it.
    limited = e.at_most(magnitude, e.number(10.0)) * two
    large = e.number(1.0) - two * _reciprocal(e, _exp(e, limited) + e.number(1.0))
    large = tirx.Select(x < e.number(0.0), -large, large)
    return tirx.Select(magnitude < e.number(0.625), small, large)


_ERF_LIMIT = 3.9192
"""From here on erf is 1 in float32."""
_ERF_P = (
    2.050732518910081e-6,
    2.848901494871825e-4,
    3.764550667256117e-3,
    5.274556577205658e-2,
    1.9037747383117676e-1,
    1.1283791065216064,
)
_ERF_Q = (
    3.8098758523119614e-5,
    1.1623346945270896e-3,
    1.496706623584032e-2,
    1.1409774422645569e-1,
    5.020503997802734e-1,
    1.0,
)
"""x * P(x^2) / Q(x^2) up to there: a minimax fit of the relative error, 2e-8 before rounding. No
coefficient is negative, so that nothing cancels."""


def erf(e: VectorCode, x: Computed) -> Computed:
    """erf(x), within six units in the last place, eight where multiply-adds aren't fused, and never
    beyond 1."""
    x = e.at_least(e.opaque(x), e.number(-_ERF_LIMIT))
    x = e.bind(e.at_most(x, e.number(_ERF_LIMIT)), "float32")
    square = e.bind(x * x, "float32")
    value = x * _polynomial(e, square, _ERF_P) / _polynomial(e, square, _ERF_Q)
    return e.at_most(e.at_least(value, e.number(-1.0)), e.number(1.0))


def _polynomial(e: VectorCode, x: Computed, coefficients: tuple[float, ...]) -> Computed:
    """Horner's scheme, highest power first."""
    value = e.number(float(np.float32(coefficients[0])))
    for c in coefficients[1:]:
        value = value * x + e.number(float(np.float32(c)))
    return value
