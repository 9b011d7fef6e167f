"""Tiles over columns whose number only a run fixes.

A kernel has tiles of several widths, of which a run takes the one by which its number of columns
costs least; the last tile of a row is moved back. So a row of any length is computed by tiles as
good as those that are chosen for a known one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from tvm import tirx

from ...tensorir.builder import KernelBuilder, as_int, load, tiles_of
from ...tensorir.types import Expr

Widths = tuple[tuple[int, int], ...]
"""Widths of tiles in descending order, to 1, each with what a tile costs."""

MOST_WIDTHS = 6
"""Widths that a kernel has: each takes LLVM about a tenth of a second."""

_ENOUGH = 1.01
"""Geometric mean of costs over those with all widths, with which no further one is added."""

_COUNTED = 4096
"""Columns from which on what the last tile wastes doesn't matter."""

_PRECISION = 16
"""What costs are multiplied by to become integers."""

ROWS = (*range(1, 65), 72, 80, 96, 112, 128, 160, 192, 224, 256, 320)
"""Numbers of columns that rows of images may well have."""

IMAGES = (*(n * n for n in range(2, 33)), 49 * 8, 56 * 56, 80 * 80)
"""The same of images that are walked as one row."""


@functools.cache
def choose_widths(costs: tuple[float, ...], columns: tuple[int, ...]) -> tuple[float, Widths]:
    """The widths for tiles of 1, 2, ... columns of these costs, and the mean cost of a column."""
    extents, sizes = np.array(columns)[:, None], np.arange(1, len(costs) + 1)[None]
    fits = sizes <= np.maximum(extents, 1)
    whole = np.where(fits, -(-extents // sizes) * np.array(costs)[None], np.inf)
    best = np.log(whole.min(1))
    chosen = [0]
    while len(chosen) < MOST_WIDTHS:
        own = whole[:, chosen].min(1)
        means = [
            float(np.mean(np.log(np.minimum(own, whole[:, i])) - best)) for i in range(len(costs))
        ]
        if float(np.mean(np.log(own) - best)) <= math.log(_ENOUGH):
            break
        chosen.append(int(np.argmin(means)))
    mean = math.exp(float(np.mean(np.log(whole[:, chosen].min(1) / extents[:, 0]))))
    scale = _PRECISION / min(costs)
    widths = [(i + 1, max(1, round(costs[i] * scale))) for i in sorted(set(chosen), reverse=True)]
    return mean, tuple(widths)


def each_width(k: KernelBuilder, extent: Expr, widths: Widths) -> Iterator[int]:
    """A branch for each width, which a run takes where it suits the extent best."""
    if len(widths) == 1:
        yield widths[0][0]
        return
    best = k.local(2, "int32", "best")
    counted = tirx.min(as_int(extent), _COUNTED)
    k.store(best, as_int(1), 0)
    k.store(best, as_int(2**30), 1)
    for width, cost in widths:
        whole = tiles_of(counted, width) * min(cost, 2**17)
        cheaper = tirx.all(as_int(extent) >= width, whole < load(best, 1))
        with k.when(cheaper):
            k.store(best, as_int(width), 0)
            k.store(best, whole, 1)
    for width, _ in widths:
        chosen = tirx.EQ(load(best, 0), width)
        with k.when(tirx.all(as_int(extent) >= width, chosen) if width > 1 else chosen):
            yield width


def samples(*, flat: bool) -> Sequence[int]:
    """Numbers of columns to choose widths for."""
    return IMAGES if flat else ROWS
