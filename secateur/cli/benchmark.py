"""`secateur benchmark`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..reporting.report import latency_text
from .console import print_json, print_table
from .options import (
    fixed_inputs_options,
    json_option,
    samples_options,
    seed_option,
    threads_option,
)

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import FixedInputs


@click.command("benchmark")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@fixed_inputs_options
@samples_options("data")
@threads_option
@seed_option
@click.option(
    "--remote",
    "remotes",
    multiple=True,
    metavar="ssh://[USER@]HOST[:PORT]",
    help="Run MODELS, programs that --bench made, on that device; several at once.",
)
@click.option(
    "--ssh",
    default="ssh",
    show_default=True,
    metavar="COMMAND",
    help="The command, with options, that reaches devices.",
)
@json_option
def command(
    models: tuple[Path, ...],
    fixed: FixedInputs,
    data: DataSource | None,
    threads: int,
    seed: int,
    remotes: tuple[str, ...],
    ssh: str,
    as_json: bool,
) -> None:
    """Measure the latency of MODELS, run in turns on the same inputs.

    The first is an ONNX model, which says what the inputs are; the others are ONNX
    models, compiled artifacts or C libraries (.so).

    With --remote they are programs that --bench made: each is copied to the device, runs alone
    there, and is removed; what comes back is JSON, by device and program.
    """
    if len(set(models)) < len(models):
        raise click.UsageError("Give every model once.")
    if remotes:
        _on_devices(models, remotes, ssh, threads, as_json)
        return
    from ..checking.comparison import benchmark_files

    measured = benchmark_files(models, fixed=fixed, data=data, threads=threads, seed=seed)
    if as_json:
        print_json({name: dataclasses.asdict(value) for name, value in measured.items()})
    else:
        rows = [[name, latency_text(value)] for name, value in measured.items()]
        print_table(["model", "latency, ms (range)"], rows)


def _on_devices(
    programs: tuple[Path, ...], remotes: tuple[str, ...], ssh: str, threads: int, as_json: bool
) -> None:
    from ..checking.remote import demand_success, measure_remotely

    found = measure_remotely(programs, remotes, ssh, threads)
    if as_json:
        print_json([dataclasses.asdict(one) for one in found])
    else:
        header = ["device", "program", "p50, us", "p99, us", "min, us", "cycles", "agrees"]
        print_table(header, [one.row() for one in found], text_columns=2)
    demand_success(found)
