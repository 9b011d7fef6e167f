"""`secateur cmake-dir`."""

from __future__ import annotations

from pathlib import Path

import click

import secateur


@click.command("cmake-dir")
def command() -> None:
    """Print the folder of the CMake package, for -Dsecateur_DIR=..."""
    click.echo(Path(secateur.__file__).resolve().parent / "cmake")
