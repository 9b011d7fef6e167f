"""Linking compiled objects into an ELF shared object, for any target, from any host."""

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


def link_shared(target: Target, objects: Sequence[str], output: Path) -> None:
    """Link position-independent `objects` into the shared object `output`.

    libc, libm and TVM's runtime stay undefined symbols that the loading process
    provides. Uses the LLD that the ziglang package carries, else a C compiler for the
    target. Raises SecateurError where neither exists or linking fails.
    """
    command = _linker(target)
    try:
        run = subprocess.run(
            [*command, "-shared", "-s", "-o", str(output), *objects],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise SecateurError(f"linking for {target.name} failed: {error}") from None
    if run.returncode != 0:
        text = " ".join((run.stderr or run.stdout).split())[:300]
        raise SecateurError(f"linking for {target.name} failed ({' '.join(command)}): {text}")


def _linker(target: Target) -> list[str]:
    package = importlib.util.find_spec("ziglang")
    if package is not None and package.origin is not None:
        program = "zig.exe" if sys.platform == "win32" else "zig"
        return [str(Path(package.origin).with_name(program)), "ld.lld"]
    compiler = shutil.which(_CROSS_COMPILERS[target.machine])
    if compiler is not None:
        return [compiler, "-fPIC"]
    raise SecateurError(
        f"no linker for {target.name}: install the Python package 'ziglang' "
        f"or the compiler '{_CROSS_COMPILERS[target.machine]}'"
    )
