"""Rounding floats to bytes, four vectors at a time: narrowing with saturation on x86 and ARM."""

from __future__ import annotations

import numpy as np
from tvm import tirx

from ..targets import Target
from ..tensorir.builder import constant, join, llvm, reinterpret
from ..tensorir.types import Computed
from ..tensorir.vectors import VectorCode

PACKED = 4
"""Vectors of 32-bit lanes whose bytes fill a vector."""

_LARGE = 65536.0
"""Beyond every saturated result, and within what converts to an integer."""


def packs(target: Target, dtype: str) -> bool:
    """Whether results of this type are better rounded four vectors at a time."""
    return dtype in ("uint8", "int8") and bool(target.features & {"avx2", "neon"})


MAGIC = 12582912.0
"""1.5 * 2^23: adding it rounds a small float to an integer, ties to even, in its low bits."""


def round_and_pack(
    e: VectorCode, value: Computed, dtype: str, zero: int, *, bounded: bool
) -> Computed:
    """Round half to even, add the zero point, saturate; up to `PACKED` vectors of the target.

    `bounded` promises that every value is below 2^31: others are limited first, since
    they convert to the lowest integer, as NaN does. The pack instructions interleave
    128-bit lanes of their two operands; a permutation of 32-bit elements undoes both
    levels of it.
    """
    if "neon" in e.target.features:
        return _narrow(e, value, dtype, zero, bounded=bounded)
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


def _narrow(e: VectorCode, value: Computed, dtype: str, zero: int, *, bounded: bool) -> Computed:
    """By NEON: to 32 bits, then twice to half as many, each step saturating.

    ARMv8 converts with saturation, but NaN to 0. ARMv7 can't round to even: there a sum's
    low bits are the number, which saturates from above, and below is limited before.
    """
    is_64_bit = e.target.machine == "aarch64"
    if not bounded or not is_64_bit:
        low = (0 if dtype == "uint8" else -128) - zero
        value = tirx.max(value, e.number(float(low)))
    if is_64_bit:
        name = "llvm.aarch64.neon.fcvtns.v4i32.v4f32"
        integers = e.by_vectors(lambda x: llvm(name, "int32x4", x), value, "float32")
        halve = "llvm.aarch64.neon.sqxtn"
        narrow = "llvm.aarch64.neon.sqxtun" if dtype == "uint8" else halve
    else:
        offset = int(np.float32(MAGIC).view(np.int32)) - zero
        bits = reinterpret(value + e.number(MAGIC), "int32", e.lanes)
        bits = bits - e.number(offset, "int32")
        integers = e.by_vectors(lambda x: x, bits, "int32")
        halve = "llvm.arm.neon.vqmovns"
        narrow = "llvm.arm.neon.vqmovnsu" if dtype == "uint8" else halve
    if len(integers) % 2:
        integers.append(integers[-1])
    words = [
        join([llvm(f"{halve}.v4i16", "int16x4", x) for x in integers[i : i + 2]], 4)
        for i in range(0, len(integers), 2)
    ]
    if zero and is_64_bit:
        offsets = constant(zero, "int16", 8)
        words = [llvm("llvm.sadd.sat.v8i16", "int16x8", w, offsets) for w in words]
    found = join([llvm(f"{narrow}.v8i8", f"{dtype}x8", w) for w in words], 8)
    count = 8 * len(words)
    return found if count == e.lanes else tirx.Shuffle([found], list(range(e.lanes)))


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
