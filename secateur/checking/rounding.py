"""How much a model's outputs change by rounding alone.

A sigmoid far below zero, a difference of large numbers or a near-constant normalization
magnify what the last places of their operands say. Moving weights and inputs by a few of
those shows by how much, for any model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..ir.model import Model
from ..ir.reference import Session
from ..ir.tensor import Array, Tensor
from ..passes.compare import gaps, tensors

UNITS = 4
"""Units in the last place by which weights and inputs move."""

DRAWS = 2
"""Independent movements, of which the largest effect counts."""

FLIP_DRAWS = 16
"""Movements where elements flip. One at which rounding decides between two values takes
either in a third of the draws, and hides from all of them once in a thousand times."""

Outputs = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Rounding:
    """What rounding its weights and inputs otherwise makes of a model's outputs.

    `exact` has the outputs of each run, `moved` those of the same runs in each draw; of
    sequences every tensor by itself.
    """

    exact: Sequence[Outputs]
    moved: Sequence[Sequence[Outputs]]

    @classmethod
    def of(
        cls, model: Model, feeds: Sequence[Mapping[str, Array]], flips: bool = False, seed: int = 0
    ) -> Rounding:
        """`flips`: whether what rounding makes of single elements is asked for."""
        random = np.random.default_rng(seed)
        session = Session(model, optimize=False)
        moved = []
        for _ in range(FLIP_DRAWS if flips else DRAWS):
            other = Session(_moved_weights(model, random), optimize=False)
            moved.append(
                [
                    tensors(other.run({name: _moved(x, random) for name, x in feed.items()}))
                    for feed in feeds
                ]
            )
        return cls([tensors(session.run(feed)) for feed in feeds], moved)

    def distance(self, name: str) -> float:
        """The largest finite absolute difference that it makes to a floating-point output."""
        return max(
            (
                _distance(want[name], other)
                for run, want in enumerate(self.exact)
                if name in want
                for other in self.values(name, run)
            ),
            default=0.0,
        )

    def values(self, name: str, run: int) -> list[Array]:
        """What one run gives for an output in each draw that doesn't change its shape."""
        shape = self.exact[run][name].shape
        found = [draw[run][name] for draw in self.moved if name in draw[run]]
        return [array for array in found if array.shape == shape]


def movement(model: Model, feeds: Sequence[Mapping[str, Array]]) -> dict[str, float]:
    """The largest absolute difference that rounding its weights and inputs otherwise makes
    to each floating-point output of a model, by name."""
    rounding = Rounding.of(model, feeds)
    return {
        name: rounding.distance(name)
        for name, array in (rounding.exact[0].items() if feeds else ())
        if array.dtype.kind in "fV"
    }


def _distance(want: Array, have: Array) -> float:
    found = gaps(want, have)
    return float(found[np.isfinite(found)].max(initial=0.0))


def _moved_weights(model: Model, random: np.random.Generator) -> Model:
    clone = model.clone()
    for graph in clone.graph.all_graphs():
        for value in graph.initializers.values():
            if value.const is not None:
                array = _moved(value.const.numpy(), random)
                value.const = Tensor.from_array(array, value.const.dtype)
    return clone


def _moved(array: Any, random: np.random.Generator) -> Any:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        return array
    unit = float(np.finfo(array.dtype).eps)
    factor = 1 + UNITS * unit * random.uniform(-1, 1, array.shape)
    return (array * factor).astype(array.dtype)
