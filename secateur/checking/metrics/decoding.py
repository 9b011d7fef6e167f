"""What detectors of usual families put out, as boxes, scores and classes.

Ultralytics, "YOLOv5" to "YOLO11"; Liu et al., "SSD: Single Shot MultiBox Detector", 2016.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from ...ir.errors import SecateurError
from ...ir.tensor import Array

LEAST_SCORE = 0.001
MOST_BOXES = 300
"""Of a picture, after suppression."""

MOST_CANDIDATES = 30_000
"""Before it, those of the highest scores."""

OVERLAP = 0.7
"""Intersection over union above which the box of the lower score goes."""


@dataclasses.dataclass(frozen=True)
class Detections:
    """Boxes [n, 4] of corners x, y, x, y in the input's pixels, scores [n] and classes [n]."""

    boxes: Array
    scores: Array
    classes: Array

    @classmethod
    def of(cls, boxes: Array, scores: Array, classes: Array) -> Detections:
        """The same in double precision, without what isn't finite or has no size."""
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        scores = np.asarray(scores, np.float64).reshape(-1)
        classes = np.asarray(classes).reshape(-1).astype(np.int64)
        if not len(boxes) == len(scores) == len(classes):
            raise SecateurError(
                f"metric map: {len(boxes)} boxes, {len(scores)} scores, {len(classes)} classes"
            )
        kept = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
        return cls(boxes[kept], scores[kept], classes[kept])


Decoder = Callable[[Mapping[str, Array], int, tuple[int, int]], list[Detections]]
"""Of a run's outputs, the number of classes, and the input's height and width: for each sample."""


def decode_yolov8(output: Array, size: tuple[int, int]) -> list[Detections]:
    """[samples, 4 + classes, boxes]: middles, sizes and scores of classes."""
    found = []
    for sample in np.asarray(output, np.float64):
        found.append(_scored(_corners(sample[:4].T), sample[4:].T))
    return found


def decode_yolov5(output: Array, size: tuple[int, int]) -> list[Detections]:
    """[samples, boxes, 5 + classes]: middles, sizes, whether there is something, and what."""
    found = []
    for sample in np.asarray(output, np.float64):
        found.append(_scored(_corners(sample[:, :4]), sample[:, 5:] * sample[:, 4:5]))
    return found


def decode_rows(output: Array, size: tuple[int, int]) -> list[Detections]:
    """[samples, boxes, 6]: corners, score and class of what was suppressed already (YOLOv10)."""
    found = []
    for sample in np.asarray(output, np.float64):
        kept = sample[sample[:, 4] > LEAST_SCORE]
        found.append(Detections.of(kept[:, :4], kept[:, 4], kept[:, 5]))
    return found


def decode_ssd(
    boxes: Array, scores: Array, size: tuple[int, int], classes: int
) -> list[Detections]:
    """Boxes [samples, n, 4] of corners and scores [samples, n, classes], perhaps with one more
    class in front, the background."""
    found = []
    for rows, columns in zip(np.asarray(boxes), np.asarray(scores), strict=True):
        columns = columns[:, 1:] if columns.shape[1] == classes + 1 else columns
        found.append(_scored(pixels(rows, size), np.asarray(columns, np.float64)))
    return found


