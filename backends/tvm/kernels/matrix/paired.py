"""Weights of which pmaddubsw adds products with unsigned bytes in 16 bits, and never saturates.

Two products, or four of neighbouring words, fit where the weights of either sign are at most 128
together. What passes that, of few weights as a rule, is taken off them and multiplied apart, in
further steps of those words alone.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from .....ir.tensor import Array
from ...targets import Target
from .dot import PairedDot

_LIMIT = 128
"""Sum of weights of one sign whose products with bytes up to 255 fit 16 bits."""

_TOGETHER = 16
"""Outputs that share a step, about."""

_WITHOUT = 4.5
"""Instructions for each word and vector of the form that has no limit."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Weights [group, step, vector, lane, channel] within the limit, and what was taken off:
    [group, number, vector, lane, 4] of the words [group, number], counted along the steps."""

    weights: Array
    rest: Array
    words: Array

    @property
    def count(self) -> int:
        """Steps of each group for the rest."""
        return self.words.shape[1]


def joined(target: Target, dtype: str, weights: Array, step: int) -> int:
    """Words of four channels whose products are to be added in 16 bits, at most `step` channels:
    0 where another form is faster.

    [outputs, ..., channels]; steps go along the channels.
    """
    if target.machine != "x86_64" or "vnni" in target.features or dtype not in ("int8", "uint8"):
        return 0
    if not weights.size or weights.min() < -128 or weights.max() > 127:
        return 0
    best = (_WITHOUT, 0)
    for count in (1, 2):
        if 4 * count > step:
            continue
        rows = weights.reshape(len(weights), -1, weights.shape[-1])
        wide = -(-rows.shape[2] // (4 * count)) * 4 * count
        rows = np.pad(rows, ((0, -len(rows) % _TOGETHER), (0, 0), (0, wide - rows.shape[2])))
        dense = rows.reshape(len(rows) // _TOGETHER, 1, _TOGETHER, -1, 4 * count)
        found = split(dense.transpose(0, 3, 1, 2, 4))
        if found is not None:
            more = 4 * found.count / max(1, found.weights.shape[1] * count)
            best = min(best, (2 + 1 / count + more, count))
    return best[1]


def split(dense: Array) -> Split | None:
    """[group, step, vector, lane, channel] apart; None where what is taken off passes, too."""
    groups, steps, *_, depth = dense.shape
    kept = dense.astype(np.int16).reshape(*dense.shape[:4], depth // 4, 2, 2)
    rest = np.zeros_like(kept)
    for sign in (1, -1):
        _take(kept, rest, sign)
    sums = (np.maximum(sign * rest, 0).sum(-1) for sign in (1, -1))
    if any((s > _LIMIT).any() for s in sums):
        return None
    words = rest.transpose(0, 1, 4, 2, 3, 5, 6).reshape(groups, steps * (depth // 4), -1)
    used = words.any(-1)
    count = int(used.sum(1).max(initial=0))
    order = np.argsort(~used, axis=1, kind="stable")[:, :count]
    taken = np.take_along_axis(words, order[..., None], axis=1)
    return Split(
        kept.reshape(dense.shape).astype(dense.dtype),
        taken.reshape(groups, count, *dense.shape[2:4], 4).astype(dense.dtype),
        order.astype(np.int32),
    )


def _take(kept: Array, rest: Array, sign: int) -> None:
    """Move what passes the limit of one sign, from the largest weights first."""
    sized = np.moveaxis(np.maximum(sign * kept, 0), -2, -3)  # [..., pair, word, 2]
    own = sized.reshape(*sized.shape[:-2], math.prod(sized.shape[-2:]))
    left = np.maximum(own.sum(-1) - _LIMIT, 0)
    moved = np.zeros_like(own)
    while left.any():
        largest = own.argmax(-1)[..., None]
        amount = np.minimum(np.take_along_axis(own, largest, -1), left[..., None])
        # half of the largest: lest that of one word passes the limit, too
        np.put_along_axis(moved, largest, np.take_along_axis(moved, largest, -1) + amount, -1)
        np.put_along_axis(own, largest, np.take_along_axis(own, largest, -1) - amount, -1)
        left = left - amount[..., 0]
    change = np.moveaxis(moved.reshape(sized.shape), -3, -2) * np.int16(sign)
    kept -= change
    rest += change


def pack_rest(dot: PairedDot, found: Split) -> Array:
    """The rest as [group, number, vector * element]."""
    groups, count, vectors, lanes, _ = found.rest.shape
    packed = found.rest.astype("int8")
    return np.ascontiguousarray(packed.reshape(groups, count, vectors * lanes * 4))
