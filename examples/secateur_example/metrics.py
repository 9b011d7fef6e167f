"""A metric: how many samples of the class that fares worst are recognized."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.checking.metrics.base import Metric, metric
from secateur.data.datasets import Dataset


@metric("worst-class", "class")
class WorstClass(Metric):
    """The least share of any class's samples whose class has the highest score."""

    def begin(self, data: Dataset) -> None:
        self.hits: dict[int, list[bool]] = {}

    def update(self, outputs: Mapping[str, Any], labels: Sequence[Any], rows: int) -> None:
        _, scores = self.chosen(outputs)
        for label, best in zip(labels, scores.argmax(axis=-1), strict=False):
            self.hits.setdefault(int(label), []).append(bool(best == label))

    def result(self) -> float:
        return min((float(np.mean(hits)) for hits in self.hits.values()), default=float("nan"))
