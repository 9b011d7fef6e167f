"""`secateur print`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import print_json, say
from .options import fixed_inputs_options, json_option, model_argument

if TYPE_CHECKING:
    from ..data.fixed_inputs import FixedInputs


@click.command("print")
@model_argument
@click.option("--node", help="Show only the surroundings of the node (or value) of this name.")
@click.option(
    "--radius",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="How many edges the surroundings reach.",
)
@click.option(
    "--passes",
    metavar="PIPELINE",
    help="Show what passes change, as in 'fold-constants, remove-no-ops'.",
)
@click.option(
    "--dump",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="With --passes: write the model's text before the first pass and after each.",
)
@click.option("--all-constants", is_flag=True, help="Write out every constant's elements.")
@fixed_inputs_options
@json_option
def command(
    model: Path,
    node: str | None,
    radius: int,
    passes: str | None,
    dump: Path | None,
    all_constants: bool,
    fixed: FixedInputs,
    as_json: bool,
) -> None:
    """Print MODEL as text, from which it can be read back.

    Without --all-constants larger constants are left out. With --passes the text
    before and after them is compared.
    """
    if dump is not None and passes is None:
        raise click.UsageError("--dump needs --passes.")
    from ..pipeline.printing import print_difference, print_file, print_surroundings

    limit = None if all_constants else 16
    if passes is not None:
        text = print_difference(model, passes, limit, dump, fixed)
    elif node is not None:
        text = print_surroundings(model, node, radius, fixed)
    else:
        text = print_file(model, limit, fixed)
    if as_json:
        print_json({"text": text})
    else:
        for line in text.removesuffix("\n").split("\n"):
            say(line)
