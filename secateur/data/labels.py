"""What samples are labelled with: from folders' names, CSV and JSON files.

Kinds of labels: `class` (an index), `boxes` (objects in a picture), `mask` (a picture of class
indices), `image` (a picture), `text`, `number`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar, overload

import numpy as np

from ..ir.files import read_regular
from ..ir.tensor import Array
from .folders import FileError, SampleFolder
from .npz import DataError
from .preprocessing import Placing

KINDS = ("class", "boxes", "mask", "image", "text", "number")

TABLES = ("labels.csv", "labels.json", "annotations.json")
"""Files of a folder that hold its labels; the last one as COCO's."""

CLASSES = "classes.txt"
"""Names of the classes, one a line, in the model's order."""

MOST_BYTES = 1 << 28
"""Of a file of labels."""

_FILE = ("file", "filename", "file_name", "image", "path", "name")
_LABEL = ("label", "class", "target", "category", "text", "value", "mask")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Boxes:
    """What is seen in a picture: `boxes` [n, 4] of corners x, y, x, y in its pixels, class
    indices [n], whether each is a `crowd` [n] (COCO), and `areas` [n].

    `placing` says where the picture lies in the model's input, None where boxes are given in
    the input's pixels.
    """

    boxes: Array
    classes: Array
    crowd: Array
    areas: Array
    placing: Placing | None = None

    @classmethod
    def of_rows(cls, rows: Array) -> Boxes:
        """Of rows [n, 5] of class, x, y, x, y in the input's pixels; those of class -1 are none."""
        rows = np.asarray(rows, np.float64)
        rows = rows[rows[:, 0] >= 0]
        boxes = rows[:, 1:]
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return cls(boxes, rows[:, 0].astype(np.int64), np.zeros(len(rows), bool), areas)


class LazyLabels(Sequence[T]):
    """Labels that are made when they are asked for."""

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, key: int) -> T: ...

    @overload
    def __getitem__(self, key: slice) -> Sequence[T]: ...

    def __getitem__(self, key: int | slice) -> T | Sequence[T]:
        if isinstance(key, slice):
            return [self._make(index) for index in range(*key.indices(self._count))]
        if not 0 <= key < self._count:
            raise IndexError(key)
        return self._make(key)


@dataclasses.dataclass(frozen=True)
class Table:
    """What a folder says of its samples: their names, and a label for each as it is written.

    `kind` is `boxes` where labels are lists of annotations as in COCO, `class` where folders'
    names are labels, else empty: the metric knows. `classes` are the names in order.
    """

    names: list[str]
    labels: list[Any]
    kind: str = ""
    classes: tuple[str, ...] = ()


def read_table(folder: SampleFolder, names: Sequence[str]) -> Table | None:
    """The labels of those files of a folder that hold samples; None where there are none.

    A table that leaves files out leaves them out of the samples. Raises DataError.
    """
    given = [name for name in TABLES if name in folder.files]
    if len(given) > 1:
        raise DataError(f"has {' and '.join(given)}; one of them is enough")
    if given:
        text = _text(folder, given[0])
        known = {name: name for name in names}
        if given[0].endswith(".csv"):
            pairs = _of_csv(given[0], text)
            return _matched(given[0], pairs, known, _classes(folder))
        content = _json(given[0], text)
        if isinstance(content, dict) and "annotations" in content and "images" in content:
            return _of_coco(given[0], content, known)
        return _matched(given[0], _of_json(given[0], content), known, _classes(folder))
    if all("/" in name for name in names) and names:
        return _of_folders(names, _classes(folder))
    return None


def _of_folders(names: Sequence[str], classes: tuple[str, ...]) -> Table:
    """Folders in the samples' folder are classes; numbers are indices."""
    found = sorted({name.partition("/")[0] for name in names})
    if not classes and all(re.fullmatch(r"\d{1,9}", name) for name in found):
        return Table(list(names), [int(name.partition("/")[0]) for name in names], "class")
    classes = classes or tuple(found)
    index = {name: k for k, name in enumerate(classes)}
    for name in found:
        if name not in index:
            raise DataError(f"folder '{name}' is no class of {CLASSES}")
    return Table(list(names), [index[n.partition("/")[0]] for n in names], "class", classes)


def _matched(
    file: str, pairs: Sequence[tuple[str, Any]], known: dict[str, str], classes: tuple[str, ...]
) -> Table:
    names, labels = [], []
    for name, label in pairs:
        clean = str(PurePosixPath(name))
        if clean not in known:
            raise DataError(f"{file}: '{name[:200]}' is no sample of the folder")
        names.append(clean)
        labels.append(label)
    if not names:
        raise DataError(f"{file}: has no labels")
    if len(set(names)) < len(names):
        raise DataError(f"{file}: '{_twice(names)}' is there twice")
    return Table(names, labels, "", classes)


