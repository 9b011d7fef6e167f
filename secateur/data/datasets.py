"""Sample data: one array per model input, first axis samples, from `.npz` files or mappings.

Headers of files are checked against the model before any data is read, and what no input
takes is never read.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.tensor import Array
from ..passes.samples import Described, Samples, check_names, check_samples
from .inputs import model_inputs
from .npz import DataError, NpzFile
from .synthetic import Synthetic, synthetic_arrays

LABELS = "labels"
"""Key of the class indices; a model input of that name takes precedence."""

UNLABELLED = f"no accuracy: the samples to evaluate on have no '{LABELS}'"

DataSource = str | os.PathLike[str] | Mapping[str, Array] | Synthetic


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Samples checked against a model, and their class indices `[samples]` if known.

    `synthetic` tells that they are made up.
    """

    samples: Samples
    labels: Array | None = None
    synthetic: bool = False

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


def load_dataset(source: DataSource, model: Model) -> Dataset:
    """Read samples for `model` from an `.npz` file, take them from a mapping, or make them up.

    Every model input needs one array of its type whose shape is the input's, with
    any number of samples on the first axis. Raises DataError.
    """
    where = "data" if isinstance(source, Mapping) else str(source)
    if isinstance(source, Synthetic):
        made = Samples(model, synthetic_arrays(source, model))
        return Dataset(made, synthetic=True)
    try:
        if isinstance(source, Mapping):
            return _dataset(model, {name: np.asarray(a) for name, a in source.items()})
        with NpzFile(Path(source)) as file:
            check_names(model, set(file.names) - _labels_of(model))
            headers = {name: file.header(name) for name in file.names}
            labels = [headers.pop(name) for name in _labels_of(model) if name in headers]
            count = check_samples(model, headers)
            for header in labels:
                _check_label_type(header, count)
            return _dataset(model, {name: file.read(name) for name in file.names})
    except SecateurError as error:
        raise DataError(f"{where}: {error}") from None


def _labels_of(model: Model) -> set[str]:
    return {LABELS} - {value.name for value in model_inputs(model)}


def _dataset(model: Model, arrays: dict[str, Array]) -> Dataset:
    labels = arrays.pop(LABELS, None) if _labels_of(model) else None
    samples = Samples(model, arrays)
    _check_finite(samples.arrays)
    return Dataset(samples, None if labels is None else _check_labels(labels, len(samples)))


# --- checks ----------------------------------------------------------------------


_BLOCK_BYTES = 1 << 24
"""Bytes looked at together: an array may be mapped, and larger than memory."""


def _check_finite(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            continue
        rows = max(1, _BLOCK_BYTES * len(array) // max(1, array.nbytes))
        for start in range(0, len(array), rows):
            finite = np.isfinite(array[start : start + rows])
            if not finite.all():
                bad = ~finite.reshape(len(finite), -1).all(axis=1)
                raise DataError(
                    f"array '{name}' has NaN or infinite values, "
                    f"first in sample {start + int(bad.argmax())}"
                )


def _check_label_type(labels: Described, samples: int) -> None:
    if labels.dtype.kind not in "iu" or labels.shape not in ((samples,), (samples, 1)):
        raise DataError(
            f"'{LABELS}' must be {samples} integers, one per sample, "
            f"not {labels.dtype} of shape {list(labels.shape)}"
        )


def _check_labels(labels: Array, samples: int) -> Array:
    _check_label_type(labels, samples)
    labels = np.asarray(labels).reshape(samples)
    if labels.min() < 0:
        raise DataError(
            f"'{LABELS}' must be class indices from 0 on, "
            f"not {int(labels.min())} as for sample {int(labels.argmin())}"
        )
    return labels
