"""`secateur quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import StageProgress
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
from .step_options import WITHOUT_SAMPLES, quantization_options
from .stepping import print_transformation

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import FixedInputs


@click.command("quantize")
@model_argument
@file_option
@fixed_inputs_options
@quantization_options()
@samples_options("calibration", "evaluation")
@metric_option
@seed_option
@dump_option
@json_option
def command(
    model: Path,
    output: Path,
    fixed: FixedInputs,
    quantization: dict[str, Any],
    calibration: DataSource | None,
    evaluation: DataSource | None,
    metrics: tuple[str, ...],
    seed: int,
    dump: Path | None,
    as_json: bool,
) -> None:
    """Quantize MODEL: to integers (QuantizeLinear and DequantizeLinear pairs, or dynamically) or
    to float16."""
    if calibration is None and quantization["scheme"] not in WITHOUT_SAMPLES:
        raise click.UsageError("Missing option '--calibration'.")
    from ..pipeline.transform import quantize_file

    with StageProgress() as progress, progress.stage("quantize"):
        report = quantize_file(
            model,
            output,
            quantization,
            fixed=fixed,
            data=calibration,
            evaluation=evaluation,
            metrics=metrics,
            seed=seed,
            dump=dump,
        )
    print_transformation(report, output, as_json)
