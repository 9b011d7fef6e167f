"""Rounding floats to bytes, four vectors at a time: x86 packs with saturation."""

from __future__ import annotations

from tvm import tirx

from ..targets import Target
from ..tensorir.builder import constant, llvm, reinterpret
from ..tensorir.types import Computed
from ..tensorir.vectors import VectorCode

PACKED = 4
"""Vectors of 32-bit lanes whose bytes fill a vector."""

_LARGE = 65536.0
"""Beyond every saturated result, and within what converts to an integer."""


def packs(target: Target, dtype: str) -> bool:
    """Whether results of this type are better rounded four vectors at a time."""
    return dtype in ("uint8", "int8") and "avx2" in target.features


def round_and_pack(
    e: VectorCode, value: Computed, dtype: str, zero: int, *, bounded: bool
) -> Computed:
    """Round half to even, add the zero point, saturate; up to `PACKED` vectors of the target.

    `bounded` promises that every value is below 2^31: others are limited first, since
    they convert to the lowest integer, as NaN does. The pack instructions interleave
    128-bit lanes of their two operands; a permutation of 32-bit elements undoes both
    levels of it.
    """
    lanes = e.target.lanes
    count = e.lanes // lanes
    if not bounded:
        value = tirx.min(e.number(_LARGE), value)
    integers = e.by_vectors(lambda x: _to_integers(x, lanes), value, "float32")
    integers += [integers[-1]] * (PACKED - count)
    words = [_pack_words(integers[i], integers[i + 1], lanes) for i in (0, 2)]
    if zero:
        add, offset = f"llvm.sadd.sat.v{2 * lanes}i16", constant(zero, "int16", 2 * lanes)
        words = [llvm(add, f"int16x{2 * lanes}", w, offset) for w in words]
    packed = _pack_bytes(words[0], words[1], dtype, lanes)
    groups = lanes // 4
    order = [i * PACKED + k for k in range(count) for i in range(groups)]
    found = tirx.Shuffle([reinterpret(packed, "int32", lanes)], order)
    return reinterpret(found, dtype, e.lanes)


def _to_integers(x: Computed, lanes: int) -> Computed:
    if lanes == 16:
        mask, current = tirx.const(-1, "int16"), tirx.const(4, "int32")
        zero = constant(0, "int32", 16)
        name = "llvm.x86.avx512.mask.cvtps2dq.512"
        return llvm(name, "int32x16", x, zero, mask, current)
    return llvm("llvm.x86.avx.cvt.ps2dq.256", "int32x8", x)


def _pack_words(a: Computed, b: Computed, lanes: int) -> Computed:
    name = "llvm.x86.avx512.packssdw.512" if lanes == 16 else "llvm.x86.avx2.packssdw"
    return llvm(name, f"int16x{2 * lanes}", a, b)


def _pack_bytes(a: Computed, b: Computed, dtype: str, lanes: int) -> Computed:
    name = "packuswb" if dtype == "uint8" else "packsswb"
    name = f"llvm.x86.avx512.{name}.512" if lanes == 16 else f"llvm.x86.avx2.{name}"
    return llvm(name, f"{dtype}x{4 * lanes}", a, b)
