"""Compiling one file, as it is, and the targets that there are."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends.tvm.artifact.options import THREADS, LibraryOptions, check_name, name_of_file
from ..backends.tvm.targets import Target, can_run_here, targets
from ..ir.errors import SecateurError
from ..ir.files import read_regular
from .depfile import make_rule

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import FixedInputs
    from ..data.preprocessing import Preprocessing
    from .choices import PrecisionName
    from .progress import Progress

__all__ = ["LIBRARY_THREADS", "LibraryOptions", "compile_file", "known_targets", "library_options"]

ARTIFACT = "model.so"

LIBRARY_THREADS = THREADS
"""Who shares parallel loops of a C library."""

MOST_LABEL_BYTES = 16 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What was compiled: the file, of a C library the static one, with the names of all that was
    written; whether this machine runs it, and the compiler's report. `levels` are the targets that
    there is code for, the best first."""

    target: str
    levels: tuple[str, ...]
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
    embed: Preprocessing | None = None,
    cache: Path | bool = True,
    tune: float = 0.0,
    fallback: bool = False,
    declared_sizes: bool = False,
    copies: float | None = None,
    small: bool = False,
    precision: PrecisionName | None = None,
    calibration: DataSource | None = None,
    sizes: Sequence[str] = (),
    dump: Path | None = None,
    library: LibraryOptions | None = None,
    depfile: Path | None = None,
) -> Compilation:
    """Compile the model in `source` into `folder`, which changes whole or not at all: into
    an artifact, or into a C library. `embed` is preprocessing that the result does, too. `depfile`
    is a file for a rule of Make that says which files the result depends on. `dump` is an empty
    folder for the model's text, before and after it is prepared, and the plan's. `precision` is
    what floats are multiplied in, where that loses little on `calibration` samples.

    Raises SecateurError for a library with `fallback`, whose files can't run a model in parts.
    """
    from ..checking.running import open_model
    from ..data.datasets import load_dataset, source_files
    from ..data.embedding import embed as embed_preprocessing
    from ..data.random_inputs import random_feeds
    from ..ir.external import external_files
    from ..ir.onnx_io import atomic_files
    from ..passes.dump import Dump
    from .bench import bench_data
    from .output import output_folder
    from .precision import choose_precision, target_for, with_precision

    machine = target_for(target, precision)
    library = None if library is None else library.for_target(machine)
    if library is not None and fallback:
        raise SecateurError("a C library needs every node compiled: leave out --fallback")
    files = (ARTIFACT,) if library is None else library.files
    file = ARTIFACT if library is None else library.archive
    replaced = files if library is None else library.replaced
    writer = None if dump is None else Dump(dump)
    with contextlib.ExitStack() as stack:
        if depfile is not None:  # which appears after the folder, or neither does
            (rule,) = stack.enter_context(atomic_files(depfile))
        written = stack.enter_context(output_folder(folder, replaced))
        progress.begin("import")
        model = open_model(source, fixed)
        if embed is not None:
            embed_preprocessing(model, embed)
        if writer is not None:
            writer.write(model, "input")
        if depfile is not None:
            read = [source, *external_files(model)]
            if library is not None and library.labels_file is not None:
                read.append(library.labels_file)
            read += source_files(calibration)
            rule.write_text(make_rule(folder / file, read), encoding="utf-8")
        samples = None if calibration is None else load_dataset(calibration, model, labelled=False)
        progress.end()
        progress.begin("compile")
        from ..backends.tvm.cache import Cache
        from ..backends.tvm.compile import (  # imports TVM
            compile_library,
            compile_model,
            one_sample,
        )
        from ..backends.tvm.graph.open_sizes import read_admitted

        admitted = read_admitted(sizes)
        if writer is not None:
            writer.write(one_sample(model, admitted)[0], "prepared")
        options: dict[str, Any] = {
            "cache": Cache.open(cache),
            "tune_minutes": tune,
            "declared_sizes": declared_sizes,
            "copies": copies,
            "small": small,
            "dump_plan": None if writer is None else writer.plan,
            "sizes": admitted,
        }
        chosen = choose_precision(model, machine, precision, samples, 0, options)
        if library is None:
            built = compile_model(model, machine, written / file, fallback=fallback, **options)
        else:
            data = bench_data(model, random_feeds(model, 0)) if library.bench else None
            built = compile_library(model, machine, written, library, bench=data, **options)
        size = (written / file).stat().st_size
        progress.end()
    report = with_precision(built, chosen)
    levels = tuple(level.name for level in machine.levels)
    runs = can_run_here(machine)
    return Compilation(machine.name, levels, folder / file, files, size, runs, report)


def library_options(
    source: Path,
    name: str | None,
    threads: str,
    labels: Path | None,
    weights_apart: bool,
    weights_packed: bool = False,
    bench: bool = False,
) -> LibraryOptions:
    """How a C library of the model in `source` is made; its name is the file's by default.

    `labels` is a text file with the name of a class on each line. Raises SecateurError for a name
    that C can't have, and for labels that can't be read.
    """
    known = check_name(name) if name is not None else name_of_file(source.stem)
    lines: tuple[str, ...] = ()
    if labels is not None:
        try:
            text = read_regular(labels, MOST_LABEL_BYTES).decode("utf-8-sig")
        except OSError as error:
            raise SecateurError(f"{labels}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise SecateurError(f"{labels}: no text of UTF-8") from None
        lines = tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))
    packed = weights_packed
    return LibraryOptions(known, threads, lines, weights_apart, packed, labels, bench)
