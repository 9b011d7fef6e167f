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


def surgeon_scores(dim: Dim, readers: Sequence[Reader]) -> Doubles:
    """Damage of each index of a dim at the moment when it goes, never less than of those before.

    So the least scores first is the order in which they go.
    """
    size = dim.size
    assert size is not None
    states = [_ReaderState.of(reader, dim) for reader in readers]
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
    """A reader after some indices have gone."""

    labels: Labels
    inverse: Doubles
    weights: Doubles
    importance: float

    @classmethod
    def of(cls, reader: Reader, dim: Dim) -> _ReaderState:
        width = len(reader.covariance)
        ridge = RIDGE * float(np.trace(reader.covariance)) / width
        regular = reader.covariance + (ridge or 1.0) * np.eye(width)
        inverse = np.asarray(np.linalg.inv(regular), np.float64)
        return cls(reader.labels[dim], inverse, reader.weights.copy(), reader.importance)

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
        for count in np.unique(counts[indices >= 0]):
            same = (counts == count) & (indices >= 0)
            found.append((order[starts[same][:, None] + np.arange(count)], indices[same]))
        return found
