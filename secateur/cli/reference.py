"""The page on commands, docs/commands.md: `python -m secateur.cli.reference`.

Written from the commands themselves: their texts, arguments and options, and from the recipes'
sections, whose keys are options of `optimize`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from ..pipeline.recipe import entries
from . import COMMANDS, main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"


def page() -> str:
    """The whole page."""
    lines = [
        "# Commands",
        "",
        "Written by `python -m secateur.cli.reference` of the commands themselves; `secateur",
        "COMMAND --help` prints the same. Before a command: " + _flags(main) + ".",
        "",
    ]
    context = click.Context(main, info_name="secateur")
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        lines += _section(command, click.Context(command, context, info_name=name))
    return "\n".join([*lines, *_recipes()])


def _flags(command: click.Command) -> str:
    options = [p for p in command.params if isinstance(p, click.Option)]
    return "; ".join(f"`{', '.join(o.opts)}` ({_text(o.help or '')})" for o in options)


def _section(command: click.Command, context: click.Context) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _section(inner, click.Context(inner, context, info_name=name))
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (f"## {context.command_path}", "", f"    {context.command_path} {usage}", "")
    text = (command.help or "").partition("\b")[0]
    yield from (*(_text(part) + "\n" for part in text.split("\n\n") if part.strip()),)
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        yield from ("| option | |", "| --- | --- |")
        for option in options:
            yield f"| `{_names(option, context)}` | {_meaning(option)} |"
        yield ""


def _names(option: click.Option, context: click.Context) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    kind = option.make_metavar(context).replace("|", "\\|")
    return f"{names} {kind}"


def _meaning(option: click.Option) -> str:
    text = _text(option.help or "")
    default = option.default if isinstance(option.default, (int, float, str)) else None
    if option.show_default and default is not None and not isinstance(default, bool):
        text += f" Default: {default}."
    return text + (" Required." if option.required else "")


def _text(text: str) -> str:
    text = re.sub(r"\[default: (.*)\]", r"Default: \1.", " ".join(text.split()))
    return re.sub(r"([<>|*])", r"\\\1", text)


def _recipes() -> Iterator[str]:
    """Keys of recipes, each with the option that it stands for."""
    command = main.get_command(click.Context(main), "optimize")
    assert command is not None
    options = {p.name: p.opts[0] for p in command.params if isinstance(p, click.Option)}
    yield from ("## Keys of recipes", "", "Of `--recipe` ([recipes.md](recipes.md)).", "")
    yield from ("| section | key | option of `optimize` |", "| --- | --- | --- |")
    for section, _, key, parameter in entries():
        yield f"| `[{section}]` | `{key}` | `{options[parameter]}` |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
