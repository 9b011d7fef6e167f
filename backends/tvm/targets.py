"""The machines that models are compiled for, and what their vector units can do.

Pure data: importing this module does not import TVM.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...ir.display import printable
from ...ir.errors import SecateurError
from ...ir.files import read_regular
from ...ir.plugins import plugins

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_SHORT = 1
"""LLVM's level of optimization for short code: at 3, TVM's own, it writes loops out."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One machine type.

    `triple`, `cpu`, `attributes` and `abi` go to LLVM. `vector_bytes` is the width of
    the widest vector register that kernels use, `registers` how many there are.
    `features` are the instructions that kernels choose by: `fma`, `avx2`, `avx512`,
    `vnni`, `vbmi`, `dotprod`, `i8mm`, `neon`, `bf16`, `fp16fml`. `spare` are those that the CPU
    has, too, and that code does without unless it is asked to compute in 16 bits, since other
    CPUs that run it lack them. `cpu_flags` are the flags of /proc/cpuinfo that
    a machine must have to run the result. `flash_bytes` and `ram_bytes` are what there is room
    for: the artifact, and the memory that a run takes besides inputs and outputs.
    """

    name: str
    description: str
    triple: str
    cpu: str
    vector_bytes: int
    registers: int
    features: frozenset[str] = frozenset()
    spare: frozenset[str] = frozenset()
    attributes: tuple[str, ...] = ()
    abi: str = ""
    float_abi: str = ""
    cpu_flags: frozenset[str] = frozenset()
    flash_bytes: int | None = None
    ram_bytes: int | None = None
    small: bool = False
    """Whether LLVM is to keep code short rather than make it as fast as it can."""
    variants: tuple[Target, ...] = ()
    """What a target stands for that is several ones: the best first, which it is like."""

    @property
    def levels(self) -> tuple[Target, ...]:
        """The targets that an artifact has code for: a run takes the first that its CPU can."""
        return self.variants or (self,)

    @property
    def machine(self) -> str:
        """The architecture, as `platform.machine()` calls it (ARMv7: armv7l)."""
        head = self.triple.split("-", 1)[0]
        return "armv7l" if head.startswith("arm") else head

    @property
    def system(self) -> str:
        """The operating system: linux, android or macos."""
        if "android" in self.triple:
            return "android"
        return "macos" if "macos" in self.triple else "linux"

    @property
    def links(self) -> bool:
        """Whether shared objects and programs can be linked here, not only objects made."""
        return self.system != "macos"

    @property
    def lanes(self) -> int:
        """32-bit elements in one vector register."""
        return self.vector_bytes // 4

    @property
    def multiplies_bytes(self) -> bool:
        """Whether weights that fit 8 bits are multiplied faster than those that don't."""
        return not {"vnni", "neon"}.isdisjoint(self.features)

    @property
    def prefers_signed_bytes(self) -> bool:
        """Whether bytes are multiplied as signed ones alone, and tiles stay in registers so."""
        return "dotprod" in self.features and "i8mm" not in self.features

    @property
    def prefers_signed_channels(self) -> bool:
        """Whether bytes that are multiplied channel by channel are, if not all."""
        return "neon" in self.features and "i8mm" not in self.features

    @property
    def sums_products_of_bytes(self) -> bool:
        """Whether what multiplies bytes adds up the products of four neighbours."""
        return "neon" in self.features or self.machine == "x86_64"

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
        if self.small:
            config["opt-level"] = _SHORT
        return config


