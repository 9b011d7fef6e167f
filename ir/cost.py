"""What a model costs: nodes, parameters, multiply-accumulates and bytes of weights."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from .errors import MISFITS
from .graph import Graph, Node, Value
from .model import Model
from .ops import operator_of


@dataclass(frozen=True)
class NodeCost:
    """Multiply-accumulates of one node."""

    name: str
    op_type: str
    macs: int


@dataclass(frozen=True)
class Cost:
    """Totals of a model. Symbols in shapes count as 1 (as batches do): `16*batch` as 16.

    `uncounted` are nodes whose multiply-accumulates are left out, since the shape of what
    they read or define isn't known.
    """

    nodes: int
    parameters: int
    macs: int
    weight_bytes: int
    per_node: list[NodeCost] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)


ShapeOf = Callable[["Value | None"], "tuple[int, ...] | None"]
"""Gives a value's shape with a number for every symbol; None where its rank isn't known."""


def node_macs(node: Node, shape_of: ShapeOf) -> int | None:
    """Multiply-accumulates of a node; 0 for operators without any, None where a shape that
    they depend on isn't known."""
    record = operator_of(node)
    rule = None if record is None else record.macs
    if rule is None:
        return 0
    unknown = False

    def shape(value: Value | None) -> tuple[int, ...]:
        nonlocal unknown
        found = shape_of(value)
        unknown |= found is None and value is not None
        return UNKNOWN_SHAPE if found is None else found

    try:
        count = rule(node, shape)
    except MISFITS:  # such as inputs of a rank that the operator doesn't take
        return 0
    return None if unknown else count


UNKNOWN_SHAPE = (1, 1, 1, 1)
"""Stands for the shape of a value of unknown rank."""


def known_shape(value: Value | None) -> tuple[int, ...] | None:
    """A value's shape with 1 in the place of every symbol; None where the rank is unknown."""
    shape = None if value is None else value.shape
    if shape is None:
        return None
    return tuple(s if isinstance(s, int) else _size_at_one(s) for s in shape)


_LONGEST = 200
"""Characters of an expression beyond which it counts as a plain symbol."""

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


@functools.lru_cache(maxsize=4096)
def _size_at_one(size: str | None) -> int:
    """A symbolic size where all symbols are 1; 1 for what isn't an expression of symbols."""
    return 1 if size is None else size_at(size, {})


def size_at(size: str, symbols: Mapping[str, int]) -> int:
    """A symbolic size, at least 1, where symbols have these sizes, by default 1; 1 for what
    isn't an expression of symbols."""
    expression = _parsed(size)
    try:
        return 1 if expression is None else max(1, _evaluate(expression, symbols))
    except (ValueError, ZeroDivisionError):
        return 1


def symbols_of(size: str) -> set[str]:
    """The symbols of a size that is an expression of several or of numbers, as in `2*n`."""
    expression = _parsed(size)
    if expression is None or isinstance(expression, ast.Name):
        return set()
    calls = {id(t.func) for t in ast.walk(expression) if isinstance(t, ast.Call)}
    terms = ast.walk(expression)
    return {t.id for t in terms if isinstance(t, ast.Name) and id(t) not in calls}


def _parsed(size: str) -> ast.expr | None:
    if len(size) > _LONGEST:
        return None
    try:
        return ast.parse(size, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _evaluate(term: ast.expr, symbols: Mapping[str, int]) -> int:
    if isinstance(term, ast.Name):
        return symbols.get(term.id, 1)
    if isinstance(term, ast.Constant) and isinstance(term.value, int):
        return term.value
    if isinstance(term, ast.BinOp) and type(term.op) in _OPERATORS:
        left, right = _evaluate(term.left, symbols), _evaluate(term.right, symbols)
        return _OPERATORS[type(term.op)](left, right)
    if isinstance(term, ast.Call) and isinstance(term.func, ast.Name):
        function = {"min": min, "max": max}.get(term.func.id)
        if function is not None and term.args:
            return function(_evaluate(a, symbols) for a in term.args)
    raise ValueError("not an expression of sizes")


def count(model: Model, shape_of: ShapeOf = known_shape) -> Cost:
    """Count a model whose shapes have been inferred (`infer_shapes`).

    Nodes include those of subgraphs and functions; parameters are the elements of
    initializers and of Constant nodes, each counted once. What a Scan's body computes counts for
    every step, of a Loop, whose steps a run tells, for one.
    """
    nodes, per_node, uncounted = [], [], []
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        for node, times in _repeated(root, model.opset, shape_of):
            nodes.append(node)
            cost = node_macs(node, shape_of)
            if cost is None:
                uncounted.append(f"{node.label} ({node.op_type})")
            elif cost:
                per_node.append(NodeCost(node.label, node.op_type, times * cost))
    constants = [v.const for g in model.all_graphs() for v in g.initializers.values()]
    constants += [model.constant(n.outputs[0]) for n in nodes if n.op_type == "Constant"]
    return Cost(
        nodes=len(nodes),
        parameters=sum(t.size for t in constants if t is not None),
        macs=sum(n.macs for n in per_node),
        weight_bytes=sum(t.nbytes for t in constants if t is not None),
        per_node=per_node,
        uncounted=uncounted,
    )


def _repeated(
    graph: Graph, opset: int, shape_of: ShapeOf, times: int = 1
) -> Iterator[tuple[Node, int]]:
    """Nodes of a graph and its bodies, and how often a run computes them."""
    for node in graph.nodes:
        yield node, times
        for body in node.subgraphs():
            steps = _steps(node, opset, shape_of)
            yield from _repeated(body, opset, shape_of, times * steps)


_PLAIN_SCAN = 9
"""The first operator set in which Scan has no axis of its own for a batch."""


def _steps(node: Node, opset: int, shape_of: ShapeOf) -> int:
    """Of a Scan the size of its sequences; else 1."""
    count = node.get("num_scan_inputs", 0)
    if node.op_type != "Scan" or opset < _PLAIN_SCAN or not 0 < count <= len(node.inputs):
        return 1
    shape = shape_of(node.inputs[-count])
    axes = node.get("scan_input_axes") or [0]
    return 1 if shape is None or not -len(shape) <= axes[0] < len(shape) else shape[axes[0]]
