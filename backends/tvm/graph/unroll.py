"""Control flow without branches: Loop and Scan of a known number of steps, and If."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto, helper

from ....ir.copying import Copier
from ....ir.errors import UnsupportedError
from ....ir.graph import Graph, Node, Value, normalize_domain
from ....ir.infer import blamed
from ....ir.model import Model
from ....ir.stand_ins import REQUIRE
from ....ir.tensor import Array, Tensor
from ....passes.simplify.evaluate import evaluate
from .told import COUNTED, TOLD

SIZES = ("Shape", "Size")
"""Operators that tell sizes of what they read, and nothing else."""

NODE_LIMIT = 50_000
"""Nodes that one loop may become; one of more stays."""

_KEPT = 4096
"""Elements that a condition may depend on in one step, for these to be kept for the next."""

log = logging.getLogger(__name__)


def unroll(model: Model, refused: dict[Node, str], long: set[Node]) -> bool:
    """Unroll the outermost loops of the main graph; whether there were any.

    Loops whose number of steps is not known yet stay: folding may tell it later. So do `long` ones,
    to which those are added that would become too many nodes. Those
    that can't be unrolled at all stay, with the reason in `refused`.
    """
    graph = model.graph
    nodes: list[Node] = []
    changed = False
    for node in graph.nodes:
        made = None
        if normalize_domain(node.domain) == "" and node not in refused and node not in long:
            try:
                with blamed(node, model, _copies):
                    made = _copies(model, node)
            except TooManyNodesError as error:
                log.debug("%s (%s): runs as a loop: %s", node.label, node.op_type, error)
                long.add(node)
            except UnsupportedError as error:
                refused[node] = str(error)
        if made is None:
            nodes.append(node)
            continue
        log.debug("%s (%s): %d nodes instead of it", node.label, node.op_type, len(made))
        node.detach_inputs()
        node.graph = None
        nodes.extend(made)
        changed = True
    graph.nodes = nodes
    for node in nodes:
        node.graph = graph
    return changed


def _copies(model: Model, node: Node) -> list[Node] | None:
    """What a node of control flow becomes; None where it stays."""
    unroll = UNROLLED.get(node.op_type)
    return None if unroll is None else unroll(model, node)


class TooManyNodesError(UnsupportedError):
    """A loop would become more nodes than `NODE_LIMIT`."""


class Unroller:
    """Copies of one node's body, one after the other."""

    def __init__(self, model: Model, node: Node, body: Graph | None = None) -> None:
        self.model, self.node = model, node
        self.body: Graph = node.get("body") if body is None else body
        self.made: list[Node] = []

    def constant(self, array: object) -> Value:
        name = self.model.fresh_name(f"{self.node.label}/constant")
        return self.model.graph.add_initializer(name, Tensor.from_array(np.asarray(array)))

    def add(self, op_type: str, inputs: Sequence[Value | None], **attributes: object) -> Value:
        result = Value(self.model.fresh_name(f"{self.node.label}/{op_type}"))
        node = Node(op_type, inputs, [result])
        for name, value in attributes.items():
            node.set(name, value)
        self.made.append(node)
        return result

    def step(self, given: Sequence[Value | None]) -> list[Value]:
        """One copy of the body reading `given`; its outputs."""
        mapping: dict[Value, Value | None] = _Captures(self.body)
        mapping.update(zip(self.body.inputs, given, strict=True))
        copier = Copier(mapping, self.model.fresh_name)
        for value in self.body.initializers.values():
            if value in mapping:
                continue
            tensor = value.const
            assert tensor is not None
            name = self.model.fresh_name(value.name)
            mapping[value] = self.model.graph.add_initializer(name, tensor)
        for node in self.body.nodes:
            self.made.append(copier.node(node))
        outputs = []
        for value in self.body.outputs:
            found = mapping[value]
            assert found is not None
            outputs.append(found)
        return outputs

    def avoid_errors(self, taken: Value) -> None:
        """Let what is made be computed of harmless operands unless a truth value holds."""
        nodes, self.made = self.made, []
        for node in nodes:
            number = _HARMLESS.get(node.op_type) if not normalize_domain(node.domain) else None
            value = node.input(1) if number is not None else None
            if value is not None and self.model.constant(value) is None and value.dtype:
                dtype = helper.tensor_dtype_to_np_dtype(value.dtype)
                if dtype.kind in "iu":
                    other = self.constant(np.asarray(number, dtype))
                    node.set_input(1, self.add("Where", [taken, value, other]))
            self.made.append(node)

    def check_size(self, steps: int) -> None:
        count = steps * max(1, sum(1 for _ in self.body.all_nodes()))
        if count > NODE_LIMIT:
            self.undo()
            raise TooManyNodesError(
                f"node '{self.node.label}' ({self.node.op_type}): {steps} steps would become "
                f"{count} nodes"
            )

    def undo(self) -> None:
        """Take back all copies."""
        for node in self.made:
            node.detach_inputs()
        self.made = []

    def define(self, index: int, value: Value, required: Sequence[Value] = ()) -> None:
        """Let output `index` of the node be `value`, where the truth values required hold."""
        result = self.node.output(index)
        if result is None:
            return
        domain, op_type = REQUIRE
        if not required:
            self.made.append(Node("Identity", [value], [result]))
            return
        if domain not in self.model.opsets:
            self.model.extra.opset_import.add(domain=domain, version=1)
        name = self.node.label
        self.made.append(Node(op_type, [value, *required], [result], domain=domain, name=name))

    def stack(
        self, index: int, parts: Sequence[Value], axis: int, required: Sequence[Value] = ()
    ) -> None:
        """As `define`, for the parts stacked along a new axis."""
        if self.node.output(index) is None:
            return
        self.define(index, self.stacked(parts, axis), required)

    def stacked(self, parts: Sequence[Value], axis: int) -> Value:
        """Parts along a new axis."""
        return self.add("Concat", [self._unsqueezed(p, axis) for p in parts], axis=axis)

    def _unsqueezed(self, value: Value, axis: int) -> Value:
        if self.model.opset < 13:
            return self.add("Unsqueeze", [value], axes=[axis])
        return self.add("Unsqueeze", [value, self.constant(np.asarray([axis], np.int64))])


