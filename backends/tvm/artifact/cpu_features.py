"""What a C library checks of the CPU: instructions by their names in /proc/cpuinfo, as bits."""

from __future__ import annotations

from ....ir.errors import UnsupportedError
from ..targets import Target

_ECX_1 = {"ssse3": 9, "fma": 12, "sse4_2": 20, "popcnt": 23, "f16c": 29}
_EBX_7 = {
    "avx2": 5,
    "bmi2": 8,
    "avx512f": 16,
    "avx512dq": 17,
    "avx512cd": 28,
    "avx512bw": 30,
    "avx512vl": 31,
}
_ECX_7 = {"avx512vbmi": 1, "avx512_vnni": 11}
"""Bits of what CPUID returns in leaf 1 and leaf 7."""

_XCR0_AVX, _XCR0_AVX512 = 0x6, 0xE6

_HWCAP_AARCH64 = {"asimd": 1, "asimdhp": 10, "asimddp": 20, "sve": 22}
_HWCAP2_AARCH64 = {"sve2": 1, "i8mm": 13, "bf16": 14}
_HWCAP_ARM = {"neon": 12, "vfpv3": 13, "vfpv4": 16}
_HWCAP_RISCV = {"v": 21}
"""Bits of AT_HWCAP and AT_HWCAP2."""


def cpu_macros(target: Target) -> str:
    """Definitions for `native/cpu.h`.

    Raises UnsupportedError for a flag that nothing is known of.
    """
    flags = target.cpu_flags
    if target.machine == "x86_64":
        known = (_ECX_1, _EBX_7, _ECX_7)
        _check(flags, *known)
        wide = any(flag.startswith("avx512") for flag in flags)
        xcr0 = _XCR0_AVX512 if wide else _XCR0_AVX if "avx2" in flags else 0
        names = ("CPU_1_ECX", "CPU_7_EBX", "CPU_7_ECX")
        values = [(n, _mask(flags, bits)) for n, bits in zip(names, known, strict=True)]
        values.append(("CPU_XCR0", xcr0))
    else:
        both = {
            "aarch64": (_HWCAP_AARCH64, _HWCAP2_AARCH64),
            "armv7l": (_HWCAP_ARM, {}),
            "riscv64": (_HWCAP_RISCV, {}),
        }.get(target.machine, ({}, {}))
        _check(flags, *both)
        values = [
            ("CPU_HWCAP", _mask(flags, both[0])),
            ("CPU_HWCAP2", _mask(flags, both[1])),
        ]
    return "\n".join(f"#define {name} {value:#x}u" for name, value in values)


def _mask(flags: frozenset[str], bits: dict[str, int]) -> int:
    return sum(1 << bits[flag] for flag in flags if flag in bits)


def _check(flags: frozenset[str], *known: dict[str, int]) -> None:
    for flag in flags:
        if not any(flag in bits for bits in known):
            raise UnsupportedError(f"how C code finds out whether a CPU has {flag} isn't known")
