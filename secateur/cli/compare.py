"""`secateur compare`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import print_json, say
from .options import data_option, fixed_inputs_options, json_option, seed_option

if TYPE_CHECKING:
    from ..data.fixed_inputs import FixedInputs


@click.command("compare")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@fixed_inputs_options
@data_option
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
    data: Path | None,
    tolerance: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Compare the outputs of OTHER with those of REFERENCE on the same inputs.

    REFERENCE is an ONNX model, OTHER an ONNX model or a compiled artifact (.so).
    """
    from ..checking.agreement import compare
    from ..checking.checks import describe
    from ..checking.running import feeds_for, open_model, open_runner
    from ..ir.errors import SecateurError
    from ..ir.reference import Session

    model = open_model(reference, fixed)
    feeds = feeds_for(model, data, seed)
    agreement = compare(Session(model), open_runner(other), feeds)
    if as_json:
        print_json(dataclasses.asdict(agreement))
    else:
        say(f"{describe(agreement)}, {100 * agreement.identical:.2f} % identical")
    if tolerance is not None and agreement.flips:
        share = 1 - agreement.identical_discrete
        raise SecateurError(
            f"{other}: differs from {reference} in {100 * share:.2g} % of the elements "
            f"of outputs that are no floats"
        )
    if tolerance is not None and not agreement.within(tolerance):
        raise SecateurError(
            f"{other}: differs from {reference} by {agreement.relative_difference:.3g} "
            f"(relative), more than {tolerance:g}"
        )
