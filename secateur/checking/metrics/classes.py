"""Metrics of classifiers: top-1, top-5, F1, area under the ROC curve; mean IoU of segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.datasets import Dataset
from ...ir.errors import SecateurError
from ...ir.tensor import Array
from .base import Metric, metric


class _OfScores(Metric):
    """Scores of classes [rows, classes], and a class for each row."""

    def begin(self, data: Dataset) -> None:
        labels = np.asarray(data.labels)
        self._lowest, self._highest = int(labels.min()), int(labels.max())
        self._samples = 0

    def update(self, outputs: Mapping[str, Array], labels: Sequence[Any], rows: int) -> None:
        name, scores = self.chosen(outputs)
        if scores.ndim < 2 or len(scores) != rows or scores.dtype.kind not in "fiu":
            raise SecateurError(
                f"evaluation: output '{name}', {scores.dtype} of shape {list(scores.shape)}, "
                f"does not score classes for {rows} samples"
            )
        scores = scores.reshape(rows, -1)
        if self._lowest < 0 or self._highest >= max(scores.shape[1], self._fewest(scores)):
            raise SecateurError(
                f"evaluation: labels reach from {self._lowest} to {self._highest}, "
                f"the model scores {scores.shape[1]} classes"
            )
        self.add(scores[: len(labels)], np.asarray(labels, np.int64))
        self._samples += len(labels)

    def _fewest(self, scores: Array) -> int:
        """Classes that scores tell apart, though there may be fewer columns."""
        return int(scores.shape[1])

    def add(self, scores: Array, labels: Array) -> None:
        raise NotImplementedError


def _found(scores: Array, threshold: float) -> Array:
    """The class of each row; one column is the score of class 1, which is found above a
    threshold."""
    if scores.shape[1] == 1:
        return (scores[:, 0] > threshold).astype(np.int64)
    return np.asarray(scores.argmax(axis=1))


@metric("top1", "class")
class Top1(_OfScores):
    """The share of samples whose class scores highest.

    One column is a score of class 1, found above `threshold`.
    """

    threshold: float = 0.5

    def begin(self, data: Dataset) -> None:
        super().begin(data)
        self._hits = 0

    def _fewest(self, scores: Array) -> int:
        return 2

    def add(self, scores: Array, labels: Array) -> None:
        self._hits += int(np.count_nonzero(_found(scores, self.threshold) == labels))

    def result(self) -> float:
        return self._hits / self._samples


@metric("top5", "class")
class Top5(_OfScores):
    """The share of samples whose class is among the five highest scores."""

    def begin(self, data: Dataset) -> None:
        super().begin(data)
        self._hits = 0

    def add(self, scores: Array, labels: Array) -> None:
        highest = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        self._hits += int(np.count_nonzero((highest == labels[:, None]).any(axis=1)))

    def result(self) -> float:
        return self._hits / self._samples


@metric("f1", "class")
class F1(_OfScores):
    """The mean over classes of the harmonic mean of precision and recall (macro F1).

    Classes that neither labels nor predictions have don't count. One column is a score of class
    1, predicted above `threshold`.
    """

    threshold: float = 0.5

    def begin(self, data: Dataset) -> None:
        super().begin(data)
        self._counts = np.zeros((0, 0), np.int64)

    def _fewest(self, scores: Array) -> int:
        return 2

    def add(self, scores: Array, labels: Array) -> None:
        found = _found(scores, self.threshold)
        if not self._counts.size:
            self._counts = np.zeros((max(2, scores.shape[1]),) * 2, np.int64)
        np.add.at(self._counts, (labels, found), 1)

    def result(self) -> float:
        hits = np.diagonal(self._counts)
        together = self._counts.sum(0) + self._counts.sum(1)
        return float(np.mean(2 * hits[together > 0] / together[together > 0]))


@metric("auc", "class")
class Auc(_OfScores):
    """The area under the ROC curve, of one class against the rest, the mean over classes.

    Of two classes, or one column, that of class 1. Classes that all samples have, or none, don't
    count.
    """

    def begin(self, data: Dataset) -> None:
        super().begin(data)
        self._scores: list[Array] = []
        self._labels: list[Array] = []

    def _fewest(self, scores: Array) -> int:
        return 2

    def add(self, scores: Array, labels: Array) -> None:
        self._scores.append(scores.astype(np.float64))
        self._labels.append(labels)

    def result(self) -> float:
        scores, labels = np.concatenate(self._scores), np.concatenate(self._labels)
        columns = scores.shape[1]
        if columns <= 2:
            one = scores[:, -1] - (scores[:, 0] if columns == 2 else 0)
            return area_under_curve(one, labels == 1)
        areas = [area_under_curve(scores[:, k], labels == k) for k in range(columns)]
        known = [area for area in areas if not np.isnan(area)]
        return float(np.mean(known)) if known else float("nan")


def area_under_curve(scores: Array, positive: Array) -> float:
    """By ranks (Mann and Whitney), in which equal scores share theirs; NaN without both kinds."""
    hits = int(np.count_nonzero(positive))
    misses = len(positive) - hits
    if not hits or not misses:
        return float("nan")
    values, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[index]
    assert len(values) == len(counts)
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


IGNORED = 255
"""Pixels of a mask that don't count."""


@metric("miou", "mask")
class MeanIou(Metric):
    """The mean over classes of intersection over union, over all pixels but those of 255.

    The output scores classes [rows, classes, height, width] or [rows, height, width, classes],
    or has class indices [rows, height, width]. One class that is scored is class 1, found above
    `threshold`. Classes in neither masks nor results don't count.
    """

    threshold: float = 0.5

    def begin(self, data: Dataset) -> None:
        self._counts = np.zeros((IGNORED, IGNORED), np.int64)

    def update(self, outputs: Mapping[str, Array], labels: Sequence[Any], rows: int) -> None:
        name, output = self.chosen(outputs)
        for row, label in enumerate(labels):
            mask = np.asarray(label)
            found = self._classes(name, output, mask.shape[-2:], rows)[row]
            mask = mask.reshape(found.shape)
            counted = mask != IGNORED
            if not ((found >= 0) & (found < IGNORED)).all() or (mask < 0).any():
                raise self.fail(f"classes lie between 0 and {IGNORED - 1}")
            np.add.at(self._counts, (mask[counted].astype(int), found[counted].astype(int)), 1)

    def result(self) -> float:
        hits = np.diagonal(self._counts)
        union = self._counts.sum(0) + self._counts.sum(1) - hits
        known = union > 0
        return float(np.mean(hits[known] / union[known])) if known.any() else float("nan")

    def _classes(self, name: str, output: Array, size: tuple[int, ...], rows: int) -> Array:
        shape = output.shape
        if output.dtype.kind in "iu" and shape == (rows, *size):
            return output
        if output.ndim == 4 and shape[0] == rows and output.dtype.kind in "iu" and 1 in shape[1:]:
            return output.reshape(rows, *size)
        if output.dtype.kind == "f" and shape in ((rows, 1, *size), (rows, *size, 1)):
            return (output > self.threshold).astype(np.int64).reshape(rows, *size)
        if output.ndim == 4 and shape[0] == rows and shape[2:] == size:
            return np.asarray(output.argmax(axis=1))
        if output.ndim == 4 and shape[0] == rows and shape[1:3] == size:
            return np.asarray(output.argmax(axis=3))
        raise self.fail(
            f"output '{name}' of shape {list(shape)} gives no classes for masks of {list(size)}"
        )
