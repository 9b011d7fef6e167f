"""`secateur bazel-dir`."""

from __future__ import annotations

from pathlib import Path

import click

import secateur


@click.command("bazel-dir")
def command() -> None:
    """Print the folder of the Bazel rules, for --override_repository=secateur=..."""
    click.echo(Path(secateur.__file__).resolve().parent / "bazel")
