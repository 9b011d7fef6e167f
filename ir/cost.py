"""What a model costs: nodes, parameters, multiply-accumulates and bytes of weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from .graph import Node, Value
from .model import Model
from .ops import macs


@dataclass(frozen=True)
class NodeCost:
    """Multiply-accumulates of one node."""

    name: str
    op_type: str
    macs: int


@dataclass(frozen=True)
class Cost:
    """Totals of a model. Axes of unknown size count as 1 (as batches do)."""

    nodes: int
    parameters: int
    macs: int
    weight_bytes: int
    per_node: list[NodeCost] = field(default_factory=list)


def node_macs(node: Node) -> int:
    """Multiply-accumulates of a node at its inferred shapes; 0 where none are counted."""
    rule = macs().get((_domain(node), node.op_type))
    try:
        return 0 if rule is None else rule(node, known_shape)
    except IndexError:  # inputs of a rank that the operator doesn't take
        return 0


def _domain(node: Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def known_shape(value: Value | None) -> tuple[int, ...]:
    """A value's shape with 1 in the place of unknown sizes."""
    shape = None if value is None else value.shape
    if shape is None:
        return (1, 1, 1, 1)
    return tuple(s if isinstance(s, int) else 1 for s in shape)


def count(model: Model) -> Cost:
    """Count a model whose shapes have been inferred (`infer_shapes`).

    Nodes include those of subgraphs and functions; parameters are the elements of
    initializers and of Constant nodes, each counted once.
    """
    nodes = list(model.all_nodes())
    per_node = []
    for node in nodes:
        cost = node_macs(node)
        if cost:
            per_node.append(NodeCost(node.label, node.op_type, cost))
    constants = [v.const for g in model.all_graphs() for v in g.initializers.values()]
    constants += [model.constant(n.outputs[0]) for n in nodes if n.op_type == "Constant"]
    return Cost(
        nodes=len(nodes),
        parameters=sum(t.size for t in constants if t is not None),
        macs=sum(n.macs for n in per_node),
        weight_bytes=sum(t.nbytes for t in constants if t is not None),
        per_node=per_node,
    )
