"""Convolutions as kernel calls: direct, depthwise, Winograd."""

from __future__ import annotations

import numpy as np

from ....ir.tensor import Array
from ..kernels.convolution import depthwise, packing, winograd
from ..kernels.convolution import direct as convolution
from ..kernels.convolution.tiles import Convolution, columns_as_rows
from ..kernels.convolution.transforms import transforms
from ..kernels.matrix import paired
from ..kernels.matrix.reduction import weight_range, without_offset
from ..plan.blocked import Blocked
from ..plan.operations import ConvolutionOp
from ..plan.schedule import Buffer
from ..plan.sizes import is_open
from ..targets import Target
from .emission import Emission, padded


def emit(emission: Emission, op: ConvolutionOp) -> None:
    """Choose the form and its tile, pack the weights, build the kernel, and call it."""
    y = emission.layouts[op.output]
    groups = grouped(op, y, emission.target)
    block = y.block if op.is_depthwise or groups else 1
    x, layout = emission.blocked(op.input, emission.choices.needed_pads(op), op.fill, block)
    if op.is_depthwise or groups:
        _depthwise(emission, op, x, layout)
        return
    if emission.choices.by_winograd(op):
        _winograd(emission, op, x, layout)
        return
    channels = max(y.padded_channels, emission.target.lanes)
    operands, arguments = emission.operands(op, y, channels)
    conv = Convolution(
        layout,
        op.input.dtype,
        y,
        op.geometry,
        op.groups,
        op.program,
        operands,
        weight_range(op.weights),
        op.upsampling,
        _joined(op, layout, emission.target),
    )
    values = op.weights
    if conv.is_column:
        conv, values = columns_as_rows(conv), values.swapaxes(2, 3)
    tile = emission.choices.convolution(op, conv)
    dot = conv.dot(emission.target)
    bias = without_offset(op.bias, op.weights, dot.input_offset)
    if op.upsampling is not None:
        width = conv.phase_vectors(emission.target) * emission.target.lanes
        values, bias = (_padded_phases(a, op.upsampling.phases, width) for a in (values, bias))
    bias = padded(bias, conv.vectors(emission.target) * emission.target.lanes, dot.accumulator)
    weights, *rest = packing.pack_weights(conv, emission.target, tile, values)
    count = rest[0].shape[1] if rest else 0
    starts = convolution.start_table(conv, emission.target, tile)
    extra = [emission.constant(a) for a in (starts, *rest) if a is not None]
    parallel = emission.is_parallel(op)
    emission.produce(
        op.output,
        (conv, tile, count, parallel),
        lambda: convolution.build(conv, emission.target, tile, parallel, count),
        [x, emission.constant(weights), emission.constant(bias), *arguments, *extra],
    )


def _joined(op: ConvolutionOp, x: Blocked, target: Target) -> int:
    """Words of channels whose products are added in 16 bits."""
    if op.upsampling is not None or is_open(*op.input.shape, *op.output.shape):
        return 0
    per_group = op.input.shape[1] // op.groups
    if op.groups > 1 and per_group % x.block:
        return 0
    return paired.joined(target, op.input.dtype, np.moveaxis(op.weights, 1, -1), x.block)


def grouped(op: ConvolutionOp, layout: Blocked, target: Target) -> bool:
    """Whether the convolution's groups are so narrow that they lie in the lanes of vectors."""
    same = op.input.shape[1] == op.output.shape[1]
    return op.groups > 1 and same and lies_in_lanes(op, op.weights.shape[1], layout, target)


def lies_in_lanes(op: ConvolutionOp, width: int, layout: Blocked, target: Target) -> bool:
    """The same of groups of `width` channels, as many in as out."""
    if op.input.dtype != "float32" or op.upsampling is not None:
        return False
    return depthwise.takes_groups(width, layout, target)


def _depthwise(emission: Emission, op: ConvolutionOp, x: Buffer, layout: Blocked) -> None:
    y = emission.layouts[op.output]
    operands, arguments = emission.operands(op, y, y.padded_channels)
    kernel = depthwise.Depthwise(
        layout,
        op.input.dtype,
        y,
        op.geometry,
        op.program,
        operands,
        weight_range(op.weights),
        op.weights.shape[1],
    )
    bias = without_offset(op.bias, op.weights, kernel.input_offset(emission.target))
    bias = padded(bias, y.padded_channels, kernel.accumulator)
    weights = depthwise.pack_weights(kernel, emission.target, op.weights)
    parallel = emission.is_parallel(op)
    emission.produce(
        op.output,
        (kernel, parallel),
        lambda: depthwise.build(kernel, emission.target, parallel),
        [x, emission.constant(weights), emission.constant(bias), *arguments],
    )


def _winograd(emission: Emission, op: ConvolutionOp, x: Buffer, layout: Blocked) -> None:
    y = emission.layouts[op.output]
    operands, arguments = emission.operands(op, y, y.padded_channels)
    fresh = op.output in emission.choices.fresh
    by = transforms(op.input.dtype, emission.target, op.weights if fresh else None)
    kernel = winograd.Winograd(layout, y, op.geometry, op.program, operands, op.groups, fresh, by)
    parallel = emission.is_parallel(op)
    emission.produce(
        op.output,
        (kernel, parallel),
        lambda: winograd.build(kernel, emission.target, parallel),
        [
            x,
            emission.constant(winograd.pack_weights(kernel, op.weights)),
            emission.constant(padded(op.bias, y.padded_channels, by.accumulator)),
            *arguments,
        ],
        scratch=kernel.scratch,
    )


def _padded_phases(values: Array, phases: int, width: int) -> Array:
    """[phases * channels, ...] with zeros up to `width` channels in each phase."""
    split = values.reshape(phases, -1, *values.shape[1:])
    padded = np.zeros((phases, width, *values.shape[1:]), values.dtype)
    padded[:, : split.shape[1]] = split
    return padded.reshape(phases * width, *values.shape[1:])
