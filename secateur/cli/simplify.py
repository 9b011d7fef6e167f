"""`secateur simplify`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from .options import file_option, json_option, model_argument, seed_option
from .stepping import print_transformation


def _input_shapes(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Pairs of name and sizes of `name=1x3x224x224`; commas may separate the sizes too."""
    shapes = []
    for value in values:
        name, _, sizes = value.rpartition("=")
        if not name or not re.fullmatch(r"(\d+([x,]\d+)*)?", sizes):
            raise click.BadParameter(f"{value!r} is not of the form name=1x3x224x224", ctx, param)
        shapes.append((name, tuple(int(size) for size in re.split("[x,]", sizes) if size)))
    return tuple(shapes)


@click.command("simplify")
@model_argument
@file_option
@click.option(
    "--input-shape",
    "input_shapes",
    metavar="NAME=SIZES",
    callback=_input_shapes,
    multiple=True,
    help="Fix the shape of an input, as in x=1x3x224x224; repeatable.",
)
@click.option(
    "--opset",
    type=click.IntRange(1),
    help="Convert to this version of the standard operator set first.",
)
@click.option("--inline-functions", "inline", is_flag=True, help="Inline model-local functions.")
@click.option(
    "--size-limit",
    type=click.IntRange(0),
    help="Largest constant in bytes that folding may create. [default: 16 MiB]",
)
@click.option(
    "--check", is_flag=True, help="Compare the outputs in ONNX Runtime, on random inputs."
)
@seed_option
@json_option
def command(
    model: Path,
    output: Path,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    opset: int | None,
    inline: bool,
    size_limit: int | None,
    check: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Fold constants and remove what MODEL computes for nothing.

    Outputs stay the same to rounding, in standard ONNX operators.
    """
    from ..simplification import Options, simplify_file

    options = Options(input_shapes, opset, inline, size_limit)
    report = simplify_file(model, output, options, check=check, seed=seed)
    print_transformation(report, output, as_json)
