"""`secateur benchmark`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..reporting.report import latency_text
from .console import print_json, print_table
from .options import (
    fixed_inputs_options,
    json_option,
    samples_options,
    seed_option,
    threads_option,
)

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import FixedInputs


@click.command("benchmark")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@fixed_inputs_options
@samples_options("data")
@threads_option
@seed_option
@json_option
def command(
    models: tuple[Path, ...],
    fixed: FixedInputs,
    data: DataSource | None,
    threads: int,
    seed: int,
    as_json: bool,
) -> None:
    """Measure the latency of MODELS, run in turns on the same inputs.

    The first is an ONNX model, which says what the inputs are; the others are ONNX
    models or compiled artifacts (.so).
    """
    if len(set(models)) < len(models):
        raise click.UsageError("Give every model once.")
    from ..checking.comparison import benchmark_files

    measured = benchmark_files(models, fixed=fixed, data=data, threads=threads, seed=seed)
    if as_json:
        print_json({name: dataclasses.asdict(value) for name, value in measured.items()})
    else:
        rows = [[name, latency_text(value)] for name, value in measured.items()]
        print_table(["model", "latency, ms (range)"], rows)
