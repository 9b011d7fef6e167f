"""`secateur simplify`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import file_option, json_option, model_argument, seed_option
from .stepping import print_transformation


@click.command("simplify")
@model_argument
@file_option
@seed_option
@json_option
def command(model: Path, output: Path, seed: int, as_json: bool) -> None:
    """Fold constants and remove what MODEL computes for nothing.

    Outputs stay the same to rounding, which is checked in ONNX Runtime.
    """
    from ..steps import simplify_step
    from ..transform import transform_file

    report = transform_file(model, output, simplify_step(), seed=seed)
    print_transformation(report, output, as_json)
