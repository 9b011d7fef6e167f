"""Check that model-local functions never call themselves and expand to a bounded number of nodes.

A few functions that each call the next one twice stand for more nodes than any memory
holds, and inference, inlining and runtimes expand every call.
"""

from __future__ import annotations

from collections.abc import Iterable

from .errors import ModelError
from .graph import Node
from .model import Function, Model

EXPANDED_LIMIT = 10**7
"""Nodes that a model may have once every call is replaced by what it calls."""

_Key = tuple[str, str, str]


def check_calls(model: Model) -> None:
    """Raise ModelError where a function calls itself, directly or through others, or where
    all calls together stand for more than `EXPANDED_LIMIT` nodes."""
    if not model.functions:
        return
    sizes: dict[_Key, int] = {}
    for key in model.functions:
        _measure(model.functions, key, sizes)
    _sum(model.graph.all_nodes(), sizes)


def _measure(functions: dict[_Key, Function], root: _Key, sizes: dict[_Key, int]) -> None:
    """Find the expanded sizes of a function and those it calls, without recursion."""
    open_calls: set[_Key] = set()
    stack = [root]
    while stack:
        key = stack[-1]
        if key in sizes:
            stack.pop()
            continue
        nodes = list(functions[key].graph.all_nodes())
        missing = [k for k in map(_key, nodes) if k in functions and k not in sizes]
        if not missing:
            sizes[key] = _sum(nodes, sizes)
            open_calls.discard(key)
            stack.pop()
            continue
        open_calls.add(key)
        for called in dict.fromkeys(missing):
            if called in open_calls:
                raise ModelError(f"function '{called[1]}' calls itself, which ONNX forbids")
            stack.append(called)


def _sum(nodes: Iterable[Node], sizes: dict[_Key, int]) -> int:
    total = 0
    for node in nodes:
        total += sizes.get(_key(node), 1)
        if total > EXPANDED_LIMIT:
            raise ModelError(
                f"calls of functions stand for more than {EXPANDED_LIMIT:,} nodes, "
                "which nothing can hold"
            )
    return total


def _key(node: Node) -> _Key:
    return (node.domain, node.op_type, node.overload)
