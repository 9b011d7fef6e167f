"""Random inputs for models whose open sizes a test knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from secateur.data.random_inputs import random_array
from secateur.ir.model import Model

Array = Any


def random_feeds(
    model: Model, seed: int = 0, sizes: Mapping[str, int] | None = None, default: int = 2
) -> dict[str, Array]:
    """One run's inputs; sizes by symbol, those not found there and unknown ones `default`."""
    generator = np.random.default_rng(seed)
    found = {}
    for value in model.graph.inputs:
        if value.const is None:
            shape = [
                s if isinstance(s, int) else (sizes or {}).get(s or "", default)
                for s in value.shape or ()
            ]
            found[value.name] = random_array(value, shape, generator)
    return found
