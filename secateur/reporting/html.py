"""`report.html`: the report as one page that needs nothing else, of the content of `report.json`.

Needs Jinja2, the extra `report`. Names in it come from files and are not to be trusted: every text
is escaped by Jinja2 after `printable`, and the page forbids itself to load anything.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..ir.display import printable
from ..ir.errors import SecateurError
from .graph_layout import HEIGHT, WIDTH, lay_out
from .quantization import limit_text
from .report import (
    Latency,
    MetricInfo,
    PassRun,
    artifact_lines,
    branch_lines,
    bytes_text,
    count_text,
    counted,
    decibel_text,
    inspection_remarks,
    latency_text,
    metric_text,
    percent_text,
    remarks,
    short,
)

LISTED = 40
"""Rows of long tables that are shown at once; the rest unfolds."""

DRAWN = 6
"""Operators whose values are drawn large."""

MISSING = "report.html needs Jinja2: pip install 'secateur[report]'"


def has_templates() -> bool:
    """Whether Jinja2 is installed."""
    try:
        importlib.import_module("jinja2")
    except ImportError:
        return False
    return True


def report_page(report: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """The page of a report as `report.json` has it; `pictures` are data URIs of samples.

    Raises SecateurError without Jinja2, and for what is no report.
    """
    if not has_templates():
        raise SecateurError(MISSING)
    import jinja2

    damage = (KeyError, TypeError, ValueError, AttributeError, IndexError, jinja2.UndefinedError)
    try:
        return _render("report.html", {**_context(report), "pictures": list(pictures)})
    except damage as error:
        raise SecateurError(f"no report.json, or a damaged one: {error!r:.100}") from None


def inspection_page(facts: Mapping[str, Any]) -> str:
    """The page of what `secateur inspect` finds, with its `drawing`."""
    drawn = _drawing(facts.get("drawing"))
    rows = [[o["type"], count_text(o["nodes"]), count_text(o["macs"])] for o in facts["operators"]]
    return _render(
        "inspection.html",
        {
            "facts": facts,
            "remarks": inspection_remarks(facts),
            "drawing": drawn,
            "operators": rows,
            "title": _title(facts),
        },
    )


def data_page(findings: Mapping[str, Any], model: str, pictures: Sequence[str] = ()) -> str:
    """The page of what `secateur data check` finds; `pictures` are data URIs of samples."""
    content = {"findings": findings, "pictures": list(pictures), "title": _title({"file": model})}
    return _render("data.html", content)


def _render(name: str, context: Mapping[str, Any]) -> str:
    if not has_templates():
        raise SecateurError(MISSING)
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters.update(
        count=count_text,
        counted=counted,
        bytes=bytes_text,
        percent=percent_text,
        short=short,
        decibel=decibel_text,
    )
    return environment.get_template(name).render(**context)


def _title(model: Mapping[str, Any]) -> str:
    return str(model.get("file") or "model").replace("\\", "/").rsplit("/", 1)[-1]


def _context(report: Mapping[str, Any]) -> dict[str, Any]:
    stages = report["stages"]
    run = {p["text"].partition("{")[0]: p for p in report["passes"]}
    statistics = run.get("prune-channels", {}).get("statistics", {})
    errors = run.get("quantize", {}).get("statistics", {}).get("operators", [])
    return {
        "report": report,
        "title": _title(report["model"]),
        "remarks": remarks(report),
        "artifact": artifact_lines(report),
        "stages": [_stage(stage, report) for stage in stages],
        "metrics": [MetricInfo(**info).label for info in report.get("metrics", [])],
        "outputs": _outputs(stages),
        "plots": _plots(report),
        "drawing": _drawing(report.get("drawing")),
        "groups": statistics.get("groups", []),
        "branches": branch_lines(statistics),
        "locked": statistics.get("locked", []),
        "layers": _layers(report.get("layers") or []),
        "operators": _operators(report.get("operators") or []),
        "arena": _arena(report),
        "refused": _refused(report["passes"]),
        "quantized": (run.get("quantize") or run.get("quantize-static") or {})
        .get("statistics", {})
        .get("quantized", {}),
        "limit": _limit(run),
        "rounded": _rounded(errors),
        "histograms": _histograms(errors),
        "listed": LISTED,
    }


def _stage(stage: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """Cells of a stage, as text and as a share of the largest one."""

    def share(value: float | None, key: str) -> float | None:
        largest = max((s[key] or 0 for s in report["stages"]), default=0)
        return None if value is None or not largest else value / largest

    latency = stage.get("latency")
    slowest = max((s["latency"]["median_ms"] for s in report["stages"] if s["latency"]), default=0)
    infos = [MetricInfo(**info) for info in report.get("metrics", [])]
    fidelity = stage.get("fidelity")
    worst = _worst(fidelity["outputs"]) if fidelity else {"top1": None, "sqnr": "-", "cosine": "-"}
    return {
        "name": stage["name"],
        "bars": [
            (count_text(stage["parameters"]), share(stage["parameters"], "parameters")),
            (count_text(stage["macs"]), share(stage["macs"], "macs")),
            (bytes_text(stage["file_bytes"]), share(stage["file_bytes"], "file_bytes")),
        ],
        "metrics": [metric_text(info, stage.get("metrics", {}).get(info.name)) for info in infos],
        "fidelity": worst,
        "latency": latency_text(Latency(**latency)) if latency else "-",
        "latency_share": latency["median_ms"] / slowest if latency and slowest else None,
    }


def _sqnr(output: Mapping[str, Any]) -> float | None:
    """In JSON infinity is null: outputs without noise are identical."""
    value = output["sqnr_db"]
    if value is None and output["identical"]:
        return math.inf
    return None if value is None else float(value)


def _worst(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    top1 = [o["top1"] for o in outputs if o["top1"] is not None]
    sqnr = [s for o in outputs if (s := _sqnr(o)) is not None]
    cosine = [o["cosine"] for o in outputs if o["cosine"] is not None]
    return {
        "top1": min(top1, default=None),
        "sqnr": decibel_text(min(sqnr, default=None)),
        "cosine": f"{min(cosine):.4f}" if cosine else "-",
    }


def _outputs(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The last stage's fidelity by output, where there are several."""
    known = [s["fidelity"] for s in stages if s.get("fidelity")]
    if not known or len(known[-1]["outputs"]) < 2:
        return []
    return [{**_worst([o]), "name": o["name"], "equal": o["equal"]} for o in known[-1]["outputs"]]


