"""Mean and deviation of a layer's outputs, and what gives them those of its targets.

The cheap way to recover: no equations are solved. Nagel et al., "Data-Free Quantization through
Weight Equalization and Bias Correction", 2019, match means so; Jordan et al., "REPAIR", 2023,
deviations, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.tensor import Array
from .moments import Doubles

LARGEST_FACTOR = 10.0
"""Of a deviation, either way: a channel that hardly moves says little of its scale."""


@dataclass
class Levels:
    """Sums over rows of outputs [groups, rows, out], of their targets, and of squares."""

    rows: int
    outputs: Doubles
    targets: Doubles
    output_squares: Doubles
    target_squares: Doubles
    distances: Doubles

    @classmethod
    def zeros(cls, groups: int, outputs: int) -> Levels:
        return cls(0, *(np.zeros((groups, outputs)) for _ in range(5)))

    def add(self, outputs: Array, targets: Array) -> None:
        self.rows += outputs.shape[1]
        self.outputs += outputs.sum(axis=1, dtype=np.float64)
        self.targets += targets.sum(axis=1, dtype=np.float64)
        self.output_squares += np.square(outputs, dtype=np.float64).sum(axis=1)
        self.target_squares += np.square(targets, dtype=np.float64).sum(axis=1)
        self.distances += np.square(outputs - targets, dtype=np.float64).sum(axis=1)

    @property
    def error(self) -> float:
        """Mean squared distance from the targets, summed over them."""
        return float(self.distances.sum() / self.rows)

    @property
    def spread(self) -> float:
        """Variance of the targets, summed over them."""
        return float(self._variance(self.targets, self.target_squares).sum())

    def factor(self, *, biased: bool) -> Doubles:
        """What outputs [groups, out] are to be multiplied by; about zero where nothing shifts."""
        have = self._variance(self.outputs, self.output_squares)
        want = self._variance(self.targets, self.target_squares)
        if not biased:
            have, want = self.output_squares / self.rows, self.target_squares / self.rows
        ratio = np.sqrt(np.divide(want, have, out=np.ones_like(have), where=have > 0))
        return np.clip(ratio, 1 / LARGEST_FACTOR, LARGEST_FACTOR)

    def bias(self, bias: Doubles, factor: Doubles) -> Doubles:
        """The bias that gives the targets' means once the weights are multiplied."""
        return self.targets / self.rows - factor * (self.outputs / self.rows - bias)

    def _variance(self, sums: Doubles, squares: Doubles) -> Doubles:
        return np.maximum(squares / self.rows - np.square(sums / self.rows), 0.0)
