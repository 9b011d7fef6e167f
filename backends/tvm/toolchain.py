"""The compiler and linker for any target, on any host: Clang and LLD of the ziglang package."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ...ir.errors import SecateurError
from .targets import Target

_CROSS_COMPILERS = {
    "aarch64": "aarch64-linux-gnu-gcc",
    "armv7l": "arm-linux-gnueabihf-gcc",
    "riscv64": "riscv64-linux-gnu-gcc",
    "x86_64": "x86_64-linux-gnu-gcc",
}


def compile_source(target: Target, source: Path, output: Path) -> None:
    """Compile freestanding C, in its folder, into a position-independent object.

    Raises SecateurError.
    """
    zig = _zig()
    command = [zig, "clang", "-target", target.triple] if zig else [_cross_compiler(target)]
    flags = ["-ffreestanding", "-fPIC", "-O1", "-c"]
    files = ["-o", str(output.resolve()), source.name]
    _run(target, "compiling", [*command, *flags, *files], source.parent)


def link_shared(target: Target, objects: Sequence[str], output: Path) -> None:
    """Link position-independent `objects` into the shared object `output`.

    libc, libm and TVM's runtime stay undefined symbols that the loading process
    provides. Raises SecateurError where there is no linker or linking fails.
    """
    zig = _zig()
    command = [zig, "ld.lld"] if zig else [_cross_compiler(target), "-fPIC"]
    _run(target, "linking", [*command, "-shared", "-s", "-o", str(output), *objects])


def _run(
    target: Target, what: str, command: Sequence[str], folder: Path | None = None
) -> None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    except OSError as error:
        raise SecateurError(f"{what} for {target.name} failed: {error}") from None
    if run.returncode != 0:
        text = " ".join((run.stderr or run.stdout).split())[:300]
        raise SecateurError(f"{what} for {target.name} failed ({' '.join(command[:2])}): {text}")


def _zig() -> str | None:
    package = importlib.util.find_spec("ziglang")
    if package is None or package.origin is None:
        return None
    program = "zig.exe" if sys.platform == "win32" else "zig"
    return str(Path(package.origin).with_name(program))


def _cross_compiler(target: Target) -> str:
    name = _CROSS_COMPILERS[target.machine]
    found = shutil.which(name)
    if found is None:
        raise SecateurError(
            f"no compiler for {target.name}: install the Python package 'ziglang' "
            f"or the compiler '{name}'"
        )
    return found
