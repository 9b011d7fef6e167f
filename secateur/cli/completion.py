"""`secateur completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a script that completes commands, options and choices in SHELL.

    \b
    bash: eval "$(secateur completion bash)"
    zsh:  eval "$(secateur completion zsh)"
    fish: secateur completion fish | source
    """
    from . import main

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "secateur", "_SECATEUR_COMPLETE").source())
