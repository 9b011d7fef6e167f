"""`secateur doctor`."""

from __future__ import annotations

import click

from .console import print_json, say
from .options import json_option


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show versions, the CPU and what it can do, compilers for other machines and the cache.

    The text is fit to be pasted into a bug report: it names no files but the cache's folder.
    """
    from ..checking.doctor import examine

    facts = examine()
    if as_json:
        print_json(facts)
        return
    for title, entries in facts.items():
        say(title)
        for name, value in entries.items():
            say(f"  {name}: {value}")