class _Captures(dict[Value, "Value | None"]):
    """Values of outer graphs stand for themselves."""

    def __init__(self, body: Graph) -> None:
        super().__init__()
        self._own = {v for g in body.all_graphs() for v in g.values()}

    def __missing__(self, value: Value) -> Value:
        if value in self._own:
            raise KeyError(value)
        return value

    def get(self, value: Value, default: Value | None = None) -> Value | None:  # type: ignore[override]
        if value in self:
            return self[value]
        return default if value in self._own else value


class _Loop(Unroller):
    """Loop: trip count, condition and values handed from step to step.

    Where only a run tells the number of steps, it is that of the rows declared for a stacked
    output, and the results hold only if the run comes to the same number (`REQUIRE`).
    """

    def __init__(self, model: Model, node: Node) -> None:
        super().__init__(model, node)
        self.sources: dict[Value, Value] = {}
        self.known: dict[Value, Array] = {}

    def copies(self) -> list[Node] | None:
        carried_count = len(self.node.inputs) - 2
        limit = self.node.input(0)
        most = self._constant(limit)
        counted_at_run_time = limit is not None and most is None
        declared = self._steps_by_shape(carried_count)
        proceed = self._first_condition()
        required: list[Value] = []
        carried: list[Value] = [v for v in self.node.inputs[2:] if v is not None]
        scans: list[list[Value]] = [[] for _ in self.body.outputs[1 + carried_count :]]
        steps = 0
        true = self.constant(np.asarray(True))
        while proceed is not False and (most is None or steps < most):
            uncertain = counted_at_run_time or isinstance(proceed, Value) or required
            if uncertain and declared is None:
                self.undo()
                return None
            if uncertain and declared is not None and steps >= declared:
                break
            if isinstance(proceed, Value):
                required.append(proceed)
            self.check_size(steps + 1)
            number = self.constant(np.asarray(steps, np.int64))
            results = self.step([number, true, *carried])
            carried = results[1 : 1 + carried_count]
            for rows, value in zip(scans, results[1 + carried_count :], strict=True):
                rows.append(value)
            steps += 1
            keep = self._copied(results[0])
            decided = True if keep is true else self._decide(keep)
            proceed = results[0] if decided is None else decided
            if decided and most is None and not counted_at_run_time and keep.producer is None:
                raise UnsupportedError(f"node '{self.node.label}' (Loop): it never ends")
        if counted_at_run_time or isinstance(proceed, Value) or required:
            if steps != declared:
                raise UnsupportedError(
                    f"node '{self.node.label}' (Loop): it makes {steps} steps or fewer, and "
                    f"{declared} are declared"
                )
            required += self._stops(limit if counted_at_run_time else None, most, proceed, steps)
        for index, value in enumerate(carried):
            self.define(index, value, required)
        for index, rows in enumerate(scans):
            if not rows:
                self._empty(carried_count + index, required)
                continue
            self.stack(carried_count + index, rows, 0, required)
        return self.made

    def _constant(self, value: Value | None) -> int | None:
        constant = self.model.constant(value)
        return None if constant is None else int(constant.numpy().reshape(()))

    def _first_condition(self) -> bool | Value:
        """Whether the first step is made; a value where only a run tells it."""
        condition = self.node.input(1)
        known = True if condition is None else self._constant(condition)
        return condition if known is None and condition is not None else bool(known)

    def _stops(
        self, limit: Value | None, most: int | None, proceed: bool | Value, steps: int
    ) -> list[Value]:
        """Conditions under which a loop ends after these steps.

        `limit` is the number of steps where only a run tells it, `proceed` whether the loop
        would go on.
        """
        if limit is None:
            if most == steps or proceed is False:
                return []
            if isinstance(proceed, Value):
                return [self.add("Not", [proceed])]
            raise UnsupportedError(
                f"node '{self.node.label}' (Loop): it makes more than the {steps} steps declared"
            )
        shape = tuple(d for d in limit.shape or () if isinstance(d, int))

        def beside(number: int) -> Value:
            return self.constant(np.full(shape, number, np.int64))

        reached = self.add("Less", [limit, beside(1)])
        if steps:
            reached = self.add("Equal", [limit, beside(steps)])
        if proceed is True:
            return [reached]
        enough = self.add("Not", [self.add("Less", [limit, beside(steps)])])
        if proceed is False:
            return [enough]
        return [enough, self.add("Or", [reached, self.add("Not", [proceed])])]

    def _steps_by_shape(self, carried_count: int) -> int | None:
        """What the shape of a stacked output says: each step adds one row."""
        for value in self.node.outputs[carried_count:]:
            shape = None if value is None else value.shape
            if shape and isinstance(shape[0], int):
                return shape[0]
        return None

    def _copied(self, value: Value) -> Value:
        """The value that a chain of Identity nodes in the copies hands on."""
        chain = []
        while value.producer is not None and value.producer.op_type == "Identity":
            source = self.sources.get(value, value.producer.input(0))
            if source is None or value.producer.graph is not None:
                break
            chain.append(value)
            value = source
        self.sources.update(dict.fromkeys(chain, value))
        return value

    def _decide(self, keep: Value) -> bool | None:
        """Whether the loop goes on, where that depends on constants only.

        What was computed for the steps before is not computed again: a counter that is handed
        on is followed back by one step.
        """
        constant = self.model.constant(keep)
        if constant is not None:
            return bool(constant.numpy().reshape(()))
        needed: dict[Node, None] = {}
        stack: list[Value | Node] = [keep]
        while stack:
            item = stack.pop()
            if isinstance(item, Node):  # all that it reads has been added
                needed[item] = None
                continue
            producer = item.producer
            if item in self.known or self.model.constant(item) is not None or producer in needed:
                continue
            if producer is None or producer.graph is not None or producer.subgraphs():
                return None
            stack.append(producer)
            stack.extend(v for v in producer.inputs if v is not None)
        values = [v for n in needed for v in n.outputs if v is not None]
        found = evaluate(self.model, list(needed), values, self.known)
        if sum(array.size for array in found.values()) <= _KEPT:
            self.known |= found
        return bool(found[keep].reshape(())) if keep in found else None

    def _empty(self, index: int, required: Sequence[Value]) -> None:
        result = self.node.output(index)
        if result is None:
            return
        inner = self.body.outputs[1 + index].shape
        shape = (0, *(d if isinstance(d, int) else 0 for d in inner or ()))
        from onnx import helper

        dtype = result.dtype or TensorProto.FLOAT
        array = np.zeros(shape, helper.tensor_dtype_to_np_dtype(dtype))
        self.define(index, self.constant(array), required)


