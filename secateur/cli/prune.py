"""`secateur prune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    calibration_option,
    evaluation_option,
    file_option,
    fixed_inputs_options,
    goal_names,
    has_goal,
    json_option,
    model_argument,
    pruning_options,
    seed_option,
)
from .stepping import print_transformation

if TYPE_CHECKING:
    from ..data.fixed_inputs import FixedInputs


@click.command("prune")
@model_argument
@file_option
@fixed_inputs_options
@pruning_options
@click.option("--target", help="Machine on which --latency counts; see 'secateur targets'.")
@calibration_option
@evaluation_option
@seed_option
@json_option
def command(
    model: Path,
    output: Path,
    fixed: FixedInputs,
    pruning: dict[str, Any],
    target: str | None,
    calibration: Path | None,
    evaluation: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Remove channels from MODEL until the goal is met.

    Weights are sliced: the result is a smaller dense model, which is compared with
    the original with the same channels masked. With --calibration the layers that are left
    then make up for what went, without training.
    """
    if not has_goal(pruning):
        raise click.UsageError(f"Give a goal, one of {goal_names()}.")
    if pruning["latency"] is not None and target is None:
        raise click.UsageError("--latency needs --target.")
    from ..pipeline.transform import prune_file

    report = prune_file(
        model,
        output,
        pruning,
        target=target,
        fixed=fixed,
        data=calibration,
        evaluation=evaluation,
        seed=seed,
    )
    print_transformation(report, output, as_json)
