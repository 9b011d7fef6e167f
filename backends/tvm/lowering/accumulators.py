"""Integer products: weights, biases, scales and programs of their 32-bit accumulators."""

from __future__ import annotations

import numpy as np

from ....ir.graph import Node, Value
from ....ir.tensor import Array
from ..plan.programs import Program, ProgramBuilder
from ..plan.tensors import PlanTensor
from .context import Constant, Lowering, Quantized


def integer_weights(weights: Constant, axis: int) -> Array | None:
    """Weights minus their zero points as int16, where scales are per tensor or along `axis`."""
    if weights.scale is None or weights.array.dtype not in (np.int8, np.uint8):
        return None
    if weights.scale.size != 1 and weights.axis != axis:
        return None
    zero = weights.along(weights.zero).astype(np.int16)
    return weights.array.astype(np.int16) - zero


def accumulator_scales(item: Quantized, weights: Constant, channels: int) -> Array:
    """The scale of the accumulator of each output channel."""
    assert weights.scale is not None
    scales = np.float32(item.scale) * weights.scale.astype(np.float32).reshape(-1)
    return np.broadcast_to(scales, (channels,))


def integer_accumulator(
    lowering: Lowering, node: Node, item: Quantized, weights: Constant, channels: int
) -> tuple[Array, Program, list[PlanTensor]] | None:
    """A convolution's bias in units of the accumulator, and the program that dequantizes
    it with its operands. None where the bias isn't constant."""
    scales = accumulator_scales(item, weights, channels)
    found = integer_bias(lowering, node.input(2), scales, channels)
    if found is None:
        return None
    bias, rest = found
    tail = (1,) * (weights.array.ndim - 2)
    program, operands = accumulator_program(node.label, item.scale, scales, rest, tail)
    return bias, program, operands


def integer_bias(
    lowering: Lowering, value: Value | None, scales: Array, channels: int
) -> tuple[Array, Array | None] | None:
    """A bias in units of the accumulator, or else (zeros, the float bias to add later).

    None where the bias isn't constant.
    """
    zeros = np.zeros(channels, np.int64)
    if value is None:
        return zeros, None
    if lowering.constant(value) is None:
        return None
    item = lowering.item(value)
    assert isinstance(item, Constant)
    if item.scale is not None and item.array.dtype == np.int32 and not np.any(item.zero):
        given = np.broadcast_to(item.scale.reshape(-1), (channels,))
        if np.allclose(given, scales, rtol=1e-4, atol=0):
            return np.broadcast_to(item.array.reshape(-1), (channels,)).astype(np.int64), None
    floats = np.broadcast_to(item.dequantized().astype(np.float32).reshape(-1), (channels,))
    return (zeros, None) if not floats.any() else (zeros, floats)


def accumulator_program(
    label: str, scale: float, scales: Array, bias: Array | None, tail: tuple[int, ...]
) -> tuple[Program, list[PlanTensor]]:
    """From the integer accumulator to floats: scales per channel, perhaps a float bias.

    Returns the program of operands (accumulator, scales, [bias]) and the latter's tensors.
    """
    shape = (-1, *tail)
    arrays = [scales] if bias is None else [scales, bias]
    builder = ProgramBuilder(["int32"] + ["float32"] * len(arrays))
    result = builder.add("scale_accumulator", (0, 1), "float32", input_scale=scale)
    if bias is not None:
        builder.add("add", (result, 2), "float32")
    tensors = []
    for name, array in zip(("scale", "bias"), arrays, strict=False):
        values = np.ascontiguousarray(array, np.float32).reshape(shape)
        tensors.append(PlanTensor(f"{label}/{name}", "float32", values.shape, const=values))
    return builder.build(), tensors
