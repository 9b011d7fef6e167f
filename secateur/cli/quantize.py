"""`secateur quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import (
    file_option,
    fixed_inputs_options,
    json_option,
    model_argument,
    seed_option,
)
from .stepping import print_transformation

if TYPE_CHECKING:
    from ..data.fixed_inputs import FixedInputs


@click.command("quantize")
@model_argument
@file_option
@fixed_inputs_options
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    required=True,
    help="Samples to calibrate with: .npz with one array per model input, first axis samples.",
)
@seed_option
@json_option
def command(
    model: Path, output: Path, fixed: FixedInputs, calibration: Path, seed: int, as_json: bool
) -> None:
    """Quantize MODEL to int8 (QuantizeLinear and DequantizeLinear pairs)."""
    from ..pipeline.transform import quantize_file

    report = quantize_file(model, output, fixed=fixed, data=calibration, seed=seed)
    print_transformation(report, output, as_json)
