"""Loop, Scan and If that only a run decides: the body, or each branch, as a model of its own.

A body reads states, which each step hands to the next, rows of sequences and values of the graph
around it; it makes the next states, rows that are stacked and, of a Loop, whether to go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from onnx import ModelProto, TensorProto

from ....ir.copying import Copier
from ....ir.errors import UnsupportedError
from ....ir.graph import Dimension, Graph, Node, Value, normalize_domain, outer_reads, tensor_type
from ....ir.model import Function, Model
from ....ir.tensor import Tensor

ShapeOf = Callable[[Value], Sequence[Dimension] | None]
"""Sizes of a value, those that are expressions by a name."""


@dataclasses.dataclass(frozen=True)
class StepRows:
    """A sequence along one of its axes: `whole` is the node's operand or result, None where a
    result isn't wanted, `place` that of the row among the body's inputs or outputs."""

    whole: Value | None
    place: int
    axis: int
    backward: bool


@dataclasses.dataclass
class LoopBody:
    """One Loop or Scan with its body as a `model`.

    The model's inputs are the states, rows of `read` and `captured`; its outputs the next states,
    rows of `made` and, where `proceeds`, whether there is another step. `initial` are the values
    that states begin with, of those that only the body has a constant; `results` those of the
    node that they end as.
    """

    node: Node
    model: Model
    initial: list[Value]
    results: list[Value | None]
    read: list[StepRows]
    made: list[StepRows]
    captured: list[Value]
    limit: Value | None = None
    condition: Value | None = None
    proceeds: bool = False
    counts: bool = False
    """Whether the last state is the number of the step."""

    @property
    def inputs(self) -> list[Value]:
        """What the body's inputs are in the graph around it; of rows the sequence."""
        rows = [rows.whole for rows in self.read]
        return [*self.initial, *(v for v in rows if v is not None), *self.captured]


LOOPED = ("Loop", "Scan")
"""Operators that may become loops of the compiled model."""


def is_loop(node: Node) -> bool:
    """Whether a node may become a loop of the compiled model."""
    return normalize_domain(node.domain) == "" and node.op_type in LOOPED


def stacks_rows(node: Node) -> bool:
    """Whether somebody reads what a Loop stacks, which has as many rows as it makes steps."""
    if normalize_domain(node.domain) or node.op_type != "Loop":
        return False
    stacked = node.outputs[len(node.inputs) - 2 :]
    return any(value is not None and is_read(value) for value in stacked)


def has_declared_rows(node: Node) -> bool:
    """Whether it is declared how many rows a Loop stacks: then it makes as many steps."""
    shapes = [v.shape for v in node.outputs[len(node.inputs) - 2 :] if v is not None]
    return stacks_rows(node) and any(s and isinstance(s[0], int) for s in shapes)


def is_read(value: Value) -> bool:
    """Whether a node or the model's user reads a value."""
    return value.is_graph_output or bool(value.uses)


def is_branching(node: Node) -> bool:
    """Whether a run may make one of two branches of a node."""
    return normalize_domain(node.domain) == "" and node.op_type == "If"


def extract_body(model: Model, node: Node, shape_of: ShapeOf) -> LoopBody:
    """The body of a Loop or Scan of the main graph. Raises UnsupportedError for other forms."""
    work = _Extractor(model, node, shape_of)
    return (_loop if node.op_type == "Loop" else _scan)(work)


def extract_branch(model: Model, node: Node, name: str, shape_of: ShapeOf) -> LoopBody:
    """A branch of an If of the main graph, by the attribute that it is: a body that is made once,
    whose rows are the results."""
    work = _Extractor(model, node, shape_of, name)
    captured = work.captured()
    work.copy()
    for value in work.body.outputs:
        work.output(value)
    made = [StepRows(value, place, 0, False) for place, value in enumerate(node.outputs)]
    return LoopBody(
        node,
        work.model,
        [],
        [],
        [],
        made,
        captured,
    )


