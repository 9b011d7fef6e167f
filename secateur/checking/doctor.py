"""What a bug report should say of the machine and the installation."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from ..backends.tvm.cache import Cache
from ..backends.tvm.targets import targets
from .measure import environment

EXTRAS = {
    "images": ("pillow",),
    "report": ("jinja2",),
    "examples": ("scikit-learn",),
    "torch": ("torch", "onnxscript"),
}
"""Packages of the extras."""

COMPILERS = ("gcc", "aarch64-linux-gnu-gcc", "arm-linux-gnueabihf-gcc", "riscv64-linux-gnu-gcc")

EMULATORS = ("qemu-aarch64", "qemu-arm", "qemu-riscv64")


def examine() -> dict[str, dict[str, str]]:
    """Facts by title and name. Nothing is written, and no compiler runs."""
    system = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()) or "unknown",
        "processors": str(len(os.sched_getaffinity(0))),
        "memory": _memory(),
        "features": " ".join(_features()) or "unknown",
    }
    extras = {
        name: ", ".join(f"{package} {_version(package)}" for package in packages)
        for name, packages in EXTRAS.items()
    }
    tools = {tool: "yes" if shutil.which(tool) else "no" for tool in (*COMPILERS, *EMULATORS)}
    return {
        "secateur": environment(),
        "machine": system,
        "extras": extras,
        "tools": tools,
        "targets": {"known": ", ".join(targets())},
        "cache": _cache(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB"
    except (ValueError, OSError):
        return "unknown"


_INTERESTING = {
    "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "fphp", "asimdhp", "sve", "neon",
}  # fmt: skip


def _features() -> list[str]:
    """What kernels could use of what the kernel says that the CPU has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return sorted(_INTERESTING & set(words.split()))
    return []


def _cache() -> dict[str, str]:
    folder = Cache.of_user().folder
    if folder is None or not folder.is_dir():
        return {"folder": str(folder), "size": "empty"}
    count = size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                size += os.stat(os.path.join(place, name)).st_size
                count += 1
    return {"folder": str(folder), "size": f"{count:,} files, {size / 1e6:.1f} MB"}
