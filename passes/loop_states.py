"""Types of the values that a Loop carries, which ONNX's inference leaves without shapes."""

from __future__ import annotations

from ..ir.graph import Dimension, Graph, Node, Value, normalize_domain, tensor_type
from ..ir.infer import infer_shapes
from ..ir.model import Model
from ..ir.partition import extract

Shape = tuple[Dimension, ...] | None


def infer_loop_states(model: Model) -> None:
    """Give the states of Loops the sizes that no iteration changes, in bodies and behind them.

    A state begins as a value of the graph around; sizes that the body gives back as it got
    them stay so. Exporters often declare none, and ONNX's inference assumes none, since a
    state may change its shape. Loops within bodies of other operators aren't looked at.
    """
    graph = model.graph
    found = [value for n in graph.nodes if _is_loop(n) for value in _infer(model, n)]
    if found:
        declared = graph.value_info
        results = (v for v in found if v.producer is not None and not v.is_graph_output)
        graph.value_info = [*declared, *(v for v in results if v not in declared)]
        infer_shapes(model)  # which follows what is declared
        graph.value_info = declared


def _is_loop(node: Node) -> bool:
    return node.op_type == "Loop" and normalize_domain(node.domain) == ""


def _infer(model: Model, node: Node) -> list[Value]:
    """States and results of a Loop of which something is known."""
    body = node.get("body")
    initial = node.inputs[2:]
    if not isinstance(body, Graph) or len(body.inputs) != 2 + len(initial):
        return []
    states = body.inputs[2:]
    if all(state.rank is not None or not _is_tensor(state) for state in states):
        return []
    shapes: list[Shape] = [None if v is None else v.shape for v in initial]
    kinds = [0 if v is None else v.dtype for v in initial]
    while any(shape is not None for shape in shapes):
        returned = _returned(model, body, shapes, kinds)
        kept = [_unchanged(a, b) for a, b in zip(shapes, returned, strict=True)]
        if kept == shapes:
            break
        shapes = kept
    results = [*node.outputs[: len(states)], *[None] * len(states)]
    found: list[Value] = []
    for state, result, shape, kind in zip(states, results, shapes, kinds, strict=False):
        for value in (state, result):
            if value is not None and shape is not None:
                found.append(value)
                if value.rank is None:
                    value.set_tensor_type(kind, shape)
    return found


def _is_tensor(value: Value) -> bool:
    return value.type is None or tensor_type(value.type) is not None


def _returned(model: Model, body: Graph, shapes: list[Shape], kinds: list[int]) -> list[Shape]:
    """The shapes that the body's states have behind it, given those in front of it."""
    states = body.inputs[2:]
    outputs = body.outputs[1 : 1 + len(states)]
    part, _ = extract(model, body.nodes, outputs)
    given = {value.name: value for value in part.graph.inputs}
    for state, shape, kind in zip(states, shapes, kinds, strict=True):
        if state.name in given and kind:
            given[state.name].set_tensor_type(kind, shape)
    infer_shapes(part)
    infer_loop_states(part)
    return [value.shape for value in part.graph.outputs]


def _unchanged(before: Shape, after: Shape) -> Shape:
    """The sizes that both have; None where the ranks differ."""
    if before is None or after is None or len(before) != len(after):
        return None
    return tuple(a if a == b else None for a, b in zip(before, after, strict=True))
