"""If with a constant condition, replaced by the branch that is always taken."""

from __future__ import annotations

from collections import Counter

from ...ir.graph import Graph, Node, Use, Value, normalize_domain
from ...ir.model import Model


def inline_constant_conditions(model: Model) -> int:
    """Put the taken branch of every such If in its place, innermost last; how many."""
    taken = (n for n in model.graph.all_nodes() if _taken_branch(n, model) is not None)
    chosen = list(dict.fromkeys(node.graph for node in taken))
    if not chosen:
        return 0
    names = Counter(v.name for graph in model.all_graphs() for v in graph.values())
    return sum(_inline_in(graph, model, names) for graph in chosen if graph is not None)


def _inline_in(graph: Graph, model: Model, names: Counter[str]) -> int:
    count = 0
    order: list[Node] = []
    for node in graph.nodes:
        branch = _taken_branch(node, model)
        if branch is None:
            order.append(node)
            continue
        order += _move_out(node, branch, graph, model, names)
        count += 1
    graph.nodes = order
    return count


def _taken_branch(node: Node, model: Model) -> Graph | None:
    if node.op_type != "If" or normalize_domain(node.domain) != "" or node.graph is None:
        return None
    condition = model.constant(node.input(0))
    if condition is None or condition.size != 1:
        return None
    taken = "then_branch" if condition.numpy().reshape(-1)[0] else "else_branch"
    branch = node.get(taken)
    return branch if isinstance(branch, Graph) else None


def _move_out(
    node: Node, branch: Graph, graph: Graph, model: Model, names: Counter[str]
) -> list[Node]:
    """The branch's nodes, now of `graph`; readers of the If read what they define."""
    for value in branch.values():
        if names[value.name] > 1:
            names[value.name] -= 1
            value.name = model.fresh_name(value.name)
            names[value.name] += 1
    for value in branch.initializers.values():
        graph.initializers[value.name] = value
    moved = list(branch.nodes)
    for inner in moved:
        inner.graph = graph
    results = branch.outputs
    for index, value in enumerate(results):
        value.uses.pop(Use(branch, index), None)
    for old, new in zip(node.outputs, results, strict=True):
        if old is not None:
            moved += _hand_on(old, new, graph)
    branch.nodes = []
    node.detach_inputs()
    node.graph = None
    return moved


def _hand_on(old: Value, new: Value, graph: Graph) -> list[Node]:
    """Let readers of `old` read `new`, by way of an Identity where a name must be kept."""
    free = new.producer is not None and new.producer.graph is graph and not new.is_graph_output
    if not old.is_graph_output or free:
        new.type = old.type if old.is_graph_output and old.type is not None else new.type
        old.replace_uses(new)
        return []
    identity = Node("Identity", [new], [old])
    identity.graph = graph
    return [identity]
