"""`report.md`: the report for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..ir.display import printable
from .quantization import OPERATOR_HEADER, OPERATOR_LEGEND, limit_text, operator_rows
from .report import (
    FIDELITY_HEADER,
    PassRun,
    Report,
    artifact_lines,
    branch_lines,
    decibel_text,
    fidelity_cells,
    metric_text,
    percent_text,
    short,
    stage_table,
)

LISTED = 8
"""Names listed of those that share a reason; report.json has all."""

LISTED_OPERATORS = 32
"""Quantized operators whose errors are listed; report.json has all."""


def to_markdown(report: Report) -> str:
    """The whole report as Markdown."""
    sections = [
        _head(report),
        _stages(report),
        _pruning(report),
        _recovery(report),
        _quantization(report),
        _artifact(report),
        _checks(report),
        _reproduction(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the rest numbers."""
    lines = [_row(header), _row(["---"] + ["---:"] * (len(header) - 1))]
    return "\n".join(lines + [_row(row) for row in rows])


def _plain(text: str) -> str:
    """Text, perhaps from a file, that is shown as it is: without controls, markup or HTML."""
    return _MARKUP.sub(r"\\\1", printable(text))


def _code(text: str) -> str:
    return f"`{printable(text).replace('`', '')}`"


_MARKUP = re.compile(r"([\\`*<>\[\]|])")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def output_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the last stage's fidelity, output by output; no rows for one output."""
    header = ["output", *FIDELITY_HEADER, "equal elements"]
    compared = [stage for stage in report.stages if stage.fidelity is not None]
    last = compared[-1].fidelity if compared else None
    if last is None or len(last.outputs) < 2:
        return header, []
    return header, [
        [short(o.name), *fidelity_cells(o), percent_text(o.equal)] for o in last.outputs
    ]


def fidelity_text(report: Report) -> str:
    """On what fidelity was measured; empty where it wasn't."""
    found = [stage.fidelity for stage in report.stages if stage.fidelity is not None]
    if not found:
        return ""
    return (
        f"Same top-1, SQNR and cosine compare outputs with the original's on "
        f"{found[-1].samples:,} {found[-1].data}."
    )


def headline(report: Report) -> str:
    """What came out, in one line."""
    first = report.stages[0]
    last = [s for s in report.stages if s.nodes is not None][-1]
    parts = []
    if first.macs and last.macs is not None:
        parts.append(f"{percent_text(last.macs / first.macs)} of the MACs")
    if first.file_bytes and last.file_bytes is not None:
        parts.append(f"{percent_text(last.file_bytes / first.file_bytes)} of the file size")
    for info in report.metrics:
        before, after = (metric_text(info, s.metrics.get(info.name)) for s in (first, last))
        parts.append(f"{info.label} {before} -> {after}")
    if not report.metrics and last.fidelity is not None:
        same, noise = percent_text(last.fidelity.top1), decibel_text(last.fidelity.sqnr_db)
        parts.append(f"same top-1 {same}, SQNR {noise} dB")
    return ", ".join(parts)


