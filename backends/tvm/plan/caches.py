"""Caches that grow: outputs that are an input of the model and new rows behind it.

Where the caller passes one buffer as both, the rows that it holds stay where they are. So that they
can, though other axes lie around the one that grows, a call says how many rows its caches have room
for: rows lie as in a tensor of so many, through whose strides everything reads the output.
"""

from __future__ import annotations

from ....ir.symbolic import expressions as e
from ....ir.symbolic.expressions import Atom
from ....ir.symbolic.ranges import Range
from ..graph.most import MOST, is_decided
from .operations import AppendOp, ConcatOp, ElementwiseOp, GrowingCache, Plan
from .programs import Program
from .sizes import is_open, size_of, stand_in, stand_in_of_axis
from .strides import row_major
from .tensors import Operation, PlanTensor, View


def hold_caches(plan: Plan) -> None:
    """Let concatenations that continue an input write the new rows only.

    The input is read by nothing else, and the result is an output of the model.
    """
    plan.link()
    found: list[Operation] = []
    for op in plan.operations:
        found += _append(plan, op) if _continues(plan, op) else [op]
    plan.operations = found


def rows_of_memory(past: int) -> int:
    """Rows that the memory of a cache with `past` rows has room for, which a call says."""
    size = size_of(past)
    return stand_in(e.single(Atom(f"held({size})", Range(0, MOST), "held", (size,))))


def _spare_rows(rows: int) -> int:
    """Rows that a cache has room for beyond those that it holds."""
    size = size_of(rows)
    return stand_in(e.single(Atom(f"spare({size})", Range(0, MOST), "spare", (size,))))


def _continues(plan: Plan, op: Operation) -> bool:
    """Whether an operation makes an output of an input and what is new."""
    if not isinstance(op, ConcatOp) or len(op.inputs) != 2:
        return False
    past, new = op.inputs
    own = [tensor for _, tensor in plan.outputs].count(op.output) == 1
    size = op.output.shape[op.axis]
    known = is_open(past.shape[op.axis]) and not is_decided(size_of(size))
    return own and known and past in plan.inputs and new is not past and past.readers == [op]


def _append(plan: Plan, op: Operation) -> list[Operation]:
    assert isinstance(op, ConcatOp)
    (past, new), present, axis = op.inputs, op.output, op.axis
    rows = present.shape[axis]
    room = stand_in_of_axis(size_of(rows + _spare_rows(rows)))
    shape = (*present.shape[:axis], room, *present.shape[axis + 1 :])
    cache = PlanTensor(present.name, present.dtype, shape)
    plan.caches.append(GrowingCache(past, cache, axis, rows))
    plan.outputs = [(n, cache if t is present else t) for n, t in plan.outputs]
    present.name += "/rows"
    view = View(cache, present.shape, row_major(shape))
    return [
        AppendOp(op.label, [cache], past, new, axis),
        ElementwiseOp(op.label, [present], [view], Program((present.dtype,))),
    ]
