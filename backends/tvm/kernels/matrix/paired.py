"""Weights of which pmaddubsw adds products with unsigned bytes in 16 bits, and never saturates.

Two products, or four of neighbouring words, fit where the weights of either sign are at most 128
together. What passes that, of few weights as a rule, is taken off them and multiplied apart, in
further steps of those words alone, each of one vector.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .....ir.tensor import Array
from ...targets import Target

_LIMIT = 128
"""Sum of weights of one sign whose products with bytes up to 255 fit 16 bits."""

_WITHOUT = 5.0
"""Instructions for each word and vector of the form that has no limit."""

_REST = 4.0
"""Those of a word of the rest."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Weights [group, step, vector, lane, channel] within the limit, and what was taken off of each
    vector: [vector, number, lane * 4], of the words [vector, number] counted along the steps, so
    many `counts` [vector]."""

    weights: Array
    rest: Array
    words: Array
    counts: Array


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
    rows = weights.reshape(len(weights), -1, weights.shape[-1])
    for count in (1, 2):
        if 4 * count > step:
            continue
        more = (-len(rows) % target.lanes, 0, -rows.shape[2] % (4 * count))
        dense = np.pad(rows, [(0, n) for n in more]).reshape(-1, target.lanes, 1, 4 * count)
        dense = dense.reshape(-(-len(rows) // target.lanes), target.lanes, -1, 4 * count)
        found = split(dense.transpose(0, 2, 1, 3)[:, :, None])
        if found is not None:
            share = found.counts.mean() / (found.weights.shape[1] * count)
            best = min(best, (2 + 1 / count + _REST * share, count))
    return best[1]


def split(dense: Array) -> Split | None:
    """[group, step, vector, lane, channel] apart; None where what is taken off passes, too."""
    groups, steps, vectors, lanes, depth = dense.shape
    words = depth // 4
    kept = dense.astype(np.int16).reshape(groups, steps, vectors, lanes, words, 2, 2)
    pairs = np.ascontiguousarray(np.moveaxis(kept, -2, -3)).reshape(-1, 2 * words)
    rest = np.zeros_like(pairs)
    for sign in (1, -1):
        _take(pairs, rest, sign)
        if (np.maximum(sign * rest, 0).reshape(-1, 2).sum(1) > _LIMIT).any():
            return None
    shape = (groups, steps, vectors, lanes, 2, words, 2)
    kept, rest = (np.moveaxis(a.reshape(shape), -2, -3) for a in (pairs, rest))
    own = rest.transpose(0, 2, 1, 4, 3, 5, 6).reshape(groups * vectors, steps * words, lanes * 4)
    used = own.any(-1)
    counts = used.sum(1)
    order = np.argsort(~used, axis=1, kind="stable")[:, : counts.max(initial=0)]
    taken = np.take_along_axis(own, order[..., None], axis=1)
    return Split(
        kept.reshape(dense.shape).astype(dense.dtype),
        np.ascontiguousarray(taken.astype(np.int8)),
        order.astype(np.int32),
        counts.astype(np.int32),
    )


def _take(pairs: Array, rest: Array, sign: int) -> None:
    """Move what passes the limit of one sign, from the largest weights first: [sum, weight]."""
    sized = np.maximum(sign * pairs, 0)
    left = sized.sum(1) - _LIMIT
    (places,) = np.nonzero(left > 0)
    while places.size:
        largest = sized[places].argmax(1)
        amount = np.minimum(sized[places, largest], left[places]).astype(np.int16)
        sized[places, largest] -= amount
        pairs[places, largest] -= sign * amount
        rest[places, largest] += sign * amount
        left[places] -= amount
        places = places[left[places] > 0]
