"""Operators whose result's size depends on the data.

Where the model declares that size, the kernel checks that the data leads to it; where it does not,
the run fails instead of giving a wrong result. Else a kernel before it counts the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import tirx

from .....ir.symbolic import expressions as e
from ...faults import Fault
from ...plan.operations import LoopsOp
from ...plan.sizes import most_of, size_of, stand_in, stand_in_of_axis
from ...plan.tensors import PlanTensor
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr, PrimFunc
from .base import (
    Array,
    Body,
    Cell,
    OperatorCall,
    cell,
    dtype_of,
    inserted,
    is_float,
    nest,
    replaced,
    rule,
    select,
    to,
    when,
    within,
    without,
)

Counting = Callable[[KernelBuilder, list[Array], Cell], None]
"""Builds a loop that counts results in a cell, from the inputs' arrays."""


def _count(call: OperatorCall, axis: int, counting: Counting, inputs: Sequence[int]) -> int:
    """The number of results: the declared one, or what a kernel finds that is called first."""

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        found = cell(k, "int32", 0, "found")
        counting(k, xs, found)
        ys[0].put(found.get(), 0)

    if not call.lowering.is_counted(call.node):
        return declared(call, axis)
    kernel_before(call, body, inputs, [total_of(call)])
    return call.output_shape()[axis]


def total_of(call: OperatorCall) -> PlanTensor:
    """The number of results, where a kernel counts them."""
    return PlanTensor(f"{call.node.label}/count", "int64", (1,))


def kernel_before(
    call: OperatorCall, body: Body, inputs: Sequence[int], results: Sequence[PlanTensor]
) -> None:
    """A kernel that is called before the operator's own; its first result is the number of those of
    the operator."""
    tensors = [call.tensor(index) for index in inputs]

    def build() -> PrimFunc:
        k = KernelBuilder()
        xs = [Array(k, f"X{i}", t.shape, t.dtype) for i, t in enumerate(tensors)]
        ys = [Array(k, f"Y{i}", t.shape, t.dtype) for i, t in enumerate(results)]
        body(k, xs, ys)
        return k.finish()

    call.lowering.add(LoopsOp(call.node.label, list(results), tensors, build))
    call.lowering.read_sizes(call.node, call.node.label, results[0])


def declared(call: OperatorCall, axis: int) -> int:
    """The declared number of results."""
    y = call.node.output(0)
    shape = None if y is None else y.shape
    if shape is None or not all(isinstance(d, int) for d in shape) or 0 in shape:
        call.fail("the result's size depends on the data, and the model declares none")
    return int(shape[axis])  # type: ignore[arg-type]


def _is_set(value: Expr) -> Expr:
    """Whether a number isn't zero; NaN isn't."""
    found = to(value, "bool")
    return tirx.any(found, tirx.isnan(value)) if is_float(dtype_of(value)) else found


@rule("NonZero")
def non_zero(call: OperatorCall) -> None:
    """Indices of the elements that aren't zero, [rank, count] in row-major order."""
    shape = call.shape()

    def counting(k: KernelBuilder, xs: list[Array], found: Cell) -> None:
        with nest(k, shape) as index:
            found.add(select(_is_set(xs[0][index]), 1, 0))

    count = _count(call, 1, counting, [0])

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        found = cell(k, "int32", 0, "found")
        with nest(k, shape) as index, when(k, _is_set(xs[0][index])):
            at = within(k, found.get(), 0, count, Fault.COUNT)
            for axis, place in enumerate(index):
                ys[0].store(place, (axis, at))
            found.add(1)
        k.fail_if(tirx.NE(found.get(), count), Fault.COUNT)

    call.loops(body, key=())


@rule("Compress")
def compress(call: OperatorCall) -> None:
    shape = call.shape()
    given = call.node.get("axis")
    axis = 0 if given is None else call.axis(len(shape), 0)
    flat = given is None
    whole = math.prod(shape) if flat else shape[axis]
    length = stand_in(e.minimum(size_of(call.shape(1)[0]), size_of(whole)))

    def counting(k: KernelBuilder, xs: list[Array], found: Cell) -> None:
        with k.loop(length, "c") as i:
            found.add(select(xs[0][[i]], 1, 0))

    count = _count(call, axis, counting, [1])
    if call.output_shape() != ((count,) if flat else tuple(replaced(shape, axis, count))):
        call.fail(f"its result is declared as {list(call.output_shape())}")

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, condition = xs
        y = ys[0]
        found = cell(k, "int32", 0, "found")
        with k.loop(length, "c") as i:  # noqa: SIM117
            with when(k, condition[[i]]):
                at = within(k, found.get(), 0, count, Fault.COUNT)
                if flat:
                    y.put(x.at(i), at)
                else:
                    with nest(k, without(shape, axis)) as rest:
                        y.store(x[inserted(rest, axis, i)], inserted(rest, axis, at))
                found.add(1)
        k.fail_if(tirx.NE(found.get(), count), Fault.COUNT)

    call.loops(body, key=())


def most_of_result(call: OperatorCall) -> int:
    """The most rows that a result may have."""
    most = most_of(size_of(call.output_shape()[0]))
    assert most is not None
    return stand_in_of_axis(most)
