"""`secateur compile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..reporting.report import bytes_text, compiler_lines
from .console import StageProgress, print_json, say
from .options import (
    compiler_options,
    depfile_option,
    dump_option,
    embed_option,
    fixed_inputs_options,
    folder_option,
    format_options,
    json_option,
    model_argument,
    samples_options,
    target_option,
)

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import FixedInputs
    from ..data.preprocessing import Preprocessing
    from ..pipeline.compilation import LibraryOptions


@click.command("compile")
@model_argument
@folder_option
@target_option
@fixed_inputs_options
@compiler_options
@samples_options("calibration")
@embed_option
@format_options
@depfile_option
@dump_option
@json_option
def command(
    model: Path,
    output: Path,
    target: str,
    fixed: FixedInputs,
    embed: Preprocessing | None,
    compiler: dict[str, Any],
    calibration: DataSource | None,
    library: LibraryOptions | None,
    depfile: Path | None,
    dump: Path | None,
    as_json: bool,
) -> None:
    """Compile MODEL for a target, as it is: writes model.so, or a C library, into a folder."""
    from ..pipeline.compilation import compile_file

    if calibration is not None and compiler["precision"] is None:
        raise click.UsageError("--calibration is for --precision.")
    with StageProgress() as progress:
        built = compile_file(
            model,
            output,
            target,
            progress,
            fixed=fixed,
            embed=embed,
            dump=dump,
            calibration=calibration,
            library=library,
            depfile=depfile,
            **compiler,
        )
    if as_json:
        print_json(
            {
                "target": built.target,
                "levels": list(built.levels),
                "files": list(built.files),
                "file_bytes": built.file_bytes,
                "runs_here": built.runs_here,
                "compiler": built.compiler,
            }
        )
        return
    say(f"Wrote {built.file}: {bytes_text(built.file_bytes)} for {built.target}.")
    for line in compiler_lines(built.compiler):
        say(line)
    if not built.runs_here:
        say(f"This machine can't run {built.target} code.")