def reasons(run: PassRun) -> list[str]:
    """What a pass left alone, one line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for note in run.notes:
        where = f"{note['node']} ({note['op_type']})" if note["node"] else note["op_type"]
        by_reason.setdefault(note["reason"], []).append(where)
    return [f"{reason}: {_some(names)}" for reason, names in by_reason.items()]


# --- sections ----------------------------------------------------------------------


def _head(report: Report) -> str:
    file = report.model.get("file")
    name = _plain(Path(file).name) if file else "model"
    title = f"# {name} for {report.options['target']}"
    lines = [title, f"{headline(report)[:1].upper()}{headline(report)[1:]}."]
    lines += [f"Note: {_plain(line)}" for line in report.remarks()]
    lines += [f"Warning: {_plain(line)}." for line in report.warnings]
    return "\n\n".join(lines)


def _stages(report: Report) -> str:
    header, rows = stage_table(report)
    lines = ["## Stages", table(header, rows)]
    explain = f"Latency: median and range of runs in turns, {report.options['threads']} thread(s)."
    if report.evaluation_samples is not None:
        names = ", ".join(info.label for info in report.metrics)
        explain = f"{names} over {report.evaluation_samples:,} samples. {explain}"
    lines.append(f"{fidelity_text(report)} {explain}".strip())
    header, rows = output_table(report)
    return "\n\n".join([*lines, *([table(header, rows)] if rows else [])])


def _pruning(report: Report) -> str:
    run = report.pass_run("prune-channels")
    if run is None:
        return ""
    rows = group_rows(report)
    lines = [f"## Pruning: {_code(run.text)}"]
    lines.append(table(GROUP_HEADER, rows) if rows else "No channel group could be pruned.")
    if rows:
        lines.append(GROUP_LEGEND.format(importance=_plain(run.statistics["importance"])))
    lines += [_plain(line) for line in (*branch_lines(run.statistics), *latency_lines(run))]
    trials = run.statistics.get("candidates", [])
    if trials:
        lines.append(
            "Ways to share the cuts out, by the divergence of the outputs from the original's, on "
            "samples held back, before and after recovery with the others. The first was taken."
        )
        lines.append(
            table(
                ["widths by", "cut", "recovered"],
                [
                    [
                        _plain(t["name"]),
                        _number(t["divergence_unrecovered"]),
                        _number(t["divergence"]),
                    ]
                    for t in trials
                ],
            )
        )
    return "\n\n".join([*lines, *_left_alone("Not pruned", run)])


GROUP_HEADER = ["channel group", "before", "after", "removed", "score lost", "readers", "error"]

GROUP_LEGEND = (
    "Channels go in the order of their score by {importance}; the share of the score that went is "
    "lost. Error: how far the outputs of the worst of the layers that read the channels are off, "
    "as a share of their variance, before these were solved anew and after."
)


def group_rows(report: Report) -> list[list[str]]:
    """What became of each channel group and why, under `GROUP_HEADER`."""
    run, recovery = report.pass_run("prune-channels"), report.pass_run("recover")
    layers = recovery.statistics.get("layers", []) if recovery is not None else []
    errors = {layer["node"]: layer for layer in layers}
    rows = []
    for g in run.statistics.get("groups", []) if run is not None else []:
        known = [errors[name] for name in g["readers"] if name in errors]
        worst = max(known, key=lambda layer: layer["after"], default=None)
        rows.append(
            [
                short(g["name"]),
                f"{g['size']:,}",
                f"{g['kept']:,}",
                percent_text(1 - g["kept"] / g["size"]) if g["size"] else "-",
                percent_text(g["score_lost"]),
                f"{len(g['readers']):,}",
                f"{worst['before']:.3g} -> {worst['after']:.3g}" if worst else "-",
            ]
        )
    return rows


def latency_lines(run: PassRun) -> list[str]:
    """What a budget of latency came to."""
    latency = run.statistics.get("latency")
    if not latency:
        return []
    if "measured_after" not in latency:
        share = latency["after"] / latency["before"] if latency["before"] else 1.0
        return [f"Latency by the cost model of the kernels: {percent_text(share)} of the original."]
    share = latency["measured_after"] / latency["measured_before"]
    return [
        f"Latency measured: {latency['measured_after']:.0f} us "
        f"of {latency['measured_before']:.0f}, "
        f"{percent_text(share)} where {percent_text(latency['budget'])} were asked for."
    ]


def _recovery(report: Report) -> str:
    """Error of each layer's output, as a share of its variance."""
    run = report.pass_run("recover")
    if run is None:
        return ""
    layers = run.statistics.get("layers", [])
    lines = ["## Recovery"]
    if layers:
        lines.append(
            "Squared error of what each layer puts out, as a share of its variance in the "
            "original, before and after the layer was solved anew."
        )
        rows = [
            [
                f"{short(layer['node'])} ({_plain(layer['op_type'])})",
                _number(layer["before"]),
                _number(layer["after"]),
                f"{layer['rows']:,} / {layer['unknowns']:,}",
            ]
            for layer in layers
        ]
        lines.append(table(["layer", "before", "after", "rows / unknowns"], rows))
    else:
        lines.append("No layer was solved anew.")
    together = run.statistics.get("together", {})
    if together.get("layers"):
        lines.append(
            f"Then {together['steps']:,} steps of {together['layers']:,} layers together brought "
            "the divergence of the outputs from the original's, on samples held out, from "
            f"{_number(together['before'])} to {_number(together['after'])}."
        )
    return "\n\n".join([*lines, *_left_alone("Not recovered", run)])


def _number(value: float) -> str:
    return f"{value:.3g}"


def _quantization(report: Report) -> str:
    run = report.quantization()
    if run is None:
        return ""
    counts: dict[str, Any] = run.statistics.get("quantized", {})
    lines = [f"## Quantization: {_code(run.text)}"]
    if counts:
        lines.append(table(["operator", "quantized"], [[k, f"{v:,}"] for k, v in counts.items()]))
    else:
        lines.append("Nothing was quantized.")
    lines += [_plain(text) for text in [limit_text(run)] if text]
    rows = operator_rows(report, LISTED_OPERATORS)
    if rows:
        lines += [OPERATOR_LEGEND, table(OPERATOR_HEADER, rows)]
    return "\n\n".join([*lines, *_left_alone("Not quantized", run)])


def _artifact(report: Report) -> str:
    lines = artifact_lines(report.to_dict())
    return "\n\n".join(["## Artifact", " ".join(map(_plain, lines))]) if lines else ""


def _checks(report: Report) -> str:
    if not report.checks:
        return ""
    items = [
        f"- {'passed' if check.passed else 'NOT PASSED'}: "
        f"{_plain(check.name)}: {_plain(check.detail)}"
        for check in report.checks
    ]
    return "## Checks\n\n" + "\n".join(items)


def _reproduction(report: Report) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in report.environment.items())
    passes = "\n".join(f"- {_code(p.text)}, {p.seconds:.2f} s" for p in report.passes)
    return (
        f"## How this was made\n\nPasses, in order:\n\n{passes}\n\n"
        f"{report.seconds:.1f} s in all, on {facts}."
    )


def _left_alone(title: str, run: PassRun) -> list[str]:
    lines = reasons(run)
    return [f"### {title}", "\n".join(f"- {_plain(line)}" for line in lines)] if lines else []


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(short(name) for name in names[:LISTED])
    rest = len(names) - LISTED
    return f"{listed} and {rest:,} more" if rest > 0 else listed