def _scan(model: Model, node: Node) -> list[Node] | None:
    """Scan of opset 9 and later; opset 8 has a batch axis, taken off sample by sample."""
    if model.opset < 9:
        return _batched_scan(model, node)
    work = Unroller(model, node)
    body = work.body
    inputs = int(node.get("num_scan_inputs", 0))
    if not 1 <= inputs <= len(node.inputs):
        raise UnsupportedError(
            f"node '{node.label}' (Scan): {inputs} sequences of {len(node.inputs)} inputs"
        )
    states: list[Value] = [v for v in node.inputs[: len(node.inputs) - inputs] if v is not None]
    sequences = [v for v in node.inputs[len(node.inputs) - inputs :] if v is not None]
    rows_count = len(body.outputs) - len(states)
    in_axes = [int(a) for a in node.get("scan_input_axes", [0] * inputs)]
    in_back = [int(d) for d in node.get("scan_input_directions", [0] * inputs)]
    out_axes = [int(a) for a in node.get("scan_output_axes", [0] * rows_count)]
    out_back = [int(d) for d in node.get("scan_output_directions", [0] * rows_count)]
    shape = sequences[0].shape
    steps = None if shape is None else shape[in_axes[0]]
    if not isinstance(steps, int):
        return None
    work.check_size(steps)
    axes = [a % len(v.shape or (0,)) for v, a in zip(sequences, in_axes, strict=True)]
    states, rows = _scanned(work, states, list(zip(sequences, axes, in_back, strict=True)), steps)
    for position, value in enumerate(states):
        work.define(position, value)
    for position, own in enumerate(rows):
        ordered = own[::-1] if out_back[position] else own
        axis = out_axes[position]
        if axis < 0:
            rank = body.outputs[len(states) + position].rank
            result = node.output(len(states) + position)
            rank = rank + 1 if rank is not None else (result.rank if result is not None else None)
            if rank is None:
                return None
            axis += rank
        work.stack(len(states) + position, ordered, axis)
    return work.made


