"""How much an operation of the plan computes: for splitting over threads, tuning, reports."""

from __future__ import annotations

import math

from ..kernels.matrix.reduction import choose
from ..plan.operations import (
    BlockProductOp,
    ConvolutionOp,
    ElementwiseOp,
    MatMulOp,
    PoolingOp,
    ProductOp,
    ResizeOp,
)
from ..plan.sizes import is_open, typical
from ..plan.tensors import Operation
from ..targets import Target

PARALLEL_OPERATIONS = 16_000
"""Vector instructions from which a kernel is split over threads.

Handing a kernel to the thread pool and waiting for the slowest thread takes about 3
microseconds, the time of about 8,000 vector instructions; two threads save half of the
kernel's time.
"""


def macs(op: Operation) -> int:
    """Multiply-accumulates of a convolution or matrix product, by its definition; 0 of other
    operations, and where only a run fixes it."""
    if any(is_open(*t.shape) for t in (*op.outputs, *op.reads())):
        return 0
    if isinstance(op, ConvolutionOp):
        found: int = op.output.elements * math.prod(op.weights.shape[1:])
        if op.upsampling is not None:  # of whose weights some are zero and left out
            found = (
                found * op.upsampling.taps // (op.upsampling.phases * math.prod(op.geometry.kernel))
            )
        return found
    if isinstance(op, MatMulOp):
        return op.output.elements * int(op.weights.shape[0])
    if isinstance(op, BlockProductOp):
        return op.output.elements * op.input.shape[-1]
    if isinstance(op, ProductOp):
        return op.output.elements * op.left.shape[-1]
    return 0


def vector_operations(op: Operation, target: Target) -> float:
    """About how many vector instructions the operation's kernel executes."""
    if any(is_open(*t.shape) for t in (*op.outputs, *op.reads())):
        elements = sum(typical(t.elements) for t in (*op.outputs, *op.reads()))
        if isinstance(op, (ConvolutionOp, MatMulOp)):
            elements += typical(op.output.elements) * int(op.weights[0].size)
        if isinstance(op, BlockProductOp):
            elements += typical(op.output.elements) * int(op.numbers[0].size)
        return elements / target.lanes
    vectors = op.output.elements / target.lanes
    if isinstance(op, (BlockProductOp, ConvolutionOp, MatMulOp, ProductOp)):
        factor = op.left.tensor if isinstance(op, ProductOp) else op.input
        dot = choose(target, factor.dtype)
        return macs(op) / target.lanes / dot.depth + vectors * len(op.program.instructions)
    if isinstance(op, PoolingOp):
        taps = math.prod(op.geometry.kernel)
        return vectors * (taps + len(op.program.instructions))
    if isinstance(op, ResizeOp):
        return vectors * (op.rows.count + op.columns.count + len(op.program.instructions))
    if isinstance(op, ElementwiseOp):
        return vectors * (1 + len(op.views) + len(op.program.instructions))
    return sum(t.elements for t in (*op.outputs, *op.reads())) / target.lanes


def is_parallel(op: Operation, target: Target) -> bool:
    """Whether splitting the operation's kernel over threads saves time."""
    return vector_operations(op, target) >= PARALLEL_OPERATIONS
