"""Operators whose result's size depends on the data, where the model declares that size.

The kernel checks that the data leads to the declared size; where it does not, the run
fails instead of giving a wrong result.
"""

from __future__ import annotations

from tvm import tirx

from ...faults import Fault
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from .base import (
    Array,
    OperatorCall,
    all_of,
    bind,
    cell,
    clamped,
    dtype_of,
    inserted,
    is_float,
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


def _declared(call: OperatorCall, axis: int) -> int:
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
    count = _declared(call, 1)
    shape = call.shape()

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
    count = _declared(call, axis)
    flat = given is None
    if call.output_shape() != ((count,) if flat else tuple(replaced(shape, axis, count))):
        call.fail(f"its result is declared as {list(call.output_shape())}")
    length = call.shape(1)[0]

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, condition = xs
        y = ys[0]
        found = cell(k, "int32", 0, "found")
        with k.loop(min(length, x.size if flat else shape[axis]), "c") as i:  # noqa: SIM117
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
    count = _declared(call, 0)
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

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        given = dict(zip(present, xs, strict=True))
        boxes, scores = given[0], given[1]
        y, alive = ys
        most = clamped(k, given[2].at(0), 0, boxes_count + 1) if 2 in given else 0
        if 3 in given:  # an overlap is a share
            limit = given[3].at(0)
            share = number(0, boxes.dtype), number(1, boxes.dtype)
            k.fail_if(tirx.any(tirx.isnan(limit), limit < share[0], limit > share[1]), Fault.VALUE)
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
