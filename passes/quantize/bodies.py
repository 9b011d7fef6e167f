"""Values inside of bodies of If, Loop and Scan, seen from outside: as results of the main graph.

A body hands a value out with its others: a branch of an If as one more result, which is empty, or
in a loop zero, where another branch ran, the steps of a Loop or Scan as rows of one more sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
from onnx import TensorProto

from ...ir.graph import Graph, Node, Value, normalize_domain
from ...ir.model import Model
from ...ir.tensor import Array, Tensor
from ..body_results import WITH_BODIES, hand_out, name_all_results


def graphs(model: Model) -> list[Graph]:
    """The main graph, and the bodies that are looked into, each after the one that it lies in."""
    found = [model.graph]
    for graph in found:
        for node in graph.nodes:
            if node.op_type in WITH_BODIES and normalize_domain(node.domain) == "":
                found += node.subgraphs()
    return found


def graph_of(value: Value) -> Graph | None:
    """The body or main graph that computes a value or has it as an input; None for a constant."""
    if value.producer is not None:
        return value.producer.graph
    return _reading(value) if value.is_input else None


def _reading(value: Value) -> Graph | None:
    """The graph that has a value as an input, from one of those that read it."""
    for user, _ in value.uses:
        graph = user.graph if isinstance(user, Node) else user
        while graph is not None:
            if value in graph.inputs:
                return graph
            graph = graph.parent.graph if graph.parent is not None else None
    return None


def is_inner(model: Model, value: Value) -> bool:
    """Whether a value lies in a body."""
    graph = graph_of(value)
    return graph is not None and graph is not model.graph


def hidden(model: Model, value: Value) -> bool:
    """Whether nothing tells that a value has one size in all steps of the loops that it lies in,
    so that these can't be rows of one result."""
    around = _around(graph_of(value))
    if not any(node.op_type != "If" for node in around):
        return False
    names = {s for v in model.graph.inputs for s in v.shape or () if isinstance(s, str)}
    names = set() if around[0].op_type == "If" else names  # other branches return as many zeros
    shape = value.shape
    return shape is None or not all(isinstance(s, int) or s in names for s in shape)


def _around(graph: Graph | None) -> list[Node]:
    """The nodes whose bodies a graph lies in, the innermost first."""
    found = []
    while graph is not None and graph.parent is not None:
        found.append(graph.parent)
        graph = graph.parent.graph
    return found


def computed_rows(array: Array) -> Array:
    """Those of what `surface` gives of a value of a body, without what other branches return."""
    if not array.size:
        return array
    rows = array.reshape(-1, array.shape[-1])
    return rows[rows.any(axis=1)]


def surface(model: Model, names: Iterable[str]) -> Mapping[str, Value]:
    """Values by name. Those of bodies, of float32, become results of the main graph under their
    names: flat, or with a row for each step, of zeros where another branch ran.

    Changes the model in place.
    """
    found = {value.name: value for value in model.graph.values()}
    inner = {value.name: value for graph in graphs(model)[1:] for value in graph.values()}
    flat: Value | None = None
    for name in names:
        if name in found:
            continue
        value = inner[name]
        value.name = model.fresh_name(name)
        graph = graph_of(value)
        assert graph is not None
        if flat is None:
            minus_one = Tensor.from_array(np.asarray([-1], np.int64))
            flat = model.graph.add_initializer(model.fresh_name("flat"), minus_one)
        row = _flat(model, value.name)
        graph.add_node(Node("Reshape", [value, flat], [row]))
        repeated = any(node.op_type != "If" for node in _around(graph))
        size = math.prod(s for s in value.shape or () if isinstance(s, int)) if repeated else 0
        value = row
        while graph is not model.graph:
            node = graph.parent
            assert node is not None
            assert node.graph is not None
            if node.op_type != "If":
                name_all_results(model, node)
            value = hand_out(model, node, graph, value, partial(_zeros, model, size))
            graph = node.graph
        value.name = name
        found[name] = value
    return found


def _zeros(model: Model, size: int, body: Graph) -> Value:
    """What another branch returns in a value's place."""
    zeros = Tensor.from_array(np.zeros(size, np.float32))
    source = model.graph.add_initializer(model.fresh_name("zeros"), zeros)
    result = _flat(model, "zeros")
    body.add_node(Node("Identity", [source], [result]))
    return result


def _flat(model: Model, name: str) -> Value:
    result = Value(model.fresh_name(name))
    result.set_tensor_type(TensorProto.FLOAT, None)
    return result
