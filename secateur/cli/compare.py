"""`secateur compare`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..reporting.report import (
    MetricInfo,
    bytes_text,
    count_text,
    decibel_text,
    metric_text,
    percent_text,
    short,
)
from .console import print_json, print_table, say
from .options import fixed_inputs_options, json_option, samples_options, seed_option

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import FixedInputs


@click.command("compare")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@fixed_inputs_options
@samples_options("data")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    help="Fail where the relative difference is more than this, or outputs that are no "
    "floats differ.",
)
@click.option(
    "--layers",
    is_flag=True,
    help="Compare values inside, of two ONNX models: where they first depart, the furthest first.",
)
@click.option(
    "--target",
    help="With --layers: values inside OTHER are those that it computes compiled for this target.",
)
@seed_option
@json_option
def command(
    reference: Path,
    other: Path,
    fixed: FixedInputs,
    data: DataSource | None,
    tolerance: float | None,
    layers: bool,
    target: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Compare the outputs of OTHER with those of REFERENCE on the same inputs.

    REFERENCE is an ONNX model, OTHER an ONNX model or a compiled artifact (.so). Of two
    report.json, or folders with one, the last stages of two runs of optimize are shown side by
    side.
    """
    folders = reference.is_dir() and other.is_dir()
    if folders or ".json" in (reference.suffix, other.suffix):
        if layers or target or tolerance is not None or data is not None:
            raise click.UsageError(
                "Reports are compared without --layers, --target, --tolerance and --data."
            )
        _compare_reports(reference, other, as_json)
        return
    if layers:
        if tolerance is not None:
            raise click.UsageError("Give --layers or --tolerance, not both.")
        _compare_layers(reference, other, fixed, data, seed, target, as_json)
        return
    if target is not None:
        raise click.UsageError("Give --target with --layers.")
    from ..checking.checks import describe
    from ..checking.comparison import compare_files, demand_agreement

    agreement = compare_files(reference, other, fixed=fixed, data=data, seed=seed)
    if as_json:
        print_json(dataclasses.asdict(agreement))
    else:
        say(f"{describe(agreement)}, {100 * agreement.identical:.2f} % identical")
    if tolerance is not None:
        demand_agreement(agreement, reference, other, tolerance)


def _compare_layers(
    reference: Path,
    other: Path,
    fixed: FixedInputs,
    data: DataSource | None,
    seed: int,
    target: str | None,
    as_json: bool,
) -> None:
    from ..checking.layers import compare_layers_of_files, first_departure

    found = compare_layers_of_files(
        reference, other, fixed=fixed, data=data, seed=seed, target=target
    )
    first = first_departure(found)
    if as_json:
        print_json({"first": first, "layers": found})
        return
    far = sorted((d for d in found if d.departs), key=lambda d: _decibels(d.sqnr_db))
    if first is None:
        say(f"All {len(found):,} values that both have are the same but for rounding.")
        return
    print_table(
        ["node", "operator", "SQNR, dB", "cosine", "least", "most"],
        [
            [
                short(d.node),
                d.op_type,
                decibel_text(d.sqnr_db),
                "-" if d.cosine is None else f"{d.cosine:.4f}",
                f"{d.low:.4g}",
                f"{d.high:.4g}",
            ]
            for d in far
        ],
        text_columns=2,
    )
    say(
        f"{len(far):,} of {len(found):,} values that both have differ by more than rounding, "
        f"first that of '{first.node}' ({first.op_type})."
    )


def _decibels(value: float | None) -> float:
    return float("-inf") if value is None else value


def _compare_reports(reference: Path, other: Path, as_json: bool) -> None:
    from ..pipeline.reports import compare_reports, different_options

    rows = compare_reports([reference, other])
    if as_json:
        print_json(rows)
        return
    infos = {i["name"]: MetricInfo(**i) for row in rows for i in row["metric_infos"]}
    labels = [info.label for info in infos.values()]
    header = ["report", "MACs", "of the original", "parameters", "file", *labels]
    print_table(
        [*header, "cosine", "latency, ms"],
        [
            [
                row["report"],
                count_text(row["macs"]),
                percent_text(row["macs_share"]),
                count_text(row["parameters"]),
                bytes_text(row["file_bytes"]),
                *(metric_text(info, row["metrics"].get(name)) for name, info in infos.items()),
                "-" if row["cosine"] is None else f"{row['cosine']:.4f}",
                "-" if row["latency_ms"] is None else f"{row['latency_ms']:.3f}",
            ]
            for row in rows
        ],
    )
    for name, values in different_options(rows):
        say(f"{name}: {' | '.join(values)}")
