"""Compiling one file, as it is, and the targets that there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends.tvm.artifact.options import THREADS, LibraryOptions, check_name, name_of_file
from ..backends.tvm.targets import Target, can_run_here, parse_target, targets
from ..ir.display import printable
from ..ir.errors import SecateurError
from ..ir.files import read_regular

if TYPE_CHECKING:
    from ..data.fixed_inputs import FixedInputs
    from .optimize import Progress

ARTIFACT = "model.so"

LIBRARY_THREADS = THREADS
"""Who shares parallel loops of a C library."""

MOST_LABEL_BYTES = 16 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What was compiled: the file, of a C library the static one, with the names of all that was
    written; whether this machine runs it, and the compiler's report."""

    target: str
    file: Path
    files: tuple[str, ...]
    file_bytes: int
    runs_here: bool
    compiler: dict[str, Any]


def known_targets() -> list[Target]:
    """All targets, those of installed packages included."""
    return list(targets().values())


def compile_file(
    source: Path,
    folder: Path,
    target: str,
    progress: Progress,
    *,
    fixed: FixedInputs | None = None,
    cache: Path | bool = True,
    tune: float = 0.0,
    fallback: bool = False,
    declared_sizes: bool = False,
    dump_plan: Path | None = None,
    library: LibraryOptions | None = None,
    depfile: Path | None = None,
) -> Compilation:
    """Compile the model in `source` into `folder`, which changes whole or not at all: into
    an artifact, or into a C library. `depfile` is a file for a rule of Make that says which files
    the result depends on.

    Raises SecateurError for a library with `fallback`, whose files can't run a model in parts.
    """
    from ..checking.running import open_model
    from ..ir.external import external_files
    from ..ir.onnx_io import atomic_files
    from .output import output_folder

    machine = parse_target(target)
    if library is not None and fallback:
        raise SecateurError("a C library needs every node compiled: leave out --fallback")
    files = (ARTIFACT,) if library is None else library.files
    file = ARTIFACT if library is None else library.archive
    with output_folder(folder, files) as written:
        progress.begin("import")
        model = open_model(source, fixed)
        read = [source, *external_files(model)]
        progress.end()
        progress.begin("compile")
        from ..backends.tvm.cache import Cache
        from ..backends.tvm.compile import compile_library, compile_model  # imports TVM

        options: dict[str, Any] = {
            "cache": Cache.open(cache),
            "tune_minutes": tune,
            "declared_sizes": declared_sizes,
            "dump_plan": dump_plan,
        }
        if library is None:
            built = compile_model(model, machine, written / file, fallback=fallback, **options)
        else:
            built = compile_library(model, machine, written, library, **options)
        size = (written / file).stat().st_size
        progress.end()
    if library is not None and library.labels_file is not None:
        read.append(library.labels_file)
    if depfile is not None:
        with atomic_files(depfile) as (text,):
            text.write_text(make_rule(folder / file, read), encoding="utf-8")
    report = dataclasses.asdict(built)
    return Compilation(machine.name, folder / file, files, size, can_run_here(machine), report)


def make_rule(made: Path, read: Sequence[Path]) -> str:
    """A rule of Make without commands: what was made depends on what was read.

    It has one target, as Ninja wants it. Raises SecateurError for names that Make can't have.
    """
    return f"{_make_name(made)}: {' '.join(map(_make_name, read))}\n"


def _make_name(path: Path) -> str:
    name = str(path.absolute())
    if "\n" in name or "\r" in name:
        raise SecateurError(f"{printable(name)}: Make can't have a name with a line's end")
    return name.replace("$", "$$").replace("#", "\\#").replace(" ", "\\ ")


def library_options(
    source: Path,
    name: str | None,
    threads: str,
    labels: Path | None,
    weights_apart: bool,
) -> LibraryOptions:
    """How a C library of the model in `source` is made; its name is the file's by default.

    `labels` is a text file with the name of a class on each line. Raises SecateurError for a name
    that C can't have, and for labels that can't be read.
    """
    known = check_name(name) if name is not None else name_of_file(source.stem)
    lines: tuple[str, ...] = ()
    if labels is not None:
        try:
            text = read_regular(labels, MOST_LABEL_BYTES).decode("utf-8")
        except OSError as error:
            raise SecateurError(f"{labels}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise SecateurError(f"{labels}: no text of UTF-8") from None
        lines = tuple(text.splitlines())
    return LibraryOptions(known, threads, lines, weights_apart, labels)
