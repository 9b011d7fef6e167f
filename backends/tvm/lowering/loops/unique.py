"""Unique: elements, or slices along an axis, that differ from each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import tirx

from .....ir.graph import Value
from ...faults import Fault
from ...plan.sizes import is_open
from ...plan.tensors import PlanTensor
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from . import mathematics as m
from .base import (
    Array,
    OperatorCall,
    all_of,
    bind,
    cell,
    compute_type,
    divide,
    is_float,
    limited,
    modulo,
    nest,
    rule,
    to,
    when,
    within,
)
from .selection import kernel_before, total_of

_MOST_PASSES = 30
"""As many as sort what two orders of fit in memory whose elements 31 bits count."""


@rule("Unique")
def unique(call: OperatorCall) -> None:
    """By a merge sort of positions, which keeps equal slices in order. NaN is the largest number.

    Where the model declares how many there are, a run that finds another number fails.
    """
    shape = call.shape()
    given = call.node.get("axis")
    axis = 0 if given is None else call.axis(len(shape), 0)
    length = math.prod(shape) if given is None else shape[axis]
    outer = 1 if given is None else math.prod(shape[:axis])
    inner = 1 if given is None else math.prod(shape[axis + 1 :])
    in_order = bool(call.node.get("sorted", 1))

    def at(slice_: Expr, o: Expr, i: Expr) -> Expr:
        return (o * length + slice_) * inner + i

    def sort(k: KernelBuilder, x: Array, order: Array, head: Array) -> Callable[[Expr], Expr]:
        """Fill `head` with the first slice that equals each; slices by their place in order."""

        def compared(a: Expr, b: Expr) -> Expr:
            """Below zero, zero, above: slice `a` against slice `b`, by their first difference."""
            found = cell(k, "int32", 0, "found")
            with nest(k, (outer, inner)) as (o, i), when(k, tirx.EQ(found.get(), 0)):
                one, other = (bind(k, _comparable(x.at(at(s, o, i)), x.dtype)) for s in (a, b))
                with when(k, _before(one, other, x.dtype)):
                    found.set(-1)
                with when(k, _before(other, one, x.dtype)):
                    found.set(1)
            return bind(k, found.get())

        def entry(side: Expr, position: Expr) -> Expr:
            read = order.at(side * length + limited(k, position, 0, length))
            return limited(k, read, 0, length)

        with k.loop(length, "t") as t:
            order.put(t, t)
        width_cell = cell(k, "int32", 1, "width")
        left, right = cell(k, "int32", 0, "left"), cell(k, "int32", 0, "right")

        def merge(side: Expr) -> None:
            """Merge runs of `width_cell` slices of one half of `order` into the other half."""
            width = limited(k, width_cell.get(), 1, length + 1)
            with k.loop(length, "t") as t:
                start = bind(k, divide(t, 2 * width) * (2 * width))
                middle = bind(k, start + tirx.min(width, length - start))
                end = bind(k, start + tirx.min(2 * width, length - start))
                with when(k, tirx.EQ(t, start)):
                    left.set(start)
                    right.set(middle)
                first, second = entry(side, left.get()), entry(side, right.get())
                is_left = cell(k, "int32", 0, "is_left")
                with when(k, left.get() < middle):
                    is_left.set(1)
                    with when(k, right.get() < end):
                        is_left.set(to(compared(second, first) >= 0, "int32"))
                chosen = tirx.Select(is_left.get() > 0, first, second)
                order.put(chosen, (1 - side) * length + t)
                with when(k, is_left.get() > 0):
                    left.set(limited(k, left.get(), 0, length) + 1)
                with when(k, is_left.get() < 1):
                    right.set(limited(k, right.get(), 0, length) + 1)
            width_cell.set(width * 2)

        if is_open(length):  # two passes at a time, so that the result is in the first half
            with k.loop(_MOST_PASSES // 2, "passes"), when(k, width_cell.get() < length):
                merge(0)
                merge(1)
            side = 0
        else:
            passes = max(length - 1, 0).bit_length()
            with k.loop(passes, "pass") as number_:
                merge(modulo(number_, 2))
            side = passes % 2
        last = cell(k, "int32", 0, "last")
        with k.loop(length, "t") as t:
            slice_ = entry(side, t)
            before = limited(k, last.get(), 0, length)
            is_new = cell(k, "int32", 1, "is_new")
            with when(k, t > 0):
                is_new.set(to(tirx.NE(compared(before, slice_), 0), "int32"))
            with when(k, is_new.get() > 0):
                last.set(slice_)
            head.put(last.get(), slice_)
        return lambda place: entry(side, place)

    if call.lowering.is_counted(call.node):
        _counted(call, sort, (outer, length, inner), in_order=in_order)
        return
    count = _count(call, 0 if given is None else axis)
    if count > length:
        call.fail(f"{length} elements or slices have no {count} that differ")

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x = xs[0]
        y, indices, inverse, counts = (*ys[:-3], *[None] * 4)[:4]
        order, head, place = ys[-3:]
        by_place = sort(k, x, order, head)
        found = cell(k, "int32", 0, "found")
        with k.loop(length, "t") as t:
            slice_ = by_place(t) if in_order else t
            with when(k, tirx.EQ(head.at(slice_), slice_)):
                number_ = within(k, found.get(), 0, count, Fault.COUNT)
                place.put(number_, slice_)
                if y is not None:
                    with nest(k, (outer, inner)) as (o, i):
                        y.put(x.at(at(slice_, o, i)), (o * count + number_) * inner + i)
                if indices is not None:
                    indices.put(slice_, number_)
                if counts is not None:
                    counts.put(0, number_)
                found.add(1)
        k.fail_if(tirx.NE(found.get(), count), Fault.COUNT)
        with k.loop(length, "t") as t:
            first = limited(k, head.at(t), 0, length)
            number_ = limited(k, place.at(first), 0, count)
            if inverse is not None:
                inverse.put(number_, t)
            if counts is not None:
                counts.put(counts.at(number_) + to(1, counts.dtype), number_)

    scratch = [((2, length), "int32"), ((length,), "int32"), ((length,), "int32")]
    call.loops(body, key=(), scratch=scratch)


Sort = Callable[[KernelBuilder, Array, Array, Array], Callable[[Expr], Expr]]
"""Sorts slices of an array by two others, and says which lies at a place."""


def _counted(call: OperatorCall, sort: Sort, extents: Sequence[int], *, in_order: bool) -> None:
    """With one kernel that numbers the slices that differ, and another one that writes them."""
    outer, length, inner = extents

    def numbering(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        total, chosen, numbers, order, head, place = ys
        by_place = sort(k, xs[0], order, head)
        found = cell(k, "int32", 0, "found")
        with k.loop(length, "t") as t:
            slice_ = by_place(t) if in_order else t
            with when(k, tirx.EQ(head.at(slice_), slice_)):
                number_ = limited(k, found.get(), 0, length)
                place.put(number_, slice_)
                chosen.put(slice_, number_)
                found.add(1)
        with k.loop(length, "t") as t:
            first = limited(k, head.at(t), 0, length)
            numbers.put(limited(k, place.at(first), 0, length), t)
        total.put(found.get(), 0)

    label = call.node.label
    named = [PlanTensor(f"{label}/{n}", "int32", (length,)) for n in ("chosen", "numbers")]
    scratch = [PlanTensor("scratch", "int32", s) for s in ((2, length), (length,), (length,))]
    kernel_before(call, numbering, [0], [total_of(call), *named, *scratch])
    axis = call.axis(call.rank(), 0) if call.node.get("axis") is not None else 0
    sizes = [call.lowering.shape(v)[p] for v, p in _results(call, axis) if v is not None]
    count = next(iter(sizes), length)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, chosen, numbers = xs
        y, indices, inverse, counts = (*ys, *[None] * 4)[:4]
        with k.loop(count, "number") as number_:
            slice_ = bind(k, limited(k, chosen.at(number_), 0, length))
            if y is not None:
                with nest(k, (outer, inner)) as (o, i):
                    value = x.at((o * length + slice_) * inner + i)
                    y.put(value, (o * count + number_) * inner + i)
            if indices is not None:
                indices.put(slice_, number_)
            if counts is not None:
                counts.put(0, number_)
        with k.loop(length, "t") as t:
            number_ = limited(k, numbers.at(t), 0, count)
            if inverse is not None:
                inverse.put(number_, t)
            if counts is not None:
                counts.put(counts.at(number_) + to(1, counts.dtype), number_)

    call.loops(body, [0, *named])


def _results(call: OperatorCall, axis: int) -> list[tuple[Value | None, int]]:
    """Results whose size along an axis is the number of slices that differ, with that axis."""
    return [(call.node.output(index), place) for index, place in ((0, axis), (1, 0), (3, 0))]


def _count(call: OperatorCall, axis: int) -> int:
    """How many slices the model declares."""
    shapes = [(v.shape, place) for v, place in _results(call, axis) if v is not None]
    sizes = [shape[place] for shape, place in shapes if shape]
    count = next((size for size in sizes if isinstance(size, int)), None)
    if count is None:
        call.fail("the results' sizes depend on the data, and the model declares none")
    return count


def _comparable(value: Expr, dtype: str) -> Expr:
    return to(value, "int32" if dtype == "bool" else compute_type(dtype))


def _before(a: Expr, b: Expr, dtype: str) -> Expr:
    """Whether a number comes before another one: NaN comes last."""
    if not is_float(dtype):
        return a < b
    return tirx.any(a < b, all_of(m.is_nan(b), tirx.Not(m.is_nan(a))))
