"""What a run of the pipeline found out, as data: the content of `report.json`.

Every number is measured on this run. The schema is documented in docs/report.md;
`SCHEMA` grows when a field changes its meaning or goes away.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..ir.display import printable
from ..passes.losses import OutputFidelity

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Latency:
    """Wall-clock time of one run, in milliseconds."""

    median_ms: float
    min_ms: float
    max_ms: float


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How near a stage's outputs are to the original's; `data` says on what samples."""

    samples: int
    data: str
    outputs: tuple[OutputFidelity, ...]

    @property
    def is_random(self) -> bool:
        """Whether inputs were random, whose highest scores mean little."""
        return "random" in self.data

    @property
    def top1(self) -> float | None:
        """Of the output where it is least."""
        known = [o.top1 for o in self.outputs if o.top1 is not None]
        return min(known) if known and not self.is_random else None

    @property
    def sqnr_db(self) -> float | None:
        known = [o.sqnr_db for o in self.outputs if o.sqnr_db is not None]
        return min(known, default=None)

    @property
    def cosine(self) -> float | None:
        known = [o.cosine for o in self.outputs if o.cosine is not None]
        return min(known, default=None)


@dataclasses.dataclass(frozen=True)
class MetricInfo:
    """A metric by its `name`; `better` is higher or lower, `unit` share, dB or empty."""

    name: str
    better: str
    unit: str

    @property
    def label(self) -> str:
        """The name as people write it."""
        return _LABELS.get(self.name, self.name)


_LABELS = {
    "top1": "top-1",
    "top5": "top-5",
    "f1": "F1",
    "auc": "AUC",
    "map": "mAP",
    "map50": "mAP@50",
    "miou": "mean IoU",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R2",
    "cer": "CER",
    "wer": "WER",
}


@dataclasses.dataclass
class Stage:
    """The model after one stage. Fields that don't apply or weren't measured are None.

    `macs` leave out `uncounted` nodes whose sizes aren't known before the model runs.
    `seconds` is what the transformation took, `metrics` what `Report.metrics` describe, by name;
    `top1` is that of them, a share of the evaluation samples. `fidelity` compares outputs with
    the original's. `latency` is the time of one run at the model's batch size.
    """

    name: str
    seconds: float
    nodes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    uncounted: int = 0
    file_bytes: int | None = None
    top1: float | None = None
    latency: Latency | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    fidelity: Fidelity | None = None


@dataclasses.dataclass
class PassRun:
    """One pass as it ran: its text form, and what it left alone and why."""

    stage: str
    text: str
    seconds: float
    changed: bool
    statistics: dict[str, Any]
    notes: list[dict[str, str]]


@dataclasses.dataclass
class Check:
    """A verification that was made. `agreement` is None where nothing was compared."""

    name: str
    passed: bool
    detail: str
    agreement: dict[str, Any] | None = None


@dataclasses.dataclass
class Artifact:
    """The compiled model; where it ran, the stage "artifact" has its speed and accuracy.

    `files` are the names of what was written; `file_bytes` are those of the first, the shared
    object or static library. `reference` is the stage it was compiled from, `agreement` compares
    it with ONNX Runtime on that. `level` is the one of several targets whose code this machine
    runs.
    """

    target: str
    file_bytes: int
    seconds: float
    ran: bool
    files: tuple[str, ...] = ()
    reason: str = ""
    compiler: dict[str, Any] = dataclasses.field(default_factory=dict)
    reference: str = ""
    agreement: dict[str, Any] | None = None
    level: str = ""