def _of_csv(file: str, text: str) -> list[tuple[str, Any]]:
    """Rows of file and label; a first row may name the columns."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except csv.Error as error:
        raise DataError(f"{file}: {error}") from None
    if not rows:
        return []
    first = [cell.strip().lower() for cell in rows[0]]
    name = next((first.index(key) for key in _FILE if key in first), None)
    label = next((first.index(key) for key in _LABEL if key in first), None)
    if name is not None and label is None and len(first) == 2:
        label = 1 - name
    if name is not None and label is not None and name != label:
        rows = rows[1:]
    else:
        name, label = 0, 1
    for number, row in enumerate(rows, 1):
        if len(row) <= max(name, label):
            raise DataError(f"{file}: row {number} has {len(row)} cells, no file and label")
    return [(row[name].strip(), row[label].strip()) for row in rows]


def _of_json(file: str, content: Any) -> list[tuple[str, Any]]:
    """An object of labels by files, or a list of objects with both."""
    if isinstance(content, dict):
        return [(str(name), label) for name, label in content.items()]
    if isinstance(content, list) and all(isinstance(entry, dict) for entry in content):
        pairs = []
        for number, entry in enumerate(content, 1):
            name = next((entry[key] for key in _FILE if key in entry), None)
            label = next((entry[key] for key in _LABEL if key in entry), None)
            if not isinstance(name, str) or label is None:
                raise DataError(f"{file}: entry {number} has no file and label")
            pairs.append((name, label))
        return pairs
    raise DataError(f"{file}: neither labels by file, nor a list of them, nor COCO's annotations")


def _of_coco(file: str, content: dict[str, Any], known: dict[str, str]) -> Table:
    """Classes are the categories in the order of their ids."""
    try:
        categories = sorted(content.get("categories", []), key=lambda c: int(c["id"]))
        index = {int(c["id"]): k for k, c in enumerate(categories)}
        classes = tuple(str(c.get("name", c["id"])) for c in categories)
        images = {int(i["id"]): str(i["file_name"]) for i in content["images"]}
        found: dict[int, list[dict[str, Any]]] = {number: [] for number in images}
        for number, entry in enumerate(content["annotations"], 1):
            box = [float(x) for x in entry["bbox"]]
            where = f"{file}: annotation {number}"
            if len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
                raise DataError(f"{where}: {str(box)[:100]} is no box of x, y, width and height")
            if int(entry["image_id"]) not in found:
                raise DataError(f"{where}: there is no image {int(entry['image_id'])}")
            if int(entry["category_id"]) not in index:
                raise DataError(f"{where}: there is no category {int(entry['category_id'])}")
            found[int(entry["image_id"])].append(
                {
                    "box": [box[0], box[1], box[0] + box[2], box[1] + box[3]],
                    "class": index[int(entry["category_id"])],
                    "crowd": bool(entry.get("iscrowd", 0)),
                    "area": float(entry.get("area", box[2] * box[3])),
                }
            )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{file}: not as COCO's annotations are: {error!r:.100}") from None
    pairs = [(name, found[number]) for number, name in images.items()]
    return dataclasses.replace(_matched(file, pairs, known, classes), kind="boxes")


def objects(annotations: Sequence[dict[str, Any]], placing: Placing) -> Boxes:
    """Annotations of one picture, of a `Table` of boxes."""
    return Boxes(
        np.array([a["box"] for a in annotations], np.float64).reshape(-1, 4),
        np.array([a["class"] for a in annotations], np.int64),
        np.array([a["crowd"] for a in annotations], bool),
        np.array([a["area"] for a in annotations], np.float64),
        placing,
    )


def with_classes(table: Table) -> Table:
    """A table of classes, with their names in order where labels are names.

    Raises DataError for labels that are neither names nor whole numbers.
    """
    for name, label in zip(table.names, table.labels, strict=True):
        if not isinstance(label, (str, int)) or isinstance(label, bool):
            raise FileError(name, f"label '{str(label)[:100]}' is no class")
    texts = [str(label) for label in table.labels]
    if table.classes or all(_WHOLE.fullmatch(text) for text in texts):
        return table
    if all(_NUMBER.fullmatch(text) for text in texts):
        at = next(k for k, text in enumerate(texts) if not _WHOLE.fullmatch(text))
        raise FileError(
            table.names[at],
            f"label '{texts[at][:100]}' is a number and no class; --metric says what other labels "
            "are",
        )
    return dataclasses.replace(table, classes=tuple(sorted(set(texts))))


_WHOLE = re.compile(r"-?\d{1,9}")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def class_indices(table: Table) -> Array:
    """Labels of a table `with_classes` as class indices [samples]: numbers as they are, names in
    order. Raises DataError."""
    texts = [str(label) for label in table.labels]
    index = {name: k for k, name in enumerate(table.classes)}
    if table.kind == "class" or not index:
        return np.array([int(text) for text in texts], np.int64)
    for name, text in zip(table.names, texts, strict=True):
        if text not in index:
            raise FileError(name, f"label '{text[:100]}' is no class of {CLASSES}")
    return np.array([index[text] for text in texts], np.int64)


def numbers(table: Table) -> Array:
    """Labels as floats [samples, n], of numbers or lists of them. Raises DataError."""
    rows: list[list[float]] = []
    for name, label in zip(table.names, table.labels, strict=True):
        parts = label if isinstance(label, list) else str(label).replace(";", " ").split()
        try:
            row = [float(part) for part in parts]
        except (TypeError, ValueError):
            raise FileError(name, f"label '{str(label)[:100]}' is no number") from None
        if not row or not all(map(math.isfinite, row)) or (rows and len(row) != len(rows[0])):
            raise FileError(name, f"label '{str(label)[:100]}': finite numbers, as many as others")
        rows.append(row)
    return np.array(rows, np.float64)


def _classes(folder: SampleFolder) -> tuple[str, ...]:
    if CLASSES not in folder.files:
        return ()
    lines = tuple(line.strip() for line in _text(folder, CLASSES).splitlines() if line.strip())
    if len(set(lines)) < len(lines):
        raise DataError(f"{CLASSES}: '{_twice(lines)}' is there twice")
    return lines


def _twice(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))[:200]  # type: ignore[func-returns-value]


def _text(folder: SampleFolder, name: str) -> str:
    try:
        return read_regular(folder.path(name), MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise FileError(name, error) from None
    except UnicodeDecodeError:
        raise FileError(name, "no text of UTF-8") from None


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(name, f"no JSON: {str(error)[:100]}") from None
