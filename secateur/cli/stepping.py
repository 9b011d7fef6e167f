"""What the commands that turn one ONNX file into another print."""

from __future__ import annotations

from pathlib import Path

from ..reporting.markdown import (
    GROUP_HEADER,
    fidelity_text,
    group_rows,
    latency_lines,
    output_table,
    reasons,
)
from ..reporting.quantization import (
    OPERATOR_HEADER,
    PRINTED,
    limit_text,
    operator_rows,
    unchanged_text,
)
from ..reporting.report import Report, branch_lines, stage_table
from .console import print_json, print_table, say


def print_transformation(report: Report, output: Path, as_json: bool) -> None:
    """Before and after, what was left alone and why, and what was checked."""
    if as_json:
        print_json(report.to_dict())
        return
    print_table(*stage_table(report))
    groups = group_rows(report)
    if groups:
        print_table(GROUP_HEADER, groups)
    print_operators(report)
    for run in report.passes:
        for line in (*branch_lines(run.statistics), *latency_lines(run)):
            say(line)
    for run in report.passes:
        for line in reasons(run):
            say(f"Left alone: {line}")
    for check in report.checks:
        say(f"{'Checked' if check.passed else 'Not checked'}: {check.name}: {check.detail}")
    print_end(report)
    say(f"Wrote {output}.{unchanged_text(report)}")


def print_operators(report: Report) -> None:
    """What rounding does at the worst of the quantized operators, and what a limit came to."""
    rows = operator_rows(report, PRINTED)
    if rows:
        print_table(OPERATOR_HEADER, rows)
    run = report.quantization()
    text = "" if run is None else limit_text(run)
    if text:
        say(text)


def print_end(report: Report) -> None:
    """What a reader has to know, and what is suspicious."""
    header, rows = output_table(report)
    if rows:
        print_table(header, rows)
    text = fidelity_text(report)
    if text:
        say(text)
    for line in report.remarks():
        say(f"Note: {line}")
    for line in report.warnings:
        say(f"Warning: {line}.")
