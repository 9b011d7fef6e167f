"""Convolutions as kernel calls: direct, depthwise, Winograd."""

from __future__ import annotations

import numpy as np

from ....ir.tensor import Array
from ..kernels.convolution import depthwise, winograd
from ..kernels.convolution import direct as convolution
from ..kernels.matrix.dot import weight_range, without_offset
from ..plan.layout import Blocked
from ..plan.operations import ConvolutionOp
from ..plan.schedule import Buffer
from .emitter import Emitter, padded
from .work import is_parallel


def emit(emitter: Emitter, op: ConvolutionOp) -> None:
    """Choose the form and its tile, pack the weights, build the kernel, and call it."""
    y = emitter.layouts[op.output]
    block = y.block if op.is_depthwise else 1
    x, layout = emitter.blocked(op.input, emitter.choices.needed_pads(op), op.fill, block)
    if op.is_depthwise:
        _depthwise(emitter, op, x, layout)
        return
    if emitter.choices.by_winograd(op):
        _winograd(emitter, op, x, layout)
        return
    channels = max(y.padded_channels, emitter.target.lanes)
    operands, arguments = emitter.operands(op, y, channels)
    conv = convolution.Convolution(
        layout,
        op.input.dtype,
        y,
        op.geometry,
        op.groups,
        op.program,
        operands,
        weight_range(op.weights),
        op.upsampling,
    )
    tile = emitter.choices.convolution(op, conv)
    dot = conv.dot(emitter.target)
    values, bias = op.weights, without_offset(op.bias, op.weights, dot.input_offset)
    if op.upsampling is not None:
        width = conv.phase_vectors(emitter.target) * emitter.target.lanes
        values, bias = (_padded_phases(a, op.upsampling.phases, width) for a in (values, bias))
    bias = padded(bias, conv.vectors(emitter.target) * emitter.target.lanes, dot.accumulator)
    weights = convolution.pack_weights(conv, emitter.target, tile, values)
    starts = convolution.start_table(conv, emitter.target, tile)
    extra = [emitter.constant(starts)] if starts is not None else []
    parallel = is_parallel(op, emitter.target)
    emitter.produce(
        op.output,
        (conv, tile, parallel),
        lambda: convolution.build(conv, emitter.target, tile, parallel),
        [x, emitter.constant(weights), emitter.constant(bias), *arguments, *extra],
    )


def _depthwise(emitter: Emitter, op: ConvolutionOp, x: Buffer, layout: Blocked) -> None:
    y = emitter.layouts[op.output]
    operands, arguments = emitter.operands(op, y, y.padded_channels)
    kernel = depthwise.Depthwise(
        layout,
        op.input.dtype,
        y,
        op.geometry,
        op.program,
        operands,
        weight_range(op.weights),
    )
    signed = kernel.by_dot_product(emitter.target) and op.input.dtype == "int8"
    bias = without_offset(op.bias, op.weights, 128 if signed else 0)
    bias = padded(bias, y.padded_channels, kernel.accumulator)
    weights = depthwise.pack_weights(kernel, emitter.target, op.weights)
    parallel = is_parallel(op, emitter.target)
    emitter.produce(
        op.output,
        (kernel, parallel),
        lambda: depthwise.build(kernel, emitter.target, parallel),
        [x, emitter.constant(weights), emitter.constant(bias), *arguments],
    )


def _winograd(emitter: Emitter, op: ConvolutionOp, x: Buffer, layout: Blocked) -> None:
    y = emitter.layouts[op.output]
    operands, arguments = emitter.operands(op, y, y.padded_channels)
    kernel = winograd.Winograd(layout, y, op.geometry, op.program, operands)
    parallel = is_parallel(op, emitter.target)
    emitter.produce(
        op.output,
        (kernel, parallel),
        lambda: winograd.build(kernel, emitter.target, parallel),
        [
            x,
            emitter.constant(winograd.pack_weights(kernel, op.weights)),
            emitter.constant(padded(op.bias, y.padded_channels, "float32")),
            *arguments,
        ],
        scratch=[(shape, "float32") for shape in kernel.scratch],
    )


def _padded_phases(values: Array, phases: int, width: int) -> Array:
    """[phases * channels, ...] with zeros up to `width` channels in each phase."""
    split = values.reshape(phases, -1, *values.shape[1:])
    padded = np.zeros((phases, width, *values.shape[1:]), values.dtype)
    padded[:, : split.shape[1]] = split
    return padded.reshape(phases * width, *values.shape[1:])
