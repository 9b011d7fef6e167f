"""How far rounding alone moves a model's outputs.

A sigmoid far below zero, a difference of large numbers or a near-constant normalization
magnify what the last places of their operands say. Moving weights and inputs by a few of
those shows by how much, for any model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .agreement import differences
from .ir.model import Model
from .ir.tensor import Array, Tensor
from .passes.reference import Session

UNITS = 4
"""Units in the last place by which weights and inputs move."""

DRAWS = 2
"""Independent movements, of which the largest effect counts."""


def movement(model: Model, feeds: Sequence[Mapping[str, Array]], seed: int = 0) -> dict[str, float]:
    """The largest absolute difference that rounding its weights and inputs otherwise makes
    to each floating-point output of a model, by name."""
    random = np.random.default_rng(seed)
    exact = Session(model, optimize=False)
    largest: dict[str, float] = {}
    for _ in range(DRAWS):
        moved = Session(_moved_weights(model, random), optimize=False)
        other = [{name: _moved(x, random) for name, x in feed.items()} for feed in feeds]
        for name, difference in differences(exact, moved, zip(feeds, other, strict=True)).items():
            largest[name] = max(largest.get(name, 0.0), difference)
    return largest


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
