"""Random feeds for any model, from the types of its inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto, helper

from ...ir.errors import SecateurError
from ...ir.graph import Value
from ...ir.model import Model
from ...ir.tensor import Array

RANGE_KEY = "secateur.input_range."
"""Metadata `secateur.input_range.NAME = "LOW HIGH"`: integers of input NAME, HIGH excluded."""

SHAPE_KEY = "secateur.input_shape."
"""Metadata `secateur.input_shape.NAME = "1 16"`: a size that fits each axis of input NAME."""

BATCH = 2
"""Size of a symbolic first axis, so that what holds for batch 1 only shows."""

LENGTH = 8
"""Size of any other symbolic axis about which the metadata says nothing."""


def random_inputs(
    model: Model, *, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Feeds for every input of `model`, the same for the same seed.

    Floats are standard normal, integers uniform over the range in the metadata (else
    0 and 1). `sizes` gives the sizes of symbolic axes by name. Raises SecateurError for
    inputs that are no tensors of numbers.
    """
    generator = np.random.default_rng(seed)
    metadata = {p.key: p.value for p in model.extra.metadata_props}
    symbols = dict(sizes or {})
    return {
        value.name: _draw(value, _shape(value, metadata, symbols), metadata, generator)
        for value in model.graph.inputs
        if value.const is None
    }


def _shape(value: Value, metadata: Mapping[str, str], symbols: dict[str, int]) -> tuple[int, ...]:
    """Sizes of the axes; what is chosen for a symbol is noted in `symbols`."""
    shape = value.shape
    if shape is None:
        raise SecateurError(f"input '{value.name}' has no shape: feed it yourself")
    hints = [int(s) for s in metadata.get(SHAPE_KEY + value.name, "").split()]
    sizes = []
    for axis, size in enumerate(shape):
        if not isinstance(size, int):
            default = BATCH if axis == 0 else hints[axis] if axis < len(hints) else LENGTH
            size = default if size is None else symbols.setdefault(size, default)
        sizes.append(size)
    return tuple(sizes)


def _draw(
    value: Value,
    shape: tuple[int, ...],
    metadata: Mapping[str, str],
    generator: np.random.Generator,
) -> Array:
    if value.dtype in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise SecateurError(f"input '{value.name}' is no tensor of numbers: feed it yourself")
    dtype = helper.tensor_dtype_to_np_dtype(value.dtype)
    if dtype.kind in "iub":
        low, high = (int(s) for s in metadata.get(RANGE_KEY + value.name, "0 2").split())
        return generator.integers(low, high, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)
