"""Observers see a value's elements batch by batch and decide its quantization range."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...ir.tensor import Array
from .parameters import ValueRange, range_of


class Observer(Protocol):
    """Accumulates over batches with memory that does not grow with their number."""

    def update(self, array: Array) -> None: ...

    def range(self) -> ValueRange: ...


class MinMax:
    """The smallest and largest value seen; NaN where any element was NaN."""

    def __init__(self) -> None:
        self._low = np.inf
        self._high = -np.inf

    def update(self, array: Array) -> None:
        seen = range_of(array)
        self._low = float(np.minimum(self._low, seen.low))
        self._high = float(np.maximum(self._high, seen.high))

    def range(self) -> ValueRange:
        return ValueRange(self._low, self._high)
