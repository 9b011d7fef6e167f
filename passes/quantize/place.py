"""Placement: which nodes become integer, and which values are quantized for that.

Convolutions and matrix products become integer wherever they can. Around them, cheap
operators become integer if an integer operator feeds them and another reads their
result; so the rim of the model, up to its inputs and outputs, stays float and loses
nothing. A Relu or Clip behind an integer operator is absorbed: quantizing its result
saturates where it would have clipped. Every decision is one linear sweep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Mapping

from ...ir.graph import Graph, Node, Value
from ...ir.model import Model
from ...ir.tensor import FLOAT_TYPES
from ..base import Note
from .bodies import graph_of, graphs
from .rules import Constants, Operands, Role, plan

UNREAD = "no integer operator reads its result"
UNFED = "no integer operator computes its input"


@dataclasses.dataclass
class Placement:
    """The outcome for the main graph and bodies of If, Loop and Scan.

    `nodes` become integer. `absorbed` maps values to the Relu or Clip behind them that
    disappears. `values` are quantized, in graph order, and `sources` says whose range
    each takes. `captured` are those that a body reads from outside, which it quantizes for
    itself. `reasons` tells, for nodes with a rule, why they stay float.
    """

    nodes: dict[Node, Operands]
    absorbed: dict[Value, Node]
    values: list[Value]
    sources: dict[Value, Value]
    reasons: dict[Node, str]
    captured: list[tuple[Graph, Value]] = dataclasses.field(default_factory=list)


def place(
    model: Model, constants: Constants, refused: Mapping[Node, str], standalone: Container[Node]
) -> Placement:
    """Decide for the main graph and the bodies within.

    `refused` nodes stay float, for the reasons given. `standalone` clips are not
    absorbed, since the integers behind them can tell what lies beyond the bounds.
    """
    found = Placement({}, {}, [], {}, {})
    for graph in graphs(model):
        _place(graph, constants, refused, standalone, found)
    return found


def _place(
    graph: Graph,
    constants: Constants,
    refused: Mapping[Node, str],
    standalone: Container[Node],
    found: Placement,
) -> None:
    """Decide for one graph; `found` has the decisions for those around it, and gets its own."""
    candidates: dict[Node, Operands] = {}
    reasons = found.reasons
    for node in graph.nodes:
        answer = refused.get(node) or plan(node, constants)
        if isinstance(answer, str):
            reasons[node] = answer
        elif node in standalone:
            candidates[node] = dataclasses.replace(answer, role=Role.ELEMENTWISE)
        else:
            candidates[node] = answer
    fed = _feed_forward(graph, candidates, _wanted(graph, candidates), reasons)
    nodes, read = _prune_unread(graph, fed, reasons)
    absorbed, ranges = _absorbed(nodes)
    for node in absorbed.values():
        del nodes[node]
    values = _quantized(graph, nodes, absorbed, read)
    captured = [value for value in read if graph_of(value) is not graph]
    found.nodes.update(nodes)
    found.absorbed.update(absorbed)
    found.values += values
    for value in sorted(captured, key=lambda value: value.name):
        found.captured.append((graph, value))
        found.sources.setdefault(value, value)
    _add_sources(nodes, values, ranges, found.sources)


def _wanted(graph: Graph, candidates: Mapping[Node, Operands]) -> set[Value]:
    """Values that some convolution or product will read as integers, however computed."""
    wanted: set[Value] = set()
    for node in reversed(graph.nodes):
        operands = candidates.get(node)
        if operands is None:
            continue
        moves_wanted = operands.shares_parameters and any(v in wanted for v in node.outputs)
        if operands.role.is_compute or moves_wanted:
            wanted.update(_activations(node, operands))
    return wanted


def _feed_forward(
    graph: Graph,
    candidates: Mapping[Node, Operands],
    wanted: set[Value],
    reasons: dict[Node, str],
) -> dict[Node, Operands]:
    """Candidates that get at least one operand as integers."""
    available: set[Value] = set(wanted)
    fed: dict[Node, Operands] = {}
    for node in graph.nodes:
        operands = candidates.get(node)
        if operands is None:
            continue
        inputs = _activations(node, operands)
        if operands.role.is_compute or not inputs or any(v in available for v in inputs):
            fed[node] = operands
            available.update(v for v in node.outputs if v is not None)
        else:
            reasons[node] = UNFED
    return fed


def _prune_unread(
    graph: Graph, fed: Mapping[Node, Operands], reasons: dict[Node, str]
) -> tuple[dict[Node, Operands], set[Value]]:
    """Drop cheap nodes that no integer operator reads; the rest, and what they read."""
    read: set[Value] = set()
    kept: list[tuple[Node, Operands]] = []
    for node in reversed(graph.nodes):
        operands = fed.get(node)
        if operands is None:
            continue
        needed = operands.role.is_compute or operands.role is Role.POOLING
        needed |= operands.role is Role.CLIPPING and _clips_integers(node, fed)
        needed |= operands.shares_parameters and _is_captured(node)
        if not (needed or any(v in read for v in node.outputs)):
            reasons[node] = UNREAD
            continue
        kept.append((node, operands))
        read.update(_activations(node, operands))
    return dict(reversed(kept)), read


def _clips_integers(node: Node, fed: Mapping[Node, Operands]) -> bool:
    """Whether the clipped value is one that must be quantized in any case, and only clipped."""
    producer = _sole_producer(node)
    operands = fed.get(producer) if producer is not None else None
    return operands is not None and (
        operands.role is Role.CONVOLUTION
        or (operands.role is Role.POOLING and not operands.shares_parameters)
    )


def _is_captured(node: Node) -> bool:
    """Whether a subgraph reads a result.

    ONNX Runtime moves a DequantizeLinear past nodes that move elements, and aborts the
    process where a subgraph captures what they return, unless that is quantized itself.
    """
    results = [v for v in node.outputs if v is not None]
    return any(user.graph is not node.graph for v in results for user in v.users)


def _sole_producer(node: Node) -> Node | None:
    """The producer of `node`'s first input, if nothing else reads that."""
    value = node.input(0)
    if value is None or len(value.uses) > 1:
        return None
    return value.producer


