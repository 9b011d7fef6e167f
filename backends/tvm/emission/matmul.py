"""Products by constant matrices as kernel calls."""

from __future__ import annotations

import math

import numpy as np

from ..kernels.matrix import blocks, matmul, packed_blocks, paired
from ..kernels.matrix.dot import FourBytes
from ..kernels.matrix.reduction import weight_range, without_offset
from ..plan.operations import BlockProductOp, Fused, MatMulOp
from ..plan.schedule import Buffer
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
    operands, arguments = matrix_operands(emission, op, columns)
    kernel = matmul.MatMul(
        rows,
        depth,
        columns,
        op.input.dtype,
        op.program,
        operands,
        weight_range(op.weights),
        op.weight_zeros is not None,
        0 if depth % 4 else paired.joined(emission.target, op.input.dtype, op.weights.T, depth),
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
    weights, *rest = matmul.pack_weights(kernel, emission.target, tile, op.weights)
    count = rest[0].shape[1] if rest else 0
    buffer = emission.call(
        (kernel, tile, count, parallel),
        lambda: matmul.build(kernel, emission.target, tile, parallel, count),
        [
            emission.read(op.input, None),
            emission.constant(weights),
            emission.constant(padded(bias, width, dot.accumulator)),
            *zeros,
            *arguments,
            *map(emission.constant, rest),
        ],
        (rows * columns,),
        op.output.dtype,
        scratch=matmul.scratch(kernel, tile),
    )
    emission.define(op.output, buffer)


def matrix_operands(
    emission: Emission, op: Fused, columns: int
) -> tuple[tuple[matmul.MatrixOperand, ...], list[Buffer]]:
    """The operands of a program over rows of columns, and their buffers."""
    shape, lanes = op.output.shape, emission.target.lanes
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
    return tuple(operands), arguments


def emit_blocks(emission: Emission, op: BlockProductOp) -> None:
    """As `emit`, of weights that stay packed."""
    columns = op.numbers.shape[0]
    depth = op.input.shape[-1]
    rows = math.prod(op.output.shape) // columns
    operands, arguments = matrix_operands(emission, op, columns)
    target = emission.target
    kernel = packed_blocks.BlockProduct(
        rows,
        depth,
        columns,
        op.bits,
        op.numbers.shape[2],
        op.program,
        operands,
        "" if op.zeros is None else str(op.zeros.dtype),
        op.rounds and packed_blocks.multiplies_bytes(target),
    )
    tile = packed_blocks.choose_tile(kernel, target)
    parallel = emission.is_parallel(op)
    weights = [
        packed_blocks.pack_weights(kernel, target, tile, op.numbers),
        packed_blocks.pack_scales(kernel, target, tile, op.scales),
    ]
    if op.zeros is not None:
        pack = packed_blocks.pack_zeros if op.zeros.dtype == np.uint8 else packed_blocks.pack_scales
        weights.append(pack(kernel, target, tile, op.zeros))
    buffer = emission.call(
        (kernel, tile, parallel),
        lambda: blocks.build(kernel, target, tile, parallel),
        [emission.read(op.input, None), *map(emission.constant, weights), *arguments],
        (rows * columns,),
        op.output.dtype,
        scratch=blocks.scratch(kernel),
    )
    emission.define(op.output, buffer)
