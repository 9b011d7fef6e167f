"""Sample data: one array per model input, first axis samples, from files, folders or mappings.

Headers of files are checked against the model before any data is read, and what no input
takes is never read. What lies in folders is read sample by sample when it is asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.tensor import Array
from ..passes.samples import Described, SampleArray, Samples, check_names, check_samples
from .arrays import ArrayFiles, has_one_kind, read_arrays
from .folders import ARRAYS, PICTURES, RECORDINGS, FileError, SampleFolder, kind_of
from .functions import NAME, read_function
from .inputs import model_inputs
from .labels import (
    CLASSES,
    TABLES,
    Boxes,
    LazyLabels,
    Table,
    class_indices,
    numbers,
    objects,
    read_table,
    with_classes,
)
from .npz import DataError, NpzFile
from .pictures import Pictures
from .preprocessing import Preprocessing
from .recordings import Recordings
from .synthetic import Synthetic, synthetic_arrays

LABELS = "labels"
"""Key of the labels; a model input of that name takes precedence."""

UNLABELLED = f"no accuracy: the samples to evaluate on have no '{LABELS}'"


@dataclasses.dataclass(frozen=True)
class FileSource:
    """A file, folder or function of samples, and how pictures and recordings become inputs."""

    path: str | os.PathLike[str]
    preprocessing: Preprocessing | None = None
    as_pixels: bool = False
    """Whether the model does what comes after placing."""

    def __str__(self) -> str:
        return str(self.path)


DataSource = str | os.PathLike[str] | Mapping[str, Array] | Synthetic | FileSource


def prepared(source: DataSource | None, how: Any) -> DataSource | None:
    """A source with preprocessing as `Preprocessing.of` takes it, where it has folders' files.

    Raises DataError.
    """
    if how is None or not isinstance(source, str | os.PathLike):
        return source
    if os.fspath(source).endswith(".npz"):
        return source
    return FileSource(source, Preprocessing.of(how))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Samples checked against a model, and a label for each if known.

    `kind` is what labels are (`labels.KINDS`): `class` are indices `[samples]`. `synthetic`
    tells that samples are made up. `notes` say what of the source was left out or taken to mean
    something. `pictures` is there where samples are pictures of a folder.
    """

    samples: Samples
    labels: Sequence[Any] | Array | None = None
    kind: str = "class"
    synthetic: bool = False
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    """Names of classes in their order, where the source has them."""
    pictures: Pictures | None = None

    def feeds(
        self, limit: int | None = None, sizes: Sequence[int] = (1,)
    ) -> Iterator[dict[str, Array]]:
        """Inputs for runs of the model's batch size; where it is free, of `sizes` in turns.

        Covers all samples, or at least the first `limit`. Where there are too few for one
        run of each size, samples are repeated.
        """
        if self.samples.batch is not None:
            sizes = (self.samples.batch,)
        count = min(len(self.samples), limit or len(self.samples))
        start = 0
        for run, size in enumerate(itertools.cycle(sizes)):
            if start >= count and run >= len(sizes):
                return
            yield self.samples.take(start % count, size)
            start += size


def source_files(source: DataSource | None) -> list[Path]:
    """The files and folders that samples are read from; what a function reads isn't known."""
    if source is None or isinstance(source, (Mapping, Synthetic)):
        return []
    path = Path(source.path if isinstance(source, FileSource) else source)
    if not path.exists():
        return []
    inner = path.rglob("*") if path.is_dir() else ()
    return [path, *sorted(inner)]


def load_dataset(
    source: DataSource, model: Model, kind: str | None = None, *, labelled: bool = True
) -> Dataset:
    """Samples for `model` from an `.npz` file, a folder, a function or a mapping, or made up.

    Every model input needs one array of its type whose shape is the input's, with
    any number of samples on the first axis. `kind` is what labels have to be; by default what
    the source says, else `class`. Labels are left out unless `labelled`. Raises DataError.
    """
    if isinstance(source, Synthetic):
        made = Samples(model, synthetic_arrays(source, model))
        return Dataset(made, synthetic=True)
    where = "data" if isinstance(source, Mapping) else str(source)
    try:
        if isinstance(source, Mapping):
            arrays = {name: np.asarray(a) for name, a in source.items()}
            return _dataset(model, arrays, kind or "class", labelled)
        file = source if isinstance(source, FileSource) else FileSource(source)
        return _of_file(file, model, kind, labelled)
    except SecateurError as error:
        raise DataError(f"{where}: {error}") from None


