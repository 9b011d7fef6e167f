"""`secateur prune`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import (
    check_goals,
    file_option,
    json_option,
    model_argument,
    pruning_options,
    seed_option,
)
from .stepping import print_transformation


@click.command("prune")
@model_argument
@file_option
@pruning_options
@seed_option
@json_option
def command(
    model: Path,
    output: Path,
    macs: float | None,
    ratio: float | None,
    params: float | None,
    align: int,
    ignore: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Remove channels from MODEL until the goal is met.

    Weights are sliced: the result is a smaller dense model, which is compared with
    the original with the same channels masked. Simplify a model first if it computes
    shapes at run time.
    """
    if not check_goals(macs, ratio, params):
        raise click.UsageError("Give a goal: --macs, --ratio or --params.")
    from ..passes.prune import PruneChannels
    from ..steps import prune_step
    from ..transform import transform_file

    pass_ = PruneChannels(macs=macs, ratio=ratio, params=params, align=align, ignore=ignore)
    report = transform_file(model, output, prune_step(pass_), seed=seed)
    print_transformation(report, output, as_json)
