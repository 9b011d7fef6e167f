"""Products by constant matrices as kernel calls."""

from __future__ import annotations

import math

import numpy as np

from ..kernels.matrix import matmul
from ..kernels.matrix.dot import FourBytes
from ..kernels.matrix.reduction import weight_range, without_offset
from ..plan.operations import MatMulOp
from ..plan.strides import collapse
from ..plan.tensors import broadcast_strides
from .emission import Emission, padded


def emit(emission: Emission, op: MatMulOp) -> None:
    """Choose a tile, pack the weights, build the kernel where no call has, and call it."""
    shape = op.output.shape
    depth, columns = op.weights.shape
    rows = math.prod(shape) // columns
    lanes = emission.target.lanes
    width = -(-columns // lanes) * lanes
    operands, arguments = [], []
    for tensor in op.operands:
        if tensor.elements == 1:
            operands.append(matmul.MatrixOperand(tensor.dtype, 1, 0, 0))
            arguments.append(emission.read(tensor, None))
        elif tensor.elements == columns == tensor.shape[-1] and tensor.const is not None:
            operands.append(matmul.MatrixOperand(tensor.dtype, width, 0, 1))
            arguments.append(
                emission.constant(padded(tensor.const.reshape(-1), width, tensor.dtype))
            )
        else:
            *outer, column = broadcast_strides(tensor, shape)
            _, [[row]] = collapse(shape[:-1], [outer])
            operands.append(matmul.MatrixOperand(tensor.dtype, tensor.elements, row, column))
            arguments.append(emission.read(tensor, None))
    kernel = matmul.MatMul(
        rows,
        depth,
        columns,
        op.input.dtype,
        op.program,
        tuple(operands),
        weight_range(op.weights),
        op.weight_zeros is not None,
    )
    tile = emission.choices.product(op, kernel)
    dot = kernel.dot(emission.target)
    bias = without_offset(op.bias, op.weights.T, dot.input_offset)
    zeros = []
    if op.weight_zeros is not None:
        assert isinstance(dot, FourBytes)
        more = op.weight_zeros.astype(np.int64) * (dot.input_offset * depth)
        bias = (bias.astype(np.int64) + more).astype(np.int32)
        zeros = [emission.constant(padded(op.weight_zeros, width, dot.accumulator))]
    parallel = emission.is_parallel(op)
    buffer = emission.call(
        (kernel, tile, parallel),
        lambda: matmul.build(kernel, emission.target, tile, parallel),
        [
            emission.read(op.input, None),
            emission.constant(matmul.pack_weights(kernel, emission.target, tile, op.weights)),
            emission.constant(padded(bias, width, dot.accumulator)),
            *zeros,
            *arguments,
        ],
        (rows * columns,),
        op.output.dtype,
        scratch=matmul.scratch(kernel),
    )
    emission.define(op.output, buffer)
