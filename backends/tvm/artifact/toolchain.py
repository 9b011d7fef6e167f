"""The compiler and linker for any target, on any host: Clang and LLD of the ziglang package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ....ir.errors import SecateurError
from ....ir.scratch import scratch_folder
from ..targets import Target

_CROSS_COMPILERS = {
    "aarch64": "aarch64-linux-gnu-gcc",
    "armv7l": "arm-linux-gnueabihf-gcc",
    "riscv64": "riscv64-linux-gnu-gcc",
    "x86_64": "x86_64-linux-gnu-gcc",
}


def compile_source(
    target: Target, source: Path, output: Path, *, freestanding: bool = False
) -> None:
    """Compile C, in its folder, into a position-independent object. Raises SecateurError.

    `freestanding` code includes no headers, which is faster.
    """
    zig = _zig()
    if zig is None:
        command = [_cross_compiler(target)]
    else:
        command = [zig, "clang" if freestanding else "cc", "-target", _zig_target(target)]
    flags = ["-ffreestanding", "-O1"] if freestanding else ["-O2"]
    files = ["-o", str(output.resolve()), source.name]
    with scratch_folder() as folder:
        caches = {"ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
        arguments = [
            *command,
            *flags,
            "-g0",
            "-fno-stack-protector",
            "-fPIC",
            "-fno-asynchronous-unwind-tables",
            "-c",
            *files,
        ]
        _run(target, "compiling", arguments, source.parent, caches)


def link_shared(
    target: Target,
    objects: Sequence[Path],
    output: Path,
    *,
    name: str | None = None,
    needed: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Link position-independent `objects` into the shared object `output`.

    What they leave undefined the loading process provides, or the libraries that are `needed`,
    by name, each with symbols that it defines. `name` is that by which programs that are linked
    with the output look for it. Raises SecateurError where there is no linker or linking fails.
    """
    if needed:
        with scratch_folder() as folder:
            stand_ins = [_stand_in(target, folder, *each) for each in needed.items()]
            link_shared(target, [*objects, *stand_ins], output, name=name)
        return
    zig = _zig()
    command = [zig, "ld.lld"] if zig else [_cross_compiler(target), "-fPIC"]
    flags = [
        "-shared",
        "-s",
        *([] if name is None else ["-soname" if zig else "-Wl,-soname", name]),
    ]
    _run(target, "linking", [*command, *flags, "-o", str(output), *map(str, objects)])


def _stand_in(target: Target, folder: Path, name: str, symbols: Sequence[str]) -> Path:
    """A library of that name and symbols to link with, since there is none for the target here."""
    source = folder / f"{name}.c"
    source.write_text("".join(f"void {symbol}(void) {{}}\n" for symbol in symbols))
    compile_source(target, source, source.with_suffix(".o"), freestanding=True)
    link_shared(target, [source.with_suffix(".o")], folder / name, name=name)
    return folder / name


def archive(target: Target, objects: Sequence[Path], output: Path) -> None:
    """Put objects into the static library `output`, the same bytes each time.

    Raises SecateurError.
    """
    zig = _zig()
    command = [zig, "ar"] if zig else [_cross_compiler(target).removesuffix("gcc") + "ar"]
    _run(target, "archiving", [*command, "rcsD", str(output), *map(str, objects)])


def compiler_version(target: Target) -> str:
    """What compiles C for the target, for keys of a cache."""
    if _zig() is None:
        return _cross_compiler(target)
    return f"ziglang {importlib.metadata.version('ziglang')}"


def _run(
    target: Target,
    what: str,
    command: Sequence[str],
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> None:
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env={**os.environ, **(variables or {})},
        )
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


def _zig_target(target: Target) -> str:
    """The triple, with the architecture by Zig's name."""
    return target.triple.replace("armv7a-", "arm-")


def _cross_compiler(target: Target) -> str:
    name = _CROSS_COMPILERS[target.machine]
    found = shutil.which(name)
    if found is None:
        raise SecateurError(
            f"no compiler for {target.name}: install the Python package 'ziglang' "
            f"or the compiler '{name}'"
        )
    return found
