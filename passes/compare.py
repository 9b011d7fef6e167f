"""How far two models' outputs lie apart, and inputs to measure that with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from onnx import TensorProto, helper

from ..ir.errors import SecateurError
from ..ir.graph import Value
from ..ir.model import Model
from ..ir.tensor import Array


def allowed_deviation(output: object, tolerance: float) -> float:
    """`tolerance`, or a few roundings where the output's type is coarser than that."""
    if isinstance(output, np.ndarray) and output.dtype.kind == "f":
        return max(tolerance, 4 * float(np.finfo(output.dtype).eps))
    return tolerance


def deviation(expected: object, actual: object) -> float:
    """Largest difference of two outputs, relative to the largest finite magnitude expected.

    Infinite where shapes, types, non-finite elements or elements that are no floats
    differ. Sequences deviate as their worst element.
    """
    if isinstance(expected, list):
        if not isinstance(actual, list) or len(actual) != len(expected):
            return float("inf")
        return max((deviation(e, a) for e, a in zip(expected, actual, strict=True)), default=0.0)
    if not isinstance(expected, np.ndarray) or not isinstance(actual, np.ndarray):
        return 0.0 if expected == actual else float("inf")
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    if expected.dtype.kind not in "fcV":
        return 0.0 if np.array_equal(expected, actual) else float("inf")
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    return _float_deviation(expected.astype(wide), actual.astype(wide))


def _float_deviation(expected: Array, actual: Array) -> float:
    finite = np.isfinite(expected)
    same_special = np.array_equal(finite, np.isfinite(actual)) and np.array_equal(
        expected[~finite], actual[~finite], equal_nan=True
    )
    if not same_special:
        return float("inf")
    if not finite.any():
        return 0.0
    difference = float(np.abs(expected[finite] - actual[finite]).max())
    return difference / magnitude(expected)


def magnitude(output: Array) -> float:
    """The largest finite magnitude in an output, and never 0."""
    finite = np.abs(output[np.isfinite(output)])
    return max(float(finite.max(initial=0.0)), float(np.finfo(np.float32).tiny))


MOST_ELEMENTS = 1 << 27
"""Elements of one random input: what a file declares may be any number."""


def random_feeds(
    model: Model, seed: int = 0, sizes: Mapping[str, int] | None = None, default: int = 2
) -> dict[str, Array]:
    """One run's random inputs: normal floats, integers 0 and 1, random booleans.

    Symbolic sizes are looked up in `sizes`; those not found there, and unknown ones,
    are `default`. Raises SecateurError for inputs that are no tensors of numbers.
    """
    generator = np.random.default_rng(seed)
    return {
        value.name: _random_input(value, generator, sizes or {}, default)
        for value in model.graph.inputs
        if value.const is None
    }


def _random_input(
    value: Value, generator: np.random.Generator, sizes: Mapping[str, int], default: int
) -> Array:
    shape = value.shape
    if shape is None or value.dtype in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise SecateurError(f"input '{value.name}': can't make random data of its type")
    concrete = [size if isinstance(size, int) else sizes.get(size or "", default) for size in shape]
    if math.prod(concrete) > MOST_ELEMENTS:
        raise SecateurError(
            f"input '{value.name}': {'x'.join(map(str, concrete))} elements are too many for "
            f"random data; --input-shape gives an input other sizes"
        )
    dtype = helper.tensor_dtype_to_np_dtype(value.dtype)
    if dtype == np.bool_:
        return generator.integers(0, 2, concrete).astype(np.bool_)
    if dtype.kind in "iu":
        return generator.integers(0, 2, concrete).astype(dtype)
    return np.asarray(generator.standard_normal(concrete)).astype(dtype)
