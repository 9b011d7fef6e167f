"""`secateur recipe`: recipes of `secateur optimize`, TOML files with its options."""

from __future__ import annotations

from pathlib import Path

import click

from ..ir.errors import SecateurError
from .console import print_json, say
from .options import file_option


@click.group("recipe")
def command() -> None:
    """Write and check recipes: TOML files with options of 'secateur optimize'."""


@command.command("init")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--preset", metavar="NAME", help="Begin with a recipe that comes with secateur.")
@file_option
def init(model: Path, preset: str | None, output: Path) -> None:
    """Write a recipe for MODEL in which every option is explained."""
    from ..pipeline.recipe import write_recipe

    write_recipe(model, output, preset, _comments())
    say(f"Wrote {output}.")


@command.command("check")
@click.argument("recipe")
def check(recipe: str) -> None:
    """Check RECIPE, a file or the name of one that comes with secateur.

    Its keys and values are looked at, not the files that it names.
    """
    from ..pipeline.recipe import find_recipe, parameters, read_recipe
    from .optimize import check_options

    path = find_recipe(recipe)
    given = parameters(read_recipe(path))
    try:
        check_options(given)
    except click.UsageError as error:
        raise SecateurError(f"{path}: {error.format_message()}") from None
    except SecateurError as error:
        raise SecateurError(f"{path}: {error}") from None
    say(f"{path}: well formed")


@command.command("schema")
def schema() -> None:
    """Print the JSON schema of recipes."""
    from ..pipeline.recipe import schema as schema_of

    print_json(schema_of(_comments()))


@command.command("list")
def list_presets() -> None:
    """List the recipes that come with secateur."""
    from ..pipeline.recipe import preset_names

    for name in preset_names():
        say(name)


def _comments() -> dict[str, str]:
    """What each option of `secateur optimize` means, by its parameter."""
    from .optimize import command as optimize

    found = {}
    for parameter in optimize.params:
        if isinstance(parameter, click.Option) and parameter.name is not None:
            text = " ".join((parameter.help or "").split())
            found[parameter.name] = text.removesuffix(" Repeatable.").replace("; repeatable", "")
    return found
