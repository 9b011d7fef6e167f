"""`secateur compare`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import print_json, say
from .options import fixed_inputs_options, json_option, samples_options, seed_option

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import FixedInputs


@click.command("compare")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@fixed_inputs_options
@samples_options("data")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    help="Fail where the relative difference is more than this, or outputs that are no "
    "floats differ.",
)
@seed_option
@json_option
def command(
    reference: Path,
    other: Path,
    fixed: FixedInputs,
    data: DataSource | None,
    tolerance: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Compare the outputs of OTHER with those of REFERENCE on the same inputs.

    REFERENCE is an ONNX model, OTHER an ONNX model or a compiled artifact (.so).
    """
    from ..checking.checks import describe
    from ..checking.comparison import compare_files, demand_agreement

    agreement = compare_files(reference, other, fixed=fixed, data=data, seed=seed)
    if as_json:
        print_json(dataclasses.asdict(agreement))
    else:
        say(f"{describe(agreement)}, {100 * agreement.identical:.2f} % identical")
    if tolerance is not None:
        demand_agreement(agreement, reference, other, tolerance)
