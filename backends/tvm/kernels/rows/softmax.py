"""Softmax of 8-bit tensors, as ONNX Runtime's QLinearSoftmax computes it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from tvm import tirx

from .....ir.tensor import Array
from ...tensorir.builder import KernelBuilder, cast, constant, load, reinterpret
from ...tensorir.types import Computed, Expr, PrimFunc

_MAGIC = 12582912.0


@dataclasses.dataclass(frozen=True)
class QuantizedSoftmax:
    """Softmax over the last axis of [rows, size]."""

    rows: int
    size: int
    dtype: str
    output_scale: float
    output_zero: int


def exponentials(kernel: QuantizedSoftmax, input_scale: float) -> Array:
    """exp of every 8-bit value below the largest, scaled so that sums fit 32 bits.

    The entries behind them are those of values above the largest, of which there are none:
    with them no value's entry lies outside of the table, whatever the largest.
    """
    reserve = 5.0
    shift = math.log(float(np.finfo(np.float32).max) / kernel.size)
    shift = max(0.0, shift - reserve) / float(np.float32(input_scale))
    steps = np.arange(256, dtype=np.float64) - 255 + shift
    values = np.exp(steps * float(np.float32(input_scale))).astype(np.float32)
    return np.pad(values, (0, 255), mode="edge")


def build(kernel: QuantizedSoftmax) -> PrimFunc:
    """The kernel. Arguments: input, exponentials, output."""
    k = KernelBuilder()
    count = kernel.rows * kernel.size
    x = k.parameter("X", (count,), kernel.dtype)
    table = k.parameter("T", (511,), "float32")
    y = k.parameter("Y", (count,), kernel.dtype)
    low, high = (0, 255) if kernel.dtype == "uint8" else (-128, 127)
    inverse = float(np.floor(np.float32(1.0) / np.float32(kernel.output_scale)))
    with k.loop(kernel.rows, "r") as r:
        largest = k.local(1, "int32", "largest")
        total = k.local(1, "float32", "total")
        k.store(largest, tirx.const(low, "int32"), 0)
        k.store(total, constant(0.0, "float32"), 0)

        def entry(i: Expr) -> Computed:
            value = cast(load(x, r * kernel.size + i), "int32", 1)
            return load(table, value + (255 - most))

        with k.loop(kernel.size, "m") as i:
            value = cast(load(x, r * kernel.size + i), "int32", 1)
            k.store(largest, tirx.max(load(largest, 0), value), 0)
        most = tirx.Var("most", "int32")
        found = tirx.max(load(largest, 0), tirx.const(low, "int32"))
        k.statement(tirx.Bind(most, tirx.min(found, tirx.const(high, "int32"))))
        with k.loop(kernel.size, "s") as i:
            k.store(total, load(total, 0) + entry(i), 0)
        with k.loop(kernel.size, "q") as i:
            share = entry(i) * constant(inverse, "float32") / load(total, 0)
            bits = reinterpret(share + constant(_MAGIC, "float32"), "int32", 1)
            offset = int(np.float32(_MAGIC).view(np.int32)) - kernel.output_zero
            rounded = bits - tirx.const(offset, "int32")
            limited = tirx.max(
                tirx.min(rounded, tirx.const(high, "int32")), tirx.const(low, "int32")
            )
            k.store(y, cast(limited, kernel.dtype, 1), r * kernel.size + i)
    return k.finish()
