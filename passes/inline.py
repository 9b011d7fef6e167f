"""Replaces calls of model-local functions by their bodies."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.copying import Copier
from ..ir.errors import UnsupportedError
from ..ir.graph import Attribute, Graph, Node, Value, normalize_domain
from ..ir.model import Function, Model
from .base import Context, Note, Pass, PassResult

DEPTH = 64
"""Calls within calls above which functions are taken for recursive (ONNX forbids that)."""


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Put every call's function body in its place, nested calls and subgraphs included.

    A function that imports another version of an operator set than the model stays, as
    its nodes would mean something else outside of it.
    """

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        notes: dict[str, Note] = {}
        count = 0
        for graph in list(model.graph.all_graphs()):
            count += _inline_graph(model, graph, notes, 0)
        called = {_key(n) for n in model.graph.all_nodes()}
        if not called.intersection(model.functions):
            model.functions.clear()
        return PassResult(count > 0, {"inlined": count}, list(notes.values()))


def _key(node: Node) -> tuple[str, str, str]:
    return (node.domain, node.op_type, node.overload)


def _inline_graph(model: Model, graph: Graph, notes: dict[str, Note], depth: int) -> int:
    """Inline the calls in one graph; what they contain follows at greater depth."""
    if depth > DEPTH:
        raise UnsupportedError("model-local functions call each other without end")
    count = 0
    nodes: list[Node] = []
    for node in graph.nodes:
        function = model.functions.get(_key(node))
        if function is None:
            nodes.append(node)
            continue
        clash = _clashing_opset(model, function)
        if clash is not None:
            notes.setdefault(node.label, Note.at(node, clash))
            nodes.append(node)
            continue
        body = Graph()
        body.nodes = _body_of(model, node, function)
        count += 1 + _inline_graph(model, body, notes, depth + 1)
        for inner in [g for n in body.nodes for g in n.subgraphs()]:
            count += _inline_graph(model, inner, notes, depth + 1)
        node.detach_inputs()
        node.graph = None
        nodes.extend(body.nodes)
    graph.nodes = nodes
    for node in nodes:
        node.graph = graph
    return count


def _clashing_opset(model: Model, function: Function) -> str | None:
    for domain, version in function.opsets.items():
        if model.opsets.get(domain, version) != version:
            name = domain or "ai.onnx"
            return f"the function imports {name} {version}, the model {model.opsets[domain]}"
    for entry in function.extra.opset_import:
        if normalize_domain(entry.domain) not in model.opsets:
            model.extra.opset_import.append(entry)
    return None


def _body_of(model: Model, call: Node, function: Function) -> list[Node]:
    """The function's nodes, reading the call's inputs and defining its outputs."""
    body = function.graph
    mapping: dict[Value, Value | None] = {
        value: call.input(index) for index, value in enumerate(body.inputs)
    }
    copies: list[tuple[Value, Value]] = []
    for value, result in zip(body.outputs, call.outputs, strict=False):
        if result is None:
            continue
        if value in mapping:  # passed through, or a result twice
            copies.append((value, result))
        else:
            mapping[value] = result
    given = {a.name: Attribute(a) for a in function.extra.attribute_proto}
    given.update(call.attributes)
    prefix = call.label
    copier = Copier(mapping, lambda name: model.fresh_name(f"{prefix}/{name}"), given)
    nodes = [copier.node(node) for node in body.nodes]
    for value, result in copies:
        nodes.append(Node("Identity", [mapping[value]], [result]))
    return nodes
