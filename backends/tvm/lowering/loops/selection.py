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
    all_of,
    bind,
    cell,
    clamped,
    dtype_of,
    inserted,
    is_float,
    limited,
    nest,
    number,
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
        return _declared(call, axis)
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


def _declared(call: OperatorCall, axis: int) -> int:
    """The declared number of results."""
    y = call.node.output(0)
    shape = None if y is None else y.shape
    if shape is None or not all(isinstance(d, int) for d in shape) or 0 in shape:
        call.fail("the result's size depends on the data, and the model declares none")
    return int(shape[axis])  # type: ignore[arg-type]


def _emit_count(call: OperatorCall, counting: Counting, inputs: Sequence[int]) -> None:
    """The kernel that counts results, and the number for those who need it."""
    tensors = [call.tensor(index) for index in inputs]
    total = PlanTensor(f"{call.node.label}/count", "int64", (1,))

    def build() -> PrimFunc:
        k = KernelBuilder()
        arrays = [Array(k, f"X{i}", t.shape, t.dtype) for i, t in enumerate(tensors)]
        y = Array(k, "Y", total.shape, total.dtype)
        found = cell(k, "int32", 0, "found")
        counting(k, arrays, found)
        y.put(found.get(), 0)
        return k.finish()

    call.lowering.add(LoopsOp(call.node.label, [total], tensors, build))
    call.lowering.read_sizes(call.node, call.node.label, total)


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


