"""Reports that lie in files: their pages, and two of them side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.fixed_inputs import FixedInputs
from ..ir.errors import SecateurError
from ..ir.files import read_regular
from ..ir.onnx_io import atomic_files
from ..reporting.html import data_page, inspection_page, report_page
from ..reporting.report import SCHEMA, MetricInfo

if TYPE_CHECKING:
    from ..checking.data_check import DataFindings
    from ..data.datasets import Dataset

MOST_BYTES = 1 << 28
"""Of a report.json."""


def read_report(path: Path) -> dict[str, Any]:
    """The content of a `report.json`, or of the one in a folder. Raises SecateurError."""
    path = path / "report.json" if path.is_dir() else path
    try:
        content = json.loads(read_regular(path, MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise SecateurError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise SecateurError(f"{path}: no report.json, or a damaged one") from None
    if not isinstance(content, dict) or "stages" not in content:
        raise SecateurError(f"{path}: no report.json, or a damaged one")
    if content.get("schema") != SCHEMA:
        raise SecateurError(
            f"{path}: has schema {str(content.get('schema'))[:20]}; this version reads {SCHEMA}"
        )
    return content


def write_page(folder: Path) -> Path:
    """The `report.html` of a folder, made of its `report.json` unless it is there and as new."""
    source, page = folder / "report.json", folder / "report.html"
    report = read_report(source)
    if page.is_file() and page.stat().st_mtime >= source.stat().st_mtime:
        return page
    try:
        text = report_page(report)
    except SecateurError as error:
        raise SecateurError(f"{source}: {error}") from None
    with atomic_files(page) as (file,):
        file.write_text(text, encoding="utf-8")
    return page


def write_inspection(path: Path, page: Path, fixed: FixedInputs | None = None) -> None:
    """What `inspect` finds in a model, as a page. Raises SecateurError."""
    from ..checking.drawing import draw
    from ..checking.inspection import inspect_file
    from ..checking.running import open_model

    facts = inspect_file(path, fixed)
    text = inspection_page({**facts, "drawing": draw(open_model(path, fixed))})
    with atomic_files(page) as (file,):
        file.write_text(text, encoding="utf-8")


def write_data_page(model: Path, findings: DataFindings, data: Dataset, page: Path) -> None:
    """What `data check` finds, as a page with a grid of pictures. Raises SecateurError."""
    from ..checking.thumbnails import thumbnails

    text = data_page(dataclasses.asdict(findings), str(model), thumbnails(data))
    with atomic_files(page) as (file,):
        file.write_text(text, encoding="utf-8")


def compare_reports(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The last stages of several runs, as rows: sizes, metrics, fidelity, latency.

    The artifact's stage has what the last model's has, where it has none of its own.
    Raises SecateurError.
    """
    return [_row(path, read_report(path)) for path in paths]


def _row(path: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    try:
        stages = report["stages"]
        models = [stage for stage in stages if stage["nodes"] is not None]
        first, last, end = models[0], models[-1], stages[-1]
        outputs = (end.get("fidelity") or {}).get("outputs", [])
        cosines = [o["cosine"] for o in outputs if o["cosine"] is not None]
        latency = end["latency"]
        return {
            "report": str(path),
            "stage": end["name"],
            "macs": last["macs"],
            "macs_share": last["macs"] / first["macs"] if first["macs"] else None,
            "parameters": last["parameters"],
            "file_bytes": last["file_bytes"],
            "metrics": dict(end.get("metrics") or {}),
            "metric_infos": [
                dataclasses.asdict(MetricInfo(**info)) for info in report.get("metrics") or []
            ],
            "cosine": min(cosines, default=None),
            "latency_ms": latency["median_ms"] if latency else None,
            "options": report["options"],
        }
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise SecateurError(f"{path}: a damaged report.json: {error!r:.100}") from None


def different_options(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Options that runs don't share, with the value of each."""
    names = dict.fromkeys(name for row in rows for name in row["options"])
    found = []
    for name in names:
        values = [json.dumps(row["options"].get(name)) for row in rows]
        if len(set(values)) > 1:
            found.append((name, values))
    return found
