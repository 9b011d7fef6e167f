"""Gradients of what a model puts out, as a model: reverse-mode differentiation of the graph.

ONNX Runtime then computes what otherwise needs a training framework. Each operator has one
rule (`gradient_rules`), which adds the nodes that give the gradients of its inputs from those
of its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnx import TensorProto

from ...ir.graph import Node, Value, normalize_domain
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.tensor import FLOAT_TYPES, Array
from .gradient_rules import RULES, Builder, NoRuleError

Loss = Callable[[Builder, Value, Value], Value]
"""From an output and a graph input of its type, the gradient of the loss by the output."""

TARGET = "target/"
"""In front of an output's name: the input that takes what it is compared with."""


class Gradients:
    """The gradients of a loss by some constants of a model.

    `losses` has the loss of each output that counts, by name. `wanted` names initializers;
    `parameters` are those of them by which there are gradients, and `stopped` the operators
    without a rule, because of which there are none by constants in front of them. Shapes of
    the model must have been inferred; it isn't changed.
    """

    def __init__(self, model: Model, losses: Mapping[str, Loss], wanted: Sequence[str]) -> None:
        blocked: set[int] = set()
        while True:
            builder = Builder(model.clone())
            failed = _build(builder, losses, wanted, blocked)
            if failed is None:
                break
            blocked.add(failed)
        graph = builder.model.graph
        self.stopped = {graph.nodes[position].op_type for position in blocked}
        self.parameters = [v.name for v in graph.inputs if v.name in set(wanted)]
        self._outputs = {n: g.name for n, g in zip(self.parameters, graph.outputs, strict=True)}
        self._session = Session(builder.model, threads=0) if self.parameters else None

    def run(
        self,
        feeds: Mapping[str, Array],
        targets: Mapping[str, Array],
        parameters: Mapping[str, Array],
    ) -> dict[str, Array]:
        """Gradients by parameter name, at the given values of all parameters.

        `feeds` are inputs of the model, `targets` by output name what outputs are compared
        with.
        """
        if self._session is None:
            return {}
        compared = {TARGET + name: array for name, array in targets.items()}
        known = set(self._session.input_names)
        given = {**feeds, **parameters, **compared}
        found = self._session.run({name: a for name, a in given.items() if name in known})
        return {name: found[gradient] for name, gradient in self._outputs.items()}


def _build(
    builder: Builder, losses: Mapping[str, Loss], wanted: Sequence[str], blocked: set[int]
) -> int | None:
    """Turn the builder's model into that of the gradients, or tell which node has no rule.

    Nothing in front of the blocked nodes, told by their positions, gets a gradient.
    """
    graph = builder.model.graph
    nodes = list(graph.nodes)
    behind = _in_front([nodes[position] for position in blocked])
    parameters = [graph.initializers.get(name) for name in wanted]
    free = [v for v in parameters if v is not None and v.dtype == TensorProto.FLOAT]
    free = [v for v in free if v not in behind]
    moving = _reached(nodes, set(free))
    for name, loss in losses.items():
        output = next(v for v in graph.outputs if v.name == name)
        target = Value(f"{TARGET}{name}", output.type)
        graph.add_input(target)
        if output in moving:
            builder.gradients[output] = loss(builder, output, target)
    for position in reversed(range(len(nodes))):
        node = nodes[position]
        gradient = next((builder.gradients.get(v) for v in node.outputs if v is not None), None)
        if gradient is None:
            gradient = _later_output(builder, node)
        needed = [value is not None and value in moving for value in node.inputs]
        if gradient is None or not any(needed):
            continue
        rule = RULES.get(node.op_type) if normalize_domain(node.domain) == "" else None
        try:
            if rule is None:
                return position
            found = rule(builder, node, gradient)
        except NoRuleError:
            return position
        for value, part, need in zip(node.inputs, found, needed, strict=False):
            if value is None or not need:
                continue
            if part is None:
                if value.const is None:
                    return position
                continue  # a limit or a statistic
            before = builder.gradients.get(value)
            builder.gradients[value] = part if before is None else builder.op("Add", before, part)
    _expose(builder, [v for v in free if v in builder.gradients])
    return None


def _later_output(builder: Builder, node: Node) -> Value | None:
    """A gradient of an output other than the first, where the rule looks at all of them."""
    found = [builder.gradients.get(v) for v in node.outputs if v is not None]
    return next((g for g in found if g is not None), None) if node.op_type == "Split" else None


def _expose(builder: Builder, parameters: Sequence[Value]) -> None:
    """Parameters become inputs, and their gradients the only outputs."""
    graph = builder.model.graph
    for value in list(graph.outputs):
        value.uses = {use: None for use in value.uses if isinstance(use.user, Node)}
    graph._outputs.clear()
    for value in parameters:
        del graph.initializers[value.name]
        shape = value.shape
        value.const = None
        value.set_tensor_type(TensorProto.FLOAT, shape)
        graph.add_input(value)
        gradient = builder.gradients[value]
        gradient.set_tensor_type(TensorProto.FLOAT, shape)
        graph.add_output(gradient)


def _reached(nodes: Sequence[Node], start: set[Value]) -> set[Value]:
    """Values that depend on some."""
    found = set(start)
    for node in nodes:
        if any(value in found for value in node.inputs):
            found.update(v for v in node.outputs if v is not None and v.dtype in FLOAT_TYPES)
    return found


def _in_front(nodes: Sequence[Node]) -> set[Value]:
    """Values that some nodes depend on."""
    found: set[Value] = set()
    waiting = [value for node in nodes for value in node.inputs]
    while waiting:
        value = waiting.pop()
        if value is None or value in found:
            continue
        found.add(value)
        if value.producer is not None:
            waiting += value.producer.inputs
    return found