_V2 = frozenset({"sse4_2", "ssse3", "popcnt"})
_V3 = _V2 | {"avx2", "fma", "bmi1", "bmi2", "abm", "f16c", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_VNNI = _V4 | {
    "avx512_vnni",
    "avx512vbmi",
    "avx512_vbmi2",
    "avx512_bitalg",
    "avx512_vpopcntdq",
    "avx512ifma",
    "gfni",
}


def _x86(
    name: str,
    description: str,
    vector_bytes: int,
    features: str,
    flags: frozenset[str],
    without: tuple[str, ...] = (),
    spare: frozenset[str] = frozenset(),
) -> Target:
    """`without` are instructions of the CPU that code does without: others lack them."""
    return Target(
        name=name,
        description=description,
        triple="x86_64-linux-gnu",
        cpu=name,
        vector_bytes=vector_bytes,
        registers=32 if vector_bytes == 64 else 16,
        features=frozenset(features.split()),
        spare=spare,
        # Without it LLVM keeps to 256-bit registers on most of these CPUs.
        attributes=(
            *(("-prefer-256-bit",) if vector_bytes == 64 else ()),
            *(f"-{name}" for name in without),
        ),
        cpu_flags=flags,
    )


_EXTENSIONS = {
    "aarch64": {
        "dotprod": "asimddp",
        "i8mm": "i8mm",
        "bf16": "bf16",
        "fullfp16": "asimdhp",
        "fp16fml": "asimdfhm",
        "sve": "sve",
        "sve2": "sve2",
    },
    "armv7l": {"vfp4": "vfpv4", "hwdiv-arm": "idiva"},
    "riscv64": {"v": "v"},
}
"""What CPUs of a machine may have besides, by LLVM's name, with its flag in /proc/cpuinfo."""


_ARM_8_2 = frozenset({"asimdhp", "asimdrdm"})
_ARM_8_4 = _ARM_8_2 | {"fcma"}
"""What CPUs of a version of the architecture have as a rule."""


def _aarch64(
    name: str,
    description: str,
    extensions: str = "",
    flags: frozenset[str] = frozenset(),
    spare: frozenset[str] = frozenset(),
) -> Target:
    """`name` is LLVM's of the CPU, or `aarch64`: code for the smallest one runs anywhere."""
    found = Target(
        name=name if name == "aarch64" else f"aarch64-{name}",
        description=description,
        triple="aarch64-linux-gnu",
        cpu="cortex-a53" if name == "aarch64" else name,
        vector_bytes=16,
        registers=32,
        features=frozenset({"neon", "fma"}),
        spare=spare,
        attributes=("+neon",),
        cpu_flags=frozenset({"asimd"}) | flags,
    )
    return _extended(found, extensions.split())


def _armv7(name: str, description: str, cpu: str, extensions: str = "") -> Target:
    found = Target(
        name=name,
        description=description,
        triple="armv7a-linux-gnueabihf",
        cpu=cpu,
        vector_bytes=16,
        registers=16,
        features=frozenset({"neon"}),
        attributes=("+neon", "+vfp3"),
        float_abi="hard",
        cpu_flags=frozenset({"neon", "vfpv3", "half"}),
    )
    return _extended(found, extensions.split())


def _riscv(name: str, description: str, registers: int, extensions: str = "") -> Target:
    found = Target(
        name=name,
        description=description,
        triple="riscv64-linux-gnu",
        cpu="generic-rv64",
        vector_bytes=16,
        registers=registers,
        attributes=("+m", "+a", "+f", "+d", "+c"),
        abi="lp64d",
    )
    return _extended(found, extensions.split())


def _extended(target: Target, extensions: list[str]) -> Target:
    """A target whose CPU has more. Raises SecateurError for what no CPU of its machine has."""
    known = _EXTENSIONS.get(target.machine, {})
    for extension in extensions:
        if extension not in known:
            raise SecateurError(
                f"'{printable(extension)}' is no extension of {target.machine}; "
                f"known: {', '.join(known) or 'none'}"
            )
    flags = {known[e] for e in extensions}
    fused = {"fma"} if "vfp4" in extensions else set()
    return dataclasses.replace(
        target,
        features=target.features | set(extensions) | fused,
        attributes=tuple(dict.fromkeys([*target.attributes, *(f"+{e}" for e in extensions)])),
        cpu_flags=target.cpu_flags | flags,
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
        _x86(
            "cooperlake",
            "Intel Cooper Lake (AVX-512 VNNI and BF16)",
            64,
            "avx2 fma avx512 vnni bf16",
            _V4 | {"avx512_vnni", "avx512_bf16"},
        ),
        _x86(
            "sapphirerapids",
            "Intel Sapphire Rapids (AVX-512 VNNI and BF16)",
            64,
            "avx2 fma avx512 vnni vbmi bf16",
            _VNNI | {"avx512_bf16", "avx512_fp16", "avx_vnni"},
        ),
        _x86(
            "znver4",
            "AMD Zen 4 (AVX-512 VNNI)",
            64,
            "avx2 fma avx512 vnni vbmi",
            _VNNI,
            without=("sse4a", "avx512bf16"),
            spare=frozenset({"bf16"}),
        ),
        _x86(
            "alderlake",
            "Intel Alder Lake, N100 and later (AVX-VNNI without AVX-512)",
            32,
            "avx2 fma vnni",
            _V3 | {"avx_vnni", "gfni"},
        ),
        _aarch64("aarch64", "any 64-bit ARM"),
        _aarch64("cortex-a53", "ARM Cortex-A53 (Raspberry Pi 3)"),
        _aarch64("cortex-a55", "ARM Cortex-A55", "dotprod", _ARM_8_2),
        _aarch64("cortex-a72", "ARM Cortex-A72 (Raspberry Pi 4)"),
        _aarch64("cortex-a76", "ARM Cortex-A76 (Raspberry Pi 5)", "dotprod", _ARM_8_2),
        _aarch64("cortex-a78", "ARM Cortex-A78", "dotprod", _ARM_8_2),
        _aarch64("cortex-x1", "ARM Cortex-X1", "dotprod", _ARM_8_2),
        _aarch64("neoverse-n1", "ARM Neoverse N1 (Graviton 2, Ampere Altra)", "dotprod", _ARM_8_2),
        _aarch64(
            "neoverse-v1",
            "ARM Neoverse V1 (Graviton 3)",
            "dotprod i8mm bf16 sve",
            _ARM_8_4 | {"sha3"},
            frozenset({"fp16fml"}),
        ),
        _aarch64(
            "neoverse-v2",
            "ARM Neoverse V2 (Graviton 4)",
            "dotprod i8mm bf16 sve sve2",
            _ARM_8_4,
            frozenset({"fp16fml"}),
        ),
        dataclasses.replace(
            _aarch64("aarch64", "any 64-bit ARM with Android"),
            name="aarch64-android",
            triple="aarch64-linux-android",
        ),
        dataclasses.replace(
            _aarch64(
                "apple-m1",
                "Apple M1 and later with macOS (a static library)",
                "dotprod",
                _ARM_8_4 | {"sha3"},
            ),
            name="apple-m1",
            triple="aarch64-apple-macos11",
        ),
        _armv7("armv7-a", "32-bit ARM with NEON, hard float", "cortex-a9"),
        _armv7(
            "armv7-a-cortex-a7", "ARM Cortex-A7 (fused multiply-add)", "cortex-a7", "vfp4 hwdiv-arm"
        ),
        _armv7("armv7-a-cortex-a9", "ARM Cortex-A9", "cortex-a9"),
        dataclasses.replace(
            _armv7("armv7-a-android", "32-bit ARM with NEON and Android", "cortex-a9"),
            triple="armv7a-linux-androideabi",
            float_abi="soft",  # of calls, as libm's there: floats in registers of integers
        ),
        _riscv("riscv64", "64-bit RISC-V (rv64gc)", 16),
        _riscv("riscv64-v", "64-bit RISC-V with vectors (rv64gcv)", 32, "v"),
    )
}


