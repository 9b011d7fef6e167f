"""From plan to schedule: layouts chosen for the whole graph, one kernel call per operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..bounds import Verdicts
from ..plan.operations import (
    ConcatOp,
    ConvolutionOp,
    ElementwiseOp,
    LoopsOp,
    MatMulOp,
    Plan,
    PoolingOp,
    ProductOp,
    QuantizedSoftmaxOp,
    RecurrentOp,
    ReshapeOp,
    ResizeOp,
    RowsOp,
)
from ..plan.parts import stays
from ..plan.schedule import nbytes
from ..plan.tensors import Operation
from ..targets import Target
from . import concat, convolution, loops, matmul, pooling, products, recurrent, resize, rows
from .choices import Choices
from .emitter import Emitter


def emit(
    plan: Plan, target: Target, choices: Choices | None = None, verdicts: Verdicts | None = None
) -> Emitter:
    """Call a kernel for every operation; the emitter that holds schedule and kernels.

    Raises UnprovenError naming the node whose kernel isn't proven to stay within its buffers.
    """
    emitter = Emitter(plan, target, choices, verdicts)
    for op in plan.operations:
        emitter.current = op
        _RULES[type(op)](emitter, op)
    emitter.current = None
    emitter.schedule.outputs = [emitter.read(t, None) for _, t in plan.outputs]
    for (_, tensor), buffer in zip(plan.outputs, emitter.schedule.outputs, strict=True):
        assert buffer.nbytes == nbytes(tensor.shape, tensor.dtype), tensor.name
    return emitter


def _elementwise(emitter: Emitter, op: ElementwiseOp) -> None:
    into = emitter.place(op.output)
    if into is None or not stays(op, emitter.parts, emitter.layouts):
        into = emitter.elementwise(op, emitter.own(op.output), into)
    emitter.define(op.output, into)


def _reshape(emitter: Emitter, op: ReshapeOp) -> None:
    emitter.define(op.output, emitter.read(op.input, None))


_RULES: dict[type[Operation], Callable[[Emitter, Any], None]] = {
    ConcatOp: concat.emit,
    ConvolutionOp: convolution.emit,
    ElementwiseOp: _elementwise,
    LoopsOp: loops.emit,
    MatMulOp: matmul.emit,
    PoolingOp: pooling.emit,
    ProductOp: products.emit,
    QuantizedSoftmaxOp: rows.emit_quantized_softmax,
    RecurrentOp: recurrent.emit,
    ReshapeOp: _reshape,
    ResizeOp: resize.emit,
    RowsOp: rows.emit,
}
