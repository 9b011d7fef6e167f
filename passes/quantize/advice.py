"""What usually goes wrong in quantized models, looked for in one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...ir.cost import known_shape, node_macs
from ...ir.graph import Node, Value
from .decision import Decision
from .errors import OperatorError

OUTLYING = 64.0
"""Ratio of the largest magnitude to the root mean square, above which few values take the
integers from all others."""

MANY = 0.05
"""Share of the channels that may be near dead without a word."""

LOST = 15.0
"""SQNR in dB of an operator alone, below which it is worth a word."""

UNEQUAL = 16.0
"""Ratio of the reaches of a Concat's operands, above which one is left with few of the integers."""

WORTHWHILE = 16.0
"""Multiply-accumulates for each element that is converted, below which integers save nothing."""

NAMED = 4
"""Operators named in a warning."""


def advice(decision: Decision, errors: Sequence[OperatorError]) -> list[str]:
    """Sentences, without their final stop, about what is likely to cost accuracy or time."""
    found = []
    quiet = [e for e in errors if e.quiet > MANY * e.channels]
    if quiet:
        names = [f"'{e.node}' ({e.quiet} of {e.channels})" for e in quiet]
        found.append(
            f"channels are near dead: on the samples they stay below one step of their tensor, "
            f"so that nothing is left of them: {_some(names)}; equalization helps where layers "
            "of a kind follow (--accuracy good or best), else --ignore"
        )
    outlying = [
        e for e in errors if e.peak > OUTLYING and e.sqnr_db is not None and e.sqnr_db < LOST
    ]
    if outlying:
        names = [f"'{e.node}' ({e.peak:.0f} times)" for e in outlying]
        found.append(
            f"few large values take the integers from all others, the largest as a multiple of "
            f"the root mean square: {_some(names)}; --calibrator percentile cuts them off, "
            "--ignore keeps the operator float"
        )
    found += _unequal_operands(decision)
    found += _dear_conversions(decision)
    return [*_unfolded(decision), *found]


def _unfolded(decision: Decision) -> list[str]:
    """Normalizations behind integer layers, which would take them in."""
    placement = decision.placement
    names = [
        f"'{node.label}'"
        for node in placement.reasons
        if node.op_type == "BatchNormalization"
        and (source := node.input(0)) is not None
        and source.producer in placement.nodes
        and len(source.uses) == 1
    ]
    if not names:
        return []
    return [
        f"BatchNormalization stays float behind integer layers, which costs accuracy and time: "
        f"{_some(names)}; simplify the model first (secateur simplify, or optimize in the place of "
        "quantize), which folds it into them"
    ]


def _unequal_operands(decision: Decision) -> list[str]:
    """Of Concats that join, as boxes and scores, what has ranges of its own."""
    names = []
    for node in decision.placement.nodes:
        if node.op_type != "Concat":
            continue
        reaches = []
        for value in node.inputs:
            source = decision.placement.sources.get(value) if value is not None else None
            params = decision.params.get(source) if source is not None else None
            if params is not None:
                reaches.append(params.scale)
        if reaches and max(reaches) > UNEQUAL * min(reaches):
            names.append(f"'{node.label}' ({max(reaches) / min(reaches):.0f} times)")
    if not names:
        return []
    return [
        f"operands of very different range share one step behind a Concat: {_some(names)}; "
        "--ignore keeps it float"
    ]


def _dear_conversions(decision: Decision) -> list[str]:
    """Of operators among float ones that compute little for what is converted around them."""
    names = []
    for island in _islands(decision):
        macs = sum(node_macs(node, known_shape) or 0 for node in island)
        converted = sum(_size(value) for value in _crossing(decision, island))
        if converted and macs < WORTHWHILE * converted:
            label = next((n.label for n in island if node_macs(n, known_shape)), island[0].label)
            names.append(f"'{label}' ({macs / converted:.1f} for each of {converted:,})")
    if not names:
        return []
    return [
        f"operators among float ones compute little for what is converted to integers and back, "
        f"multiply-accumulates by elements: {_some(names)}; --ignore may make the model faster"
    ]


def _islands(decision: Decision) -> list[list[Node]]:
    """Integer nodes that pass rounded values on to each other."""
    placement = decision.placement
    clips = {clip: value for value, clip in placement.absorbed.items()}
    parents = {node: node for node in placement.nodes}

    def root(node: Node) -> Node:
        while parents[node] is not node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for node, operands in placement.nodes.items():
        for position in operands.activations:
            value = node.input(position)
            producer = value.producer if value is not None else None
            while producer in clips:
                producer = clips[producer].producer
            if producer in parents:
                parents[root(node)] = root(producer)
    found: dict[Node, list[Node]] = {}
    for node in placement.nodes:
        found.setdefault(root(node), []).append(node)
    return list(found.values())


def _crossing(decision: Decision, island: Sequence[Node]) -> list[Value]:
    """Values that become integers in front of these nodes, and floats behind them."""
    placement, inside = decision.placement, set(island)
    own = {value for node in inside for value in node.outputs if value is not None}
    own |= {
        result
        for value, clip in placement.absorbed.items()
        if value in own
        for result in clip.outputs
        if result is not None
    }
    found = dict.fromkeys(
        value
        for node in island
        for position in placement.nodes[node].activations
        if (value := node.input(position)) is not None and value not in own
    )
    integer = {*placement.nodes, *placement.absorbed.values()}
    for value in placement.values:
        if value in own and (value.is_graph_output or any(u not in integer for u in value.users)):
            found[value] = None
    return list(found)


def _size(value: Value) -> int:
    return math.prod(known_shape(value) or ())


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