def _scanned(
    work: Unroller, states: list[Value], sequences: list[tuple[Value, int, int]], steps: int
) -> tuple[list[Value], list[list[Value]]]:
    """The states after all steps, and what each step adds to each stacked output.

    Of each sequence there is its axis of steps, and whether it is read from the end.
    """
    rows: list[list[Value]] = [[] for _ in work.body.outputs[len(states) :]]
    for step in range(steps):
        slices = []
        for value, axis, back in sequences:
            index = work.constant(np.asarray(steps - 1 - step if back else step, np.int64))
            slices.append(work.add("Gather", [value, index], axis=axis))
        results = work.step([*states, *slices])
        states = results[: len(states)]
        for own, value in zip(rows, results[len(states) :], strict=True):
            own.append(value)
    return states, rows


def _batched_scan(model: Model, node: Node) -> list[Node] | None:
    """Scan of opset 8: states are [batch, ...], sequences [batch, steps, ...]."""
    if node.input(0) is not None:
        raise UnsupportedError(
            f"node '{node.label}' (Scan): of opset 8, with lengths of sequences, it has no lowering"
        )
    work = Unroller(model, node)
    inputs = int(node.get("num_scan_inputs"))
    given = [v for v in node.inputs[1:] if v is not None]
    count = len(given) - inputs
    backwards = [int(d) for d in node.get("directions", [0] * inputs)]
    shape = given[count].shape
    batch, steps = (None, None) if shape is None else shape[:2]
    if not isinstance(batch, int) or not isinstance(steps, int):
        return None
    work.check_size(batch * steps)
    results: list[list[Value]] = [[] for _ in work.body.outputs]
    for number in range(batch):
        index = work.constant(np.asarray(number, np.int64))
        sample = [work.add("Gather", [v, index], axis=0) for v in given]
        sequences = [(v, 0, back) for v, back in zip(sample[count:], backwards, strict=True)]
        states, rows = _scanned(work, sample[:count], sequences, steps)
        stacked = [work.stacked(own, 0) for own in rows]
        for own, value in zip(results, [*states, *stacked], strict=True):
            own.append(value)
    for position, own in enumerate(results):
        work.stack(position, own, 0)
    return work.made


