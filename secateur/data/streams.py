"""Samples that are read when they are asked for, one at a time, and never all kept."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir.errors import SecateurError
from ..ir.tensor import Array
from .npz import DataError


class StreamedArray:
    """A `SampleArray` of `count` samples of one shape and type, each read by a function.

    Reading raises DataError for a sample of another shape or type, or with values that are
    not finite; `name` says in the message which one it is, `where` what they come from.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        read: Callable[[int], Array],
        name: Callable[[int], str],
        where: object = "",
    ) -> None:
        self.shape, self.dtype = (count, *shape), dtype
        self._read, self._name = read, name
        self._where = f"{where}: " if where else ""

    @classmethod
    def of_files(
        cls,
        names: Sequence[str],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        read: Callable[[int], Array],
        where: object = "",
    ) -> StreamedArray:
        """A sample of each file, which messages name."""
        return cls(len(names), shape, dtype, read, lambda index: f"'{names[index]}'", where)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any, /) -> Array:
        if isinstance(key, (int, np.integer)):
            index = int(key)
            if not -len(self) <= index < len(self):
                raise IndexError(index)
            return self._sample(index % len(self))
        indices = np.arange(len(self))[key]
        found = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for at, index in enumerate(indices):
            found[at] = self._sample(int(index))
        return found

    def _sample(self, index: int) -> Array:
        try:
            return self._checked(index)
        except SecateurError as error:
            raise DataError(f"{self._where}{error}") from None

    def _checked(self, index: int) -> Array:
        array = self._read(index)
        if array.shape != self.shape[1:] or array.dtype != self.dtype:
            raise DataError(
                f"{self._name(index)}: {array.dtype} of shape {list(array.shape)}, "
                f"others are {self.dtype} of shape {list(self.shape[1:])}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{self._name(index)}: has NaN or infinite values")
        return array


class Spool:
    """Arrays of one shape, appended one after the other to a file that nobody else sees.

    Raises DataError where the disk is full.
    """

    def __init__(self, first: Array) -> None:
        self.shape, self.dtype = first.shape, first.dtype
        self.count = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as its array

    def append(self, array: Array) -> None:
        try:
            self._file.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
        except OSError as error:
            raise DataError(f"can't keep samples: {error.strerror or error}") from None
        self.count += 1

    def array(self) -> Array:
        """All of them, mapped; the first axis counts."""
        self._file.flush()
        shape = (self.count, *self.shape)
        if math.prod(shape) == 0:
            return np.empty(shape, self.dtype)
        return np.memmap(self._file, self.dtype, "r", shape=shape)
