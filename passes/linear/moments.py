"""Second moments of inputs and targets, and the linear map that they determine.

Accumulated in double precision over products of single precision, centred before solving, so
that the bias is exact whatever the weights are. The ridge pulls towards given weights: where
those explain the targets they come out again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from ...ir.tensor import Array

Doubles = npt.NDArray[np.float64]

RIDGE = 1e-3
"""The ridge, relative to the inputs' mean variance; between 1e-6 and 1e-2 results hardly differ."""

SCARCE = 200
"""Rows for each unknown below which the ridge grows: a few samples fit anything."""


@dataclass
class Moments:
    """Sums over rows of `inputs` [groups, rows, in] and `targets` [groups, rows, out]."""

    rows: int
    inputs: Doubles  # [groups, in]
    targets: Doubles  # [groups, out]
    squares: Doubles  # [groups, in, in]
    products: Doubles  # [groups, in, out]
    energy: Doubles  # [groups, out], sums of squares of the targets
    centred: bool = True
    """Whether there is a bias; without one all moments are about zero."""
    _covariance: Doubles | None = field(default=None, init=False)

    @classmethod
    def zeros(cls, groups: int, width: int, outputs: int, *, centred: bool = True) -> Moments:
        return cls(
            0,
            np.zeros((groups, width)),
            np.zeros((groups, outputs)),
            np.zeros((groups, width, width)),
            np.zeros((groups, width, outputs)),
            np.zeros((groups, outputs)),
            centred,
        )

    @np.errstate(over="ignore", invalid="ignore")  # who reads sums that aren't finite names them
    def add(self, inputs: Array, targets: Array) -> None:
        self._covariance = None
        self.rows += inputs.shape[1]
        self.inputs += inputs.sum(axis=1, dtype=np.float64)
        self.squares += inputs.transpose(0, 2, 1) @ inputs
        self.add_targets(inputs, targets)

    @np.errstate(over="ignore", invalid="ignore")
    def add_targets(self, inputs: Array, targets: Array) -> None:
        """Only what depends on the targets."""
        self.targets += targets.sum(axis=1, dtype=np.float64)
        self.products += inputs.transpose(0, 2, 1) @ targets
        self.energy += np.square(targets, dtype=np.float64).sum(axis=1)

    def reset_targets(self) -> None:
        for sums in (self.targets, self.products, self.energy):
            sums[...] = 0

    @property
    def mean(self) -> Doubles:
        return self.inputs / self.rows if self.centred else np.zeros_like(self.inputs)

    @property
    def target_mean(self) -> Doubles:
        return self.targets / self.rows if self.centred else np.zeros_like(self.targets)

    @np.errstate(invalid="ignore")
    def covariance(self) -> Doubles:
        """Of the inputs: [groups, in, in]; the same array until more is added."""
        if self._covariance is None:
            mean = self.mean
            self._covariance = self.squares / self.rows
            self._covariance -= mean[:, :, None] * mean[:, None, :]
        return self._covariance

    def cross_covariance(self) -> Doubles:
        """Of inputs and targets: [groups, in, out]."""
        return self.products / self.rows - self.mean[:, :, None] * self.target_mean[:, None, :]

    def bias(self, weights: Doubles) -> Doubles:
        """The best one [groups, out] of given weights."""
        found: Doubles = self.target_mean - np.einsum("gi,gio->go", self.mean, weights)
        return found

    def error(self, weights: Doubles, bias: Doubles) -> float:
        """Mean squared distance of `inputs @ weights + bias` from the targets, summed over them."""
        moved = np.vdot(weights, self.covariance() @ weights)
        return max(self.error_beside(weights, bias) + float(moved), 0.0)

    def error_beside(self, weights: Doubles, bias: Doubles) -> float:
        """The error but for the variance of `inputs @ weights`."""
        offset = np.einsum("gi,gio->go", self.mean, weights) + bias - self.target_mean
        explained = np.vdot(weights, self.cross_covariance())
        variance = self.energy / self.rows - np.square(self.target_mean)
        return float((variance + np.square(offset)).sum() - 2 * explained)

    def spread(self) -> float:
        """Variance of the targets, summed over them."""
        return max(float((self.energy / self.rows - np.square(self.target_mean)).sum()), 0.0)


class Joint:
    """Moments of several uses of the same weights, each with a bias of its own."""

    def __init__(self, uses: Sequence[Moments]) -> None:
        self.uses = uses

    @property
    def rows(self) -> int:
        return sum(use.rows for use in self.uses)

    @np.errstate(invalid="ignore")
    def covariance(self) -> Doubles:
        """Of the inputs within each use: [groups, in, in]."""
        return self._mean([use.covariance() for use in self.uses])

    def cross_covariance(self) -> Doubles:
        """Of inputs and targets within each use: [groups, in, out]."""
        return self._mean([use.cross_covariance() for use in self.uses])

    def biases(self, weights: Doubles) -> list[Doubles]:
        """The best bias of each use."""
        return [use.bias(weights) for use in self.uses]

    def error(self, weights: Doubles, biases: Sequence[Doubles], moved: Doubles) -> float:
        """Mean squared distance from the targets; `moved` is `covariance() @ weights`."""
        pairs = zip(self.uses, biases, strict=True)
        beside = [use.error_beside(weights, bias) for use, bias in pairs]
        return max(sum(self._shares(beside)) + float(np.vdot(weights, moved)), 0.0)

    def spread(self) -> float:
        return sum(self._shares([use.spread() for use in self.uses]))

    def _shares(self, numbers: Sequence[float]) -> list[float]:
        pairs = zip(numbers, self.uses, strict=True)
        return [number * use.rows / self.rows for number, use in pairs]

    def _mean(self, arrays: Sequence[Doubles]) -> Doubles:
        if len(arrays) == 1:
            return arrays[0]
        pairs = zip(arrays, self.uses, strict=True)
        return np.asarray(sum(array * (use.rows / self.rows) for array, use in pairs))


class Solver:
    """The normal equations of some moments, for any number of targets, or for those of `once`:
    then there is no inverse, which takes three times as long."""

    def __init__(self, moments: Joint, ridge: float = RIDGE, *, once: bool = False) -> None:
        self._covariance = moments.covariance()
        width = self._covariance.shape[1]
        variance = np.einsum("gii->gi", self._covariance).mean(axis=1)
        scarce = max(1.0, SCARCE * width / max(moments.rows, 1))
        self.ridge = ridge * scarce * variance
        """Added to the diagonal of each group's covariance."""
        self._floor = np.where(self.ridge > 0, self.ridge, 1.0)[:, None, None]
        regular = self._covariance + self._floor * np.eye(width)
        product, matrix = (
            (np.linalg.solve, regular) if once else (np.matmul, np.linalg.inv(regular))
        )
        self._divided: Callable[[Doubles], Doubles] = partial(product, matrix)

    def solve(
        self, moments: Joint, old: Doubles, moved: Doubles
    ) -> tuple[Doubles, list[Doubles], Doubles]:
        """Weights [groups, in, out] near `old` with the least error, and a bias for each use.

        `moved` is `covariance() @ old`; the last result is that of the new weights.
        """
        residual = moments.cross_covariance() - moved
        step = self._divided(residual)
        weights = old + step
        return weights, moments.biases(weights), moved + residual - self._floor * step
