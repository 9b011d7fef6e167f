"""Loop and Scan whose number of steps only a run knows: the body as a plan of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....ir.errors import UnsupportedError
from ....ir.graph import Node
from ....ir.symbolic.expressions import Size
from ..errors import UnsupportedNodesError
from ..graph.loop_sizes import OpenLoop
from ..graph.loops import LoopBody, StepRows, is_read
from ..graph.open_sizes import OpenSizes
from ..graph.prepare import Prepared
from ..plan.operations import ElementwiseOp, LoopOp, Plan, Row, State
from ..plan.programs import Program
from ..plan.sizes import stand_in, uncomputable
from ..plan.strides import row_major
from ..plan.tensors import PlanTensor, View
from .context import Lowering, Stored

LowerBody = Callable[[Lowering, LoopBody, Prepared, OpenSizes | None], Plan]
"""Lowers a body: the walk over nodes, whose rules this is one of."""


def lower_loop(lowering: Lowering, node: Node, lower_body: LowerBody) -> None:
    """Add the loop of a Loop or Scan. Raises UnsupportedError where the body has no plan, a
    state doesn't keep its shape or what is stacked has no size that is known before a run."""
    _LoopLowering(lowering, node, lower_body).add()


class _LoopLowering:
    """Makes one loop of the plan, whose body is lowered when this is made."""

    def __init__(self, lowering: Lowering, node: Node, lower_body: LowerBody) -> None:
        self.lowering, self.node = lowering, node
        sizes = lowering.sizes
        self.steps: int | None = None
        self.tested = True
        loops, refused = lowering.static_loops() if sizes is None else (sizes.loops, sizes.refused)
        if node in refused or node not in loops:
            raise UnsupportedError(refused.get(node) or self.text("it isn't followed"))
        loop = loops[node]
        self.body = loop.body
        self.count(loop, loop.steps if sizes is None else sizes.resolved_steps(loop))
        inner = None if sizes is None else sizes.inside(loop)
        try:
            self.plan = lower_body(lowering, self.body, loop.prepared, inner)
        except UnsupportedNodesError as error:
            raise UnsupportedError(self.text(f"in its body: {error}")) from None

    def text(self, why: str) -> str:
        return f"node '{self.node.label}' ({self.node.op_type}): {why}"

    def refuse(self, why: str) -> UnsupportedError:
        return UnsupportedError(self.text(why))

    def count(self, loop: OpenLoop, steps: Size | None) -> None:
        """Take the number of steps where it follows from sizes."""
        if steps is not None and uncomputable(steps) is None:
            self.steps, self.tested = stand_in(steps), loop.tested

    def add(self) -> None:
        body, plan, lowering = self.body, self.plan, self.lowering
        outputs = [tensor for _, tensor in plan.outputs]
        limit, proceeds = self.ends(outputs)
        wanted = [rows for rows in body.made if rows.whole is not None and is_read(rows.whole)]
        is_counted = lowering.is_counted(self.node)
        if wanted and (self.steps is None or (self.tested and not is_counted)):
            raise self.refuse(
                "nothing bounds how many rows it stacks: its trip count has to follow from sizes, "
                "or --size says what may be the most"
            )
        states = [self.state(index, outputs[index]) for index in range(len(body.initial))]
        read = []
        for index, rows in enumerate(body.read):
            assert rows.whole is not None
            whole = self.turned(lowering.stored(rows.whole), rows.axis)
            read.append(Row(whole, plan.inputs[len(states) + index], rows.backward))
        first = len(states) + len(read)
        captured = [
            (lowering.stored(outer), inner)
            for outer, inner in zip(body.captured, plan.inputs[first:], strict=True)
        ]
        made = [self.stacked(rows, outputs[rows.place]) for rows in wanted]
        results = [*(state.last for state in states), *(row.whole for row in made)]
        label, steps = self.node.label, self.steps
        loop = LoopOp(label, results, plan, steps, limit, proceeds, states, read, made, captured)
        ends = zip(states, body.results, strict=True)
        alive = [state for state, value in ends if value is not None and is_read(value)]
        _leave_out(loop, [*alive, *states[-1:]] if is_counted else alive)
        lowering.add(loop)
        if is_counted:
            lowering.read_sizes(self.node, label, states[-1].last)
        for value, state in zip(body.results, states, strict=True):
            if value is not None:
                lowering.items[value] = Stored(state.last)
        for rows, row in zip(wanted, made, strict=True):
            self.unturned(rows, row.whole)
        lowering.plan.operators.update(plan.operators)
        lowering.plan.equal += plan.equal

    def state(self, index: int, after: PlanTensor) -> State:
        """A state, whose result has the shape that it begins with."""
        initial, inner = self.lowering.stored(self.body.initial[index]), self.plan.inputs[index]
        if not initial.shape == inner.shape == after.shape or initial.dtype != after.dtype:
            raise self.refuse(
                f"its state '{inner.name}' of {_shown(initial.shape)} becomes one of "
                f"{_shown(after.shape)}: states have to keep their shapes"
            )
        value = self.body.results[index]
        name = value.name if value is not None else f"{inner.name}/last"
        return State(initial, inner, after, PlanTensor(name, initial.dtype, initial.shape))

    def ends(
        self, outputs: Sequence[PlanTensor]
    ) -> tuple[PlanTensor | None, tuple[PlanTensor | None, PlanTensor] | None]:
        """What ends the loop besides a number of steps that sizes give."""
        body, lowering = self.body, self.lowering
        if not self.tested:
            return None, None
        limit = None
        if self.steps is None and body.limit is not None:
            limit = lowering.stored(body.limit)
            if limit.elements != 1 or limit.dtype != "int64":
                raise self.refuse("its number of steps isn't one int64")
        first = None if body.condition is None else lowering.stored(body.condition)
        conditions = [tensor for tensor in (first, outputs[-1]) if tensor is not None]
        if any(tensor.elements != 1 or tensor.dtype != "bool" for tensor in conditions):
            raise self.refuse("its condition isn't one truth value")
        return limit, (first, outputs[-1])

    # --- rows along other axes than the first ---

    def turned(self, tensor: PlanTensor, axis: int) -> PlanTensor:
        """A tensor with an axis before all others."""
        if axis == 0:
            return tensor
        order = [axis, *(i for i in range(len(tensor.shape)) if i != axis)]
        return self.permuted(tensor, order, f"{tensor.name}/rows")

    def stacked(self, rows: StepRows, row: PlanTensor) -> Row:
        """What rows of a result are written to."""
        assert rows.whole is not None
        assert self.steps is not None
        shape = (self.steps, *row.shape)
        axis = rows.axis % len(shape)
        name = rows.whole.name if axis == 0 else f"{rows.whole.name}/rows"
        declared = self.lowering.shape(rows.whole)
        first = (declared[axis], *row.shape)
        if declared != (*row.shape[:axis], declared[axis], *row.shape[axis:]):
            raise self.refuse(f"its result '{rows.whole.name}' has another shape than its rows")
        return Row(PlanTensor(name, row.dtype, first), row, rows.backward)

    def unturned(self, rows: StepRows, whole: PlanTensor) -> None:
        """Let the node's result be what is stacked, along the axis that it names."""
        assert rows.whole is not None
        axis = rows.axis % len(whole.shape)
        if axis:
            order = [*range(1, axis + 1), 0, *range(axis + 1, len(whole.shape))]
            whole = self.permuted(whole, order, rows.whole.name)
        self.lowering.items[rows.whole] = Stored(whole)

    def permuted(self, tensor: PlanTensor, order: Sequence[int], name: str) -> PlanTensor:
        strides = row_major(tensor.shape)
        shape = tuple(tensor.shape[i] for i in order)
        result = PlanTensor(name, tensor.dtype, shape)
        view = View(tensor, shape, tuple(strides[i] for i in order))
        program = Program((tensor.dtype,))
        self.lowering.add(ElementwiseOp(self.node.label, [result], [view], program))
        return result


def _leave_out(loop: LoopOp, wanted: Sequence[State]) -> None:
    """Leave out states that neither the graph around a loop nor what counts in its body reads,
    and with them the operations that make nothing else."""
    plan = loop.body
    made = [row.inner for row in loop.made]
    if loop.proceeds is not None:
        made.append(loop.proceeds[1])
    alive = list(wanted)
    while True:
        results = dict.fromkeys([*(s.after for s in alive), *made])
        plan.outputs = [(tensor.name, tensor) for tensor in results]
        operations = list(plan.operations)
        plan.link()
        read = {id(t) for op in plan.operations for t in op.reads()} | {id(t) for t in results}
        more = [s for s in loop.states if s not in alive and id(s.inner) in read]
        if not more:
            break
        plan.operations = operations
        alive += more
    loop.states = [state for state in loop.states if state in alive]
    loop.read = [row for row in loop.read if id(row.inner) in read]
    loop.captured = [pair for pair in loop.captured if id(pair[1]) in read]
    loop.outputs = [*(s.last for s in loop.states), *(row.whole for row in loop.made)]


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
