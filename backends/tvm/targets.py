"""The machines that models are compiled for, and what their vector units can do.

Pure data: importing this module does not import TVM.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
from typing import Any

from ...ir.errors import SecateurError
from ...ir.plugins import plugins


@dataclasses.dataclass(frozen=True)
class Target:
    """One machine type.

    `triple`, `cpu`, `attributes` and `abi` go to LLVM. `vector_bytes` is the width of
    the widest vector register that kernels use, `registers` how many there are.
    `features` are the instructions that kernels choose by: `fma`, `avx2`, `avx512`,
    `vnni`, `vbmi`, `dotprod`, `i8mm`, `neon`. `cpu_flags` are the flags of /proc/cpuinfo that
    a machine must have to run the result.
    """

    name: str
    description: str
    triple: str
    cpu: str
    vector_bytes: int
    registers: int
    features: frozenset[str] = frozenset()
    attributes: tuple[str, ...] = ()
    abi: str = ""
    float_abi: str = ""
    cpu_flags: frozenset[str] = frozenset()

    @property
    def machine(self) -> str:
        """The architecture, as `platform.machine()` calls it (ARMv7: armv7l)."""
        head = self.triple.split("-", 1)[0]
        return "armv7l" if head.startswith("arm") else head

    @property
    def lanes(self) -> int:
        """32-bit elements in one vector register."""
        return self.vector_bytes // 4

    @property
    def multiplies_bytes(self) -> bool:
        """Whether weights that fit 8 bits are multiplied faster than those that don't."""
        return not {"vnni", "neon"}.isdisjoint(self.features)

    @property
    def block(self) -> int:
        """Channels in one block of the blocked activation layout."""
        return max(self.lanes, 8)

    def llvm(self) -> dict[str, Any]:
        """The target description that TVM takes."""
        config: dict[str, Any] = {
            "kind": "llvm",
            "mtriple": self.triple,
            "mcpu": self.cpu,
        }
        if self.attributes:
            config["mattr"] = list(self.attributes)
        if self.abi:
            config["mabi"] = self.abi
        if self.float_abi:
            config["mfloat-abi"] = self.float_abi
        return config


_V2 = frozenset({"sse4_2", "ssse3", "popcnt"})
_V3 = _V2 | {"avx2", "fma", "bmi2", "f16c"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_VNNI = _V4 | {"avx512_vnni", "avx512vbmi"}


def _x86(
    name: str, description: str, vector_bytes: int, features: str, flags: frozenset[str]
) -> Target:
    return Target(
        name=name,
        description=description,
        triple="x86_64-linux-gnu",
        cpu=name,
        vector_bytes=vector_bytes,
        registers=32 if vector_bytes == 64 else 16,
        features=frozenset(features.split()),
        # Without it LLVM keeps to 256-bit registers on most of these CPUs.
        attributes=("-prefer-256-bit",) if vector_bytes == 64 else (),
        cpu_flags=flags,
    )


def _aarch64(name: str, description: str, cpu: str, features: str = "", flags: str = "") -> Target:
    known = frozenset(("neon " + features).split())
    return Target(
        name=name,
        description=description,
        triple="aarch64-linux-gnu",
        cpu=cpu,
        vector_bytes=16,
        registers=32,
        features=known | {"fma"},
        attributes=("+neon", *(f"+{f}" for f in features.split())),
        cpu_flags=frozenset(("asimd " + flags).split()),
    )


_TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        _x86("x86-64-v2", "x86-64 with SSE4.2 (2009 and later)", 16, "", _V2),
        _x86("x86-64-v3", "x86-64 with AVX2 and FMA (2013 and later)", 32, "avx2 fma", _V3),
        _x86("x86-64-v4", "x86-64 with AVX-512", 64, "avx2 fma avx512", _V4),
        _x86(
            "icelake-server",
            "Intel Ice Lake (AVX-512 VNNI)",
            64,
            "avx2 fma avx512 vnni vbmi",
            _VNNI,
        ),
        _x86("znver4", "AMD Zen 4 (AVX-512 VNNI)", 64, "avx2 fma avx512 vnni vbmi", _VNNI),
        _aarch64("aarch64", "any 64-bit ARM", "generic"),
        _aarch64("aarch64-cortex-a53", "ARM Cortex-A53 (Raspberry Pi 3)", "cortex-a53"),
        _aarch64("aarch64-cortex-a55", "ARM Cortex-A55", "cortex-a55", "dotprod", "asimddp"),
        _aarch64("aarch64-cortex-a72", "ARM Cortex-A72 (Raspberry Pi 4)", "cortex-a72"),
        _aarch64(
            "aarch64-cortex-a76",
            "ARM Cortex-A76 (Raspberry Pi 5)",
            "cortex-a76",
            "dotprod",
            "asimddp",
        ),
        Target(
            name="armv7-a",
            description="32-bit ARM with NEON, hard float",
            triple="armv7a-linux-gnueabihf",
            cpu="cortex-a9",
            vector_bytes=16,
            registers=16,
            features=frozenset({"neon"}),
            attributes=("+neon", "+vfp3"),
            float_abi="hard",
            cpu_flags=frozenset({"neon"}),
        ),
        Target(
            name="riscv64",
            description="64-bit RISC-V (rv64gc)",
            triple="riscv64-linux-gnu",
            cpu="generic-rv64",
            vector_bytes=16,
            registers=16,
            attributes=("+m", "+a", "+f", "+d", "+c"),
            abi="lp64d",
        ),
    )
}


@functools.cache
def targets() -> dict[str, Target]:
    """All targets by name, with those that installed packages bring along."""
    found = dict(_TARGETS)
    for target in plugins("targets", Target).values():
        if target.name in found:
            raise SecateurError(f"an installed package brings another target '{target.name}'")
        found[target.name] = target
    return found


def parse_target(name: str) -> Target:
    """The target called `name`; `native` is the best one that this machine runs.

    Raises SecateurError, listing the known targets, where there is none.
    """
    if name == "native":
        return _native()
    if name in _TARGETS:  # from which those of packages are made
        return _TARGETS[name]
    if name in targets():
        return targets()[name]
    raise SecateurError(f"unknown target '{name}'; known: native, {', '.join(targets())}")


def can_run_here(target: Target) -> bool:
    """Whether this machine has every instruction that code for `target` may use."""
    return target.machine == platform.machine() and target.cpu_flags <= _host_flags()


def missing_flags(target: Target) -> list[str]:
    """Instructions that code for `target` may use and this machine's CPU is known to lack."""
    host = _host_flags()
    return sorted(target.cpu_flags - host) if host else []


_PREFERENCE = (
    "znver4",
    "icelake-server",
    "x86-64-v4",
    "x86-64-v3",
    "x86-64-v2",
    "aarch64-cortex-a76",
    "aarch64",
    "armv7-a",
    "riscv64",
)


def _native() -> Target:
    for name in _PREFERENCE:
        if can_run_here(_TARGETS[name]):
            return _TARGETS[name]
    raise SecateurError(f"no known target fits this machine ({platform.machine()})")


@functools.cache
def _host_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("flags", "Features"):
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()
