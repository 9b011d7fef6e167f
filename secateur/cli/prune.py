"""`secateur prune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    data_option,
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
@data_option
@seed_option
@json_option
def command(
    model: Path,
    output: Path,
    fixed: FixedInputs,
    pruning: dict[str, Any],
    data: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Remove channels from MODEL until the goal is met.

    Weights are sliced: the result is a smaller dense model, which is compared with
    the original with the same channels masked.
    """
    if not has_goal(pruning):
        raise click.UsageError("Give a goal: --macs, --ratio or --params.")
    from ..passes.prune import PruneChannels
    from ..pipeline.steps import prune_step
    from ..pipeline.transform import transform_file

    pass_ = PruneChannels(**{**pruning, "align": pruning["align"] or 1})
    report = transform_file(model, output, prune_step(pass_), fixed=fixed, data=data, seed=seed)
    print_transformation(report, output, as_json)
