"""From plan to schedule: layouts chosen for the whole graph, one kernel call per operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ....ir.errors import MISFITS, RuleError
from ..bounds import Verdicts
from ..errors import UnprovenError
from ..plan.aliases import is_in_place
from ..plan.operations import (
    AppendOp,
    BlockProductOp,
    BranchOp,
    ConcatOp,
    ConvolutionOp,
    ElementwiseOp,
    LoopOp,
    LoopsOp,
    MatMulOp,
    Plan,
    PoolingOp,
    ProductOp,
    QuantizationRangeOp,
    QuantizedSoftmaxOp,
    ReadSizesOp,
    RecurrentOp,
    ReshapeOp,
    ResizeOp,
    RowsOp,
)
from ..plan.schedule import SizeRead, nbytes
from ..plan.sizes import OpenSizeError
from ..plan.tensors import Operation
from ..targets import Target
from . import concat, convolution, loop, loops, matmul, pooling, product, recurrent, resize, rows
from .choices import Choices
from .emission import Emission


def emit(
    plan: Plan,
    target: Target,
    choices: Choices | None = None,
    verdicts: Verdicts | None = None,
    *,
    threads: bool = True,
) -> Emission:
    """Call a kernel for every operation; the emission that holds schedule and kernels.

    Without `threads` no loop is to be shared out.

    Raises UnprovenError naming the node whose kernel isn't proven to stay within its buffers.
    """
    emission = Emission(plan, target, choices, verdicts, threads=threads)
    _emit_plan(emission, plan)
    emission.current = None
    emission.schedule.outputs = [emission.read(t, None) for _, t in plan.outputs]
    for (_, tensor), buffer in zip(plan.outputs, emission.schedule.outputs, strict=True):
        assert buffer.nbytes == nbytes(tensor.shape, tensor.dtype) or plan.equal, tensor.name
    return emission


def _emit_plan(emission: Emission, plan: Plan) -> None:
    """Call the kernels of a plan, the whole or the body of a loop."""
    for op in plan.operations:
        emission.current = op
        rule = _RULES[type(op)]
        try:
            rule(emission, op)
        except OpenSizeError as error:
            raise UnprovenError(op.label, f"{emission.where()}: {error}") from None
        except MISFITS as error:
            operator = plan.operators.get(op.label, type(op).__name__)
            raise RuleError.of(op.label, operator, rule, error) from error


def _elementwise(emission: Emission, op: ElementwiseOp) -> None:
    into = emission.place(op.output)
    if into is None or not is_in_place(op, emission.aliases, emission.layouts):
        into = emission.elementwise(op, emission.own(op.output), into)
    emission.define(op.output, into)


def _loop(emission: Emission, op: LoopOp) -> None:
    loop.emit_loop(emission, op, _emit_plan)


def _branches(emission: Emission, op: BranchOp) -> None:
    loop.emit_branches(emission, op, _emit_plan)


def _reshape(emission: Emission, op: ReshapeOp) -> None:
    emission.define(op.output, emission.read(op.input, None))


def _read_sizes(emission: Emission, op: ReadSizesOp) -> None:
    buffer, schedule = emission.read(op.input, None), emission.schedule
    assert schedule.open is not None
    for atom, index in op.sizes.items():
        where = f"input '{op.label}'" if op.input.producer is None else emission.where()
        call, step = len(schedule.calls), emission.open_steps[-1] if emission.open_steps else None
        read = SizeRead(atom, buffer, index, op.input.dtype, call, where, step)
        schedule.open.reads.append(read)


_RULES: dict[type[Operation], Callable[[Emission, Any], None]] = {
    AppendOp: concat.emit_append,
    BlockProductOp: matmul.emit_blocks,
    BranchOp: _branches,
    ConcatOp: concat.emit,
    ConvolutionOp: convolution.emit,
    ElementwiseOp: _elementwise,
    LoopOp: _loop,
    LoopsOp: loops.emit,
    MatMulOp: matmul.emit,
    PoolingOp: pooling.emit,
    ProductOp: product.emit,
    QuantizationRangeOp: rows.emit_quantization_range,
    QuantizedSoftmaxOp: rows.emit_quantized_softmax,
    RecurrentOp: recurrent.emit,
    ReadSizesOp: _read_sizes,
    ReshapeOp: _reshape,
    ResizeOp: resize.emit,
    RowsOp: rows.emit,
}
