"""Products of two run-time values as kernel calls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ..errors import UnprovenError
from ..kernels.matrix import open_bytes, open_product, product
from ..plan.operations import ElementwiseOp, ProductOp
from ..plan.programs import Program
from ..plan.strides import collapse, row_major
from ..plan.tensors import PlanTensor, View, broadcast_strides
from .emission import Emission


def emit(emission: Emission, op: ProductOp) -> None:
    """Call the product's kernel; one that isn't proven to stay within what it reads through strides
    of open sizes reads copies."""
    try:
        _emit(emission, op)
    except UnprovenError:
        if op.left.is_whole and op.right.is_whole:
            raise
        left, right = (_copied(emission, view, op.label) for view in (op.left, op.right))
        _emit(emission, dataclasses.replace(op, left=left, right=right))


def _copied(emission: Emission, view: View, label: str) -> View:
    """The elements of a view as a tensor of their own."""
    if view.is_whole:
        return view
    tensor = PlanTensor(f"{view.tensor.name}/copy", view.tensor.dtype, view.shape)
    copy = ElementwiseOp(label, [tensor], [view], Program((tensor.dtype,)))
    emission.buffers[tensor, None] = emission.elementwise(copy, None)
    return View.of(tensor)


def _emit(emission: Emission, op: ProductOp) -> None:
    """Choose a tile, build the kernel where no call has, and call it."""
    target = emission.target
    kernel = describe(op)
    is_open = open_product.has_open_sizes(kernel)
    tile = (open_product if is_open else product).choose_tile(kernel, target)
    build, scratch = product.build, product.BatchedProduct.scratch
    if is_open:
        form = open_bytes if open_bytes.multiplies(kernel) else open_product
        build, scratch = form.build, form.scratch
    parallel = emission.is_parallel(op)
    tensors = op.reads()
    buffer = emission.call(
        (kernel, tile, parallel),
        lambda: build(kernel, target, tile, parallel),
        [emission.read(t, None) for t in tensors],
        (op.output.elements,),
        op.program.dtype,
        scratch=scratch(kernel, target, tile),
    )
    emission.define(op.output, buffer)


def describe(op: ProductOp) -> product.BatchedProduct:
    """The kernel's description; adjacent batch axes that all tensors walk as one are one."""
    *batch, rows, columns = op.shape
    output = row_major(op.shape) if op.strides is None else op.strides
    walked = [
        _batch_strides(op.left),
        _batch_strides(op.right),
        list(output[:-2]),
        *(broadcast_strides(t, op.shape)[:-2] for t in op.operands),
    ]
    sizes, merged = collapse(batch, walked)
    left, right, out, *others = [
        [s if size != 1 else 0 for s, size in zip(m, sizes, strict=True)] for m in merged
    ]
    operands = []
    for tensor, strides in zip(op.operands, others, strict=True):
        row, column = broadcast_strides(tensor, op.shape)[-2:]
        operands.append(
            product.Matrices(tensor.dtype, tensor.elements, tuple(strides), row, column)
        )
    return product.BatchedProduct(
        tuple(sizes),
        rows,
        op.left.shape[-1],
        columns,
        _matrices(op.left, left),
        _matrices(op.right, right),
        _zero(op.left_zero),
        _zero(op.right_zero),
        op.program,
        tuple(operands),
        product.Matrices(
            op.program.dtype, math.prod(op.shape), tuple(out), output[-2] if rows != 1 else 0, 1
        ),
    )


def _zero(given: int | PlanTensor) -> int | str:
    return given.dtype if isinstance(given, PlanTensor) else given


def _matrices(view: View, batch: Sequence[int]) -> product.Matrices:
    row, column = view.element_strides[-2:]
    tensor = view.tensor
    # An axis of one element may count as having neighbours, which kernels prefer.
    return product.Matrices(
        tensor.dtype, tensor.elements, tuple(batch), row, column or 1, view.offset
    )


def _batch_strides(view: View) -> list[int]:
    return list(view.element_strides[:-2])
