"""Rules of LSTM, GRU and RNN: one product for all inputs, then the recurrence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from ....ir.graph import Node, Value
from ....ir.ops.recurrent import DEFAULT_ACTIVATIONS
from ....ir.tensor import Array
from ..plan.operations import BlockProductOp, MatMulOp, RecurrentOp
from ..plan.programs import Program, ProgramBuilder
from ..plan.recurrent import ACTIVATIONS, Recurrent
from ..plan.tensors import Operation, PlanTensor
from .accumulators import accumulator_program, integer_weights
from .context import Constant, Lowering, Quantized, Stored, check_int32


def recurrent(lowering: Lowering, node: Node) -> bool:
    """Constant weights, of float32 or bytes, the usual activations, sequences of one length."""
    x = node.input(0)
    weights, recurrent_weights = (_weights(lowering, node.input(i)) for i in (1, 2))
    bias = lowering.constant(node.input(3))
    if x is None or weights is None or recurrent_weights is None:
        return False
    if (bias is None) != (node.input(3) is None) or _is_unusual(node):
        return False
    layer = _layer(lowering, node, x, recurrent_weights)
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
    for d in range(directions):
        name = f"{node.label}/projection{d}"
        shape = (layer.steps, layer.batch, layer.columns(lowering.target))
        projections.append(PlanTensor(name, "float32", shape))
        lowering.add(_projection(lowering, node, layer, weights, total[d], d, projections[-1]))
    initial = [node.input(i) for i in (5, 6)]
    states = [lowering.stored(v) for v in initial if v is not None]
    outputs = _outputs(lowering, node, layer)
    lowering.add(
        RecurrentOp(
            node.label,
            outputs,
            layer,
            projections,
            recurrent_weights.array,
            recurrent_weights.scales,
            late,
            states,
        )
    )
    return True


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Weights [directions, gates * hidden, columns]: float32, or int8 times `scales`
    [directions, gates * hidden]."""

    array: Array
    scales: Array | None


def _weights(lowering: Lowering, value: Value | None) -> _Weights | None:
    """None where they aren't constant, or of other types."""
    floats = lowering.constant(value)
    if value is None or floats is None or floats.dtype != np.float32:
        return None
    item = lowering.item(value)
    assert isinstance(item, Constant)
    integers = integer_weights(item, 1)
    if integers is None or integers.size == 0 or integers.min() < -128 or integers.max() > 127:
        return _Weights(floats, None)
    assert item.scale is not None
    scales = np.broadcast_to(item.scale.astype(np.float32).reshape(-1), floats.shape[:2])
    return _Weights(integers.astype(np.int8), np.ascontiguousarray(scales))


def _projection(
    lowering: Lowering,
    node: Node,
    layer: Recurrent,
    weights: _Weights,
    bias: Array,
    direction: int,
    output: PlanTensor,
) -> Operation:
    """The product of a direction's inputs and weights: of bytes by integers, of floats by floats,
    and of floats by bytes by floats that are made of these as they are needed."""
    x, target = node.input(0), lowering.target
    assert x is not None
    matrix = layer.arrange(target, np.ascontiguousarray(weights.array[direction].T))
    offsets = layer.arrange(target, bias)
    if weights.scales is None:
        program = Program(("float32",))
        return MatMulOp(node.label, [output], [], program, lowering.stored(x), matrix, offsets)
    scales = layer.arrange(target, weights.scales[direction])
    item = lowering.item(x)
    if isinstance(item, Quantized) and item.tensor.dtype in ("uint8", "int8"):
        factors = np.float32(item.scale) * scales
        program, operands = accumulator_program(node.label, item.scale, factors, offsets, ())
        wide = matrix.astype(np.int16)
        start = check_int32(-item.zero * wide.astype(np.int64).sum(0))
        return MatMulOp(node.label, [output], operands, program, item.tensor, wide, start)
    depth, columns = matrix.shape
    block = max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, 1 << (depth - 1).bit_length()))
    numbers = np.full((columns, -(-depth // block) * block), _HALF, np.uint8)
    numbers[:, :depth] = (matrix.T.astype(np.int16) + _HALF).astype(np.uint8)
    numbers = numbers.reshape(columns, -1, block)
    builder = ProgramBuilder(("float32", "float32"))
    builder.add("add", (0, 1), "float32")
    offset = PlanTensor(f"{node.label}/bias{direction}", "float32", (columns,), const=offsets)
    each = np.ascontiguousarray(np.broadcast_to(scales[:, None], numbers.shape[:2]))
    return BlockProductOp(
        node.label,
        [output],
        [offset],
        builder.build(),
        lowering.stored(x),
        numbers,
        each,
        None,
        8,
        False,
    )


_HALF = 128
"""What is taken for zero among bytes of weights that lie in blocks."""

_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 128


def _is_unusual(node: Node) -> bool:
    """Sequence lengths, peepholes, batch first, coupled gates: left to plain loops."""
    return (
        node.input(4) is not None
        or node.input(7) is not None
        or bool(node.get("layout", 0))
        or bool(node.get("input_forget", 0))
    )


def _layer(lowering: Lowering, node: Node, x: Value, weights: _Weights) -> Recurrent | None:
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
    if 0 in shape or weights.array.shape[2] == 0:
        return None
    states = [node.input(i) for i in (5, 6)]
    if not all(v is None or lowering.is_float(v) for v in states):
        return None
    return Recurrent(
        node.op_type,
        shape[0],
        shape[1],
        int(weights.array.shape[2]),
        reverse,
        tuple(tuple(names[d * count : (d + 1) * count]) for d in range(len(reverse))),
        float(node.get("clip", 0.0)),
        node.op_type == "GRU" and bool(node.get("linear_before_reset", 0)),
        states[0] is not None,
        states[1] is not None,
        str(weights.array.dtype),
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
