"""`secateur optimize`: the whole pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..reporting.html import has_templates
from ..reporting.markdown import headline
from ..reporting.quantization import unchanged_text
from ..reporting.report import Report, artifact_lines, branch_lines, counted, stage_table
from . import COMMAND
from .console import StageProgress, print_json, print_table, say
from .options import (
    compiler_options,
    depfile_option,
    dump_option,
    embed_option,
    fixed_inputs_options,
    folder_option,
    format_options,
    json_option,
    metric_option,
    model_argument,
    recipe_option,
    samples_options,
    seed_option,
    target_option,
    threads_option,
)
from .step_options import SCHEMES, WITHOUT_SAMPLES, pruning_options, quantization_options
from .stepping import print_end, print_operators

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import FixedInputs
    from ..data.preprocessing import Preprocessing
    from ..pipeline.compilation import LibraryOptions


@click.command("optimize")
@model_argument
@folder_option
@recipe_option
@target_option
@fixed_inputs_options
@pruning_options("ignore_prune")
@click.option(
    "--quantize",
    type=click.Choice(SCHEMES),
    help="Quantize by this scheme; but for dynamic ones and float16 it needs --calibration.",
)
@quantization_options("ignore_quantize")
@click.option(
    "--ignore",
    multiple=True,
    metavar="PATTERN",
    help="Neither prune nor quantize nodes whose name, or that of their weights, matches; "
    "repeatable.",
)
@samples_options("calibration", "evaluation")
@embed_option
@metric_option
@compiler_options
@threads_option
@seed_option
@format_options
@click.option(
    "--save-recipe",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the options of this run as a recipe.",
)
@depfile_option
@dump_option
@click.option(
    "--resume",
    is_flag=True,
    help="Keep finished steps in the output folder until the run ends, and go on from those that "
    "an interrupted run with --resume kept there.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would happen, by the analysis alone; nothing is run or written.",
)
@json_option
def command(
    model: Path,
    output: Path,
    recipe: Path | None,
    target: str,
    fixed: FixedInputs,
    pruning: dict[str, Any],
    quantize: str | None,
    quantization: dict[str, Any],
    ignore: tuple[str, ...],
    calibration: DataSource | None,
    evaluation: DataSource | None,
    embed: Preprocessing | None,
    metrics: tuple[str, ...],
    compiler: dict[str, Any],
    threads: int,
    seed: int,
    library: LibraryOptions | None,
    save_recipe: Path | None,
    depfile: Path | None,
    dump: Path | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Simplify, prune, quantize and compile MODEL for a target.

    Writes model.onnx, model.so or a C library, report.json, report.md and report.html into a
    folder, all or none of them, and prints what was measured before and after each stage.

    \b
    Example:
      secateur optimize model.onnx -o out --target x86-64-v3 --macs 0.7 \\
          --quantize int8 --calibration calib.npz --evaluation test.npz
    """
    from ..pipeline.settings import Settings

    settings = Settings(
        target,
        fixed.shapes,
        fixed.freeze_defaults,
        fixed.values,
        tuple(fixed.outputs),
        quantize=quantize,
        quantization=quantization,
        ignore=ignore,
        metrics=metrics,
        embed=embed,
        threads=threads,
        seed=seed,
        library=library,
        **pruning,
        **{name: value for name, value in compiler.items() if name != "cache"},
    )
    if click.get_current_context().meta.get(_ONLY_CHECKED):
        settings.check_names()
        return
    if quantize not in (None, *WITHOUT_SAMPLES) and calibration is None:
        raise click.UsageError("--quantize needs --calibration.")
    if dry_run:
        from ..pipeline.dry_run import plan_run

        files = [path for path in (output, save_recipe, depfile, dump) if path is not None]
        lines = plan_run(model, settings, calibration, evaluation, files)
        if as_json:
            print_json({"plan": lines})
        else:
            for line in lines:
                say(line)
        return
    from ..pipeline.recipe import is_preset, saved_recipe

    read = [] if recipe is None or is_preset(recipe) else [recipe]
    with contextlib.ExitStack() as stack:
        if save_recipe is not None:
            stack.enter_context(saved_recipe(save_recipe, _given()))
        progress = stack.enter_context(StageProgress())
        from ..pipeline.optimize import optimize

        report = optimize(
            model,
            output,
            target=target,
            input_shapes=fixed.shapes,
            freeze_defaults=fixed.freeze_defaults,
            input_values=fixed.values,
            outputs=fixed.outputs,
            quantize=quantize,
            quantization=quantization,
            ignore=ignore,
            calibration=calibration,
            evaluation=evaluation,
            preprocess=embed,
            embed_preprocessing=embed is not None,
            metrics=metrics,
            threads=threads,
            seed=seed,
            library=library,
            depfile=depfile,
            dump=dump,
            resume=resume,
            read=read,
            observer=progress,
            command=click.get_current_context().meta.get(COMMAND, ""),
            **pruning,
            **compiler,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, output)


def _print(report: Report, output: Path) -> None:
    print_table(*stage_table(report))
    say(headline(report))
    for line in (line for run in report.passes for line in branch_lines(run.statistics)):
        say(line)
    for line in artifact_lines(report.to_dict()):
        say(line)
    print_operators(report)
    print_end(report)
    for check in report.checks:
        if not check.passed:
            say(f"Not verified: {check.name}: {check.detail}")
    left = [note["reason"] for run in report.passes for note in run.notes]
    if left:
        places, reasons = counted(len(left), "place"), counted(len(set(left)), "reason")
        say(f"Left alone in {places}, for {reasons} that the report gives.")
    made = () if report.artifact is None else report.artifact.files
    pages = "report.json, report.md and report.html"
    if not has_templates():
        pages = "report.json and report.md (report.html needs the extra 'report')"
    written = f"{output / 'model.onnx'}, {', '.join(made)}, {pages}"
    say(f"Wrote {written}.{unchanged_text(report)}")


_ONLY_CHECKED = "secateur.only_checked"
"""In a context's `meta`: that options are looked at, and nothing else."""


def check_options(given: Mapping[str, Any]) -> None:
    """Look at values of the command's parameters, as a recipe gives them; no file is read.

    Raises SecateurError and click's UsageError for what a run would refuse before it begins.
    """
    arguments = ["model.onnx", "--output", "out"]
    arguments += [] if "target" in given else ["--target", "x86-64-v3"]
    with command.make_context("optimize", arguments, default_map=dict(given)) as context:
        context.meta[_ONLY_CHECKED] = True
        command.invoke(context)


def _given() -> dict[str, Any]:
    """The command's parameters that options or a recipe gave."""
    context = click.get_current_context()
    plain = (ParameterSource.DEFAULT, None)
    return {n: v for n, v in context.params.items() if context.get_parameter_source(n) not in plain}
