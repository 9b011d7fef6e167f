"""Importance by reconstruction: what no combination of the other channels can make up for.

Channel-level Optimal Brain Surgeon: Hassibi and Stork, "Second Order Derivatives for Network
Pruning", 1993; Kurtic et al., "ZipLM", 2023. A channel's damage is the least squared error at
the layers that read it when their other weights are adapted; the least one goes, weights and
inverse covariance are updated, and so on. Errors at different layers compare by how much the
model's outputs move with noise there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...ir.axes.dims import Dim
from ..linear.moments import RIDGE, Doubles
from .readers import Labels, Reader

BATCHES = 48
"""Rounds in which a wide group's channels go: several at once, with the same inverse."""


class Inverses:
    """Inverse covariances of readers of some dims.

    Each is computed once, and kept as long as there is another dim that asks for it.
    """

    def __init__(self, dims: Sequence[Dim], readers: Sequence[Reader]) -> None:
        wanted = set(dims)
        self._asked = {id(reader): len(wanted & reader.labels.keys()) for reader in readers}
        self._kept: dict[int, Doubles] = {}

    def take(self, reader: Reader) -> Doubles:
        """That of a reader, for one of its dims."""
        key = id(reader)
        kept = self._kept.pop(key, None)
        found = _inverse(reader) if kept is None else kept
        self._asked[key] -= 1
        if self._asked[key] > 0:
            self._kept[key] = found
        return found


def _inverse(reader: Reader) -> Doubles:
    covariance = reader.covariance.astype(np.float64)
    width = len(covariance)
    ridge = RIDGE * float(np.trace(covariance)) / width
    regular = covariance + (ridge or 1.0) * np.eye(width)
    return np.asarray(np.linalg.inv(regular), np.float64)


def surgeon_scores(dim: Dim, readers: Sequence[Reader], inverses: Inverses) -> Doubles:
    """Damage of each index of a dim at the moment when it goes, never less than of those before.

    So the least scores first is the order in which they go. `readers` are those of the dim.
    """
    size = dim.size
    assert size is not None
    states = [_ReaderState.of(reader, dim, inverses.take(reader)) for reader in readers]
    alive = np.arange(size)
    scores = np.zeros(size)
    floor = 0.0
    while len(alive) > 1:
        damage = np.zeros(size)
        for state in states:
            state.add_damage(damage)
        many = max(1, len(alive) // BATCHES) if size > BATCHES else 1
        gone = alive[np.argsort(damage[alive], kind="stable")[:many]]
        for index in gone:
            floor = max(floor, float(damage[index]))
            scores[index] = floor
        for state in states:
            state.remove(gone)
        alive = np.setdiff1d(alive, gone, assume_unique=True)
    scores[alive] = 2 * floor
    return scores


@dataclasses.dataclass
class _ReaderState:
    """A reader after some indices of a dim have gone.

    What is removed never changes the part of the inverse and of the weights which belongs to the
    dim by anything outside of it, so that no more than that part is held.
    """

    labels: Labels
    inverse: Doubles
    weights: Doubles
    importance: float

    @classmethod
    def of(cls, reader: Reader, dim: Dim, inverse: Doubles) -> _ReaderState:
        labels = reader.labels[dim]
        inside = np.flatnonzero(labels >= 0)
        part = inverse.take(inside, axis=0).take(inside, axis=1)
        return cls(labels[inside], part, reader.weights[inside], reader.importance)

    def add_damage(self, damage: Doubles) -> None:
        """trace(W_c' (A_cc)^-1 W_c) for the unknowns c of each index."""
        for unknowns, indices in self._blocks():
            blocks = self.inverse[unknowns[:, :, None], unknowns[:, None, :]]
            weights = self.weights[unknowns]
            solved = np.linalg.inv(blocks) @ weights
            np.add.at(damage, indices, self.importance * (weights * solved).sum(axis=(1, 2)))

    def remove(self, gone: npt.NDArray[np.int64]) -> None:
        dead = np.isin(self.labels, gone)
        if not dead.any():
            return
        rest = np.flatnonzero(~dead)
        across = self.inverse[np.ix_(dead, rest)]
        factors = np.linalg.solve(self.inverse[np.ix_(dead, dead)], across)
        self.weights = self.weights[rest] - factors.T @ self.weights[dead]
        self.inverse = self.inverse.take(rest, axis=0).take(rest, axis=1)
        self.inverse -= across.T @ factors
        self.labels = self.labels[rest]

    def _blocks(self) -> list[tuple[Labels, Labels]]:
        """Unknowns of each index, [indices, unknowns], by how many there are."""
        order = np.argsort(self.labels, kind="stable")
        indices, starts, counts = np.unique(
            self.labels[order], return_index=True, return_counts=True
        )
        found = []
        for count in np.unique(counts):
            same = counts == count
            found.append((order[starts[same][:, None] + np.arange(count)], indices[same]))
        return found