class _Extractor:
    """Copies the body of one node into a model."""

    def __init__(self, model: Model, node: Node, shape_of: ShapeOf, name: str = "body") -> None:
        self.source, self.node, self.shape_of = model, node, shape_of
        body = node.get(name)
        if not isinstance(body, Graph):
            raise self.refuse("it has no body")
        self.body = body
        self.graph = Graph(f"{node.label}/{name}")
        self.copier = Copier()
        extra = ModelProto()
        extra.CopyFrom(model.extra)
        functions = [Function(Copier().graph(f.graph), f.extra) for f in model.functions.values()]
        self.model = Model(self.graph, extra, functions, model.path)

    def refuse(self, why: str) -> UnsupportedError:
        return UnsupportedError(f"node '{self.node.label}' ({self.node.op_type}): {why}")

    def given(self, inner: Value, outer: Value | None, axis: int | None = None) -> None:
        """Let an input of the body be one of the model, a row of `outer` where it has an axis."""
        if outer is None:
            raise self.refuse("an input is left out")
        kind = None if outer.type is None else outer.type.WhichOneof("value")
        if kind in ("sequence_type", "optional_type"):
            raise self.refuse(f"only a run tells which tensors '{outer.name}' holds")
        shape = self.shape_of(outer)
        if shape is None or tensor_type(outer.type) is None or not outer.dtype:
            raise self.refuse(f"the rank or type of '{outer.name}' is unknown")
        if axis is not None:
            shape = [size for place, size in enumerate(shape) if place != axis]
        copy = Value(inner.name)
        copy.set_tensor_type(outer.dtype, shape)
        self.copier.mapping[inner] = copy
        self.graph.add_input(copy)

    def position(self, axis: int, rank: int) -> int:
        if not -rank <= axis < rank:
            raise self.refuse(f"axis {axis} of {rank}")
        return axis % rank

    def rank(self, value: Value) -> int:
        shape = self.shape_of(value)
        if shape is None:
            raise self.refuse(f"the rank of '{value.name}' is unknown")
        return len(shape)

    def captured(self) -> list[Value]:
        """What the body reads of the graph around it; constants come along."""
        inner = {v for g in self.body.all_graphs() for v in g.values()}
        reads = [v for v in outer_reads(self.node) if v not in self.node.inputs]
        if is_branching(self.node):
            reads = [v for v in reads if _is_read(self.body, v)]
        reads += [v for v in self.node.inputs if v is not None and _is_read(self.body, v)]
        reads += [v for v in self.body.outputs if v not in inner]
        found = []
        for value in dict.fromkeys(reads):
            constant = self.source.constant(value)
            if constant is None:
                self.given(value, value)
                found.append(value)
                continue
            copy = Value(value.name, value.type, const=constant)
            self.copier.mapping[value] = copy
            self.graph.initializers[copy.name] = copy
        return found

    def copy(self) -> None:
        """Copy initializers and nodes, whose results have no declared shapes."""
        for value in self.body.initializers.values():
            if value in self.copier.mapping:
                continue
            copy = Value(value.name, value.type, const=value.const)
            self.copier.mapping[value] = copy
            self.graph.initializers[copy.name] = copy
        for node in self.body.nodes:
            copied = self.graph.add_node(self.copier.node(node))
            copied.inference = None
            for result in copied.outputs:
                if result is not None and tensor_type(result.type) is not None and result.dtype:
                    result.set_tensor_type(result.dtype, None)

    def output(self, value: Value) -> None:
        """Let a value of the body be an output: a result of its own, whatever it is."""
        copy = self.copier.mapping[value]
        assert copy is not None
        if copy.producer is None or copy.is_graph_output:
            copy = self.add("Identity", [copy], copy.dtype)
        self.graph.add_output(copy)

    def add(self, op_type: str, inputs: list[Value], dtype: int) -> Value:
        """The result of a node that is added."""
        result = Value(self.model.fresh_name(f"{self.node.label}/{op_type}"))
        result.set_tensor_type(dtype, None)
        self.graph.add_node(Node(op_type, inputs, [result]))
        return result


