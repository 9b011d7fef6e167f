"""LSTM, GRU, RNN: weights [directions, gates * hidden, ...], one hidden axis for all gates."""

from __future__ import annotations

import math

from ..axes import dims
from ..axes.node_axes import NodeAxes, Opaque
from ..graph import Node
from .records import ShapeOf, Trait, macs, rule

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

DEFAULT_ACTIVATIONS = {
    "RNN": ["Tanh"],
    "GRU": ["Sigmoid", "Tanh"],
    "LSTM": ["Sigmoid", "Tanh", "Tanh"],
}
"""Functions of one direction where a node names none."""


@rule("GRU", "LSTM", "RNN", traits=Trait.WEIGHTED | Trait.STATEFUL | Trait.INDEXES)
def recurrent(r: NodeAxes) -> None:
    """X [S, N, I] (layout 0) or [N, S, I] (layout 1); both directions share the hidden axis."""
    gates = GATES[r.node.op_type]
    x, weight, recurrence = r.axes(0), r.axes(1), r.axes(2)
    if len(x) != 3 or len(weight) != 3 or len(recurrence) != 3:
        raise Opaque("inputs have to be of rank 3")
    directions = r.factor(dims.axis_size(weight[0]), "directions")
    size = dims.axis_size(recurrence[2])
    hidden = r.fresh(size, "hidden")
    gate = r.factor(gates, "gates")
    for axis in (weight[0], recurrence[0]):
        r.unify(axis, directions)
    r.unify(weight[1], dims.product([gate, hidden]))
    r.unify(recurrence[1], dims.product([gate, hidden]))
    r.unify(recurrence[2], hidden)
    r.unify(x[2], weight[2])
    r.contract(x[2], 0)
    if r.has(3):
        bias = r.axes(3)
        r.unify(bias[0], directions)
        both = r.factor(2, "input and recurrence biases")
        r.unify(bias[1], dims.product([both, gate, hidden]))
    batch_first = bool(r.get("layout", 0))
    batch, steps = (x[0], x[1]) if batch_first else (x[1], x[0])
    if r.has(4):
        r.unify(r.axes(4)[0], batch)
    r.lock(steps, "the recurrence runs along this axis")
    state = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
    for index in (5, 6):  # initial_h, initial_c
        if r.has(index):
            r.unify_all(r.axes(index), state)
    if r.has(7):  # peepholes: input, output, forget
        r.unify(r.axes(7)[0], directions)
        r.unify(r.axes(7)[1], dims.product([r.factor(3, "peepholes"), hidden]))
    if batch_first:
        r.set((batch, steps, directions, hidden))
    else:
        r.set((steps, directions, batch, hidden))
    for output in (1, 2):
        r.set(state, output)
    if "hidden_size" in r.node.attributes:
        r.rewrite(lambda rewriter: r.node.set("hidden_size", rewriter.size(hidden)))


@macs("GRU", "LSTM", "RNN")
def recurrent_macs(node: Node, shape: ShapeOf) -> int:
    """Every step multiplies by the input and by the recurrence weights."""
    x = shape(node.input(0))
    weights = math.prod(shape(node.input(1))) + math.prod(shape(node.input(2)))
    return x[0] * x[1] * weights
