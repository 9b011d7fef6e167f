"""bfloat16 numbers in kernels: as their bits, uint16, since TVM generates no code of that type.

What a CPU has for them are functions in LLVM's language, which become part of a kernel's module
and of the kernel itself, where it calls them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import tvm
from tvm import tirx

from ..targets import Target, multiplies_halves
from .builder import cast, constant, reinterpret, vector_type
from .types import Computed, PrimFunc

BITS = "uint16"
"""The type that kernels hold bfloat16 numbers in."""

_DOT = """
declare <{n} x float> @{intrinsic}(<{n} x float>, <{m} x bfloat>, <{m} x bfloat>)
define linkonce_odr hidden <{n} x float> @{name}(<{n} x float> %acc, <{m} x i16> %a, <{m} x i16> %b)
alwaysinline nounwind memory(none) {{
  %x = bitcast <{m} x i16> %a to <{m} x bfloat>
  %y = bitcast <{m} x i16> %b to <{m} x bfloat>
  %r = call <{n} x float> @{intrinsic}(<{n} x float> %acc, <{m} x bfloat> %x, <{m} x bfloat> %y)
  ret <{n} x float> %r
}}
"""

_ROUND = """
define linkonce_odr hidden <{n} x i16> @{name}(<{n} x float> %x)
alwaysinline nounwind memory(none) {{
  %h = fptrunc <{n} x float> %x to <{n} x bfloat>
  %r = bitcast <{n} x bfloat> %h to <{n} x i16>
  ret <{n} x i16> %r
}}
"""

_DOTS = {16: "llvm.x86.avx512bf16.dpbf16ps.512", 4: "llvm.aarch64.neon.bfdot.v4f32.v8bf16"}
"""Intrinsics that add products of pairs, by the number of sums."""

_MOST_LANES = 64

FUNCTIONS: Mapping[str, str] = {
    **{
        f"secateur_bfloat_dot_{n}": _DOT.format(
            name=f"secateur_bfloat_dot_{n}", n=n, m=2 * n, intrinsic=intrinsic
        )
        for n, intrinsic in _DOTS.items()
    },
    **{
        f"secateur_bfloat_round_{n}": _ROUND.format(name=f"secateur_bfloat_round_{n}", n=n)
        for n in (4 * i for i in range(1, _MOST_LANES // 4 + 1))
    },
}
"""Functions that kernels may call, of numbers alone, with their definitions."""


def dot(accumulator: Computed, a: Computed, b: Computed, lanes: int) -> Computed:
    """Sums of two products each, added to `accumulator`, by the target's instruction."""
    name = f"secateur_bfloat_dot_{lanes}"
    return tirx.call_pure_extern(vector_type("float32", lanes), name, accumulator, a, b)


def to_bits(value: Computed, target: Target, lanes: int) -> Computed:
    """float32 to the nearest bfloat16, ties to even; NaN stays one."""
    if multiplies_halves(target, "bfloat16") and lanes % 4 == 0 and lanes <= _MOST_LANES:
        name = f"secateur_bfloat_round_{lanes}"
        return tirx.call_pure_extern(vector_type(BITS, lanes), name, value)

    def number(n: int) -> Computed:
        return constant(n, "uint32", lanes)

    bits = reinterpret(value, "uint32", lanes)
    odd = (bits >> number(16)) & number(1)
    rounded = (bits + odd + number(0x7FFF)) >> number(16)
    magnitude = bits & number(0x7FFFFFFF)
    quiet = (bits >> number(16)) | number(0x40)
    return cast(tirx.Select(magnitude > number(0x7F800000), quiet, rounded), BITS, lanes)


def from_bits(bits: Computed, lanes: int) -> Computed:
    """bfloat16 to float32, which is exact."""
    wide = cast(bits, "uint32", lanes) << constant(16, "uint32", lanes)
    return reinterpret(wide, "float32", lanes)


_CALLED = re.compile(r"\bsecateur_bfloat_\w+")


def with_definitions(function: PrimFunc) -> PrimFunc:
    """The function with the definitions of what it calls."""
    names = sorted(set(_CALLED.findall(tvm.ir.save_json(function))) & FUNCTIONS.keys())
    if not names:
        return function
    source = tvm.ir.StringImm("".join(FUNCTIONS[name] for name in names))
    zero = tirx.const(0, "int32")
    return function.with_body(tirx.AttrStmt(zero, "pragma_import_llvm", source, function.body))
