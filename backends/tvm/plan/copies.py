"""Copies that only move data become strides of what reads them: views of views."""

from __future__ import annotations

import math
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
    found: list[Operation] = []
    for op in plan.operations:
        if isinstance(op, ElementwiseOp) and id(op.output) in gone:
            continue
        found += _split_batch(op) if isinstance(op, ProductOp) else []
        found.append(op)
    plan.operations = found


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


def _split_batch(op: ProductOp) -> list[Operation]:
    """Read through a copy that repeats matrices, as heads that share keys, by splitting axes of the
    batch that walk several axes of the copy; what reshapes the operands for it."""
    for side, axes in (("left", (-1,)), ("right", (-1, -2))):
        view = getattr(op, side)
        producer = view.tensor.producer
        if not isinstance(producer, ElementwiseOp) or not is_copy(producer):
            continue
        batch = zip(op.shape[:-2], view.shape, _strides(view), strict=False)
        parts = [_walked(producer.output.shape, n, s) if n == m else (n,) for n, m, s in batch]
        if all(len(part) == 1 for part in parts):
            continue
        further = _furthest(_split_view(view, parts), *axes)
        if further.tensor is view.tensor:
            continue
        for other in ("left", "right"):
            setattr(op, other, _split_view(getattr(op, other), parts))
        setattr(op, side, further)
        if op.strides is not None:
            op.strides = _split_strides(op.strides, parts)
        op.shape = (*_split_shape(op.shape, parts), *op.shape[-2:])
        return [*_split_operands(op, parts), *_split_batch(op)]
    return []


def _walked(shape: Sequence[int], size: int, stride: int) -> tuple[int, ...]:
    """The axes of a row-major tensor that an axis of a view walks together; it alone, if none."""
    steps = row_major(shape)
    for last in range(len(shape)):
        if steps[last] != stride:
            continue
        for first in range(last):
            if math.prod(shape[first : last + 1]) == size:
                return tuple(n for n in shape[first : last + 1] if n != 1)
    return (size,)


def _split_shape(shape: Sequence[int], parts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The first axes of a shape, those that aren't broadcast as their parts."""
    pairs = zip(shape, parts, strict=False)
    return tuple(p for n, part in pairs for p in (part if n != 1 else (1,) * len(part)))


def _split_strides(strides: Sequence[int], parts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Strides of the first axes as those of their parts, and of the others as they are."""
    found = [s * step for s, part in zip(strides, parts, strict=False) for step in row_major(part)]
    return (*found, *strides[len(parts) :])


def _split_view(view: View, parts: Sequence[Sequence[int]]) -> View:
    shape = (*_split_shape(view.shape, parts), *view.shape[-2:])
    return View(view.tensor, shape, _split_strides(_strides(view), parts), view.offset)


def _split_operands(op: ProductOp, parts: Sequence[Sequence[int]]) -> list[Operation]:
    """Let a product's operands broadcast to its shape; what reshapes them."""
    made: list[Operation] = []
    for index, tensor in enumerate(op.operands):
        missing = len(parts) + 2 - len(tensor.shape)
        own = parts[missing:] if missing >= 0 else []
        if all(len(part) == 1 for part in own):
            continue
        shape = (*_split_shape(tensor.shape, own), *tensor.shape[-2:])
        if tensor.const is not None:
            const = tensor.const.reshape(shape)
            op.operands[index] = PlanTensor(tensor.name, tensor.dtype, shape, const)
            continue
        reshaped = PlanTensor(f"{tensor.name}/split", tensor.dtype, shape)
        made.append(ReshapeOp(op.label, [reshaped], tensor))
        op.operands[index] = reshaped
    return made