def _of_file(source: FileSource, model: Model, kind: str | None, labelled: bool) -> Dataset:
    path = Path(source.path)
    if path.is_dir():
        return _load_folder(path, source, model, kind, labelled)
    if isinstance(source.path, str) and NAME.fullmatch(source.path) and not path.exists():
        arrays = read_function(source.path, model, LABELS)
        return _dataset(model, arrays, kind or "class", labelled)
    if source.preprocessing is not None:
        raise DataError("preprocessing is for folders of pictures and recordings")
    with NpzFile(path) as file:
        check_names(model, set(file.names) - _labels_of(model))
        headers = {name: file.header(name) for name in file.names}
        labels = [headers.pop(name) for name in _labels_of(model) if name in headers]
        count = check_samples(model, headers)
        for header in labels if labelled else []:
            _check_label_type(header, count, kind or "class")
        arrays = {name: file.read(name) for name in file.names}
    return _dataset(model, arrays, kind or "class", labelled)


def _labels_of(model: Model) -> set[str]:
    return {LABELS} - {value.name for value in model_inputs(model)}


def _dataset(model: Model, arrays: dict[str, Array], kind: str, labelled: bool) -> Dataset:
    labels = arrays.pop(LABELS, None) if _labels_of(model) else None
    samples = Samples(model, arrays)
    _check_finite(samples.arrays)
    if labels is None or not labelled:
        return Dataset(samples, kind=kind)
    return Dataset(samples, _check_labels(labels, len(samples), kind), kind)


# --- checks ----------------------------------------------------------------------


_BLOCK_BYTES = 1 << 24
"""Bytes looked at together: an array may be mapped, and larger than memory."""


