"""`secateur benchmark`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from ..report import latency_text
from .console import print_json, print_table
from .options import data_option, json_option, seed_option, threads_option


@click.command("benchmark")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@data_option
@threads_option
@seed_option
@json_option
def command(
    models: tuple[Path, ...], data: Path | None, threads: int, seed: int, as_json: bool
) -> None:
    """Measure the latency of MODELS, run in turns on the same inputs.

    The first is an ONNX model, which says what the inputs are; the others are ONNX
    models or compiled artifacts (.so).
    """
    if len(set(models)) < len(models):
        raise click.UsageError("Give every model once.")
    from ..measure import latencies
    from ..running import feeds_for, open_model, open_runner

    feed = next(iter(feeds_for(open_model(models[0]), data, seed)))
    runners = {str(path): open_runner(path, threads) for path in models}
    measured = latencies(runners, feed)
    if as_json:
        print_json({name: dataclasses.asdict(value) for name, value in measured.items()})
    else:
        rows = [[name, latency_text(value)] for name, value in measured.items()]
        print_table(["model", "latency, ms (range)"], rows)
