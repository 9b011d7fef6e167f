"""`secateur report`."""

from __future__ import annotations

from pathlib import Path

import click

from .console import print_json, say
from .options import json_option


@click.command("report")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--open", "opens", is_flag=True, help="Show the page in the browser.")
@json_option
def command(output: Path, opens: bool, as_json: bool) -> None:
    """Write OUTPUT/report.html anew from OUTPUT/report.json, of a folder that optimize wrote.

    A page that is there stays where it is as new, since it has pictures of the samples, too.
    """
    from ..pipeline.reports import write_page

    page = write_page(output)
    if as_json:
        print_json({"page": str(page)})
    else:
        say(str(page))
    if opens:
        click.launch(page.resolve().as_uri())
