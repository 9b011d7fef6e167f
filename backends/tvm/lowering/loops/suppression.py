"""Boxes that don't overlap better ones: by a heap of scores, each compared with those taken."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from ...faults import Fault
from ...plan.tensors import PlanTensor
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from .base import (
    Array,
    Cell,
    OperatorCall,
    all_of,
    bind,
    cell,
    clamped,
    limited,
    nest,
    number,
    rule,
    select,
    to,
    when,
    within,
)
from .selection import declared, kernel_before, most_of_result, total_of

_MOST = 2**30
"""More than there are boxes: each has four numbers of a tensor, which has fewer than 2^31."""

_LEVELS = 30
"""Of a heap, at most."""


@rule("NonMaxSuppression")
def non_max_suppression(call: OperatorCall) -> None:
    """Greedily by score, per batch element and class; rows are (batch, class, box)."""
    present = [i for i in range(5) if call.has(i)]
    boxes_count = call.shape(1)[2]
    is_counted = call.lowering.is_counted(call.node)
    count = (most_of_result(call) or 1) if is_counted else declared(call, 0)

    def taking(k: KernelBuilder, xs: Sequence[Array], rows: Array, heap: Array) -> Cell:
        suppression = _Suppression(k, call, dict(zip(present, xs, strict=True)), rows, heap, count)
        return suppression.take_all()

    if is_counted:

        def counted(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
            total, rows, heap = ys
            total.put(taking(k, xs, rows, heap).get(), 0)

        label, dtype = call.node.label, call.output_dtype()
        rows = PlanTensor(f"{label}/boxes", dtype, (count, 3))
        heap = PlanTensor(f"{label}/left", "int32", (boxes_count,))
        kernel_before(call, counted, present, [total_of(call), rows, heap])
        call.loops(_copied, [rows], key=())
        return

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        found = taking(k, xs, *ys)
        k.fail_if(tirx.NE(found.get(), count), Fault.COUNT)

    call.loops(body, present, key=tuple(present), scratch=[((boxes_count,), "int32")])


class _Suppression:
    """The kernel in the making.

    `heap` holds the boxes of a class that are left: each is better than the two below it, at twice
    its place and one or two on; the first is the best.
    """

    def __init__(
        self,
        k: KernelBuilder,
        call: OperatorCall,
        given: dict[int, Array],
        rows: Array,
        heap: Array,
        count: int,
    ) -> None:
        self.k, self.given, self.rows, self.heap, self.count = k, given, rows, heap, count
        self.batch, self.classes, self.boxes_count = call.shape(1)
        self.centered = bool(call.node.get("center_point_box", 0))
        self.boxes, self.scores = given[0], given[1]

    def take_all(self) -> Cell:
        """Rows of all classes; how many there are."""
        k, most = self.k, self.most_of_class()
        found = cell(k, "int32", 0, "found")
        with nest(k, (self.batch, self.classes)) as (b, c):
            length, levels = self.fill(b, c)
            first = limited(k, found.get(), 0, self.count)
            taken = cell(k, "int32", 0, "taken")
            goes_on = tirx.all(length.get() > 0, taken.get() < most)
            with k.loop(self.boxes_count, "round") as _, when(k, goes_on):
                chosen = self.best(b, c, length, levels)
                with when(k, self.stays(b, chosen, first, taken) > 0):
                    at = within(k, found.get(), 0, self.count, Fault.COUNT)
                    for column, value in enumerate((b, c, chosen)):
                        self.rows.store(value, (at, column))
                    found.add(1)
                    taken.add(1)
        return found

    def most_of_class(self) -> Expr:
        """The most boxes of a class; the run fails where the limit of overlaps is no share."""
        k, given = self.k, self.given
        most = clamped(k, given[2].at(0), 0, self.boxes_count + 1) if 2 in given else 0
        if 3 in given:
            limit, dtype = given[3].at(0), self.boxes.dtype
            share = number(0, dtype), number(1, dtype)
            k.fail_if(tirx.any(tirx.isnan(limit), limit < share[0], limit > share[1]), Fault.VALUE)
        return most

    # --- the heap ---

    def fill(self, b: Expr, c: Expr) -> tuple[Cell, Cell]:
        """Put the boxes there whose scores suffice; how many, and levels of the heap."""
        k = self.k
        length, levels = cell(k, "int32", 0, "length"), cell(k, "int32", 0, "levels")
        with k.loop(self.boxes_count, "start") as i:
            passes = True if 4 not in self.given else self.scores[b, c, i] > self.given[4].at(0)
            with when(k, passes):
                self.heap.put(i, self.place(length.get()))
                length.add(1)
        start = cell(k, "int32", 0, "start")
        with k.loop(_LEVELS, "level") as level, when(k, start.get() < length.get()):
            levels.set(level + 1)
            start.set(self.below(start.get()))
        with k.loop(_LEVELS, "depth") as depth, when(k, depth < levels.get()):
            start.set(tirx.floordiv(limited(k, start.get(), 0, _MOST), 2))
            begin, end = (limited(k, x.get(), 0, _MOST) for x in (start, length))
            nodes = cell(k, "int32", tirx.min(begin + 1, tirx.max(end - begin, 0)), "nodes")
            with k.loop(limited(k, nodes.get(), 0, self.boxes_count + 1), "node") as node:
                self.sink(b, c, begin + node, length, depth)
        return length, levels

    def below(self, at: Expr) -> Expr:
        """The place of the first box below the one at a place of the heap."""
        return limited(self.k, at, 0, _MOST // 2) * 2 + 1

    def place(self, at: Expr) -> Expr:
        return limited(self.k, at, 0, self.boxes_count)

    def box(self, at: Expr) -> Expr:
        """The box at a place of the heap."""
        return bind(self.k, limited(self.k, self.heap.at(self.place(at)), 0, self.boxes_count))

    def is_better(self, b: Expr, c: Expr, one: Expr, other: Expr) -> Expr:
        """By score; of equal ones the first."""
        first, second = (bind(self.k, self.scores[b, c, box]) for box in (one, other))
        return tirx.any(first > second, all_of(tirx.EQ(first, second), one < other))

    def sink(self, b: Expr, c: Expr, start: Expr, length: Cell, levels: Expr) -> None:
        """Let a box sink as many levels as better ones are below it."""
        k = self.k
        at = cell(k, "int32", start, "at")
        with k.loop(levels, "sink") as _:
            better = cell(k, "int32", self.below(at.get()), "better")
            with when(k, better.get() < length.get()):
                following = cell(k, "int32", better.get() + 1, "following")
                with when(k, following.get() < length.get()):
                    pair = self.box(following.get()), self.box(better.get())
                    with when(k, self.is_better(b, c, *pair)):
                        better.set(following.get())
                own, other = self.box(at.get()), self.box(better.get())
                with when(k, self.is_better(b, c, other, own)):
                    self.heap.put(other, self.place(at.get()))
                    self.heap.put(own, self.place(better.get()))
                    at.set(better.get())

    # --- taking boxes ---

    def best(self, b: Expr, c: Expr, length: Cell, levels: Cell) -> Expr:
        """Take the best box off the heap."""
        k, chosen = self.k, self.box(0)
        length.set(limited(k, length.get(), 1, self.boxes_count + 1) - 1)
        self.heap.put(self.box(length.get()), self.place(0))
        self.sink(b, c, 0, length, limited(k, levels.get(), 0, _LEVELS + 1))
        return chosen

    def stays(self, b: Expr, chosen: Expr, first: Expr, taken: Cell) -> Expr:
        """Whether none of the boxes taken, whose rows begin at `first`, overlaps one: 1, else 0."""
        k = self.k
        stays = cell(k, "int32", 1, "stays")
        limit = self.given[3].at(0) if 3 in self.given else number(0, self.boxes.dtype)
        count = limited(k, taken.get(), 0, self.boxes_count + 1)
        with k.loop(count, "other") as i, when(k, stays.get() > 0):
            row = limited(k, first + i, 0, self.count)
            other = limited(k, to(self.rows[row, 2], "int32"), 0, self.boxes_count)
            with when(k, self.overlap(b, other, chosen) > limit):
                stays.set(0)
        return stays.get()

    def corners(self, b: Expr, i: Expr) -> list[Expr]:
        """(y1, x1, y2, x2) with the smaller coordinates first."""
        p = [self.boxes[b, i, c] for c in range(4)]
        if self.centered:
            half = number(0.5, self.boxes.dtype)
            x, y, w, h = p
            return [y - h * half, x - w * half, y + h * half, x + w * half]
        low = [tirx.min(p[0], p[2]), tirx.min(p[1], p[3])]
        return [*low, tirx.max(p[0], p[2]), tirx.max(p[1], p[3])]

    def overlap(self, b: Expr, i: Expr, j: Expr) -> Expr:
        """What two boxes share of what they cover together."""
        one, other = self.corners(b, i), self.corners(b, j)
        zero = number(0, self.boxes.dtype)
        height = tirx.max(tirx.min(one[2], other[2]) - tirx.max(one[0], other[0]), zero)
        width = tirx.max(tirx.min(one[3], other[3]) - tirx.max(one[1], other[1]), zero)
        shared = bind(self.k, height * width)
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (one, other)]
        union = bind(self.k, areas[0] + areas[1] - shared)
        return select(union > zero, shared / union, zero)


def _copied(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
    """The first rows of a table."""
    with nest(k, ys[0].shape) as index:
        ys[0].store(xs[0][index], index)
