"""`secateur prune`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..reporting.curve import CURVE_HEADER, Curve
from .console import StageProgress, print_json, print_table, say
from .options import (
    dump_option,
    file_option,
    fixed_inputs_options,
    json_option,
    metric_option,
    model_argument,
    samples_options,
    seed_option,
)
from .step_options import GOALS, goal_names, has_goal, pruning_options
from .stepping import print_transformation

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import FixedInputs


@click.command("prune")
@model_argument
@file_option
@fixed_inputs_options
@pruning_options()
@click.option("--target", help="Machine on which --latency counts; see 'secateur targets'.")
@click.option(
    "--sweep",
    metavar="SHARES",
    help="Prune to each of several budgets, as 0.9,0.8,0.7, and write a curve instead of a model: "
    "its points to OUTPUT, as JSON, and a drawing beside it, as SVG.",
)
@click.option(
    "--sweep-of",
    type=click.Choice(GOALS),
    default="macs",
    show_default=True,
    help="What the budgets of --sweep are shares of; ratio: of the channels.",
)
@samples_options("calibration", "evaluation")
@metric_option
@seed_option
@dump_option
@json_option
def command(
    model: Path,
    output: Path,
    fixed: FixedInputs,
    pruning: dict[str, Any],
    target: str | None,
    sweep: str | None,
    sweep_of: str,
    calibration: DataSource | None,
    evaluation: DataSource | None,
    metrics: tuple[str, ...],
    seed: int,
    dump: Path | None,
    as_json: bool,
) -> None:
    """Remove channels from MODEL until the goal is met.

    Weights are sliced: the result is a smaller dense model, which is compared with
    the original with the same channels masked. With --calibration the layers that are left
    then make up for what went, without training.
    """
    if sweep is None and not has_goal(pruning):
        raise click.UsageError(f"Give a goal, one of {goal_names()}.")
    if sweep is not None and has_goal(pruning):
        raise click.UsageError("Give a goal or --sweep, not both.")
    by_latency = pruning["latency"] is not None or (sweep is not None and sweep_of == "latency")
    if by_latency and target is None:
        raise click.UsageError("A budget of latency needs --target.")
    if sweep is not None:
        if metrics:
            raise click.UsageError("--sweep measures top1: leave out --metric.")
        if dump is not None:
            raise click.UsageError("--dump is for one goal: leave out --sweep.")
        from ..pipeline.sweep import parse_budgets, sweep_file

        rest = {name: value for name, value in pruning.items() if name not in GOALS}
        curve = sweep_file(
            model,
            output,
            sweep_of,
            parse_budgets(sweep),
            rest,
            target=target,
            fixed=fixed,
            data=calibration,
            evaluation=evaluation,
            seed=seed,
        )
        _print_curve(curve, output, as_json)
        return
    from ..pipeline.transform import prune_file

    with StageProgress() as progress, progress.stage("prune"):
        report = prune_file(
            model,
            output,
            pruning,
            target=target,
            fixed=fixed,
            data=calibration,
            evaluation=evaluation,
            metrics=metrics,
            seed=seed,
            dump=dump,
        )
    print_transformation(report, output, as_json)


def _print_curve(curve: Curve, output: Path, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(curve))
        return
    print_table(CURVE_HEADER, curve.rows())
    for point in curve.points:
        if point.error:
            say(f"Not reached: {point.error}")
    say(f"Wrote {output} and {output.with_suffix('.svg')}.")
