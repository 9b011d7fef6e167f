"""`secateur verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import print_json, say
from .options import (
    DROP,
    fixed_inputs_options,
    json_option,
    metric_option,
    model_argument,
    samples_options,
    seed_option,
    threads_option,
)

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import FixedInputs


@click.command("verify")
@model_argument
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="ORIGINAL",
    help="ONNX model that MODEL was made of: fail where MODEL lost more than --max-drop.",
)
@click.option(
    "--max-drop",
    type=DROP,
    help="How much MODEL may lose, as 1% or 0.01: of a metric where --data has labels, else of "
    "samples with another highest score (docs/device.md).",
)
@fixed_inputs_options
@samples_options("data")
@metric_option
@threads_option
@seed_option
@json_option
def command(
    model: Path,
    against: Path | None,
    max_drop: float | None,
    fixed: FixedInputs,
    data: DataSource | None,
    metrics: tuple[str, ...],
    threads: int,
    seed: int,
    as_json: bool,
) -> None:
    """Check that MODEL is well formed, passes onnx.checker and loads in ONNX Runtime.

    Where its inputs leave their first size open, also say whether that is a batch of
    independent samples, and compare batches with their samples.

    With --against MODEL may also be an artifact or a C library (.so), for a build to check what it
    made.
    """
    from ..checking.checks import verify_file
    from ..checking.drop import check_drop
    from ..checking.independence import verify_batch

    if (against is None) != (max_drop is None):
        raise click.UsageError("--against and --max-drop go together.")
    compiled = model.suffix == ".so"
    if compiled and against is None:
        raise click.UsageError("An artifact is verified --against the model it was made of.")
    if against is None and (data is not None or metrics or fixed.passes()):
        raise click.UsageError("Data, metrics and fixed inputs are for --against.")
    checks = [] if compiled else [*verify_file(model), *verify_batch(model)]
    if against is not None and max_drop is not None:
        options: dict[str, Any] = {"fixed": fixed, "data": data, "metrics": metrics}
        checks += check_drop(model, against, max_drop, threads=threads, seed=seed, **options)
    if as_json:
        print_json([{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks])
    else:
        for check in checks:
            say(f"{check.name}: {check.detail}")