@dataclasses.dataclass
class Report:
    """One run from model to artifact.

    `command` is what was run, if it was one. `drawing` is the simplified network (as
    `checking.drawing` has it), `layers` how far inner values of the last model are from it, and
    `operators` the time that the artifact's operators take.
    """

    model: dict[str, Any]
    options: dict[str, Any]
    environment: dict[str, str]
    stages: list[Stage] = dataclasses.field(default_factory=list)
    passes: list[PassRun] = dataclasses.field(default_factory=list)
    checks: list[Check] = dataclasses.field(default_factory=list)
    artifact: Artifact | None = None
    evaluation_samples: int | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    metrics: list[MetricInfo] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    command: str = ""
    drawing: dict[str, Any] | None = None
    layers: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    operators: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def stage(self, name: str) -> Stage | None:
        """The stage called `name`, if the run had it."""
        return next((s for s in self.stages if s.name == name), None)

    def pass_run(self, name: str) -> PassRun | None:
        """The last run of the pass called `name`."""
        runs = [p for p in self.passes if p.text.partition("{")[0] == name]
        return runs[-1] if runs else None

    def quantization(self) -> PassRun | None:
        """The last run of a pass that quantizes."""
        return self.pass_run("quantize") or self.pass_run("quantize-static")

    def remarks(self) -> list[str]:
        """What a reader of the numbers has to know, in sentences."""
        return remarks(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        return to_json(self.to_dict())

    def _repr_html_(self) -> str:
        """The stages as a table, for notebooks."""
        header, rows = stage_table(self)
        name = Path(str(self.model.get("file") or "model")).name
        return html_table(name, header, rows, [*self.remarks(), *self.warnings])


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What a reader of a report's numbers has to know, in sentences."""
    stages, statistics = report["stages"], [run["statistics"] for run in report["passes"]]
    found = [
        *(f"{note}." for note in report["notes"]),
        *map(alignment_remark, statistics),
        *map(constant_remark, statistics),
        size_remark(report["model"]),
        uncounted_remark(stages[0]["uncounted"] if stages else 0),
        left_to_callers(report["model"].get("inputs_with_defaults", 0)),
    ]
    return [remark for remark in found if remark]


def to_json(content: Any) -> str:
    """JSON text in ASCII with a final newline; infinite and NaN numbers become null."""
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item"):  # numpy scalars
        return _plain(value.item())
    if isinstance(value, Path):
        return str(value)
    return value


# --- how numbers are written for people -------------------------------------------


def count_text(count: int | None) -> str:
    """`12,345` up to six digits, then `12.35 M`."""
    if count is None:
        return "-"
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:,}"


def counted(count: int, what: str) -> str:
    """`1 sample`, `1,200 samples`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def size_remark(model: Mapping[str, Any]) -> str:
    """A sentence about the sizes that a described model's inputs leave open, if any."""
    chosen = [f"{name} as {size:,}" for name, size in model.get("counted_at", {}).items()]
    ones = _listed(model.get("counted_as_1", []))
    counted = _listed([*chosen, *([f"{ones} as 1"] if ones else [])])
    return f"MACs count {counted} (--input-shape fixes them)." if counted else ""


def alignment_remark(statistics: Mapping[str, Any]) -> str:
    """A sentence where widths could not be multiples of what was asked for."""
    align, asked = statistics.get("align", 1), statistics.get("align_asked", 1)
    if align >= asked:
        return ""
    return f"Widths are multiples of {align}: multiples of {asked} miss the goal or cut much more."


def constant_remark(statistics: Mapping[str, Any]) -> str:
    """A sentence about tensors that calibration saw only one value of."""
    names = statistics.get("constant", [])
    if not names:
        return ""
    some = ", ".join(f"'{short(name)}'" for name in names[:4])
    rest = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    return (
        f"Calibration saw one value only in {some}{rest}: what samples don't show is lost to "
        "integers; calibrate on samples like those that the model will meet."
    )


def uncounted_remark(count: int) -> str:
    """A sentence about nodes of which inference found no shapes, if there are any."""
    if not count:
        return ""
    return (
        f"MACs leave out {count} nodes that work on sizes known only when the model runs, or that "
        "depend on inputs' shapes (--input-shape)."
    )


def _listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def inspection_remarks(facts: Mapping[str, Any]) -> list[str]:
    """What a reader of the numbers of `secateur inspect` has to know, in sentences."""
    found = [
        size_remark(facts),
        uncounted_remark(len(facts["uncounted"])),
        left_to_callers(facts["inputs_with_defaults"]),
    ]
    return [remark for remark in found if remark]


def left_to_callers(count: int) -> str:
    """A sentence about inputs with default values, which passes must not touch."""
    if not count:
        return ""
    return (
        f"{count} inputs have default values that callers may override, so that they stay as they "
        "are; --freeze-defaults makes them constants."
    )