def _select(model: Model, node: Node) -> list[Node] | None:
    """An If whose condition only a run tells: both branches, then a choice.

    Operators have no side effects but errors; what is not chosen is thrown away, and computed of
    operands that make none. A branch that can't run is none, and a run that would take it fails.
    """
    condition = node.input(0)
    branches = (node.get("then_branch"), node.get("else_branch"))
    if any(_decides_sizes(model, inner) for branch in branches for inner in branch.all_nodes()):
        return None  # it is made by runs alone that take its branch
    for index, result in enumerate(node.outputs):
        sides = [b.outputs[index] for b in branches]
        if result is None:
            continue
        shapes = [s.shape for s in sides]
        if any(s is None or None in s or "" in s for s in shapes):
            return None
        if shapes[0] != shapes[1] or sides[0].dtype != sides[1].dtype:
            return None
    made: list[Node] = []
    chosen = []
    fails = [any(map(_always_fails, branch.nodes)) for branch in branches]
    for index, branch in enumerate(branches):
        work = Unroller(model, node, branch)
        results = work.step([])
        taken = _taken(work, condition, index == 0)
        work.avoid_errors(taken)
        if fails[index]:
            continue
        if any(fails):
            for place, value in enumerate(results):
                work.define(place, value, [taken])
            return work.made
        chosen.append(results)
        made += work.made
    if not chosen:
        return None
    for result, yes, no in zip(node.outputs, *chosen, strict=True):
        if result is not None:
            made.append(Node("Where", [condition, yes, no], [result]))
    return made


def _decides_sizes(model: Model, node: Node) -> bool:
    """Whether the data that a node reads decide sizes: how many results it has, or what an operand
    tells it that follows from no sizes."""
    if normalize_domain(node.domain):
        return False
    told = (node.input(place) for place in TOLD.get(node.op_type, ()))
    if any(v is not None and not _follows_from_sizes(model, v) for v in told):
        return not all(_is_known(v) for v in node.outputs if v is not None)
    return node.op_type in COUNTED


def _is_known(value: Value) -> bool:
    return value.shape is not None and all(isinstance(size, int) for size in value.shape)


def _follows_from_sizes(model: Model, value: Value) -> bool:
    """Whether a value is computed of nothing but constants and sizes."""
    seen, left = {value}, [value]
    while left:
        each = left.pop()
        node = each.producer
        if model.constant(each) is not None or (node is not None and node.op_type in SIZES):
            continue
        if node is None or node.subgraphs():
            return False
        read = {v for v in node.inputs if v is not None} - seen
        seen |= read
        left += read
    return True


def _taken(work: Unroller, condition: Value | None, first: bool) -> Value:
    """Whether a run takes the first branch of an If, or the second: a scalar."""
    assert condition is not None
    made, work.made = work.made, []
    if condition.rank != 0:
        condition = work.add("Reshape", [condition, work.constant(np.zeros(0, np.int64))])
    taken = condition if first else work.add("Not", [condition])
    work.made += made
    return taken


def _always_fails(node: Node) -> bool:
    """Whether a node looks elements up where there are none."""
    data, result = node.input(0), node.output(0)
    if node.op_type != "Gather" or normalize_domain(node.domain) or data is None or result is None:
        return False
    shape, axis = data.shape, int(node.get("axis", 0))
    if not shape or not -len(shape) <= axis < len(shape):
        return False
    return shape[axis] == 0 and result.shape is not None and 0 not in result.shape


_HARMLESS = {
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"), 0),
    **dict.fromkeys(("Div", "Mod"), 1),
}
"""Operators whose second operand may end a run where it is an integer, with one that doesn't."""


UNROLLED: dict[str, Callable[[Model, Node], list[Node] | None]] = {
    "If": _select,
    "Loop": lambda model, node: _Loop(model, node).copies(),
    "Scan": _scan,
}
"""What puts copies of an operator's body in its place."""