def _check_finite(arrays: Mapping[str, SampleArray]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            continue
        rows = max(
            1, _BLOCK_BYTES * len(array) // max(1, math.prod(array.shape) * array.dtype.itemsize)
        )
        for start in range(0, len(array), rows):
            finite = np.isfinite(array[start : start + rows])
            if not finite.all():
                bad = ~finite.reshape(len(finite), -1).all(axis=1)
                raise DataError(
                    f"array '{name}' has NaN or infinite values, "
                    f"first in sample {start + int(bad.argmax())}"
                )


def _check_label_type(labels: Described, samples: int, kind: str) -> None:
    if kind == "class":
        wanted, shapes = "integers, one per sample", ((samples,), (samples, 1))
        fits = labels.dtype.kind in "iu" and labels.shape in shapes
    elif kind == "boxes":
        wanted = "lists of rows of class, x, y, x, y"
        fits = labels.dtype.kind in "iuf" and len(labels.shape) == 3 and labels.shape[2] == 5
    elif kind == "text":
        wanted = "texts, or lists of symbols' numbers that end in -1"
        fits = labels.dtype.kind == "U" or (labels.dtype.kind in "iu" and len(labels.shape) == 2)
    else:
        wanted, fits = "arrays of numbers", labels.dtype.kind in "biuf"
    if not fits or labels.shape[:1] != (samples,):
        others = "; --metric says what other labels are" if kind == "class" else ""
        raise DataError(
            f"'{LABELS}' must be {samples} {wanted}, "
            f"not {labels.dtype} of shape {list(labels.shape)}{others}"
        )


def _check_labels(labels: Array, samples: int, kind: str) -> Array | Sequence[Any]:
    _check_label_type(labels, samples, kind)
    if kind == "boxes":
        return LazyLabels(samples, lambda index: Boxes.of_rows(labels[index]))
    if kind != "class":
        return labels
    labels = np.asarray(labels).reshape(samples)
    if labels.min() < 0:
        raise DataError(
            f"'{LABELS}' must be class indices from 0 on, "
            f"not {int(labels.min())} as for sample {int(labels.argmin())}"
        )
    return labels


# --- folders ---------------------------------------------------------------------


def _load_folder(
    root: Path, given: FileSource, model: Model, kind: str | None, labelled: bool
) -> Dataset:
    """As `load_dataset`, of a folder of pictures, recordings or `.npy` files."""
    folder, how = SampleFolder(root), given.preprocessing
    what = kind_of(folder)
    if given.as_pixels and what != "pictures":
        raise DataError("preprocessing that is compiled into the model is for pictures")
    if what == "arrays" and how is not None:
        raise DataError("preprocessing is for folders of pictures and recordings")
    if what == "arrays" and not has_one_kind(folder, model):
        arrays, labels = read_arrays(folder, model, LABELS)
        samples = Samples(model, arrays)
        if labels is None or not labelled:
            return Dataset(samples)
        kind = kind or "class"
        return Dataset(samples, _check_labels(labels, len(samples), kind), kind)
    names = folder.of({"pictures": PICTURES, "recordings": RECORDINGS}.get(what, ARRAYS))
    table = read_table(folder, names) if labelled else None
    names = names if table is None else table.names
    source: Pictures | Recordings | ArrayFiles
    if what == "pictures":
        if kind in ("mask", "image") and table is not None:
            _check_other_files(folder, table)
        source = Pictures(folder, names, model, how, as_pixels=given.as_pixels)
    elif what == "recordings":
        source = Recordings.of(folder, names, model, how)
    else:
        source = ArrayFiles(folder, names, model, model_inputs(model)[0].name)
    samples = Samples(model, {source.input_name: source.array})
    pictures = source if isinstance(source, Pictures) else None
    if table is not None and table.kind == "" and kind in (None, "class"):
        table = with_classes(table)
    notes = _left_out(folder, names, table)
    if isinstance(source, Recordings):
        notes += source.notes
    if table is None:
        return Dataset(samples, notes=notes, pictures=pictures)
    kind = kind or table.kind or "class"
    labels_ = _table_labels(table, kind, pictures)
    return Dataset(samples, labels_, kind, False, notes, table.classes, pictures)


def _table_labels(table: Table, kind: str, pictures: Pictures | None) -> Sequence[Any] | Array:
    """What a folder's labels are as a kind. Raises DataError where they aren't that."""
    if kind == "boxes":
        if table.kind != "boxes" or pictures is None:
            raise DataError("boxes are read from annotations as COCO writes them")
        placings = pictures.placings
        return LazyLabels(
            len(table.names), lambda index: objects(table.labels[index], placings[index])
        )
    if table.kind == "boxes":
        raise DataError(f"labels are boxes, not of the kind {kind}")
    if kind in ("mask", "image"):
        if pictures is None:
            raise DataError(f"labels of the kind {kind} are for pictures")
        files = [str(label) for label in table.labels]
        if kind == "mask":
            return LazyLabels(len(files), lambda index: pictures.mask(index, files[index]))
        return LazyLabels(len(files), lambda index: pictures.like(files[index]))
    if kind == "number":
        return numbers(table)
    if kind == "text":
        return [str(label) for label in table.labels]
    return _check_labels(class_indices(table), len(table.names), "class")


def _check_other_files(folder: SampleFolder, table: Table) -> None:
    """Raise DataError where a label is no picture of the folder."""
    known = set(folder.of(PICTURES))
    for name, label in zip(table.names, table.labels, strict=True):
        if str(label) not in known:
            raise FileError(name, f"label '{str(label)[:100]}' is no picture of the folder")


def _left_out(folder: SampleFolder, names: Sequence[str], table: Table | None) -> tuple[str, ...]:
    """What of a folder is no sample, and how classes were numbered."""
    used = {*names, *TABLES, CLASSES}
    if table is not None:
        used |= {str(label) for label in table.labels if isinstance(label, str)}
    rest = [name for name in folder.files if name not in used]
    notes = []
    if rest:
        some = ", ".join(rest[:3]) + (", ..." if len(rest) > 3 else "")
        notes.append(f"{folder.root}: {len(rest):,} file(s) are no samples: {some}")
    named = table is not None and table.kind != "boxes" and table.classes
    if table is not None and named and CLASSES not in folder.files:
        first, last = table.classes[0], table.classes[-1]
        what = "folders" if table.kind == "class" else "labels"
        notes.append(
            f"{folder.root}: its {len(table.classes)} {what} are classes 0 ({first}) to "
            f"{len(table.classes) - 1} ({last}) by their names; {CLASSES} in it can say otherwise"
        )
    return tuple(notes)
