"""Copies that only move data become strides of what reads them: views of views."""

from __future__ import annotations

from collections.abc import Sequence

from .operations import ElementwiseOp, Plan, ProductOp, ReshapeOp
from .strides import compose, row_major
from .tensors import Operation, PlanTensor, View


def absorb_copies(plan: Plan) -> None:
    """Let products and copies read through the copies before them, and write permuted.

    The plan must be linked; it has to be linked again, which drops copies that nothing
    reads any more.
    """
    for op in plan.operations:
        if isinstance(op, ProductOp):
            op.left = _furthest(op.left, -1)
            op.right = _furthest(op.right, -1, -2)
        elif isinstance(op, ElementwiseOp) and is_copy(op):
            op.views = [_furthest(op.views[0])]
    taken = {id(op) for op in plan.operations if isinstance(op, ProductOp) and _permute(op)}
    gone = {id(op.output) for op in plan.operations if id(op) in taken}
    plan.operations = [
        op
        for op in plan.operations
        if not (isinstance(op, ElementwiseOp) and id(op.output) in gone)
    ]


def is_copy(op: Operation | None) -> bool:
    """Whether an operation only moves the elements of one tensor."""
    return isinstance(op, ElementwiseOp) and len(op.views) == 1 and not op.program.instructions


def _furthest(view: View, *axes: int) -> View:
    """The same elements read from as early a tensor as strides reach.

    With `axes` one of these must have neighbouring elements, which kernels rely on.
    """
    best = view
    while True:
        producer = view.tensor.producer
        if isinstance(producer, ReshapeOp):
            view = View(producer.input, view.shape, _strides(view), view.offset)
        elif isinstance(producer, ElementwiseOp) and is_copy(producer):
            inner = producer.views[0]
            strides, offset = _broadcast_strides(inner, producer.output.shape), inner.offset
            found = compose(
                view.shape, _strides(view), view.offset, producer.output.shape, strides, offset
            )
            if found is None:
                return best
            view = View(inner.tensor, view.shape, *found)
        else:
            return best
        sizes = [(view.shape[a], _strides(view)[a]) for a in axes]
        if not axes or any(step == 1 or size == 1 for size, step in sizes):
            best = view


def _strides(view: View) -> tuple[int, ...]:
    return row_major(view.shape) if view.strides is None else view.strides


def _broadcast_strides(view: View, shape: Sequence[int]) -> list[int]:
    """A view's strides over the larger shape that it broadcasts to."""
    missing = len(shape) - len(view.shape)
    return [0] * missing + [
        stride if size != 1 else 0 for stride, size in zip(_strides(view), view.shape, strict=True)
    ]


def _permute(op: ProductOp) -> bool:
    """Write in the order of a transposition that alone reads the product; whether it does."""
    output = op.output
    if output.kept or len(output.readers) != 1 or op.strides is not None:
        return False
    reader = output.readers[0]
    if not isinstance(reader, ElementwiseOp) or not is_copy(reader):
        return False
    view = reader.views[0]
    target = reader.output
    if view.tensor is not output or view.offset or target.elements != output.elements:
        return False
    strides = _permuted(op.shape, _strides(view), target)
    if strides is None or (strides[-1] != 1 and op.shape[-1] != 1):
        return False
    op.outputs, op.strides = [target], strides
    target.producer = op
    return True


def _permuted(
    shape: Sequence[int], strides: Sequence[int], target: PlanTensor
) -> tuple[int, ...] | None:
    """For each axis of `shape` its stride in `target`, whose axes walk it by `strides`."""
    own = row_major(shape)
    steps = row_major(target.shape)
    result = []
    for size, step in zip(shape, own, strict=True):
        if size == 1:
            result.append(0)
            continue
        found = [
            t
            for t, s, n in zip(steps, strides, target.shape, strict=True)
            if (s, n) == (step, size)
        ]
        if not found:
            return None
        result.append(found[0])
    return tuple(result)