def bytes_text(count: int | None) -> str:
    """Bytes in decimal units, as file sizes are usually given."""
    if count is None:
        return "-"
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def artifact_lines(report: Mapping[str, Any]) -> list[str]:
    """What happened to a report's artifact, in a few lines."""
    artifact = report["artifact"]
    if artifact is None:
        return []
    lines = [
        f"Compiled for {artifact['target']} in {artifact['seconds']:.1f} s: "
        f"{bytes_text(artifact['file_bytes'])}."
    ]
    lines += compiler_lines(artifact["compiler"])
    if artifact["ran"] and artifact["level"] != artifact["target"]:
        lines.append(f"Of these, this machine runs the code for {artifact['level']}.")
    if not artifact["ran"]:
        lines.append(f"Not run: {artifact['reason']}.")
        return lines
    if artifact["agreement"] is not None:
        lines.append(
            f"Against ONNX Runtime on the {artifact['reference']} model, "
            f"{artifact['agreement']['runs']} runs: "
            f"{percent_text(artifact['agreement']['identical'])} of the outputs identical, "
            f"max difference {artifact['agreement']['max_difference']:.3g}."
        )
    stages = {stage["name"]: stage for stage in report["stages"]}
    pair = [stages.get("artifact"), stages.get(artifact["reference"])]
    known = [stage for stage in pair if stage is not None]
    if len(known) == 2:
        for info in (MetricInfo(**info) for info in report["metrics"]):
            here, there = (metric_text(info, stage["metrics"].get(info.name)) for stage in known)
            lines.append(f"{info.label} {here}; ONNX Runtime {there}.")
        here, there = (
            latency_text(Latency(**stage["latency"]) if stage["latency"] else None)
            for stage in known
        )
        lines.append(f"Latency {here} ms; ONNX Runtime {there} ms.")
    return lines


def branch_lines(statistics: Mapping[str, Any]) -> list[str]:
    """Residual branches that pruning let go whole, by its statistics."""
    return [
        f"Of the sum {short(branch['add'])} a summand went whole: "
        f"{counted(len(branch['nodes']), 'node')}, {branch['macs']:,} multiply-accumulates. "
        "Its mean stands for it."
        for branch in statistics.get("branches", ())
    ]


def compiler_lines(compiler: Mapping[str, Any]) -> list[str]:
    """What a `CompileReport`, as a dict, says besides sizes: nodes left over, proofs, tuning."""
    lines = []
    if compiler["left"]:
        count = len(compiler["left"])
        lines.append(f"Left to ONNX Runtime, {count} node(s): " + "; ".join(compiler["left"]) + ".")
    if compiler.get("precision") is not None:
        lines += _precision_lines(compiler["precision"])
    subnormal = compiler.get("subnormal")
    if subnormal:
        count, nodes = sum(subnormal.values()), counted(len(subnormal), "node")
        lines.append(
            f"{count:,} weights of {nodes} are too small for a normal float32 and count as zero."
        )
    accesses = compiler["accesses"]
    lines.append(
        f"{accesses['proven']:,} accesses of its kernels to memory are proven to stay within "
        f"their buffers, {accesses['guarded']:,} of them by checks at run time."
    )
    tuning = compiler["tuning"]
    if tuning is not None:
        lines.append(
            f"Tuned for {tuning['seconds']:.0f} s: {tuning['measured']} kernels measured, "
            f"{tuning['known']} known before, {tuning['left']} left for lack of time; "
            f"{len(tuning['changed'])} are faster now."
        )
        for kernel in tuning["changed"]:
            default, now = kernel["default_microseconds"], kernel["microseconds"]
            lines.append(
                f"  {kernel['description']}: {default:.1f} to {now:.1f} us, "
                f"{kernel['calls']} call(s)"
            )
    return lines


_SHOWN = 10
"""Operators that are named; the report has all."""


