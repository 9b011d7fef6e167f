"""Loops of calls: a body's kernels, called once for each step."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from ....ir.symbolic.expressions import Atom, single
from ....ir.symbolic.ranges import Range
from ..errors import UnprovenError
from ..graph.most import MOST
from ..plan.operations import BranchOp, LoopOp, Plan, Row, State
from ..plan.schedule import Buffer, CallLoop, nbytes
from ..plan.sizes import most_of, size_of, stand_in
from ..plan.tensors import PlanTensor
from .emission import Emission


def emit_loop(emission: Emission, op: LoopOp, emit_plan: Callable[[Emission, Plan], None]) -> None:
    """Call the kernels of the body in a loop, states and what is stacked in buffers around it.

    A state has a buffer of its own, which holds it before each step and after the last: what a
    step makes of it is copied there at the end. `emit_plan` emits the body.
    """
    _Emitted(emission, op).emit(emit_plan)


class _Emitted:
    """One loop of the schedule in the making; `step` stands for the number of the round."""

    def __init__(self, emission: Emission, op: LoopOp) -> None:
        self.emission, self.op = emission, op
        self.step = new_step(emission, op.steps - 1 if isinstance(op.steps, int) else MOST)

    def emit(self, emit_plan: Callable[[Emission, Plan], None]) -> None:
        emission, op = self.emission, self.op
        calls = emission.schedule.calls
        wholes = [emission.allocate(row.whole.shape, row.whole.dtype) for row in op.made]
        own = [self.begin(state) for state in op.states]
        proceed = self.first_condition()
        limit = None if op.limit is None else emission.read(op.limit, None)
        for outer, inner in op.captured:
            emission.buffers[inner, None] = emission.read(outer, None)
        for row in op.read:
            whole = emission.read(row.whole, None)
            emission.buffers[row.inner, None] = self.part(whole, row)
        known = {id(buffer.root()[0]) for buffer in emission.buffers.values()}
        first = len(calls)
        emission.open_steps.append(self.step.key)
        emission.enter(op.body)
        emit_plan(emission, op.body)
        emission.current = op
        for row, whole in zip(op.made, wholes, strict=True):
            self.stack(row, whole, known)
        if proceed is not None:
            assert op.proceeds is not None
            self.copy(emission.read(op.proceeds[1], None), op.proceeds[1], proceed)
        self.hand_on(own)
        emission.open_steps.pop()
        if len(calls) > first:
            emission.schedule.loops.append(
                CallLoop(first, len(calls), self.step, op.steps, limit, proceed)
            )
        for state, buffer in zip(op.states, own, strict=True):
            emission.define(state.last, buffer)
        for row, whole in zip(op.made, wholes, strict=True):
            emission.define(row.whole, whole)

    def begin(self, state: State) -> Buffer:
        """The buffer of a state, which holds what it begins with."""
        emission = self.emission
        initial = emission.read(state.initial, None)
        own = emission.allocate(state.initial.shape, state.initial.dtype)
        self.copy(initial, state.initial, own)
        emission.buffers[state.inner, None] = own
        return own

    def first_condition(self) -> Buffer | None:
        """The buffer that says whether there is another step, before the first."""
        op, emission = self.op, self.emission
        if op.proceeds is None:
            return None
        first, after = op.proceeds
        if first is None:
            first = PlanTensor(
                f"{op.label}/first", "bool", after.shape, const=np.ones(after.shape, bool)
            )
        proceed = emission.allocate((1,), "bool")
        self.copy(emission.read(first, None), first, proceed)
        return proceed

    def stack(self, row: Row, whole: Buffer, known: set[int]) -> None:
        put(self.emission, row.inner, self.part(whole, row), known)

    def hand_on(self, own: list[Buffer]) -> None:
        """Copy what states become to where the next step reads them, all as if at once."""
        after = []
        for state, buffer in zip(self.op.states, own, strict=True):
            made = self.emission.read(state.after, None)
            if made.root()[0] in own and made is not buffer:
                made = self.copy(made, state.after, None)
            after.append(made)
        for state, buffer, made in zip(self.op.states, own, after, strict=True):
            if made is not buffer:
                self.copy(made, state.after, buffer)

    def part(self, whole: Buffer, row: Row) -> Buffer:
        """The row of the step."""
        size, steps = nbytes(row.inner.shape, row.inner.dtype), self.op.steps
        if steps is None or not _holds(whole, steps * size):
            where = self.emission.where()
            raise UnprovenError(
                self.op.label, f"{where}: '{row.whole.name}' may have other than {steps} rows"
            )
        step = stand_in(single(self.step))
        if row.backward:
            step = steps - 1 - step
        return whole.part(step * size, size)

    def copy(self, source: Buffer, tensor: PlanTensor, into: Buffer | None) -> Buffer:
        return _copy(self.emission, source, tensor, into)


def new_step(emission: Emission, last: int) -> Atom:
    """What stands for the number of the round of one more loop of calls."""
    taken = {loop.step.key for loop in emission.schedule.loops} | set(emission.open_steps)
    number = len(emission.schedule.loops)
    key = next(k for n in itertools.count(number) if (k := f"step{n}") not in taken)
    return Atom(key, Range(0, max(0, last)), "step")


def put(emission: Emission, tensor: PlanTensor, into: Buffer, known: set[int]) -> None:
    """Let a tensor lie where it is to be, or copy it there if its buffer isn't its own."""
    buffer = emission.read(tensor, None)
    plain = buffer.whole is None and buffer.array is None and buffer.input is None
    if plain and id(buffer) not in known:
        known.add(id(buffer))
        buffer.whole, buffer.offset = into.whole, into.offset
    else:
        _copy(emission, buffer, tensor, into)


def _copy(emission: Emission, source: Buffer, tensor: PlanTensor, into: Buffer | None) -> Buffer:
    """Copy a row-major tensor that lies in `source`."""
    stand = PlanTensor(tensor.name, tensor.dtype, (tensor.elements,))
    emission.buffers[stand, None] = source
    return emission.copy(stand, None, into)


def emit_branches(
    emission: Emission, op: BranchOp, emit_plan: Callable[[Emission, Plan], None]
) -> None:
    """Call the kernels of one of two plans, each as a loop of one round at most, whose results lie
    in the same buffers."""
    calls = emission.schedule.calls
    condition = emission.read(op.condition, None)
    wholes = [emission.allocate(tensor.shape, tensor.dtype) for tensor in op.outputs]
    for pairs in op.captured:
        for outer, inner in pairs:
            emission.buffers[inner, None] = emission.read(outer, None)
    known = {id(buffer.root()[0]) for buffer in emission.buffers.values()}
    for unless, plan in zip((False, True), op.plans, strict=True):
        first, step = len(calls), new_step(emission, 0)
        emission.open_steps.append(step.key)
        emission.enter(plan)
        emit_plan(emission, plan)
        emission.current = op
        for (_, tensor), whole in zip(plan.outputs, wholes, strict=True):
            put(emission, tensor, whole.part(0, nbytes(tensor.shape, tensor.dtype)), known)
        emission.open_steps.pop()
        loop = CallLoop(first, len(calls), step, 1, None, condition, unless)
        emission.schedule.loops.append(loop)
    for tensor, whole in zip(op.outputs, wholes, strict=True):
        emission.define(tensor, whole)


def _holds(whole: Buffer, rows: int) -> bool:
    """Whether a buffer has, or where data decide its bytes is given, as many as all rows."""
    most = most_of(size_of(rows))
    return whole.nbytes == rows or (most is not None and most_of(size_of(whole.nbytes)) == most)
