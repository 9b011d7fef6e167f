"""Magnitudes of channels, and what rounding and clipping to a common range do to them.

Samples show less than there is: above the largest magnitudes that they have, a channel's tail is
taken to be exponential, so that a range that ends where the largest of many channels lie has a
price (Pickands, "Statistical inference using extreme order statistics", 1975).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...ir.tensor import Array

Doubles = NDArray[np.float64]

BLOCKS = 64
"""Groups of runs whose largest magnitudes are kept apart: their spread tells of the tail."""

COUNTED = 1 << 14
"""Elements of a run that are counted at most, evenly spread; largest magnitudes are of all."""

OCTAVE = 4
"""Bins for each doubling of the magnitude, as many as the first two bits of a mantissa tell."""

_SHIFT = 21
"""Bits of a float32 behind those that tell the bin."""

_FIRST = (127 - 40) * OCTAVE
"""Bits of the least bin, of 2^-40; what lies below, as zeros do, is counted there."""

_BINS = 80 * OCTAVE

NEAR = 16 * OCTAVE
"""Bins below a channel's largest magnitude that matter: what is less is lost or exact anyway."""

REACHES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Shares of the largest magnitude that ranges may end at where they are chosen to clip."""


@dataclass(frozen=True)
class RangeModel:
    """How the range of an activation is chosen, and into how many steps it is divided.

    `clips`: it has the least squared error, else it holds all that was seen, and `headroom` more;
    `symmetric`: it reaches as far below zero as above.
    """

    steps: float = 255.0
    clips: bool = False
    headroom: float = 0.0
    symmetric: bool = False


class Magnitudes:
    """Of each channel of a value: counts by magnitude, and the largest of each block of runs."""

    def __init__(self, channels: int) -> None:
        self._counts: NDArray[np.int64] = np.zeros((channels, _BINS), np.int64)
        self._elements = np.zeros(channels)
        self._blocks = np.zeros((BLOCKS, channels))
        self._highest = np.zeros(channels)
        self._lowest = np.zeros(channels)
        self._runs = 0
        self._divisor = np.ones(channels)

    def add(self, indices: NDArray[np.int64], flat: Array) -> None:
        """Take in a run's elements [positions, rest]; a position whose index is below 0 is of no
        channel."""
        belongs = indices >= 0
        own, channels = np.asarray(flat[belongs], np.float32), indices[belongs]
        highest, lowest = own.max(axis=1).astype(np.float64), -own.min(axis=1).astype(np.float64)
        block = self._blocks[self._runs % BLOCKS]
        self._runs += 1
        with np.errstate(invalid="ignore"):  # NaN stays
            np.maximum.at(self._highest, channels, highest)
            np.maximum.at(self._lowest, channels, lowest)
            np.maximum.at(block, channels, np.maximum(highest, lowest))
        np.add.at(self._elements, channels, own.shape[1])
        part = np.abs(own[:, :: math.ceil(own.size / COUNTED)])
        bins = (part.view(np.uint32) >> _SHIFT).astype(np.int64) - _FIRST
        places = np.clip(bins, 0, _BINS - 1) + channels[:, None] * _BINS
        counts = np.bincount(places.reshape(-1), minlength=self._counts.size)
        self._counts += counts.reshape(self._counts.shape)

    def scale(self, factors: Doubles) -> None:
        """Follow activations that were divided by factors."""
        self._divisor = self._divisor * factors

    @property
    def largest(self) -> Doubles:
        """Largest magnitude of each channel."""
        return np.asarray(np.maximum(self._highest, self._lowest) / self._divisor)

    def noise(self, factors: Doubles, alive: NDArray[np.bool_], ranges: RangeModel) -> Doubles:
        """Mean squared error of each channel's elements, by the present ones, if channels were
        divided by factors and those that are `alive` chose the range."""
        whole = factors * self._divisor
        ends = (self._highest / whole)[alive].max(), (self._lowest / whole)[alive].max()
        magnitudes, shares = self._near
        magnitudes = magnitudes / whole[:, None]
        reaches = np.array(REACHES if ranges.clips else REACHES[:1])
        reaches = reaches[:, None, None] * ((1 + ranges.headroom) * max(ends))
        width = 2 * reaches if ranges.symmetric else sum(np.minimum(reaches, end) for end in ends)
        floor = np.square(width / ranges.steps) / 12
        rounded = (np.minimum(np.square(magnitudes), floor) * shares).sum(axis=2)
        clipped = (np.square(np.maximum(magnitudes - reaches, 0.0)) * shares).sum(axis=2)
        error = rounded + np.maximum(clipped, self._unseen(reaches[:, :, 0], whole))
        total = (error * self._elements)[:, alive].sum(axis=1)
        return np.asarray(error[np.argmin(total)] * factors**2)

    @functools.cached_property
    def _near(self) -> tuple[Doubles, Doubles]:
        """Magnitudes [channels, bins] up to the largest, and the share of elements in each."""
        largest = np.maximum(self._highest, self._lowest)
        last = _BINS - 1 - np.argmax(self._counts[:, ::-1] > 0, axis=1)
        bins = np.maximum(last[:, None] - np.arange(NEAR), 0)
        middles = ((bins + _FIRST) << _SHIFT) + (1 << (_SHIFT - 1))
        magnitudes = middles.astype(np.uint32).view(np.float32).astype(np.float64)
        counts = np.take_along_axis(self._counts, bins, axis=1)
        counts = np.where(bins > 0, counts, 0)
        shares = counts / np.maximum(self._counts.sum(axis=1), 1)[:, None]
        return np.minimum(magnitudes, largest[:, None]), shares

    @functools.cached_property
    def _tails(self) -> tuple[int, Doubles, Doubles]:
        """A number of blocks, above which magnitude of each channel so many reach, and how far on
        in the mean."""
        filled = min(self._runs, BLOCKS)
        if filled < 2:
            return 0, np.zeros_like(self._highest), np.zeros_like(self._highest)
        count = max(1, round(math.sqrt(filled)))
        blocks = np.sort(self._blocks[:filled], axis=0)[::-1]
        return count, blocks[count], blocks[:count].mean(axis=0) - blocks[count]

    def _unseen(self, reaches: Doubles, factors: Doubles) -> Doubles:
        """Mean square of what magnitudes, divided by factors, exceed reaches by, by their tails."""
        count, start, mean = self._tails
        start, mean = start / factors, mean / factors
        further = np.maximum(reaches - start, 0.0)
        means = np.divide(further, mean, out=np.zeros_like(further), where=mean > 0)
        return np.asarray(count * 2 * mean**2 * np.exp(-means) / np.maximum(self._elements, 1))