@rule("NonMaxSuppression")
def non_max_suppression(call: OperatorCall) -> None:
    """Greedily by score, per batch element and class; rows are (batch, class, box)."""
    batch, classes, boxes_count = call.shape(1)
    centered = bool(call.node.get("center_point_box", 0))
    present = [i for i in range(5) if call.has(i)]

    def corners(boxes: Array, b: Expr, i: Expr) -> list[Expr]:
        """(y1, x1, y2, x2) with the smaller coordinates first."""
        p = [boxes[b, i, c] for c in range(4)]
        if centered:
            half = number(0.5, boxes.dtype)
            x, y, w, h = p
            return [y - h * half, x - w * half, y + h * half, x + w * half]
        low = [tirx.min(p[0], p[2]), tirx.min(p[1], p[3])]
        return [*low, tirx.max(p[0], p[2]), tirx.max(p[1], p[3])]

    def overlap(boxes: Array, k: KernelBuilder, b: Expr, i: Expr, j: Expr) -> Expr:
        one, other = corners(boxes, b, i), corners(boxes, b, j)
        zero = number(0, boxes.dtype)
        height = tirx.max(tirx.min(one[2], other[2]) - tirx.max(one[0], other[0]), zero)
        width = tirx.max(tirx.min(one[3], other[3]) - tirx.max(one[1], other[1]), zero)
        shared = bind(k, height * width)
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (one, other)]
        union = bind(k, areas[0] + areas[1] - shared)
        return select(union > zero, shared / union, zero)

    def most_of_class(k: KernelBuilder, given: dict[int, Array]) -> Expr:
        """The most boxes of a class; the run fails where the limit of overlaps is no share."""
        most = clamped(k, given[2].at(0), 0, boxes_count + 1) if 2 in given else 0
        if 3 in given:
            limit, dtype = given[3].at(0), given[0].dtype
            share = number(0, dtype), number(1, dtype)
            k.fail_if(tirx.any(tirx.isnan(limit), limit < share[0], limit > share[1]), Fault.VALUE)
        return most

    def counted(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        """By a list of the boxes that are left, which each that is taken makes shorter."""
        given = dict(zip(present, xs, strict=True))
        boxes, scores = given[0], given[1]
        total, rows, left = ys
        most = most_of_class(k, given)

        def candidate(place: Expr) -> Expr:
            return bind(k, limited(k, left.at(place), 0, boxes_count))

        found = cell(k, "int32", 0, "found")
        with nest(k, (batch, classes)) as (b, c):
            length = cell(k, "int32", 0, "length")
            with k.loop(boxes_count, "start") as i:
                passes = True if 4 not in given else scores[b, c, i] > given[4].at(0)
                with when(k, passes):
                    left.put(i, limited(k, length.get(), 0, boxes_count))
                    length.add(1)
            taken = cell(k, "int32", 0, "taken")
            goes_on = tirx.all(length.get() > 0, taken.get() < most)
            with k.loop(boxes_count, "round") as _, when(k, goes_on):
                count_left = limited(k, length.get(), 0, boxes_count + 1)
                best = cell(k, "int32", 0, "best")
                with k.loop(count_left, "i") as i:
                    other = candidate(limited(k, best.get(), 0, boxes_count))
                    with when(k, scores[b, c, candidate(i)] > scores[b, c, other]):
                        best.set(i)
                chosen = candidate(limited(k, best.get(), 0, boxes_count))
                at = within(k, found.get(), 0, count, Fault.COUNT)
                for column, value in enumerate((b, c, chosen)):
                    rows.store(value, (at, column))
                found.add(1)
                taken.add(1)
                length.set(0)
                with k.loop(count_left, "j") as j:
                    box = candidate(j)
                    stays = cell(k, "int32", tirx.NE(j, best.get()), "stays")
                    limit = given[3].at(0) if 3 in given else number(0, boxes.dtype)
                    with when(k, overlap(boxes, k, b, chosen, box) > limit):
                        stays.set(0)
                    with when(k, stays.get() > 0):
                        left.put(box, limited(k, length.get(), 0, boxes_count))
                        length.add(1)
        total.put(found.get(), 0)

    if call.lowering.is_counted(call.node):
        label, dtype = call.node.label, call.output_dtype()
        count = _most(call)
        rows = PlanTensor(f"{label}/boxes", dtype, (count, 3))
        left = PlanTensor(f"{label}/left", "int32", (boxes_count,))
        kernel_before(call, counted, present, [total_of(call), rows, left])
        call.loops(_copied, [rows], key=())
        return
    count = _declared(call, 0)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        given = dict(zip(present, xs, strict=True))
        boxes, scores = given[0], given[1]
        y, alive = ys
        most = most_of_class(k, given)
        found = cell(k, "int32", 0, "found")
        with nest(k, (batch, classes)) as (b, c):
            with k.loop(boxes_count, "start") as i:
                alive.put(1 if 4 not in given else scores[b, c, i] > given[4].at(0), i)
            taken = cell(k, "int32", 0, "taken")
            with k.loop(boxes_count, "round") as _:
                best = cell(k, "int32", -1, "best")
                with k.loop(boxes_count, "i") as i:
                    at = clamped(k, best.get(), 0, boxes_count)
                    better = tirx.any(best.get() < 0, scores[b, c, i] > scores[b, c, at])
                    with when(k, all_of(alive.at(i) > 0, better)):
                        best.set(i)
                chosen = bind(k, best.get())
                left = tirx.all(chosen >= 0, chosen < boxes_count)
                with when(k, tirx.all(left, taken.get() < most)):
                    taken.add(1)
                    at = within(k, found.get(), 0, count, Fault.COUNT)
                    for column, value in enumerate((b, c, chosen)):
                        y.store(value, (at, column))
                    found.add(1)
                    alive.put(0, chosen)
                    with k.loop(boxes_count, "j") as j:
                        limit = given[3].at(0) if 3 in given else number(0, boxes.dtype)
                        with when(k, overlap(boxes, k, b, chosen, j) > limit):
                            alive.put(0, j)
        k.fail_if(tirx.NE(found.get(), count), Fault.COUNT)

    call.loops(body, present, key=tuple(present), scratch=[((boxes_count,), "int32")])


def _copied(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
    """The first rows of a table."""
    with nest(k, ys[0].shape) as index:
        ys[0].store(xs[0][index], index)


def _most(call: OperatorCall) -> int:
    """The most rows that a result may have."""
    most = most_of(size_of(call.output_shape()[0]))
    assert most is not None
    return stand_in_of_axis(most)
