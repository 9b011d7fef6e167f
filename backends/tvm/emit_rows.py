"""Softmax, normalizations and reductions as kernel calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .kernels import rows
from .plan import RowsOp, Tensor
from .work import is_parallel

if TYPE_CHECKING:
    from .emit import Emitter


def emit(emitter: Emitter, op: RowsOp) -> None:
    """Build the kernel where no call has, and call it."""
    kernel = rows.Rows(
        op.kind,
        *op.extents,
        op.epsilon,
        op.program,
        tuple(_operand(t, op.extents) for t in op.operands),
    )
    parallel = is_parallel(op, emitter.target)
    variable = emitter.call(
        (kernel, parallel),
        lambda: rows.build(kernel, emitter.target, parallel),
        [emitter.read(t, None) for t in (op.input, *op.operands)],
        (op.output.elements,),
        op.program.dtype,
    )
    emitter.define(op.output, variable)


def _operand(tensor: Tensor, extents: tuple[int, int, int]) -> rows.RowOperand:
    outer, size, inner = extents
    if tensor.elements == 1:
        strides = (0, 0, 0)
    elif tensor.elements == size and outer * inner > 1:
        strides = (0, 1, 0)
    else:
        strides = (size * inner, inner, 1)
    return rows.RowOperand(tensor.dtype, tensor.elements, *strides)
