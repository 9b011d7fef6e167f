"""Branches that can't run: of an If whose other branch is the one for these sizes.

Exporters write a branch for each way in which a model can be called. With sizes fixed, what
the others compute contradicts itself, and ONNX Runtime, which infers types of all branches
when it loads a model, would refuse the whole. Such a branch failed whenever it was taken; the
one put in its place does that too, and loads.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from ...ir.graph import Graph, Node, Value, make_tensor_type, normalize_domain
from ...ir.infer import refusal
from ...ir.model import Model
from ...ir.tensor import Array, Tensor
from ..base import Note


def stop_impossible_branches(model: Model) -> list[Note]:
    """Let each branch that has a node which contradicts its operands just fail; why, for each."""
    notes: list[Note] = []
    _search(model, model.graph, notes)
    return notes


def _search(model: Model, graph: Graph, notes: list[Note]) -> str | None:
    """Why the nodes of a graph, if they all run, must fail; branches within come first."""
    found = None
    for node in graph.nodes:
        reasons = [(body, _search(model, body, notes)) for body in node.subgraphs()]
        if normalize_domain(node.domain) == "" and node.op_type == "If":
            blamed = [(body, reason) for body, reason in reasons if reason is not None]
            if len(blamed) == 1 and len(reasons) == 2 and _replace(model, node, *blamed[0]):
                reason = f"one of its branches can't run with these sizes: {blamed[0][1]}"
                notes.append(Note.at(node, reason))
            elif blamed:
                found = found or blamed[0][1]
        elif graph.parent is not None and not node.subgraphs():
            refused = refusal(model, node)
            found = found or (refused and f"node '{node.label}' ({node.op_type}): {refused}")
    return found


def _replace(model: Model, node: Node, body: Graph, reason: str) -> bool:
    """Put a branch in the place of `body` that reads past the end of a tensor and fails.

    The position depends on the condition, so that nothing can compute it beforehand.
    """
    condition = node.input(0)
    other = next(graph for graph in node.subgraphs() if graph is not body)
    kinds = [_kind(value) for value in body.outputs]
    if condition is None or None in kinds or len(other.outputs) != len(kinds):
        return False
    branch = Graph(body.name, body.extra)
    branch.parent = node

    def add(op_type: str, inputs: list[Value], name: str, dtype: int, rank: int) -> Value:
        value = Value(name, make_tensor_type(dtype, [1] * rank))
        branch.add_node(Node(op_type, inputs, [value]))
        return value

    def constant(array: Array) -> Value:
        return branch.add_initializer(model.fresh_name("stop_constant"), Tensor.from_array(array))

    names = [value.name for value in body.outputs]
    cast = Value(model.fresh_name("stop_taken"), make_tensor_type(TensorProto.INT64, None))
    taken = Node("Cast", [condition], [cast])
    taken.set("to", TensorProto.INT64)
    branch.add_node(taken)
    for name, dtype, value in zip(names, kinds, other.outputs, strict=True):
        assert dtype is not None
        rank = value.rank or 0
        position = add(
            "Add",
            [cast, constant(np.ones((), np.int64))],
            model.fresh_name("stop_position"),
            TensorProto.INT64,
            0,
        )
        flat = add(
            "Reshape",
            [position, constant(np.zeros(0, np.int64))],
            model.fresh_name("stop_scalar"),
            TensorProto.INT64,
            0,
        )
        data = constant(np.zeros([1] * (rank + 1), helper.tensor_dtype_to_np_dtype(dtype)))
        branch.add_output(add("Gather", [data, flat], name, dtype, rank))
    body.detach()
    for key, attribute in node.attributes.items():
        if attribute.graphs == (body,):
            node.set(key, branch)
    return True


def _kind(value: Value) -> int | None:
    """The element type of a tensor that arrays can be made of."""
    unmade = (TensorProto.UNDEFINED, TensorProto.STRING)
    return None if value.dtype in unmade else value.dtype
