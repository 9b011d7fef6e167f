"""Observers see a value's elements batch by batch; calibrators turn that into its range.

Memory is a few numbers or one histogram for each value, however many samples there are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...ir.errors import SecateurError
from ...ir.tensor import Array
from .parameters import ValueRange, range_of

BINS = 4096
"""Bins of a histogram at most; 16 for each of the integers, so that none is resolved worse."""

CHUNK = 1 << 16
"""Elements that are counted at once: what is made of more leaves the caches, at a tenth of the
speed."""

LEVELS = 256
"""Integers of 8 bits, which calibrators divide a range among."""

AVERAGING = 0.01
"""Weight of the newest run in the moving average, once there were as many as its inverse."""

PERCENTILE = 99.99
"""Share of the elements, in percent, within the range of the percentile calibrator."""

CANDIDATES = 128
"""Ends of a range that are tried on either side of zero."""

_SMALLEST_EXPONENT = -120
"""Bins are no narrower than 2 to this power, so that quotients are finite in float32."""


class Observer(Protocol):
    """Accumulates over runs with memory that does not grow with their number."""

    def update(self, array: Array) -> None: ...

    def range(self) -> ValueRange: ...


class MinMax:
    """The smallest and largest value seen; NaN where any element was NaN."""

    def __init__(self) -> None:
        self._low = np.inf
        self._high = -np.inf

    def update(self, array: Array) -> None:
        self.include(range_of(array))

    def include(self, seen: ValueRange) -> None:
        """Take in what was seen elsewhere."""
        with np.errstate(invalid="ignore"):  # NaN stays
            self._low = float(np.minimum(self._low, seen.low))
            self._high = float(np.maximum(self._high, seen.high))

    def range(self) -> ValueRange:
        return ValueRange(self._low, self._high)


class MovingAverage:
    """The mean of the runs' smallest and largest values, of late ones where there are many."""

    def __init__(self) -> None:
        self._low = self._high = 0.0
        self._runs = 0

    def update(self, array: Array) -> None:
        if not array.size:
            return
        seen = range_of(array)
        self._runs += 1
        weight = max(1.0 / self._runs, AVERAGING)
        with np.errstate(invalid="ignore"):  # of infinities: they stay, as NaN does
            self._low += weight * np.subtract(seen.low, self._low)
            self._high += weight * np.subtract(seen.high, self._high)

    def range(self) -> ValueRange:
        return ValueRange(float(self._low), float(self._high))


class Histogram:
    """Counts in equal bins whose width doubles when the range outgrows them.

    Widths are powers of two and bins start at multiples of them, so doubling adds up pairs:
    counts stay exact, and do not depend on the order of the runs. Zeros, which every scale
    represents exactly, are counted apart (`zeros`). `choose` makes a range of the counts.
    """

    def __init__(self, choose: Callable[[Histogram], ValueRange]) -> None:
        self._choose = choose
        self._seen = MinMax()
        self.exponent = _SMALLEST_EXPONENT
        self.first = 0
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self.zeros = 0

    def update(self, array: Array) -> None:
        seen = range_of(array)
        self._seen.include(seen)
        if not array.size or not (math.isfinite(seen.low) and math.isfinite(seen.high)):
            return
        self._cover(seen.low, seen.high)
        flat = np.asarray(array, np.float32).reshape(-1)
        inverse, zeros = np.float32(2.0**-self.exponent), 0
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            zeros += int(np.count_nonzero(part == 0))
            places = np.floor(part * inverse).astype(np.int64) - self.first
            self.counts += np.bincount(places, minlength=self.counts.size)
        self.counts[-self.first] -= zeros
        self.zeros += zeros

    def range(self) -> ValueRange:
        """What the calibrator makes of it; the seen range where that is not finite or a point."""
        seen = self._seen.range()
        if not (math.isfinite(seen.low) and math.isfinite(seen.high)) or seen.low == seen.high:
            return seen
        chosen = self._choose(self)
        return ValueRange(max(chosen.low, seen.low), min(chosen.high, seen.high))

    @property
    def width(self) -> float:
        return 2.0**self.exponent

    @property
    def edges(self) -> NDArray[np.float64]:
        """Where bins start, and where the last ends."""
        return np.arange(self.first, self.first + self.counts.size + 1) * np.float64(self.width)

    @property
    def centres(self) -> NDArray[np.float64]:
        return self.edges[:-1] + self.width / 2

    def _cover(self, low: float, high: float) -> None:
        """Let bins reach from `low` to `high` and what they reached before, zero included."""
        begin, end = self._bounds(min(low, 0.0), max(high, 0.0))
        while end - begin > BINS:
            self.exponent += 1
            begin, end = self._bounds(min(low, 0.0), max(high, 0.0))
        self._widen()
        if begin == self.first and end == self.first + self.counts.size:
            return
        counts = np.zeros(end - begin, np.int64)
        counts[self.first - begin : self.first - begin + self.counts.size] = self.counts
        self.counts, self.first = counts, begin

    def _bounds(self, low: float, high: float) -> tuple[int, int]:
        """The first bin, and the one behind the last, at the present width."""
        held = self._held()
        begin = min(math.floor(low / self.width), math.floor(held[0] / self.width))
        end = max(math.floor(high / self.width) + 1, math.ceil(held[1] / self.width))
        return begin, end

    def _held(self) -> tuple[float, float]:
        """Real numbers between which the counts of now lie."""
        width = 2.0**self._stored
        return self.first * width, (self.first + self.counts.size) * width

    def _widen(self) -> None:
        """Add up counts to the present width."""
        shift = self.exponent - self._stored
        self._stored = self.exponent
        if shift <= 0 or not self.counts.size:
            return
        places = (self.first + np.arange(self.counts.size)) >> shift
        self.first = int(places[0])
        self.counts = np.bincount(places - self.first, self.counts).astype(np.int64)

    _stored = _SMALLEST_EXPONENT
    """The exponent of the width that `counts` have."""


