"""`secateur data`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..reporting.report import counted
from .console import print_json, print_table, say
from .options import DataType, fixed_inputs_options, json_option, model_argument, preprocess_options

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import FixedInputs


@click.group("data")
def command() -> None:
    """Look at samples."""


@command.command("check")
@model_argument
@click.argument("data", type=DataType())
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page with the ranges and a grid of pictures.",
)
@fixed_inputs_options
@preprocess_options("data")
@json_option
def check(
    model: Path, data: DataSource, html: Path | None, fixed: FixedInputs, as_json: bool
) -> None:
    """Show what of DATA reaches MODEL, and warn where its range looks wrong for the model.

    DATA is a file, folder or function of samples, as --calibration takes them.
    """
    from ..checking.data_check import check_data_file

    findings, _, dataset = check_data_file(model, data, fixed)
    if html is not None:
        from ..pipeline.reports import write_data_page

        write_data_page(model, findings, dataset, html)
    if as_json:
        print_json(dataclasses.asdict(findings))
        return
    say(f"{counted(findings.samples, 'sample')}; labels: {findings.labels}")
    rows = [row for entry in findings.inputs for row in _rows(entry)]
    print_table(["input", "type", "channel", "least", "most", "mean", "std"], rows, text_columns=3)
    for note in findings.notes:
        say(f"Note: {note}.")
    for warning in findings.warnings:
        say(f"Warning: {warning}.")
    if not findings.warnings:
        say(f"Nothing looks wrong in the {counted(findings.looked_at, 'sample')} looked at.")


def _rows(entry: dict[str, Any]) -> list[list[str]]:
    shape = "x".join(map(str, entry["shape"])) or "number"
    kind = f"{entry['type']} {shape}"
    single = len(entry["channels"]) < 2
    return [
        [
            entry["name"] if index == 0 else "",
            kind if index == 0 else "",
            "" if single else str(index),
            *(f"{channel[key]:.4g}" for key in ("low", "high", "mean", "std")),
        ]
        for index, channel in enumerate(entry["channels"])
    ] or [[entry["name"], kind, "", "-", "-", "-", "-"]]