_HALVES = {
    ("x86_64", "bfloat16"): ("bf16", "avx512bf16", "avx512_bf16"),
    ("aarch64", "bfloat16"): ("bf16", "bf16", "bf16"),
    ("aarch64", "float16"): ("fp16fml", "fp16fml", "asimdfhm"),
}
"""Instructions that multiply 16 bits and add in 32, by machine and type: the feature, LLVM's
name and the flag in /proc/cpuinfo."""


def multiplies_halves(target: Target, dtype: str) -> bool:
    """Whether the target has an instruction that multiplies pairs of 16-bit numbers."""
    feature, _, _ = _HALVES.get((target.machine, dtype), ("", "", ""))
    return feature in target.features


def for_halves(target: Target, dtype: str) -> Target:
    """The target for computing in `bfloat16` or `float16`, with what the CPU has for it.

    Raises SecateurError where it would take software to convert numbers: every AArch64 has
    instructions from and to float16, x86 those of f16c.
    """
    if dtype == "float16" and target.machine != "aarch64" and "f16c" not in target.cpu_flags:
        raise SecateurError(
            f"{target.name} has no instructions that convert from float16; bf16 needs none"
        )
    if target.variants:
        levels = tuple(for_halves(level, dtype) for level in target.variants)
        first = dataclasses.replace(levels[0], variants=levels, name=target.name)
        return dataclasses.replace(
            first, flash_bytes=target.flash_bytes, ram_bytes=target.ram_bytes
        )
    feature, name, flag = _HALVES.get((target.machine, dtype), ("", "", ""))
    if feature not in target.spare:
        return target
    kept = tuple(a for a in target.attributes if a != f"-{name}")
    return dataclasses.replace(
        target,
        features=target.features | {feature},
        attributes=(*kept, f"+{name}"),
        cpu_flags=target.cpu_flags | {flag},
    )


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

    A name that ends in `.toml` is that of a file (`read_target`), and several with commas between
    them are one target of so many levels. Raises SecateurError, listing the known targets, where
    there is none.
    """
    if "," in name and not Path(name).is_file():
        return _several([parse_target(each.strip()) for each in name.split(",")])
    if name == "native":
        return _native()
    if name.endswith(".toml"):
        return read_target(Path(name))
    if name in _TARGETS:  # from which those of packages are made
        return _TARGETS[name]
    if name in targets():
        return targets()[name]
    known = ", ".join(targets())
    raise SecateurError(f"unknown target '{printable(name)}'; known: native, {known}")


def _several(levels: list[Target]) -> Target:
    """Several targets of one machine as one. Raises SecateurError.

    The best first: dot products of bytes count more than wide vectors, and these more than other
    instructions.
    """
    levels = sorted(
        levels,
        key=lambda t: ("vnni" in t.features, t.vector_bytes, len(t.cpu_flags)),
        reverse=True,
    )
    first = levels[0]
    for index, level in enumerate(levels):
        if level.triple != first.triple:
            raise SecateurError(
                f"one artifact is for one machine: '{first.name}' is for {first.triple}, "
                f"'{level.name}' for {level.triple}"
            )
        for better in levels[:index]:
            if better.name == level.name:
                raise SecateurError(f"target '{level.name}' is named twice")
            if better.cpu_flags <= level.cpu_flags:
                raise SecateurError(
                    f"target '{level.name}' would never be chosen: "
                    f"'{better.name}' asks nothing more of a CPU"
                )
    flash = [level.flash_bytes for level in levels if level.flash_bytes is not None]
    ram = [level.ram_bytes for level in levels if level.ram_bytes is not None]
    return dataclasses.replace(
        first,
        name=",".join(level.name for level in levels),
        variants=tuple(levels),
        flash_bytes=min(flash, default=None),
        ram_bytes=min(ram, default=None),
    )


_MOST_BYTES = 1 << 16
"""Of a file that describes a target."""

_KEYS: Mapping[str, type] = {
    "name": str,
    "base": str,
    "description": str,
    "cpu": str,
    "extensions": list,
    "flash_bytes": int,
    "ram_bytes": int,
}


def read_target(path: Path) -> Target:
    """A user's own target: a known one, `base`, with what its file says otherwise.

        name = "gateway"
        base = "aarch64"
        cpu = "cortex-a75"          # LLVM's name
        extensions = ["dotprod"]
        flash_bytes = 524288        # room for the artifact
        ram_bytes = 262144          # room for a run

    Raises SecateurError.
    """
    try:
        content = tomllib.loads(read_regular(path, _MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise SecateurError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SecateurError(f"{path}: no TOML: {printable(str(error))}") from None
    try:
        return _from_fields(content)
    except SecateurError as error:
        raise SecateurError(f"{path}: {error}") from None


def _from_fields(content: Mapping[str, Any]) -> Target:
    for key, value in content.items():
        if key not in _KEYS:
            raise SecateurError(f"unknown key '{printable(key)}'; known: {', '.join(_KEYS)}")
        if type(value) is not _KEYS[key]:
            raise SecateurError(f"'{key}' is no {_KEYS[key].__name__}")
        if isinstance(value, int) and value <= 0:
            raise SecateurError(f"'{key}' must be above 0")
    if "name" not in content or "base" not in content:
        raise SecateurError("a target needs a 'name' and a 'base', a target that is known")
    name, cpu = content["name"], content.get("cpu", "x")
    for key, word in (("name", name), ("cpu", cpu)):
        if not word or not all(c.isalnum() or c in "-_." for c in word) or not word.isascii():
            raise SecateurError(f"'{key}' may have letters, digits, '-', '_' and '.'")
    if content["base"].endswith(".toml") or "," in content["base"]:
        raise SecateurError("'base' is the name of one known target, no file")
    if name == "native" or name in targets():
        raise SecateurError(f"'{name}' is the name of a known target")
    extensions = content.get("extensions", [])
    if not all(isinstance(e, str) for e in extensions):
        raise SecateurError("'extensions' are no names")
    kept = ("name", "description", "cpu", "flash_bytes", "ram_bytes")
    base = _extended(parse_target(content["base"]), extensions)
    return dataclasses.replace(base, **{k: content[k] for k in kept if k in content})


def can_run_here(target: Target) -> bool:
    """Whether this machine has every instruction that code for `target`, or for one of its
    levels, may use."""
    host = _host_flags()
    flags = any(level.cpu_flags <= host for level in target.levels)
    machine = (target.system, target.machine) == (platform.system().lower(), platform.machine())
    return machine and flags


def level_here(target: Target) -> Target:
    """The level whose code this machine runs; the best one where it runs none."""
    return next(filter(can_run_here, target.levels), target.levels[0])


def missing_flags(flags: frozenset[str]) -> list[str]:
    """Those of the flags that code may use and this machine's CPU is known to lack."""
    host = _host_flags()
    return sorted(flags - host) if host else []


_PREFERENCE = (
    "znver4",
    "icelake-server",
    "x86-64-v4",
    "alderlake",
    "x86-64-v3",
    "x86-64-v2",
    "aarch64-neoverse-v2",
    "aarch64-neoverse-v1",
    "aarch64-cortex-a76",
    "aarch64",
    "armv7-a-cortex-a7",
    "armv7-a",
    "riscv64-v",
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
                if key.strip() == "isa":  # RISC-V: letters, then words after underscores
                    return frozenset(value.strip().split("_")[0].removeprefix("rv64"))
    except OSError:
        pass
    return frozenset()
