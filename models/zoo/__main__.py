"""`python -m secateur.models.zoo`: export models of the zoo."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from ...ir.errors import SecateurError
from .export import VARIANTS, export
from .registry import SCALES, ZOO


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--scale", type=click.Choice(SCALES), default="full", show_default=True)
@click.option(
    "--variant",
    "variants",
    type=click.Choice(VARIANTS),
    multiple=True,
    default=("folded", "kept"),
    show_default=True,
    help="How the file is written; may be given several times.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option("--missing", is_flag=True, help="Leave files alone that are already there.")
def main(
    names: tuple[str, ...], scale: str, variants: tuple[str, ...], output: Path, missing: bool
) -> None:
    """Export models of the zoo, by default all, to DIR/NAME.VARIANT.onnx."""
    failed = False
    for name in names or tuple(ZOO):
        for variant in variants:
            path = output / f"{name}.{variant}.onnx"
            if missing and path.exists():
                continue
            start = time.perf_counter()
            try:
                export(name, path, variant, scale)  # type: ignore[arg-type]
            except SecateurError as error:
                click.echo(f"error: {name} as {variant}: {error}", err=True)
                failed = True
                continue
            seconds = time.perf_counter() - start
            click.echo(f"{path} {path.stat().st_size / 1024:.0f} KiB {seconds:.1f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