def _precision_lines(precision: Mapping[str, Any]) -> list[str]:
    """What is computed in 16 bits, what isn't and why, and what that does to the outputs."""
    name, left = precision["name"], precision["float32"]
    count = precision["operators"]
    lines = [
        f"{name}: {count - len(left)} of {count} products and convolutions, by what they do to "
        f"{precision['fidelity']['data']}."
    ]
    if precision["without"]:
        lines.append(
            f"{', '.join(precision['without'])}: no instruction multiplies {name} and adds "
            "float32, so that numbers are stored so and computed in float32, which saves memory "
            "and may take longer."
        )
    by_reason: dict[str, list[str]] = {}
    for each in left:
        noise = each["sqnr_db"]
        loss = "" if noise is None else f", {decibel_text(noise)} dB"
        text = f"{short(each['node'])} ({each['op_type']}{loss})"
        by_reason.setdefault(each["reason"], []).append(text)
    for reason, texts in by_reason.items():
        more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        lines.append(f"  float32, since {reason}: {', '.join(texts[:_SHOWN])}{more}.")
    fidelity = precision["fidelity"]
    for output in fidelity["outputs"]:
        parts = ["equal" if output["identical"] else f"SQNR {decibel_text(output['sqnr_db'])} dB"]
        scored = output["top1"] is not None and "random" not in fidelity["data"]
        if scored:
            parts.insert(0, f"same top-1 {percent_text(output['top1'])}")
        lines.append(f"  output '{printable(output['name'])}' in {name}: {', '.join(parts)}.")
    return lines


def metric_text(info: MetricInfo, value: float | None) -> str:
    """A metric's value in its unit."""
    if value is None or math.isnan(value):
        return "-"
    if info.unit == "share":
        return percent_text(value)
    return f"{value:.2f} dB" if info.unit == "dB" else f"{value:.4g}"


def decibel_text(value: float | None) -> str:
    if value is None or math.isfinite(value):
        return "-" if value is None else f"{value:.1f}"
    return "equal" if value > 0 else "none"


def percent_text(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def latency_text(latency: Latency | None) -> str:
    """Median with the range in parentheses."""
    if latency is None:
        return "-"
    return f"{latency.median_ms:.3f} ({latency.min_ms:.3f}-{latency.max_ms:.3f})"


def html_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]], remarks: Sequence[str] = ()
) -> str:
    """A table for notebooks; the first column is text, the rest numbers. All text is escaped."""

    def line(cells: Sequence[str], tag: str) -> str:
        sides = ["left", *["right"] * (len(cells) - 1)]
        pairs = zip(cells, sides, strict=True)
        return "".join(
            f'<{tag} style="text-align: {side}">{escape(printable(cell))}</{tag}>'
            for cell, side in pairs
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    notes = "".join(f"<p>{escape(printable(text))}</p>" for text in remarks)
    caption = f"<caption>{escape(printable(title))}</caption>"
    head = f"<thead><tr>{line(header, 'th')}</tr></thead>"
    return f"<div><table>{caption}{head}<tbody>{body}</tbody></table>{notes}</div>"


def short(text: str, width: int = 60) -> str:
    """`text` with its middle left out where it is long; names start and end telling."""
    if len(text) <= width:
        return text
    head = (width - 3) // 2
    return f"{text[:head]}...{text[head + 3 - width :]}"


def size_row(stage: Stage) -> list[str]:
    """A stage's cells under `SIZE_HEADER`."""
    return [
        stage.name,
        count_text(stage.nodes),
        count_text(stage.parameters),
        count_text(stage.macs),
        bytes_text(stage.file_bytes),
    ]


SIZE_HEADER = ["stage", "nodes", "parameters", "MACs", "file"]

FIDELITY_HEADER = ["same top-1", "SQNR, dB", "cosine"]


def stage_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows of all stages: sizes, what was measured by labels, fidelity to the
    original (of the output where it is least), and latency."""
    header = [*SIZE_HEADER, *(info.label for info in report.metrics)]
    compared = any(stage.fidelity is not None for stage in report.stages)
    timed = any(stage.latency is not None for stage in report.stages)
    header += (FIDELITY_HEADER if compared else []) + (["latency, ms (range)"] if timed else [])
    rows = []
    for stage in report.stages:
        row = [*size_row(stage)]
        row += [metric_text(info, stage.metrics.get(info.name)) for info in report.metrics]
        if compared:
            found = stage.fidelity
            row += ["-"] * 3 if found is None else fidelity_cells(found)
        rows.append([*row, *([latency_text(stage.latency)] if timed else [])])
    return header, rows


def fidelity_cells(found: Fidelity | OutputFidelity) -> list[str]:
    """Cells under `FIDELITY_HEADER`."""
    cosine = "-" if found.cosine is None else f"{found.cosine:.4f}"
    return [percent_text(found.top1), decibel_text(found.sqnr_db), cosine]
