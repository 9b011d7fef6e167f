"""Softmax, normalizations and reductions as kernel calls."""

from __future__ import annotations

import math

from ..kernels.rows import open_rows, quantization_range, rows, softmax
from ..plan.operations import QuantizationRangeOp, QuantizedSoftmaxOp, RowsOp
from ..plan.sizes import is_open
from ..plan.tensors import PlanTensor
from .emission import Emission


def emit(emission: Emission, op: RowsOp) -> None:
    """Build the kernel where no call has, and call it."""
    kernel = rows.Rows(
        op.kind,
        *op.extents,
        op.epsilon,
        op.program,
        tuple(_operand(t, op.extents) for t in op.operands),
    )
    parallel = emission.is_parallel(op)
    build = open_rows.build if is_open(kernel.size, kernel.inner) else rows.build
    buffer = emission.call(
        (kernel, parallel),
        lambda: build(kernel, emission.target, parallel),
        [emission.read(t, None) for t in (op.input, *op.operands)],
        (op.output.elements,),
        op.program.dtype,
    )
    emission.define(op.output, buffer)


def emit_quantization_range(emission: Emission, op: QuantizationRangeOp) -> None:
    """Build the kernel where no call has, and call it.

    Blocks are read as they lie, if all that is in them are elements, and zeros as padding.
    """
    layout = emission.own(op.input)
    if layout is not None and (layout.padded_channels != layout.channels or layout.fill != 0):
        layout = None
    count = op.input.elements if layout is None else math.prod(layout.shape)
    results = [((1,), t.dtype) for t in op.outputs]
    buffers = emission.call_all(
        ("quantization_range", count),
        lambda: quantization_range.build(count, emission.target),
        [emission.read(op.input, layout)],
        results,
    )
    for tensor, buffer in zip(op.outputs, buffers, strict=True):
        emission.define(tensor, buffer)


def emit_quantized_softmax(emission: Emission, op: QuantizedSoftmaxOp) -> None:
    """Build the kernel where no call has, and call it."""
    rows, size = op.output.shape
    kernel = softmax.QuantizedSoftmax(rows, size, op.output.dtype, op.output_scale, op.output_zero)
    table = softmax.exponentials(kernel, op.input_scale)
    buffer = emission.call(
        (kernel,),
        lambda: softmax.build(kernel),
        [emission.read(op.input, None), emission.constant(table)],
        (rows * size,),
        op.output.dtype,
    )
    emission.define(op.output, buffer)


def _operand(tensor: PlanTensor, extents: tuple[int, int, int]) -> rows.RowOperand:
    outer, size, inner = extents
    if tensor.elements == 1:
        strides = (0, 0, 0)
    elif tensor.elements == size and outer * inner != 1:
        strides = (0, 1, 0)
    else:
        strides = (size * inner, inner, 1)
    return rows.RowOperand(tensor.dtype, tensor.elements, *strides)
