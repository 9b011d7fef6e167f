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


_EMULATIONS = {
    "aarch64": "aarch64linux",
    "armv7l": "armelf_linux_eabi",
    "riscv64": "elf64lriscv",
    "x86_64": "elf_x86_64",
}
"""What a linker that is given no object calls the machines."""


MOST_CALLS = 1000
"""Calls in one function that Clang optimizes in little time, which grows as their square."""


def compile_source(
    target: Target, source: Path, output: Path, *, freestanding: bool = False, calls: int = 0
) -> None:
    """Compile C, in its folder, into a position-independent object. Raises SecateurError.

    `freestanding` code includes no headers, which is faster. `calls` is how many kernels it calls
    one after the other: many aren't optimized.
    """
    zig = _zig()
    if zig is None:
        command = [_cross_compiler(target)]
    else:
        command = [zig, "clang" if freestanding else "cc", "-target", _zig_target(target)]
    flags = ["-ffreestanding", "-O1"] if freestanding else ["-O2"]
    flags += _system_flags(target)
    if calls > MOST_CALLS:
        flags.append("-O0")
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
    libraries: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Link position-independent `objects` into the shared object `output`.

    What they leave undefined the loading process provides, or the `libraries`, by name, each with
    symbols that it defines: the output names those of them that it needs. `name` is that by which
    programs that are linked with the output look for it. Raises SecateurError where there is no
    linker or linking fails.
    """
    with scratch_folder() as folder:
        others = [_stand_in(target, folder, *each) for each in (libraries or {}).items()]
        # Of what TVM puts into each object, functions for float16, most kernels need none.
        words = ["--gc-sections", *(["--as-needed"] if others else [])]
        flags = ["-s", *_linker(words), *_soname(name)]
        if target.system == "android" and target.machine == "aarch64":
            flags += ["-z", "max-page-size=16384"]  # some devices' kernels have such pages
        _link(target, [*flags, *map(str, (*objects, *others))], output)


def link_program(
    target: Target,
    folder: Path,
    sources: Sequence[str],
    objects: Sequence[Path],
    output: Path,
    cache: Path | None,
) -> None:
    """Compile C sources in `folder` and link them with objects into a static program.

    GCC for the target does it where it is installed; else Clang of the ziglang package with musl,
    which takes a minute the first time and keeps its libraries in `cache`. Raises SecateurError.
    """
    files = [*sources, *(str(path.resolve()) for path in objects)]
    flags = ["-std=gnu11", "-O2", "-g0", "-static", "-s", "-o", str(output.resolve())]
    tail = ["-lm", "-pthread"]
    if not target.links:
        raise SecateurError(f"no program can be linked for {target.name} here")
    gcc = shutil.which(_CROSS_COMPILERS[target.machine])
    if gcc is not None and target.system == "linux":
        _run(target, "linking a program", [gcc, *flags, *files, *tail], folder)
        return
    zig = _zig()
    if zig is None:
        _cross_compiler(target)  # says what is missing
        return
    musl = _zig_target(target).replace("-gnu", "-musl")
    with scratch_folder() as scratch:
        kept = scratch if cache is None else cache / "zig"
        caches = {"ZIG_GLOBAL_CACHE_DIR": str(kept), "ZIG_LOCAL_CACHE_DIR": str(scratch)}
        command = [zig, "cc", "-target", musl, *flags, *files, *tail]
        _run(target, "linking a program", command, folder, caches)


def _stand_in(target: Target, folder: Path, name: str, symbols: Sequence[str]) -> Path:
    """A library of that name and symbols to link with, since there is none for the target here."""
    script = folder / f"{name}.ld"
    script.write_text("".join(f"{symbol} = 0;\n" for symbol in symbols))
    machine = ["-m", _EMULATIONS[target.machine]] if _zig() else ["-nostdlib"]
    _link(target, [*machine, *_soname(name), str(script)], folder / name)
    return folder / name


def _link(target: Target, arguments: Sequence[str], output: Path) -> None:
    zig = _zig()
    command = [zig, "ld.lld"] if zig else [_cross_compiler(target), "-fPIC"]
    _run(target, "linking", [*command, "-shared", "-o", str(output), *arguments])


def _soname(name: str | None) -> list[str]:
    return [] if name is None else _linker(["-soname", name])


def _linker(options: Sequence[str]) -> list[str]:
    """Options of the linker as the command that calls it takes them."""
    return [*options] if _zig() else [word for o in options for word in ("-Xlinker", o)]


def archive(target: Target, objects: Sequence[Path], output: Path) -> None:
    """Put objects into the static library `output`, the same bytes each time.

    Raises SecateurError.
    """
    zig = _zig()
    command = [zig, "ar"] if zig else [_cross_compiler(target).removesuffix("gcc") + "ar"]
    _run(target, "archiving", [*command, "rcsD", str(output), *map(str, objects)])


def compiler_version(target: Target) -> str:
    """What compiles C for the target, and how, for keys of a cache."""
    if _zig() is None:
        return _cross_compiler(target)
    version = f"ziglang {importlib.metadata.version('ziglang')}"
    return " ".join([version, *_system_flags(target)])


def _system_flags(target: Target) -> list[str]:
    """How C is compiled for systems other than Linux."""
    if target.system != "android":
        return []
    floats = ["-mfloat-abi=softfp", "-mfpu=neon"] if target.float_abi == "soft" else []
    return ["-ffreestanding", "-DSECATEUR_BIONIC", *floats]


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
    """The triple, with the architecture and system by Zig's names."""
    if target.system == "macos":
        return f"{target.machine}-macos"
    # Android's headers aren't here; its objects are as Linux's, without calls for atomics.
    return target.triple.replace("armv7a-", "arm-").replace("-android", "-gnu")


def _cross_compiler(target: Target) -> str:
    name = _CROSS_COMPILERS[target.machine]
    if target.system != "linux":
        raise SecateurError(f"no compiler for {target.name}: install the Python package 'ziglang'")
    found = shutil.which(name)
    if found is None:
        raise SecateurError(
            f"no compiler for {target.name}: install the Python package 'ziglang' "
            f"or the compiler '{name}'"
        )
    return found
