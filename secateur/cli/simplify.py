"""`secateur simplify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import (
    dump_option,
    file_option,
    fixed_inputs_options,
    json_option,
    model_argument,
    samples_options,
    seed_option,
)
from .stepping import print_transformation

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import FixedInputs


@click.command("simplify")
@model_argument
@file_option
@fixed_inputs_options
@click.option(
    "--opset",
    type=click.IntRange(1),
    help="Convert to this version of the standard operator set first.",
)
@click.option("--inline-functions", "inline", is_flag=True, help="Inline model-local functions.")
@click.option(
    "--size-limit",
    type=click.IntRange(0),
    help="Largest constant in bytes that folding may create. [default: 16 MiB]",
)
@click.option(
    "--allow-contrib",
    is_flag=True,
    help="Allow operators that only ONNX Runtime has (com.microsoft).",
)
@click.option(
    "--qdq",
    is_flag=True,
    help="Write operators that hold their scales, as QLinearConv, as QuantizeLinear and "
    "DequantizeLinear around float ones.",
)
@click.option("--check", is_flag=True, help="Compare the outputs in ONNX Runtime.")
@samples_options("data")
@seed_option
@dump_option
@json_option
def command(
    model: Path,
    output: Path,
    fixed: FixedInputs,
    opset: int | None,
    inline: bool,
    size_limit: int | None,
    allow_contrib: bool,
    qdq: bool,
    check: bool,
    data: DataSource | None,
    seed: int,
    dump: Path | None,
    as_json: bool,
) -> None:
    """Fold constants and remove what MODEL computes for nothing.

    Outputs stay the same to rounding, in standard ONNX operators unless --allow-contrib.
    """
    if data is not None and not check:
        raise click.UsageError("--data is for --check.")
    if qdq and check:
        raise click.UsageError("--check is for equal outputs: with --qdq they may be a step apart.")
    from ..pipeline.simplification import Options, simplify_file

    options = Options(fixed, opset, inline, size_limit, allow_contrib, qdq)
    report = simplify_file(model, output, options, check=check, data=data, seed=seed, dump=dump)
    print_transformation(report, output, as_json)
