"""Finding metrics by their text: `top5`, `map{decoder=yolov8}`, or a function of the user's."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ...data.datasets import Dataset
from ...ir.errors import SecateurError
from ...ir.plugins import imported, plugins
from ...ir.tensor import Array
from . import classes, detection, texts, values
from .base import METRICS, Metric

_ALL = (classes, detection, texts, values)
"""Modules that enter metrics."""

USUAL = {"class": "top1", "boxes": "map"}
"""What is measured where nothing is asked for, by the kind of labels."""

_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float}

_TEXT = re.compile(r"([\w.-]+(?::[\w.]+)?)\s*(?:\{(.*)\})?")


def make_metrics(texts: Sequence[str], data: Dataset) -> list[Metric]:
    """The metrics of these texts, or the usual one, that have heard of the samples.

    Raises SecateurError for unknown ones, and for labels that are not for them.
    """
    if data.labels is None:
        return []
    if not texts:
        texts = [USUAL[data.kind]] if data.kind in USUAL else []
    found = [parse_metric(text) for text in texts]
    for made in found:
        made.begin(data)
    return found


def kind_of_labels(texts: Sequence[str]) -> str | None:
    """What labels have to be for metrics, None where any will do. Raises SecateurError."""
    kinds = {made.kind: text for text in texts if (made := parse_metric(text)).kind}
    if len(kinds) > 1:
        (first, one), (second, other) = list(kinds.items())[:2]
        raise SecateurError(
            f"metric {one} is of labels of the kind {first}, {other} of the kind {second}: "
            "measure them in runs of their own"
        )
    return next(iter(kinds), None)


def parse_metric(text: str) -> Metric:
    """The metric that a text names, with its options. Raises SecateurError."""
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise SecateurError(f"metric '{text}': written as top5 or map{{decoder=yolov8}}")
    plugins("metrics", ModuleType)  # modules that enter what they bring
    name, options = match.group(1), match.group(2)
    kind = _UserMetric if ":" in name else METRICS.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, METRICS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SecateurError(
            f"metric '{name}' is unknown; {hint}there are {', '.join(METRICS)}, and module:function"
        )
    settings: dict[str, Any] = {"function": name} if kind is _UserMetric else {}
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "function"}
    for part in filter(None, map(str.strip, (options or "").split(","))):
        key, _, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if key not in fields:
            raise SecateurError(
                f"metric {name}: option '{key}' is unknown; there are {', '.join(fields)}"
            )
        try:
            settings[key] = _TYPES[str(fields[key].type)](value.strip())
        except ValueError:
            raise SecateurError(f"metric {name}: {key}: '{value}' can't be read") from None
    return kind(**settings)


@dataclasses.dataclass
class _UserMetric(Metric):
    """A function of one sample's outputs by name and its label, of which the mean counts; or a
    class, whose objects have `update(outputs, labels)`, called once a run, and `result()`."""

    function: str = ""
    name = "metric"
    kind = ""
    unit = ""

    def begin(self, data: Dataset) -> None:
        found = imported(self.function, "metric")
        self.name = self.function  # type: ignore[misc]
        self._object = self._call(found) if isinstance(found, type) else None
        self._function = found
        self._values: list[float] = []

    def update(self, outputs: Mapping[str, Array], labels: Sequence[Any], rows: int) -> None:
        if self._object is not None:
            self._call(self._object.update, dict(outputs), labels)
            return
        for row, label in enumerate(labels):
            one = {
                name: array[row : row + 1] if array.shape[:1] == (rows,) else array
                for name, array in outputs.items()
            }
            self._values.append(self._number(self._call(self._function, one, label)))

    def result(self) -> float:
        if self._object is not None:
            return self._number(self._call(self._object.result))
        return float(np.mean(self._values)) if self._values else float("nan")

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:  # whatever the user's code raises
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise SecateurError(f"metric '{self.function}' failed: {text[:200]}") from error

    def _number(self, value: Any) -> float:
        try:
            if isinstance(value, str):
                raise TypeError
            return float(value)
        except (TypeError, ValueError):
            raise SecateurError(
                f"metric '{self.function}' returned {type(value).__name__}, no number"
            ) from None