def _plots(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy, or else cosine to the original, against cost: points in a square of 0..1."""
    infos = [MetricInfo(**info) for info in report.get("metrics", [])]

    def height(stage: Mapping[str, Any]) -> float | None:
        if infos:
            value = stage.get("metrics", {}).get(infos[0].name)
            return None if value is None else float(value)
        if stage["name"] == "original":
            return 1.0
        cosines = [o["cosine"] for o in (stage.get("fidelity") or {}).get("outputs", [])]
        known = [c for c in cosines if c is not None]
        return min(known, default=None)

    costs: dict[str, tuple[Callable[[Mapping[str, Any]], float | None], Callable[[Any], str]]] = {
        "MACs": (lambda s: s["macs"], count_text),
        "size of the file": (lambda s: s["file_bytes"], bytes_text),
        "latency": (
            lambda s: s["latency"]["median_ms"] if s["latency"] else None,
            lambda most: f"{most:.3f} ms",
        ),
    }
    plots = []
    for name, (cost, text) in costs.items():
        points = [
            (stage["name"], x, y)
            for stage in report["stages"]
            if (x := cost(stage)) is not None and (y := height(stage)) is not None
        ]
        if len(points) < 2:
            continue
        most = max(x for _, x, _ in points)
        right = most or 1.0
        low, high = min(y for *_, y in points), max(y for *_, y in points)
        spread = max(high - low, 0.02 * max(abs(high), 1e-9))
        middle = (high + low) / 2
        heights = {y: 150 - 130 * (0.5 + (y - middle) / (1.2 * spread)) for *_, y in points}
        plots.append(
            {
                "name": name,
                "most": text(most),
                "of": infos[0].label if infos else "cosine to the original",
                "marks": [(heights[y], _height_text(infos, y)) for y in dict.fromkeys((low, high))],
                "points": [
                    {
                        "name": stage,
                        "x": 40 + 220 * x / right,
                        "y": heights[y],
                        "text": f"{stage}: {text(x)}, {_height_text(infos, y)}",
                    }
                    for stage, x, y in points
                ],
            }
        )
    return plots


def _height_text(infos: Sequence[MetricInfo], value: float) -> str:
    return metric_text(infos[0], value) if infos else f"{value:.4f}"


COLOURS = 12
"""Hues that groups take in turns."""


def _drawing(drawing: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not drawing:
        return None
    nodes = drawing["nodes"]
    layout = lay_out([node["reads"] for node in nodes])
    groups = drawing["groups"]
    boxes = []
    for node, (x, y) in zip(nodes, layout.corners, strict=True):
        own = [g for g in node["groups"] if groups[g]["size"] == node["channels"]] or node["groups"]
        before, kept = node["channels"], node["kept"]
        width = "" if before is None else str(before) if kept is None else f"{before} → {kept}"
        locks = [groups[g]["lock"] for g in node["groups"] if groups[g]["lock"]]
        shape = "?" if node["shape"] is None else "x".join(str(s or "?") for s in node["shape"])
        lines = [f"{node['node']} ({node['op_type']})", f"{node['value']}: {shape}"]
        lines += [
            f"group {groups[g]['name']}: {groups[g]['size']} channels" for g in node["groups"]
        ]
        lines += [f"locked: {lock}" for lock in dict.fromkeys(locks)]
        if kept is not None and before:
            lines.append(f"{kept} of {before} channels are left")
        boxes.append(
            {
                "x": round(x),
                "y": round(y),
                "op": short(node["op_type"], 18),
                "width": width,
                "cut": kept is not None,
                "locked": bool(locks),
                "hue": None if not own else 360 * (own[-1] * 5 % COLOURS) // COLOURS,
                "groups": " ".join(f"g{g}" for g in node["groups"]),
                "lines": lines,
            }
        )
    return {
        "boxes": boxes,
        "paths": [path for *_, path in layout.paths],
        "width": math.ceil(layout.width) + 40,
        "height": math.ceil(layout.height) + 10,
        "box": (WIDTH, HEIGHT),
        "total": drawing["total"],
        "groups": [
            {**g, "index": k, "hue": 360 * (k * 5 % COLOURS) // COLOURS}
            for k, g in enumerate(groups)
        ],
    }


def _layers(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Values by their distance from the original's, worst first."""
    known = [layer for layer in layers if layer["sqnr_db"] is not None]
    known.sort(key=lambda layer: layer["sqnr_db"])
    return [{**layer, "bar": 1 - min(max(layer["sqnr_db"], 0), 60) / 60} for layer in known]


def _limit(run: Mapping[str, Any]) -> str:
    """What a limit of what quantization may lose came to."""
    return limit_text(PassRun(**run["quantize"])) if "quantize" in run else ""


def _rounded(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Quantized operators with a drawing of their results' histogram, 64 by 16."""
    found = []
    for error in errors:
        counts = error["histogram"]
        most, width = max(counts, default=0) or 1, 64 / max(len(counts), 1)
        bars = [
            {"x": k * width, "width": width, "y": 16 * (1 - c / most), "height": 16 * c / most}
            for k, c in enumerate(counts)
            if c
        ]
        found.append({**error, "bars": bars})
    return found


def _histograms(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The worst operators' values as drawings of 240 by 80, heights logarithmic."""
    known = [error for error in errors if sum(error["histogram"]) and error["low"] is not None]
    found = []
    for error in known[:DRAWN]:
        counts = error["histogram"]
        most, width = math.log1p(max(counts)), 240 / len(counts)
        span = error["high"] - error["low"]
        step = error["step"]
        steps = round(span / step) if step and span else None
        bars = [
            {
                "x": k * width,
                "width": width,
                "y": 80 * (1 - math.log1p(c) / most),
                "height": 80 * math.log1p(c) / most,
            }
            for k, c in enumerate(counts)
            if c
        ]
        zero = None
        if span > 0 and error["low"] < 0 < error["high"]:
            zero = 240 * -error["low"] / span
        found.append({**error, "bars": bars, "steps": steps, "zero": zero})
    return found


def _operators(operators: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Time of operators, the longest first, as shares of all."""
    total = sum(o["microseconds"] for o in operators) or 1.0
    found = sorted(operators, key=lambda o: -o["microseconds"])
    return [
        {
            **o,
            "share": o["microseconds"] / total,
            "rate": o["macs"] / o["microseconds"] / 1e3
            if o["microseconds"] and o["macs"]
            else None,
        }
        for o in found
    ]


def _arena(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Buffers over time as rectangles in a drawing of 1000 by 300."""
    artifact = report.get("artifact") or {}
    blocks = (artifact.get("compiler") or {}).get("arena") or []
    if not blocks:
        return None
    calls = max(b["last"] for b in blocks) + 1
    size = max(b["offset"] + b["nbytes"] for b in blocks) or 1
    return {
        "calls": calls,
        "bytes": bytes_text(size),
        "blocks": [
            {
                "x": 1000 * b["first"] / calls,
                "width": 1000 * (b["last"] + 1 - b["first"]) / calls,
                "y": 300 - 300 * (b["offset"] + b["nbytes"]) / size,
                "height": 300 * b["nbytes"] / size,
                "hue": 47 * index % 360,
                "text": f"{bytes_text(b['nbytes'])} at {b['offset']:,}, "
                f"calls {b['first']} to {b['last']}",
            }
            for index, b in enumerate(blocks)
        ],
    }


def _refused(passes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What passes left alone, by reason."""
    found = []
    for run in passes:
        reasons = Counter(note["reason"] for note in run["notes"])
        for reason, count in reasons.most_common():
            nodes = [n for n in run["notes"] if n["reason"] == reason]
            found.append(
                {
                    "pass": run["text"].partition("{")[0],
                    "reason": reason,
                    "count": count,
                    "nodes": [_node_text(note) for note in nodes],
                }
            )
    return found


def _node_text(note: Mapping[str, str]) -> str:
    return f"{note['node']} ({note['op_type']})" if note["node"] else note["op_type"]
