"""Cutting a model in parts: what TVM compiles, and what is left to ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from onnx import ModelProto

from .copying import Copier
from .graph import Graph, Node, Value, node_reads, outer_reads
from .model import Function, Model


@dataclasses.dataclass(frozen=True)
class Part:
    """Some nodes of a model, as a model of their own.

    `origin` leads from the part's nodes to the model's.
    """

    compiled: bool
    model: Model
    origin: dict[Node, Node]


def partition(model: Model, left: Collection[Node]) -> list[Part]:
    """Parts in an order in which they can run, as few as alternate along any path.

    The nodes in `left` form the parts that are not compiled. Constants go to every part
    that reads them. Parts define what later ones or the model's outputs need, under the
    names that the values have in the model.
    """
    nodes = [n for n in model.graph.nodes if not _is_constant(model, n)]
    stages = _stages(nodes, set(left))
    groups: dict[int, list[Node]] = {}
    for node in nodes:
        groups.setdefault(stages[node], []).append(node)
    loose = [v for v in model.graph.outputs if model.constant(v) is not None]
    if not groups and loose:
        groups[0] = []
    parts = []
    for position, stage in enumerate(sorted(groups)):
        constants = loose if position == 0 else []
        parts.append(_part(model, groups[stage], stage % 2 == 0, constants))
    return [part for part in parts if part.model.graph.outputs]


def _is_constant(model: Model, node: Node) -> bool:
    return node.op_type == "Constant" and model.constant(node.output(0)) is not None


def _stages(nodes: Sequence[Node], left: Collection[Node]) -> dict[Node, int]:
    """When each node runs: compiled ones at even stages, the others at odd ones."""
    stages: dict[Node, int] = {}
    for node in nodes:
        stage = 0
        for value in node_reads(node):
            if value.producer in stages:
                stage = max(stage, stages[value.producer])
        stages[node] = stage + (stage % 2 != (node in left))
    return stages


def _part(model: Model, nodes: Sequence[Node], compiled: bool, loose: Sequence[Value]) -> Part:
    inside = set(nodes)
    results = [v for n in nodes for v in n.outputs if v is not None and _is_result(v, inside)]
    extracted, origin = extract(model, nodes, [*results, *loose])
    return Part(compiled, extracted, origin)


def extract(
    model: Model, nodes: Sequence[Node], outputs: Sequence[Value]
) -> tuple[Model, dict[Node, Node]]:
    """Some nodes of the main graph, in order, as a model; and whose copies its nodes are.

    Its inputs are what the nodes read and don't make themselves. Constants that they read, or
    that are among the outputs, come along.
    """
    graph = Graph(model.graph.name)
    copier = Copier()
    inside = set(nodes)
    reads = dict.fromkeys(v for n in nodes for v in outer_reads(n))
    for value in dict.fromkeys((*reads, *outputs)):
        if value.producer in inside or value in copier.mapping:
            continue
        constant = model.constant(value)
        copy = Value(value.name, value.type, const=constant)
        copier.mapping[value] = copy
        if constant is not None:
            graph.initializers[copy.name] = copy
        else:
            graph.add_input(copy)
    origin = {}
    for node in nodes:
        copied = graph.add_node(copier.node(node))
        origin[copied] = node
    for value in outputs:
        output = copier.mapping[value]
        assert output is not None
        graph.add_output(output)
    extra = ModelProto()
    extra.CopyFrom(model.extra)
    extra.ir_version = max(extra.ir_version, 4)  # before, constants had to be inputs, too
    functions = [Function(Copier().graph(f.graph), f.extra) for f in model.functions.values()]
    return Model(graph, extra, functions, model.path), origin


def _is_result(value: Value, inside: set[Node]) -> bool:
    """Whether something besides the nodes `inside`, and what lies in them, reads a value."""
    return value.is_graph_output or any(_outermost(user) not in inside for user in value.users)


def _outermost(node: Node) -> Node:
    """The node of the main graph that `node` is or lies in."""
    while node.graph is not None and node.graph.parent is not None:
        node = node.graph.parent
    return node
