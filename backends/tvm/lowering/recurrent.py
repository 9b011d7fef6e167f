"""Rules of LSTM, GRU and RNN: one product for all inputs, then the recurrence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....ir.graph import Node, Value
from ....ir.ops.recurrent import DEFAULT_ACTIVATIONS
from ....ir.tensor import Array
from ..plan.operations import MatMulOp, RecurrentOp
from ..plan.programs import Program
from ..plan.recurrent import ACTIVATIONS, Recurrent
from ..plan.tensors import PlanTensor
from .context import Lowering, Stored


def recurrent(lowering: Lowering, node: Node) -> bool:
    """Constant float32 weights, the usual activations, sequences of one length."""
    x = node.input(0)
    constants = [lowering.constant(node.input(i)) for i in (1, 2)]
    weights = [w for w in constants if w is not None and w.dtype == np.float32]
    bias = lowering.constant(node.input(3))
    if x is None or len(weights) < 2:
        return False
    if (bias is None) != (node.input(3) is None) or _is_unusual(node):
        return False
    layer = _layer(lowering, node, x, weights[1])
    if layer is None or not lowering.is_float(x):
        return False
    gates, hidden, directions = layer.gates, layer.hidden, len(layer.reverse)
    if bias is None:
        bias = np.zeros((directions, 2 * gates * hidden), np.float32)
    own, recurrent_bias = (
        part.reshape(directions, gates, hidden).copy() for part in np.split(bias, 2, axis=1)
    )
    late = None
    if layer.reset_after:
        late, recurrent_bias[:, 2] = recurrent_bias[:, 2].copy(), 0
    total = (own + recurrent_bias).reshape(directions, gates * hidden)
    projections = []
    source = lowering.stored(x)
    target = lowering.target
    for d in range(directions):
        matrix = layer.arrange(target, np.ascontiguousarray(weights[0][d].T))
        name = f"{node.label}/projection{d}"
        shape = (layer.steps, layer.batch, layer.columns(target))
        projections.append(PlanTensor(name, "float32", shape))
        offsets = layer.arrange(target, total[d])
        program = Program(("float32",))
        lowering.add(MatMulOp(node.label, [projections[-1]], [], program, source, matrix, offsets))
    initial = [node.input(i) for i in (5, 6)]
    states = [lowering.stored(v) for v in initial if v is not None]
    outputs = _outputs(lowering, node, layer)
    lowering.add(RecurrentOp(node.label, outputs, layer, projections, weights[1], late, states))
    return True


def _is_unusual(node: Node) -> bool:
    """Sequence lengths, peepholes, batch first, coupled gates: left to plain loops."""
    return (
        node.input(4) is not None
        or node.input(7) is not None
        or bool(node.get("layout", 0))
        or bool(node.get("input_forget", 0))
    )


def _layer(lowering: Lowering, node: Node, x: Value, weights: Array) -> Recurrent | None:
    direction = node.get("direction", "forward")
    reverse = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    count = len(DEFAULT_ACTIVATIONS[node.op_type])
    names = [
        str(n).lower()
        for n in node.get("activations", DEFAULT_ACTIVATIONS[node.op_type] * len(reverse))
    ]
    if len(names) != count * len(reverse) or any(n not in ACTIVATIONS for n in names):
        return None
    shape = lowering.shape(x)
    if 0 in shape or weights.shape[2] == 0:
        return None
    states = [node.input(i) for i in (5, 6)]
    if not all(v is None or lowering.is_float(v) for v in states):
        return None
    return Recurrent(
        node.op_type,
        shape[0],
        shape[1],
        int(weights.shape[2]),
        reverse,
        tuple(tuple(names[d * count : (d + 1) * count]) for d in range(len(reverse))),
        float(node.get("clip", 0.0)),
        node.op_type == "GRU" and bool(node.get("linear_before_reset", 0)),
        states[0] is not None,
        states[1] is not None,
    )


def _outputs(lowering: Lowering, node: Node, layer: Recurrent) -> list[PlanTensor]:
    """Tensors for all results of the kernel, also those that the node doesn't name."""
    last = (len(layer.reverse), layer.batch, layer.hidden)
    shapes = [(layer.steps, *last), last]
    if layer.kind == "LSTM":
        shapes.append(last)
    tensors = []
    for i, shape in enumerate(shapes):
        value = node.output(i)
        tensor = PlanTensor(value.name if value else f"{node.label}/{i}", "float32", shape)
        if value is not None:
            lowering.items[value] = Stored(tensor)
        tensors.append(tensor)
    return tensors


RULES: dict[str, Callable[[Lowering, Node], bool]] = dict.fromkeys(DEFAULT_ACTIVATIONS, recurrent)
