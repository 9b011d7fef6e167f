"""Quantization by scale and zero point: real = scale * (integer - zero_point), as in ONNX.

Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018; ONNX operators QuantizeLinear, DequantizeLinear.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ...ir.tensor import Array

SMALLEST_SCALE = 2.0**-60
"""Least scale: the product of two, the accumulators' scale, is still a normal float32."""


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """Real values that a tensor takes, both ends included.

    `broken` is the first sample, counted from zero, that made it infinite or NaN. Without
    elements it is not `seen`.
    """

    low: float
    high: float
    broken: int | None = None
    seen: bool = True


@dataclasses.dataclass(frozen=True)
class QuantParams:
    """Per-tensor parameters: `scale` is a float32 number, `zero_point` of type `dtype`."""

    scale: float
    zero_point: int
    dtype: np.dtype[Any]

    @classmethod
    def covering(cls, range: ValueRange, dtype: np.dtype[Any]) -> QuantParams:
        """The finest asymmetric parameters whose integers reach all of `range` and zero.

        Zero is exact, so that padding is. The scale is rounded towards zero, so that both
        ends of the range reach the ends of the integers: then a Clip to the range saturates
        nothing that they would not. A range of zero alone gets scale 1.
        """
        limits = np.iinfo(dtype)
        low, high = min(range.low, 0.0), max(range.high, 0.0)
        if low == high:
            return cls(1.0, int(limits.min), dtype)
        steps = float(limits.max) - float(limits.min)
        exact = max((high - low) / steps, SMALLEST_SCALE)
        scale = float(np.float32(exact))
        if scale > exact:
            scale = float(np.nextafter(np.float32(scale), np.float32(0)))
        zero_point = int(np.clip(np.rint(limits.min - low / scale), limits.min, limits.max))
        return cls(scale, zero_point, dtype)

    def quantize(self, array: Array) -> Array:
        """QuantizeLinear: divide in float32, round half to even, saturate."""
        limits = np.iinfo(self.dtype)
        with np.errstate(over="ignore"):  # an infinite bound of Clip saturates like a large one
            scaled = np.rint(np.asarray(array, np.float32) / np.float32(self.scale))
        integers: Array = np.clip(scaled + self.zero_point, limits.min, limits.max)
        return integers.astype(self.dtype)

    def makes_redundant(self, bounds: ValueRange) -> bool:
        """Whether quantizing saturates everything that clipping to `bounds` would.

        Quantizing is monotonic: if both bounds map to the ends, what lies beyond does too.
        """
        limits = np.iinfo(self.dtype)
        ends = self.quantize(np.array([bounds.low, bounds.high], np.float32))
        return int(ends[0]) == limits.min and int(ends[1]) == limits.max


def widened(range: ValueRange, share: float, possible: ValueRange) -> ValueRange:
    """A range that reaches further on both sides of zero, within what is possible."""
    low = max(range.low * (1 + share), min(possible.low, range.low))
    high = min(range.high * (1 + share), max(possible.high, range.high))
    return dataclasses.replace(range, low=min(low, range.low), high=max(high, range.high))


def range_of(array: Array) -> ValueRange:
    """The values' range; zero alone for an empty array."""
    if array.size == 0:
        return ValueRange(0.0, 0.0)
    return ValueRange(float(array.min()), float(array.max()))
