"""From plan to schedule: layouts chosen for the whole graph, one kernel call per operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import regions
from ..choices import Choices
from ..parts import stays
from ..plan import (
    ConcatOp,
    ConvolutionOp,
    ElementwiseOp,
    LoopsOp,
    MatMulOp,
    Operation,
    Plan,
    PoolingOp,
    ProductOp,
    QuantizedSoftmaxOp,
    RecurrentOp,
    RegionOp,
    ReshapeOp,
    ResizeOp,
    RowsOp,
)
from ..schedule import Buffer
from ..targets import Target
from . import concat, convolution, loops, matmul, pooling, products, recurrent, resize, rows
from .emitter import Emitter


def emit(plan: Plan, target: Target, choices: Choices | None = None) -> Emitter:
    """Call a kernel for every operation; the emitter that holds schedule and kernels."""
    emitter = Emitter(plan, target, choices)
    for op in plan.operations:
        emitter.current = op
        _RULES[type(op)](emitter, op)
    emitter.current = None
    emitter.schedule.outputs = [emitter.read(t, None) for _, t in plan.outputs]
    return emitter


def _elementwise(emitter: Emitter, op: ElementwiseOp) -> None:
    into = emitter.place(op.output)
    if into is None or not stays(op, emitter.parts, emitter.layouts):
        into = emitter.elementwise(op, emitter.own(op.output), into)
    emitter.define(op.output, into)


def _reshape(emitter: Emitter, op: ReshapeOp) -> None:
    emitter.define(op.output, emitter.read(op.input, None))


def _region(emitter: Emitter, op: RegionOp) -> None:
    def add(kind: str, function: Any, buffers: Sequence[Buffer]) -> None:
        anonymous = function.without_attr("global_symbol")
        emitter.call_function(emitter.add_function(kind, anonymous), buffers)

    results = regions.calls(op.converted, [emitter.read(t, None) for t in op.inputs], add)
    for tensor, buffer in zip(op.outputs, results, strict=True):
        emitter.define(tensor, buffer)


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
    RegionOp: _region,
    ReshapeOp: _reshape,
    ResizeOp: resize.emit,
    RowsOp: rows.emit,
}
