"""Sample data from `.npz` files: one array per model input, first axis samples.

Files are untrusted: nothing is unpickled, and no array is allocated beyond the
bytes that the file holds for it, whatever its header says.
"""

from __future__ import annotations

import dataclasses
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from .ir.errors import SecateurError
from .ir.graph import Value
from .ir.model import Model
from .ir.tensor import Array
from .passes.samples import Samples

LABELS = "labels"
"""Key of the class indices; a model input of that name takes precedence."""

DataSource = str | os.PathLike[str] | Mapping[str, Array]


class DataError(SecateurError):
    """Sample data that is unreadable or does not fit the model."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Samples checked against a model, and their class indices `[samples]` if known."""

    samples: Samples
    labels: Array | None = None

    def feeds(self, limit: int | None = None) -> Iterator[dict[str, Array]]:
        """Inputs for runs of the model's batch size (1 where it is free).

        Covers all samples, or at least the first `limit`.
        """
        covered = 0
        for feed, valid in self.samples.feeds(1):
            if limit is not None and covered >= limit:
                return
            covered += valid
            yield feed


def load_dataset(source: DataSource, model: Model) -> Dataset:
    """Read samples for `model` from an `.npz` file or take them from a mapping.

    Every model input needs one array of its type whose shape is the input's, with
    any number of samples on the first axis. Raises DataError.
    """
    if isinstance(source, Mapping):
        where, arrays = "data", {name: np.asarray(a) for name, a in source.items()}
    else:
        where, arrays = str(source), read_npz(Path(source))
    inputs = {value.name for value in model_inputs(model)}
    labels = arrays.pop(LABELS, None) if LABELS not in inputs else None
    try:
        samples = Samples(model, arrays)
        _check_finite(arrays)
        return Dataset(samples, None if labels is None else _check_labels(labels, len(samples)))
    except SecateurError as error:
        raise DataError(f"{where}: {error}") from None


def model_inputs(model: Model) -> list[Value]:
    """The inputs that a caller has to feed: those without a default."""
    return [v for v in model.graph.inputs if v.const is None]


# --- files -----------------------------------------------------------------------


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of an `.npz` file. Raises DataError; never unpickles."""
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name == info.filename or name in arrays:
                    raise DataError(f"'{info.filename}' is not an array of its own")
                with archive.open(info) as file:
                    arrays[name] = _read_array(file, info.file_size, name)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise DataError(f"{path}: not an .npz file, or a damaged one") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return arrays


def _read_array(file: IO[bytes], file_size: int, name: str) -> Array:
    shape, fortran, dtype = _read_header(file, name)
    if dtype.hasobject:
        raise DataError(f"array '{name}' holds Python objects, which are not loaded")
    need = math.prod(shape) * dtype.itemsize
    if need != file_size - file.tell():
        raise DataError(
            f"array '{name}' of shape {list(shape)} needs {need} bytes, "
            f"the file holds {file_size - file.tell()}"
        )
    array: Array = np.frombuffer(file.read(), dtype)
    if array.nbytes != need:
        raise DataError(f"array '{name}' is truncated")
    array = array.reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array, dtype.newbyteorder("="))


def _read_header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        version = npy.read_magic(file)
        reader = readers.get(version)
        header = None if reader is None else reader(file)
    except Exception:  # numpy's parser lets several unrelated types out
        raise DataError(f"array '{name}' has a malformed header") from None
    if header is None:
        raise DataError(f"array '{name}' has .npy format {version}; versions 1 and 2 are read")
    return header


# --- checks ----------------------------------------------------------------------


def _check_finite(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
            raise DataError(
                f"array '{name}' has NaN or infinite values, first in sample {int(bad.argmax())}"
            )


def _check_labels(labels: Array, samples: int) -> Array:
    if labels.dtype.kind not in "iu" or labels.shape not in ((samples,), (samples, 1)):
        raise DataError(
            f"'{LABELS}' must be {samples} integers, one per sample, "
            f"not {labels.dtype} of shape {list(labels.shape)}"
        )
    return labels.reshape(samples)