def percentile_range(histogram: Histogram, share: float = PERCENTILE) -> ValueRange:
    """Leaves out equal parts of the elements at both ends."""
    counts = histogram.counts.astype(np.float64)
    counts[-histogram.first] += histogram.zeros
    below = np.cumsum(counts)
    tail = below[-1] * (1 - share / 100) / 2
    edges = histogram.edges
    first = int(np.searchsorted(below, tail, side="right"))
    last = int(np.searchsorted(below, below[-1] - tail, side="left"))
    return ValueRange(min(float(edges[first]), 0.0), max(float(edges[last + 1]), 0.0))


def squared_error_range(histogram: Histogram) -> ValueRange:
    """The range whose clipping and rounding together have the least mean squared error.

    Rounding to steps of s is off by s^2/12 in the mean; what lies beyond an end, by its
    distance from it. All pairs of ends are compared, by sums of powers up to each bin.
    """
    counts, centres = histogram.counts.astype(np.float64), histogram.centres
    powers = np.stack([counts, counts * centres, counts * centres**2])
    sums = np.concatenate([np.zeros((3, 1)), np.cumsum(powers, axis=1)], axis=1)
    edges = histogram.edges
    lows, highs = _candidates(edges[0]), _candidates(edges[-1])
    at_low = np.searchsorted(edges, lows)
    at_high = np.searchsorted(edges, highs)
    below, above = sums[:, at_low], sums[:, -1:] - sums[:, at_high]
    clipped_low = below[2] - 2 * lows * below[1] + lows**2 * below[0]
    clipped_high = above[2] - 2 * highs * above[1] + highs**2 * above[0]
    inside = sums[0, -1] - below[0][:, None] - above[0][None, :]
    step = (highs[None, :] - lows[:, None]) / (LEVELS - 1)
    error = clipped_low[:, None] + clipped_high[None, :] + inside * step**2 / 12
    error = np.where(step > 0, error, np.inf)
    low, high = np.unravel_index(int(np.argmin(error)), error.shape)
    return ValueRange(float(lows[low]), float(highs[high]))


def entropy_range(histogram: Histogram) -> ValueRange:
    """The range whose integers' distribution diverges least from that of the values.

    Kullback-Leibler divergence from the clipped histogram to the same at the resolution of
    the integers, over bounds on the magnitude (Migacz, "8-bit inference with TensorRT", 2017).
    Zeros are left out: they would outweigh everything behind a Relu.
    """
    counts, edges = histogram.counts.astype(np.float64), histogram.edges
    reach = max(-edges[0], edges[-1])
    best = (math.inf, reach)
    for bound in reach * np.geomspace(1.0, 1.0 / 32, CANDIDATES):
        first = max(int(np.searchsorted(edges, -bound, side="right")) - 1, 0)
        last = min(int(np.searchsorted(edges, bound, side="left")), counts.size)
        if last - first < 2:
            continue
        divergence = _divergence(counts, first, last)
        if divergence < best[0] - 1e-12:
            best = (divergence, bound)
    return ValueRange(max(float(edges[0]), -best[1]), min(float(edges[-1]), best[1]))


def _divergence(counts: NDArray[np.float64], first: int, last: int) -> float:
    """Of the bins from `first` to `last`, tails added to the outermost, from their integers."""
    inside = counts[first:last]
    reference = inside.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    levels = (np.arange(inside.size) * LEVELS) // inside.size
    filled = reference > 0
    members = np.bincount(levels, filled, minlength=LEVELS)
    totals = np.bincount(levels, inside, minlength=LEVELS)
    spread = np.where(filled, (totals / np.maximum(members, 1))[levels], 0.0)
    if not spread.sum():
        return math.inf
    p, q = reference / reference.sum(), spread / spread.sum()
    p, q = p[filled], np.maximum(q[filled], 1e-12)
    return float((p * np.log(p / q)).sum())


def _candidates(end: float) -> NDArray[np.float64]:
    """From an end to an eighth of it; only zero where it is zero."""
    return np.unique(end * np.linspace(1.0, 0.125, CANDIDATES))


CALIBRATORS: dict[str, Callable[[], Observer]] = {
    "min-max": MinMax,
    "moving-average": MovingAverage,
    "percentile": functools.partial(Histogram, percentile_range),
    "entropy": functools.partial(Histogram, entropy_range),
    "mse": functools.partial(Histogram, squared_error_range),
}
"""Observers by the name of the method: what `--calibrator` takes."""


def calibrator(name: str) -> Callable[[], Observer]:
    """The method of a name; `percentile:99.9` has a share of its own. Raises SecateurError."""
    kind, colon, text = name.partition(":")
    if kind == "percentile" and colon:
        try:
            share = float(text)
        except ValueError:
            share = math.nan
        if not 50 < share <= 100:
            raise SecateurError(f"calibrator '{name}': the share is between 50 and 100 percent")
        return functools.partial(Histogram, functools.partial(percentile_range, share=share))
    if colon or kind not in CALIBRATORS:
        raise SecateurError(f"calibrator '{name}' is unknown; there are: {', '.join(CALIBRATORS)}")
    return CALIBRATORS[kind]


def holds_all(name: str) -> bool:
    """Whether the ranges of a method hold all, or nearly all, that samples show."""
    return name in ("min-max", "moving-average")
