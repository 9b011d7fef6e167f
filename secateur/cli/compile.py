"""`secateur compile`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

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
@json_option
def command(
    model: Path,
    output: Path,
    target: str,
    fixed: FixedInputs,
    compiler: dict[str, Any],
    dump_plan: Path | None,
    as_json: bool,
) -> None:
    """Compile MODEL for a target, as it is: writes model.so into a folder."""
    with StageProgress() as progress:
        from ..backends.tvm.targets import can_run_here, parse_target
        from ..checking.running import open_model
        from ..pipeline.output import output_folder

        machine = parse_target(target)
        with output_folder(output, ("model.so",)) as folder:
            progress.begin("import")
            loaded = open_model(model, fixed)
            progress.end()
            progress.begin("compile")
            from ..backends.tvm.cache import Cache
            from ..backends.tvm.compile import compile_model

            built = compile_model(
                loaded,
                machine,
                folder / "model.so",
                cache=Cache.open(compiler["cache"]),
                tune_minutes=compiler["tune"],
                fallback=compiler["fallback"],
                declared_sizes=compiler["declared_sizes"],
                dump_plan=dump_plan,
            )
            size = (folder / "model.so").stat().st_size
            progress.end()
    runs_here = can_run_here(machine)
    if as_json:
        print_json(
            {
                "target": machine.name,
                "file_bytes": size,
                "runs_here": runs_here,
                "compiler": dataclasses.asdict(built),
            }
        )
        return
    say(f"Wrote {output / 'model.so'}: {bytes_text(size)} for {machine.name}.")
    for line in compiler_lines(dataclasses.asdict(built)):
        say(line)
    if not runs_here:
        say(f"This machine can't run {machine.name} code.")
