"""Depthwise convolution of blocked activations: channels in lanes, no reduction over them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..layout import Blocked
from ..programs import Program
from ..targets import Target
from .builder import KernelBuilder, cast, load
from .convolution import Geometry, _start
from .epilogue import Operand, declare, fill_border, read, store_lanes
from .steps import StepEmitter


@dataclasses.dataclass(frozen=True)
class Depthwise:
    """One depthwise kernel; 8-bit inputs accumulate in int32."""

    input: Blocked
    input_dtype: str
    output: Blocked
    geometry: Geometry
    program: Program
    operands: tuple[Operand, ...]

    @property
    def accumulator(self) -> str:
        return "float32" if self.input_dtype == "float32" else "int32"


def pack_weights(conv: Depthwise, weights: Any) -> Any:
    """[C, 1, KH, KW] to [KH * KW, padded channels]."""
    channels, _, kernel_h, kernel_w = weights.shape
    packed = np.zeros((kernel_h * kernel_w, conv.output.padded_channels), conv.accumulator)
    packed[:, :channels] = weights.reshape(channels, -1).T
    return packed


def build(conv: Depthwise, target: Target, threads: int = 1) -> Any:
    """The kernel. Arguments: input, weights, bias, operands, output."""
    x, y, geometry = conv.input, conv.output, conv.geometry
    kernel_h, kernel_w = geometry.kernel
    lanes = min(target.lanes, y.block)
    columns = choose_columns(y.width, kernel_h * kernel_w, target)
    k = KernelBuilder()
    acc_dtype = conv.accumulator
    source = k.parameter("X", x.shape, conv.input_dtype)
    weights = k.parameter("W", (kernel_h * kernel_w, y.padded_channels), acc_dtype)
    bias = k.parameter("B", (y.padded_channels,), acc_dtype)
    buffers = declare(k, conv.operands, y, y.padded_channels)
    result = k.parameter("Y", y.shape, conv.program.dtype)
    fill_border(k, result, y, conv.program.dtype)
    top, left = x.top - geometry.pads[0], x.left - geometry.pads[1]
    with (
        k.outer(y.batch, y.blocks, parallel=threads > 1) as (n, cb),
        k.loop(y.block // lanes, "part") as part,
        k.loop(y.height, "oh") as oh,
        k.loop(-(-y.width // columns), "ow") as j,
    ):
        column = _start(j, columns, y.width)
        channel = cb * y.block + part * lanes
        acc = k.local(columns * lanes, acc_dtype)
        start = load(bias, channel, lanes=lanes)
        for p in range(columns):
            k.store(acc, start, p * lanes, lanes=lanes)
        for kh in range(kernel_h):
            for kw in range(kernel_w):
                w = load(weights, kh * kernel_w + kw, channel, lanes=lanes)
                for p in range(columns):
                    h = oh * geometry.strides[0] + (kh * geometry.dilations[0] + top)
                    v = (column + p) * geometry.strides[1] + (kw * geometry.dilations[1] + left)
                    value = load(
                        source, n * x.blocks + cb, h * x.columns + v, part * lanes, lanes=lanes
                    )
                    if acc_dtype == "int32":
                        value = cast(value, "int32", lanes)
                    total = load(acc, p * lanes, lanes=lanes) + value * w
                    k.store(acc, total, p * lanes, lanes=lanes)
        emitter = StepEmitter(k, target, lanes)
        for p in range(columns):
            values = [load(acc, p * lanes, lanes=lanes)]
            for operand, buffer in zip(conv.operands, buffers, strict=True):
                position: Any = 0
                if operand.layout is not None:
                    one = (operand.layout.height, operand.layout.width) == (1, 1)
                    position = operand.layout.position(*((0, 0) if one else (oh, column + p)))
                values.append(read(operand, buffer, n, channel, position, lanes))
            value = emitter.evaluate(conv.program, values)
            store_lanes(k, result, y, value, n, channel, y.position(oh, column + p), lanes)
    return k.finish()


def choose_columns(width: int, taps: int, target: Target) -> int:
    """Pixels per tile: few wasted by the overlap of the last tile, many in flight."""
    most = max(4, min(14, target.registers - min(taps, 9) - 2))
    return min(range(1, min(width, most) + 1), key=lambda c: (-(-width // c)) * (c + 1.5))
