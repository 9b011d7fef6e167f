"""`secateur print`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import print_json, say
from .options import json_option, model_argument

if TYPE_CHECKING:
    from ..ir.model import Model


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
@json_option
def command(
    model: Path,
    node: str | None,
    radius: int,
    passes: str | None,
    dump: Path | None,
    all_constants: bool,
    as_json: bool,
) -> None:
    """Print MODEL as text, from which it can be read back.

    Without --all-constants larger constants are left out. With --passes the text
    before and after them is compared.
    """
    if dump is not None and passes is None:
        raise click.UsageError("--dump needs --passes.")
    from ..ir.onnx_io import load

    loaded = load(model)
    limit = None if all_constants else 16
    if passes is not None:
        text = _difference(loaded, passes, limit, dump)
    elif node is not None:
        text = _surroundings(loaded, node, radius)
    else:
        from ..ir.text import print_model

        text = print_model(loaded, limit)
    if as_json:
        print_json({"text": text})
    else:
        for line in text.removesuffix("\n").split("\n"):
            say(line)


def _difference(model: Model, passes: str, limit: int | None, dump: Path | None) -> str:
    from ..ir.text import print_model
    from ..passes.manager import PassManager
    from ..passes.pipeline import parse_pipeline

    before = print_model(model, limit)
    PassManager(parse_pipeline(passes), dump=dump).run(model)
    after = print_model(model, limit)
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=2
    )
    return "".join(f"{line}\n" for line in lines)


def _surroundings(model: Model, name: str, radius: int) -> str:
    from ..ir.errors import SecateurError
    from ..ir.text import print_neighbourhood

    for node in model.all_nodes():
        if name == node.name or any(v is not None and v.name == name for v in node.outputs):
            return print_neighbourhood(node, radius)
    names = [n.label for n in model.all_nodes()]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise SecateurError(f"the model has no node '{name}'{hint}")