def _is_read(graph: Graph, value: Value) -> bool:
    inside = set(graph.all_graphs())
    nodes = {n for g in inside for n in g.nodes}
    return any(use.user in nodes or use.user in inside for use in value.uses)


def _loop(work: _Extractor) -> LoopBody:
    node, body = work.node, work.body
    initial = list(node.inputs[2:])
    if len(body.inputs) != len(initial) + 2 or len(body.outputs) <= len(initial):
        raise work.refuse("its body has another number of inputs or outputs")
    number, proceed = body.inputs[:2]
    states = list(zip(body.inputs[2:], initial, strict=True))
    counts = bool(number.uses) or stacks_rows(node)
    for inner, outer in states:
        work.given(inner, outer)
    step = Value(number.name)
    if counts:
        zero = Value(f"{node.label}/step", const=Tensor.from_array(np.zeros((), np.int64)))
        step.set_tensor_type(TensorProto.INT64, ())
        work.copier.mapping[number] = step
        work.graph.add_input(step)
        initial.append(zero)
    true = Tensor.from_array(np.asarray(True))
    work.copier.mapping[proceed] = work.graph.add_initializer(proceed.name, true)
    captured = work.captured()
    work.copy()
    for value in body.outputs[1 : 1 + len(states)]:
        work.output(value)
    if counts:
        name = work.model.fresh_name(f"{node.label}/one")
        one = work.graph.add_initializer(name, Tensor.from_array(np.ones((), np.int64)))
        work.graph.add_output(work.add("Add", [step, one], TensorProto.INT64))
    for value in body.outputs[1 + len(states) :]:
        work.output(value)
    work.output(body.outputs[0])
    results = [node.output(index) for index in range(len(states))]
    first = len(initial)
    made = [
        StepRows(node.output(len(states) + index), first + index, 0, False)
        for index in range(len(body.outputs) - 1 - len(states))
    ]
    return LoopBody(
        node,
        work.model,
        [v for v in initial if v is not None],
        [*results, *[None] * counts],
        [],
        made,
        captured,
        node.input(0),
        node.input(1),
        proceeds=True,
        counts=counts,
    )


def _scan(work: _Extractor) -> LoopBody:
    node, body = work.node, work.body
    if work.source.opset < 9:
        raise work.refuse("of opset 8 it is unrolled, where that is known to become few nodes")
    count = int(node.get("num_scan_inputs", 0))
    if not 1 <= count <= len(node.inputs):
        raise work.refuse(f"{count} sequences of {len(node.inputs)} inputs")
    initial = list(node.inputs[: len(node.inputs) - count])
    sequences = list(node.inputs[len(initial) :])
    if len(body.inputs) != len(node.inputs) or len(body.outputs) < len(initial):
        raise work.refuse("its body has another number of inputs or outputs")
    rows = len(body.outputs) - len(initial)
    axes = list(node.get("scan_input_axes", [0] * count))
    backward = list(node.get("scan_input_directions", [0] * count))
    out_axes = list(node.get("scan_output_axes", [0] * rows))
    out_backward = list(node.get("scan_output_directions", [0] * rows))
    if not len(axes) == len(backward) == count or not len(out_axes) == len(out_backward) == rows:
        raise work.refuse("as many axes and directions as sequences")
    for inner, outer in zip(body.inputs, initial, strict=False):
        work.given(inner, outer)
    read = []
    for index, outer in enumerate(sequences):
        if outer is None:
            raise work.refuse("an input is left out")
        axis = work.position(axes[index], work.rank(outer))
        work.given(body.inputs[len(initial) + index], outer, axis)
        read.append(StepRows(outer, len(initial) + index, axis, bool(backward[index])))
    captured = work.captured()
    work.copy()
    for value in body.outputs:
        work.output(value)
    made = []
    for index in range(rows):
        place, back = len(initial) + index, bool(out_backward[index])
        made.append(StepRows(node.output(place), place, out_axes[index], back))
    return LoopBody(
        node,
        work.model,
        [v for v in initial if v is not None],
        [node.output(index) for index in range(len(initial))],
        read,
        made,
        captured,
    )
