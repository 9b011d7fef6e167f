"""`secateur compile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..pipeline.compilation import LIBRARY_THREADS
from ..reporting.report import bytes_text, compiler_lines
from .console import StageProgress, print_json, say
from .options import (
    compiler_options,
    fixed_inputs_options,
    folder_option,
    json_option,
    model_argument,
    target_option,
)

if TYPE_CHECKING:
    from ..data.fixed_inputs import FixedInputs


@click.command("compile")
@model_argument
@folder_option
@target_option
@fixed_inputs_options
@compiler_options
@click.option(
    "--dump-plan",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the plan as text: the fused operations that kernels are made for.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["artifact", "library"]),
    default="artifact",
    show_default=True,
    help="artifact: model.so, for secateur.Runtime; library: NAME.h, NAME.hpp, NAME.py, "
    "libNAME.a, libNAME.so, NAME.json and NAME.pc, for programs in C, C++ and Python.",
)
@click.option("--name", help="Of the library, by which its functions begin. [default: MODEL's]")
@click.option(
    "--threads",
    type=click.Choice(LIBRARY_THREADS),
    help="Of the library: none; the caller's, by a pool that a call names; or own ones, too. "
    "[default: caller]",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Text file with the name of a class on each line, for the library's header.",
)
@click.option(
    "--weights-apart",
    is_flag=True,
    help="Write the library's weights to NAME.weights, which a program loads or maps.",
)
@click.option(
    "--depfile",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a rule of Make that says which files the result depends on.",
)
@json_option
def command(
    model: Path,
    output: Path,
    target: str,
    fixed: FixedInputs,
    compiler: dict[str, Any],
    dump_plan: Path | None,
    form: str,
    name: str | None,
    threads: str | None,
    labels: Path | None,
    weights_apart: bool,
    depfile: Path | None,
    as_json: bool,
) -> None:
    """Compile MODEL for a target, as it is: writes model.so, or a C library, into a folder."""
    from ..pipeline.compilation import compile_file, library_options

    library = None
    if form == "library":
        library = library_options(model, name, threads or "caller", labels, weights_apart)
    elif name is not None or threads is not None or labels is not None or weights_apart:
        raise click.UsageError(
            "--name, --threads, --labels and --weights-apart are for --format library."
        )
    with StageProgress() as progress:
        built = compile_file(
            model,
            output,
            target,
            progress,
            fixed=fixed,
            dump_plan=dump_plan,
            library=library,
            depfile=depfile,
            **compiler,
        )
    if as_json:
        print_json(
            {
                "target": built.target,
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