def _absorbed(nodes: Mapping[Node, Operands]) -> tuple[dict[Value, Node], dict[Value, Value]]:
    """Relu and Clip nodes that follow the one integer operator that feeds them.

    Between the two, elements may be moved: clipping before and after is the same. Also
    returns, where they are, which result of a clip gives a moved value its range.
    """
    absorbed: dict[Value, Node] = {}
    ranges: dict[Value, Value] = {}
    for node, operands in nodes.items():
        if operands.role is not Role.CLIPPING:
            continue
        first = node
        producer = _sole_producer(node)
        while producer is not None and producer in nodes and nodes[producer].shares_parameters:
            first = producer
            producer = _sole_producer(producer) if _passes_on(producer) else None
        if producer is None or producer not in nodes:
            continue
        if nodes[producer].role in (Role.CLIPPING, Role.RECURRENT):
            continue
        value, source, result = node.input(0), first.input(0), node.outputs[0]
        assert value is not None
        assert source is not None
        assert result is not None
        absorbed[value] = node
        if first is not node:
            ranges[source] = result
    return absorbed, ranges


def _passes_on(node: Node) -> bool:
    """Whether a node moves all elements of its input to a single result."""
    return len(node.outputs) == 1


def _quantized(
    graph: Graph,
    nodes: Mapping[Node, Operands],
    absorbed: Mapping[Value, Node],
    read: set[Value],
) -> list[Value]:
    """The values that get a QDQ pair, in graph order."""

    def behind_clip(value: Value) -> Value:
        node = absorbed.get(value)
        result = node.outputs[0] if node is not None else value
        assert result is not None
        return result

    clips = set(absorbed.values())
    values = [v for v in graph.inputs if v in read]
    for node in graph.nodes:
        if node in clips:
            continue
        operands = nodes.get(node)
        for output in node.outputs:
            if output is None:
                continue
            value = behind_clip(output)
            must = operands is not None and not operands.role.may_leave_floats
            if must or value in read or (operands is not None and _would_become_gemm(node)):
                values.append(value)
    return values


def _would_become_gemm(node: Node) -> bool:
    """Whether ONNX Runtime, before it sees integers, would merge a MatMul into a float Gemm.

    It does so with an addition that directly follows; a QDQ pair in between prevents that.
    """
    result = node.outputs[0]
    return (
        node.op_type == "MatMul"
        and result is not None
        and any(user.op_type == "Add" for user in result.users)
    )


def _add_sources(
    nodes: Mapping[Node, Operands],
    values: Iterable[Value],
    ranges: Mapping[Value, Value],
    sources: dict[Value, Value],
) -> None:
    """Whose parameters each value takes: its own, those of what it was moved from, or those
    of what it is clipped to further on."""
    for value in values:
        producer = value.producer
        operands = nodes.get(producer) if producer is not None else None
        if producer is not None and operands is not None and operands.shares_parameters:
            moved = producer.input(0)
            assert moved is not None
            sources[value] = sources.get(moved, moved)
        else:
            sources[value] = ranges.get(value, value)


def computes(node: Node) -> bool:
    """Whether a node does floating-point work that a user may expect to be quantized."""
    results = [v for v in node.outputs if v is not None]
    return node.op_type != "Constant" and any(
        v.dtype in FLOAT_TYPES or (v.type is None and v.const is None) for v in results
    )


def _activations(node: Node, operands: Operands) -> list[Value]:
    values = [node.input(position) for position in operands.activations]
    return [v for v in values if v is not None]


def notes(model: Model, placement: Placement) -> list[Note]:
    """Why each node that computes with floats stays that way."""
    return notes_of(model, placement.reasons, graphs(model))


def notes_of(model: Model, reasons: Mapping[Node, str], inside: Iterable[Graph]) -> list[Note]:
    """Of the nodes that have a reason, and compute with floats; those that lie in none of the
    graphs `inside` have one."""
    inside = set(inside)
    found = []
    for graph in model.graph.all_graphs():
        for node in graph.nodes:
            reason = reasons.get(node)
            if graph not in inside and graph.parent is not None:
                reason = f"lies in a subgraph of '{graph.parent.label}' ({graph.parent.op_type})"
            if reason is not None and computes(node):
                found.append(Note.at(node, reason))
    return found
