"""How far outputs are from those of the original, where no labels say what is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...ir.model import Model
from ...ir.reference import Session
from ...ir.tensor import Array

FLOOR = 1e-12

PART = 4
"""Samples of a part."""

CHANCE = 2.0
"""Standard errors of a difference up to which it may be chance."""


class Divergence:
    """Mean distance over runs: from each output, one number.

    Of an output [samples, classes] of scores the Kullback-Leibler divergence of the classes'
    probabilities, which are the scores themselves where those are not negative and sum to
    one, else their softmax. Of any other the squared error as a share of the variance. Outputs
    of other types don't count.
    """

    def __init__(self) -> None:
        self._totals: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, original: Mapping[str, Array], other: Mapping[str, Array]) -> None:
        for name, array in original.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not array.size:
                continue
            want, have = array.astype(np.float64), np.asarray(other[name], np.float64)
            if want.shape != have.shape:
                continue
            if want.ndim == 2 and want.shape[1] > 1:
                total, weight = _kullback_leibler(want, have)
            else:
                total = float(np.square(want - have).sum())
                weight = float(np.square(want - want.mean()).sum())
            self._totals[name] = self._totals.get(name, 0.0) + total
            self._weights[name] = self._weights.get(name, 0.0) + weight

    @property
    def value(self) -> float:
        """Summed over the outputs; infinite where any is not a number."""
        found = sum(total / max(self._weights[name], FLOOR) for name, total in self._totals.items())
        return found if np.isfinite(found) else float("inf")


def _kullback_leibler(want: Array, have: Array) -> tuple[float, float]:
    """Sum over the rows, and how many there are."""
    if is_distribution(want):
        p, log_p = want, np.log(np.maximum(want, FLOOR))
        log_q = np.log(np.maximum(have, FLOOR))
    else:
        log_p, log_q = _log_softmax(want), _log_softmax(have)
        p = np.exp(log_p)
    return float((p * (log_p - log_q)).sum()), float(len(want))


def is_distribution(scores: Array) -> bool:
    """Whether rows [samples, classes] are probabilities as they are."""
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def probabilities(scores: Array) -> Array:
    """The softmax of each row."""
    found: Array = np.exp(_log_softmax(scores))
    return found


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(axis=1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def divergence(
    outputs: Sequence[Mapping[str, Array]], model: Model, runs: Sequence[Mapping[str, Array]]
) -> float:
    """Of a model's outputs on some runs from the given ones."""
    return Distances(outputs, model, runs).mean


class Distances:
    """Divergence of a model's outputs on some runs from the given ones: of all, and of parts.

    `parts` are some samples each, where outputs have one row for each; else runs.
    """

    def __init__(
        self,
        outputs: Sequence[Mapping[str, Array]],
        model: Model,
        runs: Sequence[Mapping[str, Array]],
    ) -> None:
        session = Session(model, threads=0)
        together = Divergence()
        self.parts: list[float] = []
        for run, wanted in zip(runs, outputs, strict=True):
            found = session.run(run)
            together.add(wanted, found)
            for ours, theirs in _parts(wanted, found):
                one = Divergence()
                one.add(ours, theirs)
                self.parts.append(one.value)
        self.mean = together.value

    def is_worse(self, other: Distances) -> bool:
        """Whether it is more than that of another model on the same runs, beyond chance."""
        if not math.isfinite(self.mean):
            return True
        excess = np.subtract(self.parts, other.parts)
        error = excess.std(ddof=1) / math.sqrt(len(excess)) if len(excess) > 1 else 0.0
        return bool(excess.mean() > CHANCE * error)


Outputs = Mapping[str, Array]


def _parts(wanted: Outputs, found: Outputs) -> list[tuple[Outputs, Outputs]]:
    """A few samples each, if the first axes of all outputs count the same; else all."""
    values = [array for outputs in (wanted, found) for array in outputs.values()]
    shapes = {array.shape[:1] if isinstance(array, np.ndarray) else () for array in values}
    count = next(iter(shapes))[0] if len(shapes) == 1 and shapes != {()} else 0
    if count < 2 * PART:
        return [(wanted, found)]
    parts = [slice(k, k + PART) for k in range(0, count - count % PART, PART)]
    return [
        ({n: a[part] for n, a in wanted.items()}, {n: a[part] for n, a in found.items()})
        for part in parts
    ]
