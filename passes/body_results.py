"""Results of If, Loop and Scan that their bodies didn't have: what they compute inside."""

from __future__ import annotations

from collections.abc import Callable

from ..ir.graph import Graph, Node, Value, make_tensor_type
from ..ir.model import Model

WITH_BODIES = ("If", "Loop", "Scan")
"""Operators whose bodies are looked into."""


def hand_out(
    model: Model, node: Node, graph: Graph, value: Value, stand_in: Callable[[Graph], Value]
) -> Value:
    """What a node returns of a value of its body `graph`: of a Loop or Scan as rows.

    `stand_in` makes what another branch of an If returns in its place. All results of the node
    that its bodies have must be there.
    """
    for body in node.subgraphs():
        body.add_output(value if body is graph else stand_in(body))
    if node.op_type == "Scan":
        for name in ("scan_output_axes", "scan_output_directions"):
            if node.get(name):
                node.set(name, [*node.get(name), 0])
    result = Value(model.fresh_name(value.name), make_tensor_type(value.dtype, None))
    node.outputs = (*node.outputs, result)
    result.producer, result.output_index = node, len(node.outputs) - 1
    return result


def name_all_results(model: Model, node: Node) -> None:
    """Give a Loop or Scan those of its results that it leaves out, so that others can follow."""
    (body,) = node.subgraphs()
    count = len(body.outputs) - (node.op_type == "Loop")  # whose first tells whether it goes on
    named = list(node.outputs) + [None] * (count - len(node.outputs))
    results = [v or Value(model.fresh_name("unused")) for v in named]
    node.outputs = tuple(results)
    for index, result in enumerate(results):
        result.producer, result.output_index = node, index
