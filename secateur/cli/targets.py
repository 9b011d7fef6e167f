"""`secateur targets`."""

from __future__ import annotations

import click

from ..pipeline.compilation import known_targets
from .console import print_json, print_table
from .options import json_option


@click.command("targets")
@json_option
def command(as_json: bool) -> None:
    """List the targets that models can be compiled for."""
    if as_json:
        print_json(
            [
                {
                    "name": target.name,
                    "description": target.description,
                    "triple": target.triple,
                    "features": sorted(target.features),
                }
                for target in known_targets()
            ]
        )
        return
    rows = [
        [target.name, target.description, " ".join(sorted(target.features))]
        for target in known_targets()
    ]
    rows.append(["native", "the best of these that this machine runs", ""])
    rows.append(["FILE.toml", "your own, made of one of these", ""])
    print_table(["target", "description", "instructions"], rows, text_columns=3)
