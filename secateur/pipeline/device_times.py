"""Times of a model's nodes that were measured on devices, for budgets of latency."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checking.remote import MOST_BYTES, check_result
from ..ir.display import printable
from ..ir.errors import SecateurError
from ..ir.files import read_regular

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DeviceTimes:
    """Microseconds of a run, and of the kernels of each node by label.

    Of several devices the run is that of the slowest, and of a node's times, each as a share of its
    device's run, the mean counts.
    """

    whole: float
    nodes: Mapping[str, float]
    devices: tuple[str, ...]


def split_latency(budget: float | str) -> tuple[float | str, Path | None]:
    """A budget without the file that it names, as in `2ms@times.json`, and that file."""
    if not isinstance(budget, str):
        return budget, None
    amount, at, file = budget.partition("@")
    return amount, Path(file) if at else None


def read_times(path: Path) -> bytes:
    """The bytes of a file of times. Raises SecateurError."""
    try:
        return read_regular(path, MOST_BYTES)
    except OSError as error:
        raise SecateurError(f"{path}: {error.strerror or error}") from None


def read_device_times(path: Path, target: str) -> DeviceTimes:
    """What bench programs printed of a model for `target`: one's JSON, or what
    `secateur benchmark --remote --json` wrote of several devices.

    Raises SecateurError for other files, and where no device ran the target's code.
    """
    try:
        content = json.loads(read_times(path))
    except (ValueError, RecursionError):
        raise SecateurError(f"{path}: no JSON that a bench program printed") from None
    try:
        found = _results(content)
    except ValueError as error:
        raise SecateurError(f"{path}: no measurements of a bench program: {error}") from None
    other = sorted({str(result["target"]) for _, result in found if result["target"] != target})
    fitting = [(device, result) for device, result in found if result["target"] == target]
    if not fitting:
        known = ", ".join(map(printable, other)) or "nothing"
        raise SecateurError(f"{path}: measured for {known}, not for {target}")
    if other:
        log.info("%s: times for %s are left out", path, ", ".join(other))
    digests = {str(result["digest"]) for _, result in fitting}
    if len(digests) > 1:
        raise SecateurError(f"{path}: times of {len(digests)} models, not of one")
    return _together(fitting)


def _results(content: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Devices and what programs printed there. Raises ValueError."""
    runs = content if isinstance(content, list) else [{"device": "", "result": content}]
    found = []
    for run in runs:
        if not isinstance(run, dict):
            raise ValueError("a run is no object")
        device, result = str(run.get("device", "")), run.get("result")
        if result is None:
            log.info("%s: no result: %s", device, run.get("error", ""))
            continue
        check_result(result)
        _check_calls(result)
        found.append((device, result))
    return found


def _check_calls(result: Mapping[str, Any]) -> None:
    calls = result.get("calls")
    if not isinstance(calls, list) or not isinstance(result.get("digest"), str):
        raise ValueError("fields are missing")
    for call in calls:
        time = call.get("microseconds") if isinstance(call, dict) else None
        is_time = isinstance(time, (int, float)) and math.isfinite(time) and time >= 0
        if not is_time or not isinstance(call.get("operation"), str):
            raise ValueError("a call has no time or no node")
    if not result["latency_us"]["p50"] > 0 or not isinstance(result.get("target"), str):
        raise ValueError("fields are missing")


def _together(found: Sequence[tuple[str, Mapping[str, Any]]]) -> DeviceTimes:
    wholes = [float(result["latency_us"]["p50"]) for _, result in found]
    slowest = max(wholes)
    nodes: dict[str, float] = defaultdict(float)
    for whole, (_, result) in zip(wholes, found, strict=True):
        for call in result["calls"]:
            nodes[call["operation"]] += call["microseconds"] * slowest / whole / len(found)
    return DeviceTimes(slowest, dict(nodes), tuple(device for device, _ in found))
