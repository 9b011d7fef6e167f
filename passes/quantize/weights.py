"""Constants as integers: int8 weights, int32 biases, and operands stored as activations are.

Weights are symmetric: real = scale * integer, so products need no correction for a
weight zero point.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ...ir.tensor import Array
from .parameters import SMALLEST_SCALE

FULL_RANGE = 127
REDUCED_RANGE = 64
"""Largest weight for which two products with 255 still fit the 16 bits that x86's
`vpmaddubsw` adds them up in: 2 * 255 * 64 < 2**15."""

LARGEST_BIAS = 2**30
"""Integer biases keep to half of int32's range; the accumulators need the other half."""


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """Integers and their scale: float32, one number or one per index of `axis`."""

    integers: Array
    scale: NDArray[np.float32]
    axis: int | None


def quantize_weight(
    weight: Array, axis: int | None, limit: int, least_scale: NDArray[np.float64] | float
) -> QuantizedWeight:
    """int8 in [-limit, limit], each channel's largest magnitude mapped to `limit`.

    `least_scale` bounds the scale from below, per channel or for all. A channel of
    zeros gets that bound, or scale 1 where there is none.
    """
    magnitude = np.abs(weight).max(axis=_others(weight, axis)).astype(np.float64)
    scale = np.maximum(magnitude / limit, least_scale)
    scale = np.where(scale > 0, np.maximum(scale, SMALLEST_SCALE), 1.0).astype(np.float32)
    scaled = np.rint(weight / _along(scale, weight.ndim, axis))
    return QuantizedWeight(np.clip(scaled, -limit, limit).astype(np.int8), scale, axis)


def least_scale_for_bias(bias: Array, input_scale: float) -> NDArray[np.float64]:
    """The smallest weight scale at which `bias` fits int32; shape as the bias.

    It matters where a channel's weights are (nearly) zero next to its bias.
    """
    scale: NDArray[np.float64] = np.abs(bias.astype(np.float64)) / (input_scale * LARGEST_BIAS)
    return scale


def quantize_bias(
    bias: Array, input_scale: float, weight_scale: NDArray[np.float32]
) -> QuantizedWeight:
    """int32 at the accumulators' scale, the product of input and weight scale.

    `weight_scale` is one number or matches the bias's last axis.
    """
    scale = (np.float32(input_scale) * weight_scale).astype(np.float32)
    integers = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    limits = np.iinfo(np.int32)
    axis = bias.ndim - 1 if scale.ndim else None
    return QuantizedWeight(np.clip(integers, limits.min, limits.max).astype(np.int32), scale, axis)


def _others(weight: Array, axis: int | None) -> tuple[int, ...]:
    return tuple(i for i in range(weight.ndim) if i != axis)


def _along(scale: NDArray[np.float32], rank: int, axis: int | None) -> NDArray[np.float32]:
    if axis is None:
        return scale
    return scale.reshape([-1 if i == axis else 1 for i in range(rank)])
