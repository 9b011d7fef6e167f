"""Nodes at which ONNX's inference ends the process, kept away from it.

Some of its rules read the type of an operand that has none through a null pointer, others
index by an attribute unchecked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import GraphProto, ModelProto, NodeProto, helper

from .graph import normalize_domain
from .stand_ins import all_nodes

_NEEDS_TYPE = frozenset(
    {
        ("", "EyeLike"),
        ("", "RegexFullMatch"),
        ("ai.onnx.ml", "DictVectorizer"),
        ("ai.onnx.ml", "LabelEncoder"),
        ("ai.onnx.ml", "TreeEnsemble"),
    }
)
"""Operators whose rules read the type of the first operand without a look whether it has one."""

_HIDDEN = "secateur.hidden/"
"""What the domain of a node begins with that inference must not know."""

_AXES = 2**31
"""Axes are numbers of 32 bits in the rules."""


def check_node(node: NodeProto) -> None:
    """Raise ValueError for a node whose attributes inference doesn't survive."""
    numbers = {a.name: a.i for a in node.attribute if a.name in ("axis", "num_outputs")}
    axis = numbers.get("axis", 0)
    if not -_AXES <= axis < _AXES:
        raise ValueError(f"{_where(node)}: axis {axis} is out of range")
    parts = numbers.get("num_outputs", len(node.output))
    if node.op_type == "Split" and parts < len(node.output):
        raise ValueError(f"{_where(node)}: num_outputs is {parts}, there are {len(node.output)}")


def lacks_operand(node: NodeProto) -> bool:
    """Whether a node without its first operand is one that inference doesn't survive."""
    return _is_fragile(node) and not (node.input and node.input[0])


def _where(node: NodeProto) -> str:
    label = node.name or next(filter(None, node.output), "")
    return f"node '{label}' ({node.op_type})"


def hide(proto: ModelProto) -> bool:
    """Hide nodes from inference that it wouldn't survive, in place; whether there are any.

    Those of functions have no types before a call, and stay hidden.
    """
    hidden = [node for function in proto.functions for node in function.node if _is_fragile(node)]
    hidden += (node for node, is_typed in _of_graph(proto.graph, set()) if not is_typed)
    for node in hidden:
        node.domain = _HIDDEN + normalize_domain(node.domain)
    domains = sorted({node.domain for node in hidden})
    for target in (proto, *proto.functions) if domains else ():
        target.opset_import.extend(helper.make_opsetid(domain, 1) for domain in domains)
    return bool(hidden)


def show_typed(proto: ModelProto) -> bool:
    """Show hidden nodes whose operand has a type by now; whether there are any."""
    found = [n for n, is_typed in _of_graph(proto.graph, set()) if is_typed and _is_hidden(n)]
    _show(found)
    return bool(found)


def show_all(proto: ModelProto) -> None:
    """Undo `hide`."""
    _show([*all_nodes(proto.graph), *(n for f in proto.functions for n in f.node)])
    for target in (proto, *proto.functions):
        kept = [entry for entry in target.opset_import if not entry.domain.startswith(_HIDDEN)]
        del target.opset_import[:]
        target.opset_import.extend(kept)


def _show(nodes: Iterable[NodeProto]) -> None:
    for node in filter(_is_hidden, nodes):
        node.domain = node.domain.removeprefix(_HIDDEN)


def _is_hidden(node: NodeProto) -> bool:
    return node.domain.startswith(_HIDDEN)


def _is_fragile(node: NodeProto) -> bool:
    domain = normalize_domain(node.domain.removeprefix(_HIDDEN))
    return (domain, node.op_type) in _NEEDS_TYPE


def _of_graph(graph: GraphProto, outer: set[str]) -> Iterator[tuple[NodeProto, bool]]:
    """The nodes that need a type, and whether they have one, in a graph and those nested in it."""
    infos = (*graph.input, *graph.value_info, *graph.output)
    typed = outer | {info.name for info in infos if info.HasField("type")}
    typed |= {tensor.name for tensor in graph.initializer}
    typed |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        if _is_fragile(node):
            yield node, not lacks_operand(node) and node.input[0] in typed
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _of_graph(body, typed)
