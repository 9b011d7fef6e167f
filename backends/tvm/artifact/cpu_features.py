"""What artifacts and C libraries ask of a CPU: instructions by their names in /proc/cpuinfo."""

from __future__ import annotations

from collections.abc import Sequence

from ....ir.errors import UnsupportedError
from ..targets import Target

FLAGS: dict[str, dict[str, str]] = {
    "x86_64": {
        "ssse3": "ssse3",
        "sse4.1": "sse4_2",
        "sse4.2": "sse4_2",
        "sse4a": "sse4a",
        "popcnt": "popcnt",
        "avx": "avx2",
        "avx2": "avx2",
        "fma": "fma",
        "bmi": "bmi1",
        "bmi2": "bmi2",
        "f16c": "f16c",
        "lzcnt": "abm",
        "movbe": "movbe",
        "avx512f": "avx512f",
        "avx512bw": "avx512bw",
        "avx512cd": "avx512cd",
        "avx512dq": "avx512dq",
        "avx512vl": "avx512vl",
        "avx512vnni": "avx512_vnni",
        "avx512vbmi": "avx512vbmi",
        "avx512vbmi2": "avx512_vbmi2",
        "avx512bitalg": "avx512_bitalg",
        "avx512vpopcntdq": "avx512_vpopcntdq",
        "avx512ifma": "avx512ifma",
        "avx512bf16": "avx512_bf16",
        "avx512fp16": "avx512_fp16",
        "avxvnni": "avx_vnni",
        "gfni": "gfni",
    },
    "aarch64": {
        "neon": "asimd",
        "fullfp16": "asimdhp",
        "rdm": "asimdrdm",
        "dotprod": "asimddp",
        "complxnum": "fcma",
        "sha3": "sha3",
        "i8mm": "i8mm",
        "bf16": "bf16",
        "sve": "sve",
        "sve2": "sve2",
    },
    "armv7l": {
        "neon": "neon",
        "vfp3": "vfpv3",
        "vfp4": "vfpv4",
        "fp16": "half",
        "hwdiv-arm": "idiva",
    },
    "riscv64": {"v": "v"},
}
"""Flags by LLVM's names of those instructions that it may choose by itself, by machine.

What it never chooses (for cryptography, locks, the system) isn't there.
"""


def required_flags(target: Target) -> frozenset[str]:
    """Flags of all instructions that code for a target may use: LLVM says what its CPU has."""
    import tvm

    names = FLAGS.get(target.machine, {})
    features = tvm.get_global_func("target.llvm_get_cpu_features")
    found = map(str, features(tvm.target.Target(target.llvm())))
    return target.cpu_flags | {names[feature] for feature in found if feature in names}


_ECX_1 = {"ssse3": 9, "fma": 12, "sse4_2": 20, "movbe": 22, "popcnt": 23, "f16c": 29}
_ECX_81 = {"abm": 5, "sse4a": 6}
_EBX_7 = {
    "bmi1": 3,
    "avx2": 5,
    "bmi2": 8,
    "avx512f": 16,
    "avx512dq": 17,
    "avx512ifma": 21,
    "avx512cd": 28,
    "avx512bw": 30,
    "avx512vl": 31,
}
_ECX_7 = {
    "avx512vbmi": 1,
    "avx512_vbmi2": 6,
    "gfni": 8,
    "avx512_vnni": 11,
    "avx512_bitalg": 12,
    "avx512_vpopcntdq": 14,
}
_EDX_7 = {"avx512_fp16": 23}
_EAX_71 = {"avx_vnni": 4, "avx512_bf16": 5}
"""Bits of what CPUID returns in leaves 1, 7, subleaf 1 of 7, and 0x80000001."""

_XCR0_AVX, _XCR0_AVX512 = 0x6, 0xE6

_HWCAP_AARCH64 = {
    "asimd": 1,
    "asimdhp": 10,
    "asimdrdm": 12,
    "fcma": 14,
    "sha3": 17,
    "asimddp": 20,
    "sve": 22,
    "asimdfhm": 23,
}
_HWCAP2_AARCH64 = {"sve2": 1, "i8mm": 13, "bf16": 14}
_HWCAP_ARM = {"half": 1, "neon": 12, "vfpv3": 13, "vfpv4": 16, "idiva": 17}
_HWCAP_RISCV = {"v": 21}
"""Bits of AT_HWCAP and AT_HWCAP2."""


def cpu_levels(levels: Sequence[Target]) -> str:
    """C that includes `native/cpu.h` and lists what each level asks of a CPU,
    `secateur_levels`, in order.

    Raises UnsupportedError for a flag that nothing is known of.
    """
    rows = [_row(level) for level in levels]
    asks = levels[0].machine != "x86_64" and any(any(row) for row in rows)
    lines = ["#define SECATEUR_HWCAP"] * asks
    lines += ['#include "cpu.h"', "", "static const secateur_features secateur_levels[] = {"]
    lines += [f"    {{{', '.join(f'{value:#x}u' for value in row)}}}," for row in rows]
    return "\n".join([*lines, "};"])


def _row(target: Target) -> list[int]:
    """The fields of a level's `secateur_features`."""
    flags = required_flags(target)
    if target.machine == "x86_64":
        known = (_ECX_1, _EBX_7, _ECX_7, _EDX_7, _EAX_71, _ECX_81)
        _check(flags, *known)
        wide = any(flag.startswith("avx512") for flag in flags)
        xcr0 = _XCR0_AVX512 if wide else _XCR0_AVX if "avx2" in flags else 0
        return [*(_mask(flags, bits) for bits in known), xcr0]
    if target.system == "macos":  # whose kernel tells otherwise; it runs on no older CPU
        return [0, 0]
    both = {
        "aarch64": (_HWCAP_AARCH64, _HWCAP2_AARCH64),
        "armv7l": (_HWCAP_ARM, {}),
        "riscv64": (_HWCAP_RISCV, {}),
    }.get(target.machine, ({}, {}))
    _check(flags, *both)
    return [_mask(flags, bits) for bits in both]


def _mask(flags: frozenset[str], bits: dict[str, int]) -> int:
    return sum(1 << bits[flag] for flag in flags if flag in bits)


def _check(flags: frozenset[str], *known: dict[str, int]) -> None:
    for flag in flags:
        if not any(flag in bits for bits in known):
            raise UnsupportedError(f"how C code finds out whether a CPU has {flag} isn't known")
