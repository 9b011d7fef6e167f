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
@calibration_option
@evaluation_option
@seed_option
@json_option
def command(
    model: Path,
    output: Path,
    fixed: FixedInputs,
    pruning: dict[str, Any],
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
        raise click.UsageError("Give a goal: --macs, --ratio or --params.")
    from ..pipeline.transform import prune_file

    report = prune_file(
        model,
        output,
        pruning,
        fixed=fixed,
        data=calibration,
        evaluation=evaluation,
        seed=seed,
    )
    print_transformation(report, output, as_json)
