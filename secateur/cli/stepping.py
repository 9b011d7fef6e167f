"""What the commands that turn one ONNX file into another print."""

from __future__ import annotations

from pathlib import Path

from ..reporting.markdown import (
    GROUP_HEADER,
    SIZE_HEADER,
    group_rows,
    latency_lines,
    reasons,
    size_row,
)
from ..reporting.report import Report, percent_text
from .console import print_json, print_table, say


def print_transformation(report: Report, output: Path, as_json: bool) -> None:
    """Before and after, what was left alone and why, and what was checked."""
    if as_json:
        print_json(report.to_dict())
        return
    header, rows = SIZE_HEADER, [size_row(stage) for stage in report.stages]
    if any(stage.top1 is not None for stage in report.stages):
        header = [*header, "top-1"]
        rows = [
            [*row, percent_text(stage.top1)] for row, stage in zip(rows, report.stages, strict=True)
        ]
    print_table(header, rows)
    groups = group_rows(report)
    if groups:
        print_table(GROUP_HEADER, groups)
    for run in report.passes:
        for line in latency_lines(run):
            say(line)
    for run in report.passes:
        for line in reasons(run):
            say(f"Left alone: {line}")
    for check in report.checks:
        say(f"{'Checked' if check.passed else 'Not checked'}: {check.name}: {check.detail}")
    for line in report.remarks():
        say(f"Note: {line}")
    say(f"Wrote {output}.")
