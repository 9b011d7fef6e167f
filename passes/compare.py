"""How far two outputs lie apart: the one notion of distance that every check uses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..ir.tensor import Array


def tensors(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs by name, sequences as their tensors, each by its place: `y[0]`, `y[1]`."""
    found: dict[str, Array] = {}
    for name, value in outputs.items():
        parts = (
            {f"{name}[{i}]": tensor for i, tensor in enumerate(value)}
            if isinstance(value, list)
            else {name: value}
        )
        found.update({part: np.asarray(tensor) for part, tensor in parts.items()})
    return found


def is_discrete(output: Array) -> bool:
    """Whether elements are equal or not, as integers and strings, and never just close."""
    return output.dtype.kind not in "fcV"  # the small floats of ml_dtypes are V


def gaps(expected: Array, actual: Array) -> Array:
    """Absolute differences of two outputs of one shape, element by element.

    0 where both are NaN or the same infinity; infinite where one alone is, and between
    elements that are no floats and differ.
    """
    if is_discrete(expected) or is_discrete(actual):
        different: Array = np.where(expected == actual, 0.0, np.inf)
        return different
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    want, have = expected.astype(wide), actual.astype(wide)
    with np.errstate(invalid="ignore"):
        found: Array = np.asarray(np.abs(want - have))
    found[np.isnan(found)] = np.inf
    found[(want == have) | (np.isnan(want) & np.isnan(have))] = 0.0
    return found


def magnitude(output: Array) -> float:
    """The largest finite magnitude in an output; 0 where there is none."""
    if is_discrete(output):
        return 0.0
    wide = np.abs(output.astype(np.complex128 if output.dtype.kind == "c" else np.float64))
    return float(wide[np.isfinite(wide)].max(initial=0.0))


def relative(difference: float, to: float) -> float:
    """A difference relative to a magnitude; infinite where only the latter is zero."""
    if difference == 0.0:
        return 0.0
    return difference / to if to else float("inf")


def deviation(expected: object, actual: object) -> float:
    """Largest difference of two outputs, relative to the largest finite magnitude expected.

    Infinite where shapes or types differ. Sequences deviate as their worst element.
    """
    if isinstance(expected, list):
        if not isinstance(actual, list) or len(actual) != len(expected):
            return float("inf")
        return max((deviation(e, a) for e, a in zip(expected, actual, strict=True)), default=0.0)
    if not isinstance(expected, np.ndarray) or not isinstance(actual, np.ndarray):
        return 0.0 if expected == actual else float("inf")
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    return relative(float(gaps(expected, actual).max(initial=0.0)), magnitude(expected))


def allowed_deviation(output: object, tolerance: float) -> float:
    """`tolerance`, or a few roundings where the output's type is coarser than that."""
    if isinstance(output, np.ndarray) and output.dtype.kind == "f":
        return max(tolerance, 4 * float(np.finfo(output.dtype).eps))
    return tolerance
