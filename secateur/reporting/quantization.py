"""What a quantization did, for people: errors by operator, and what a limit of losses came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .report import PassRun, Report, decibel_text, percent_text, short

OPERATOR_HEADER = ["operator", "alone, dB", "cosine", "with all before, dB", "range", "clipped"]

OPERATOR_LEGEND = (
    "Signal over noise of each operator's result: alone, where its operands are exact, and with "
    "all that was rounded before it. The one that loses most by itself comes first."
)

PRINTED = 10
"""Operators that a command prints; reports have all."""


def operator_rows(report: Report, most: int | None = None) -> list[list[str]]:
    """Errors of quantized operators, worst first, under `OPERATOR_HEADER`."""
    run = report.quantization()
    errors = run.statistics.get("operators", []) if run is not None else []
    return [_operator_row(error) for error in errors[:most]]


def _operator_row(error: Mapping[str, Any]) -> list[str]:
    cosine, clipped = error["cosine"], error["clipped"]
    return [
        f"{short(error['node'])} ({error['op_type']})",
        decibel_text(error["sqnr_db"]),
        "-" if cosine is None else f"{cosine:.5f}",
        decibel_text(error["accumulated_sqnr_db"]),
        f"{error['low']:.3g} .. {error['high']:.3g}",
        "-" if clipped is None else percent_text(clipped),
    ]


def limit_text(run: PassRun) -> str:
    """What became of a limit of what may be lost; empty where there was none."""
    found = run.statistics.get("max_drop")
    if not found:
        return ""
    asked, kept = _share(found["asked"]), f"of {found['of']:,} operators in float"
    if run.statistics.get("quantized"):
        if not found["left"]:
            return f"At most {asked} may be lost: {_share(found['lost'])} is, with none {kept}."
        return (
            f"At most {asked} may be lost: {_share(found['lost'])} is with {found['left']:,} "
            f"{kept}; without them {_share(found['without'])} would be."
        )
    least = found["least"]
    return (
        f"No quantization loses as little as {asked}: the least that was found is "
        f"{_share(least['lost'])}, with {least['left']:,} {kept}."
    )


def _share(share: float | None) -> str:
    return "an unknown share" if share is None else f"{100 * share:.3g} %"


def unchanged_text(report: Report) -> str:
    """A sentence where a quantization left every operator float, and what to do about it."""
    run = report.quantization()
    if run is None or run.statistics.get("quantized"):
        return ""
    limit = run.statistics.get("max_drop")
    if limit and limit["of"]:
        least = _share(limit["least"]["lost"])
        way = f"the limit is too strict, --max-drop {least.replace(' ', '')} or more can be met"
    elif report.model.get("inputs_with_defaults"):
        way = "its weights are inputs with default values: add --freeze-defaults"
    elif run.notes:
        causes = Counter(note["reason"] for note in run.notes)
        reason, count = causes.most_common(1)[0]
        way = f"{count} of {len(run.notes)} operators: {reason}"
    else:
        way = "it has no operator that could be: leave out the quantization"
    return f" Nothing was quantized, all operators are float: {way}."
