"""Mean average precision as COCO counts it, with the results of pycocotools.

Lin et al., "Microsoft COCO: Common Objects in Context", 2014; pycocotools' COCOeval: thresholds
0.5 to 0.95, 101 recalls, at most 100 boxes a picture, all areas.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.datasets import Dataset
from ...data.labels import Boxes
from ...ir.errors import SecateurError
from ...ir.plugins import imported
from ...ir.tensor import Array
from .base import Metric, metric
from .decoding import DECODERS, Decoder, Detections, decoder

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100
"""Boxes of a picture and class that count, those of the highest scores."""


@dataclasses.dataclass
class _Matches:
    """Of one class: scores of boxes, whether each is right at each threshold [thresholds, n],
    whether it doesn't count, and how many objects there are."""

    scores: list[Array] = dataclasses.field(default_factory=list)
    right: list[Array] = dataclasses.field(default_factory=list)
    ignored: list[Array] = dataclasses.field(default_factory=list)
    objects: int = 0


class AveragePrecision:
    """Hears of pictures, and tells the mean over classes and thresholds."""

    def __init__(self, thresholds: Array = THRESHOLDS) -> None:
        self.thresholds = thresholds
        self._classes: dict[int, _Matches] = defaultdict(_Matches)

    def add(self, found: Detections, labels: Boxes) -> None:
        """Boxes found in a picture and those that are there, in the same coordinates."""
        for kind in {*found.classes.tolist(), *labels.classes.tolist()}:
            have, want = found.classes == kind, labels.classes == kind
            order = np.argsort(-found.scores[have], kind="mergesort")[:MOST]
            boxes, scores = found.boxes[have][order], found.scores[have][order]
            crowd = labels.crowd[want]
            last = np.argsort(crowd, kind="mergesort")  # crowds come last
            crowd = crowd[last]
            overlaps = overlap(boxes, labels.boxes[want][last], crowd)
            right, ignored = match(overlaps, crowd, self.thresholds)
            matches = self._classes[kind]
            matches.scores.append(scores)
            matches.right.append(right)
            matches.ignored.append(ignored)
            matches.objects += int(np.count_nonzero(~crowd))

    def result(self) -> float:
        """NaN where there are no objects."""
        found = [self._precision(m) for m in self._classes.values() if m.objects]
        return float(np.mean(found)) if found else float("nan")

    def _precision(self, matches: _Matches) -> float:
        order = np.argsort(-np.concatenate(matches.scores), kind="mergesort")
        right = np.concatenate(matches.right, axis=1)[:, order]
        counted = ~np.concatenate(matches.ignored, axis=1)[:, order]
        means = []
        for hits, counts in zip(right & counted, counted, strict=True):
            true, false = np.cumsum(hits, dtype=float), np.cumsum(~hits & counts, dtype=float)
            recall = true / matches.objects
            precision = true / (true + false + np.spacing(1))
            precision = np.maximum.accumulate(precision[::-1])[::-1]
            at = np.searchsorted(recall, RECALLS, side="left")
            within = at < len(precision)
            values = np.zeros(len(RECALLS))
            values[within] = precision[at[within]]
            means.append(values.mean())
        return float(np.mean(means))


