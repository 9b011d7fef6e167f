"""Dead nodes, unused initializers and uncalled functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ...ir.graph import Graph, Node, node_reads
from ...ir.model import Model
from ..base import Context, Pass, PassResult


@dataclasses.dataclass(frozen=True)
class RemoveDeadNodes(Pass):
    """Remove nodes whose results nothing reads, unused initializers and uncalled functions.

    Graph inputs stay, used or not, since callers feed them by name.
    """

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        statistics = {
            "nodes": remove_dead_nodes(model),
            "initializers": remove_unused_initializers(model),
            "functions": _remove_uncalled_functions(model),
        }
        return PassResult(any(statistics.values()), statistics)


def remove_dead_nodes(model: Model) -> int:
    """Remove every node whose outputs are all unread, transitively; how many."""
    pending = [node for node in model.all_nodes() if _is_dead(node)]
    dead: dict[Graph, list[Node]] = {}
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in seen or node.graph is None:
            continue
        seen.add(node)
        dead.setdefault(node.graph, []).append(node)
        producers = [v.producer for v in node_reads(node) if v.producer is not None]
        inner = [n for graph in node.subgraphs() for n in graph.all_nodes()]
        node.detach_inputs()
        seen.update(inner)
        pending.extend(p for p in producers if p not in seen and _is_dead(p))
    for graph, nodes in dead.items():
        graph.remove_nodes(nodes)
    return sum(len(nodes) for nodes in dead.values())


def remove_unused_initializers(model: Model) -> int:
    """Remove initializers that nothing reads and callers can't override; how many."""
    count = 0
    for graph in model.all_graphs():
        unused = [n for n, v in graph.initializers.items() if not v.uses and not v.is_input]
        for name in unused:
            del graph.initializers[name]
        count += len(unused)
    return count


def _is_dead(node: Node) -> bool:
    return not any(v is not None and v.uses for v in node.outputs)


def _remove_uncalled_functions(model: Model) -> int:
    reached: set[tuple[str, str, str]] = set()
    pending = list(_calls(model.graph, model))
    while pending:
        key = pending.pop()
        if key not in reached:
            reached.add(key)
            pending.extend(_calls(model.functions[key].graph, model))
    uncalled = [key for key in model.functions if key not in reached]
    for key in uncalled:
        del model.functions[key]
    return len(uncalled)


def _calls(graph: Graph, model: Model) -> Iterator[tuple[str, str, str]]:
    for node in graph.all_nodes():
        key = (node.domain, node.op_type, node.overload)
        if key in model.functions:
            yield key