def pixels(boxes: Array, size: tuple[int, int]) -> Array:
    """Corners in pixels, of what may be shares of the width and height: none is above 2 then."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if boxes.size and np.abs(boxes).max() <= 2:
        return boxes * ([size[1], size[0]] * 2)
    return boxes


def _corners(middles: Array) -> Array:
    half = middles[:, 2:] / 2
    return np.concatenate([middles[:, :2] - half, middles[:, :2] + half], axis=1)


def _scored(boxes: Array, scores: Array) -> Detections:
    """Every class of every box above the least score, suppressed class by class."""
    rows, columns = np.nonzero(scores > LEAST_SCORE)
    values = scores[rows, columns]
    order = np.argsort(-values, kind="stable")[:MOST_CANDIDATES]
    found = Detections.of(boxes[rows[order]], values[order], columns[order])
    kept = suppressed(found.boxes, found.classes)
    return Detections(found.boxes[kept], found.scores[kept], found.classes[kept])


def suppressed(boxes: Array, classes: Array) -> Array:
    """Indices of boxes, in order of their scores, that none before them of their class covers."""
    left = np.arange(len(boxes))
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    kept: list[int] = []
    while left.size and len(kept) < MOST_BOXES:
        first, left = left[0], left[1:]
        kept.append(int(first))
        low = np.maximum(boxes[first, :2], boxes[left, :2])
        high = np.minimum(boxes[first, 2:], boxes[left, 2:])
        inside = np.prod(np.maximum(high - low, 0), axis=1)
        union = areas[first] + areas[left] - inside
        covered = (inside > OVERLAP * union) & (classes[left] == classes[first])
        left = left[~covered]
    return np.array(kept, np.int64)


DECODERS = ("auto", "yolov8", "yolov5", "rows", "ssd", "detections")


def decoder(name: str) -> Decoder:
    """A decoder of `DECODERS`; `auto` tells by names and shapes of the outputs.

    Decoders raise SecateurError where outputs aren't what they read.
    """

    def decode(
        outputs: Mapping[str, Array], classes: int, size: tuple[int, int]
    ) -> list[Detections]:
        chosen = recognized(outputs, classes) if name == "auto" else name
        arrays = list(outputs.values())
        if chosen in ("yolov8", "yolov5", "rows"):
            single = next((a for a in arrays if a.ndim == 3 and a.dtype.kind == "f"), None)
            if single is None:
                raise SecateurError(f"metric map: decoder {chosen} wants an output of three axes")
            fewest = {"yolov8": single.shape[1] - 4, "yolov5": single.shape[2] - 5}
            wanted = fewest.get(chosen, 1)
            if wanted < 1 or (chosen == "rows" and single.shape[2] != 6):
                raise SecateurError(
                    f"metric map: an output of shape {list(single.shape)} is none for the decoder "
                    f"{chosen}"
                )
            by_name = {"yolov8": decode_yolov8, "yolov5": decode_yolov5, "rows": decode_rows}
            return by_name[chosen](single, size)
        if chosen == "ssd":
            boxes, scores = _pair(outputs)
            return decode_ssd(boxes, scores, size, classes)
        return _lists(outputs, classes, size)

    return decode


def recognized(outputs: Mapping[str, Array], classes: int) -> str:
    """The decoder for outputs of these names and shapes. Raises SecateurError."""
    shapes = [array.shape for array in outputs.values()]
    threes = [shape for shape in shapes if len(shape) == 3]
    if len(threes) == 1 and len(shapes) == 1:
        _, rows, columns = threes[0]
        if rows == 4 + classes and columns != 5 + classes:
            return "yolov8"
        if columns == 6 and (classes != 1 or rows <= MOST_BOXES):
            return "rows"
        if columns == 5 + classes:
            return "yolov5"
    if _has_lists(outputs):
        return "detections"
    if len(threes) == 2 == len(shapes) and 4 in (threes[0][2], threes[1][2]):
        return "ssd"
    text = ", ".join(f"'{name}' {list(array.shape)}" for name, array in outputs.items())
    raise SecateurError(
        f"metric map: outputs {text[:300]} are none of a known detector of {classes} classes; say "
        f"map{{decoder=...}}: {', '.join(DECODERS[1:])}, or module:function"
    )


def _pair(outputs: Mapping[str, Array]) -> tuple[Array, Array]:
    """Boxes and scores, told apart by their last axis and, where both have 4, by names."""
    threes = [(name, array) for name, array in outputs.items() if array.ndim == 3]
    boxes = [(n, a) for n, a in threes if a.shape[2] == 4]
    if len(boxes) == 2:
        boxes = [(n, a) for n, a in boxes if "box" in n.lower()] or boxes[:1]
    scores = [(n, a) for n, a in threes if boxes and n != boxes[0][0]]
    if len(boxes) != 1 or len(scores) != 1 or boxes[0][1].shape[1] != scores[0][1].shape[1]:
        raise SecateurError("metric map: decoder ssd wants boxes [n, m, 4] and scores [n, m, k]")
    return boxes[0][1], scores[0][1]


def _has_lists(outputs: Mapping[str, Array]) -> bool:
    try:
        _named_lists(outputs)
    except SecateurError:
        return False
    return True


def _named_lists(outputs: Mapping[str, Array]) -> tuple[Array, Array, Array, Array | None]:
    """Boxes [n, m, 4], scores and classes [n, m], perhaps how many count [n], by their names."""

    def named(*words: str) -> Array | None:
        names = [name for name in outputs if any(word in name.lower() for word in words)]
        return outputs[names[0]] if len(names) == 1 else None

    boxes, scores = named("box"), named("score", "conf")
    classes, count = named("class", "label"), named("num")
    if boxes is None or scores is None or classes is None or boxes.shape[-1] != 4:
        raise SecateurError(
            "metric map: decoder detections wants outputs whose names have box, score and class "
            "or label in them"
        )
    if boxes.ndim == 2:
        boxes, scores, classes = boxes[None], scores[None], classes[None]
    if scores.shape != boxes.shape[:2] or classes.shape != boxes.shape[:2]:
        raise SecateurError("metric map: there is not one score and class for each box")
    return boxes, scores, classes, count


def _lists(outputs: Mapping[str, Array], classes: int, size: tuple[int, int]) -> list[Detections]:
    """Of what was suppressed already. TensorFlow's boxes are y, x, y, x and its classes begin at
    1; so do classes of others where there is one more than labels know."""
    boxes, scores, kinds, count = _named_lists(outputs)
    tensorflow = any(name.startswith("detection_boxes") for name in outputs)
    found = []
    for sample in range(len(boxes)):
        number = boxes.shape[1] if count is None else int(np.asarray(count).reshape(-1)[sample])
        rows = boxes[sample, :number].astype(np.float64)
        rows = rows[:, [1, 0, 3, 2]] if tensorflow else rows
        some = kinds[sample, :number].astype(np.int64)
        found.append(
            Detections.of(pixels(rows, size), scores[sample, :number], some - int(tensorflow))
        )
    return found