def overlap(boxes: Array, others: Array, crowd: Array) -> Array:
    """Intersection over union [boxes, others], over the box's area alone with a crowd."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    inside = np.prod(np.maximum(high - low, 0), axis=2)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    union = areas[:, None] + np.prod(others[:, 2:] - others[:, :2], axis=1) - inside
    union = np.where(crowd[None, :], areas[:, None], union)
    found: Array = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    return found


def match(overlaps: Array, crowd: Array, thresholds: Array) -> tuple[Array, Array]:
    """Whether boxes, by falling score, meet an object, and whether that is a crowd, for each
    threshold. An object is met once, a crowd often."""
    count, objects = overlaps.shape
    right = np.zeros((len(thresholds), count), bool)
    ignored = np.zeros((len(thresholds), count), bool)
    for t, threshold in enumerate(thresholds):
        taken = np.zeros(objects, bool)
        for box in range(count):
            best, at = min(threshold, 1 - 1e-10), -1
            for candidate in range(objects):
                if taken[candidate] and not crowd[candidate]:
                    continue
                if at > -1 and not crowd[at] and crowd[candidate]:
                    break
                if overlaps[box, candidate] >= best:
                    best, at = overlaps[box, candidate], candidate
            if at > -1:
                taken[at] = True
                right[t, box], ignored[t, box] = True, crowd[at]
    return right, ignored


class _OfDetections(Metric):
    """Boxes found by a model's outputs, as a decoder reads them.

    `decoder`: `auto`, yolov8, yolov5, rows, ssd, detections, or `module:function`, which gets a
    run's outputs by name and the input's (height, width), and returns for each sample boxes
    [n, 4] of corners in the input's pixels, scores [n] and classes [n].
    """

    decoder: str = "auto"
    classes: int = 0
    """How many classes there are; by default as many as the labels know."""
    thresholds = THRESHOLDS

    def begin(self, data: Dataset) -> None:
        labels = data.labels
        assert labels is not None
        kinds = {int(k) for label in labels for k in label.classes}
        self._count = self.classes or len(data.classes) or max(kinds, default=0) + 1
        if kinds and not 0 <= min(kinds) <= max(kinds) < self._count:
            raise self.fail(
                f"labels reach from {min(kinds)} to {max(kinds)} of {self._count} classes"
            )
        self._size = picture_size(data)
        self._precision = AveragePrecision(self.thresholds)
        self._decode = self._decoder()

    def update(self, outputs: Mapping[str, Array], labels: Sequence[Any], rows: int) -> None:
        found = self._decode(outputs, self._count, self._size)
        if len(found) < len(labels):
            raise self.fail(f"boxes of {len(found)} samples, of {len(labels)}")
        for detections, label in zip(found, labels, strict=False):
            placing = label.placing
            if placing is not None:
                boxes = placing.to_picture(detections.boxes)
                detections = dataclasses.replace(detections, boxes=boxes)
            self._precision.add(detections, label)

    def result(self) -> float:
        return self._precision.result()

    def _decoder(self) -> Decoder:
        if ":" not in self.decoder:
            if self.decoder not in DECODERS:
                raise self.fail(
                    f"decoder '{self.decoder}' is unknown; there are {', '.join(DECODERS)}, "
                    "and module:function"
                )
            return decoder(self.decoder)
        function = imported(self.decoder, "decoder")

        def decode(
            outputs: Mapping[str, Array], classes: int, size: tuple[int, int]
        ) -> list[Detections]:
            try:
                return [Detections.of(*sample) for sample in function(dict(outputs), size)]
            except SecateurError:
                raise
            except Exception as error:  # whatever the user's code raises
                text = " ".join(f"{type(error).__name__}: {error}".split())
                raise self.fail(f"decoder '{self.decoder}': {text[:200]}") from error

        return decode


def picture_size(data: Dataset) -> tuple[int, int]:
    """Height and width of the model's input. Raises SecateurError where it is no picture."""
    if data.pictures is not None:
        return data.pictures.input.size
    for array in data.samples.arrays.values():
        if array.ndim == 4:
            sizes = array.shape[1:]
            return (sizes[0], sizes[1]) if sizes[2] in (1, 3) else (sizes[1], sizes[2])
    raise SecateurError("metric map: no input is a picture")


@metric("map", "boxes")
class MeanAveragePrecision(_OfDetections):
    """COCO's mAP, over IoU 0.5 to 0.95."""

    decoder: str = "auto"
    classes: int = 0


@metric("map50", "boxes")
class MeanAveragePrecision50(_OfDetections):
    """Mean average precision at IoU 0.5."""

    decoder: str = "auto"
    classes: int = 0
    thresholds = THRESHOLDS[:1]
