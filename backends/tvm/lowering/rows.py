"""Rules of operators over whole rows: Softmax, the normalizations, reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ....ir.graph import Node, Value
from ..plan.operations import ElementwiseOp, QuantizedSoftmaxOp, ReshapeOp, RowsOp
from ..plan.programs import Program, ProgramBuilder
from ..plan.sizes import OpenSizeError, is_open
from ..plan.tensors import PlanTensor, View
from .context import Lowering, Quantized, Stored

_REDUCTIONS = {
    "ReduceSum": "sum",
    "ReduceMean": "mean",
    "ReduceMax": "max",
    "ReduceMin": "min",
    "ReduceSumSquare": "sum_square",
    "ReduceL1": "l1",
    "ReduceL2": "l2",
}


def softmax(lowering: Lowering, node: Node) -> bool:
    """Softmax and LogSoftmax; before opset 13 over all axes from `axis` on together."""
    x, y = node.input(0), node.output(0)
    if x is None or y is None:
        return False
    if node.op_type == "Softmax" and _quantized_softmax(lowering, node, x, y):
        return True
    shape = lowering.shape(x)
    if not lowering.is_float(x) or not shape or 0 in shape:
        return False
    flat = lowering.model.opset < 13
    axis = int(node.get("axis", 1 if flat else -1)) % len(shape)
    end = len(shape) if flat else axis + 1
    kind = "log_softmax" if node.op_type == "LogSoftmax" else "softmax"
    _emit(lowering, node, kind, _extents(shape, axis, end), y)
    return True


def _quantized_softmax(lowering: Lowering, node: Node, x: Value, y: Value) -> bool:
    """Between quantized values over the last axes, as QLinearSoftmax."""
    item = lowering.item(x)
    parameters = lowering.sole_quantize(y)
    if not isinstance(item, Quantized) or parameters is None:
        return False
    if item.tensor.dtype != parameters.dtype:
        return False
    shape = lowering.shape(x)
    old = lowering.model.opset < 13
    axis = int(node.get("axis", 1 if old else -1)) % len(shape)
    if not old and axis != len(shape) - 1:
        return False
    if math.prod(shape[axis:]) < 1:
        return False
    rows, size = math.prod(shape[:axis]), math.prod(shape[axis:])
    source = item.tensor
    if len(shape) != 2 or shape != (rows, size):
        flat = PlanTensor(source.name + "/rows", source.dtype, (rows, size))
        lowering.add(ReshapeOp(node.label, [flat], source))
        source = flat
    result = PlanTensor(y.name, parameters.dtype, (rows, size))
    lowering.add(
        QuantizedSoftmaxOp(
            node.label, [result], source, item.scale, parameters.scale, parameters.zero
        )
    )
    output = PlanTensor(parameters.output.name, parameters.dtype, shape)
    lowering.add(ReshapeOp(node.label, [output], result))
    lowering.items[parameters.output] = Stored(output)
    lowering.items[y] = Quantized(output, parameters.scale, parameters.zero)
    return True


def layer_normalization(lowering: Lowering, node: Node) -> bool:
    """LayerNormalization and RMSNormalization over the axes from `axis` on."""
    x, y = node.input(0), node.output(0)
    if x is None or y is None or any(v is not None and v.uses for v in node.outputs[1:]):
        return False
    shape = lowering.shape(x)
    factors = [v for v in node.inputs[1:] if v is not None]
    if not all(lowering.is_float(v) for v in (x, *factors)) or not shape or 0 in shape:
        return False
    axis = int(node.get("axis", -1)) % len(shape)
    row = shape[axis:]
    operands = [lowering.stored(v) for v in factors]
    if not all(t.shape == row for t in operands) or not operands:
        return False
    builder = ProgramBuilder(["float32"] * (1 + len(operands)))
    result = builder.add("mul", (0, 1), "float32")
    if len(operands) == 2:
        builder.add("add", (result, 2), "float32")
    kind = "normalize" if node.op_type == "LayerNormalization" else "root_mean_square"
    epsilon = float(node.get("epsilon", 1e-5))
    extents = _extents(shape, axis, len(shape))
    _emit(lowering, node, kind, extents, y, epsilon, builder.build(), operands)
    return True


def group_normalization(lowering: Lowering, node: Node) -> bool:
    """InstanceNormalization and, from opset 21 on, GroupNormalization: rows, then factors."""
    x, y = node.input(0), node.output(0)
    factors = [v for v in node.inputs[1:3] if v is not None]
    if x is None or y is None or len(factors) != 2:
        return False
    if node.op_type == "GroupNormalization" and lowering.model.opset < 21:
        return False
    shape = lowering.shape(x)
    if not all(lowering.is_float(v) for v in (x, *factors)) or len(shape) < 3 or 0 in shape:
        return False
    groups = int(node.get("num_groups", shape[1]))
    extents = (shape[0] * groups, shape[1] // groups * math.prod(shape[2:]), 1)
    normal = PlanTensor(y.name + "/normal", "float32", shape)
    epsilon = float(node.get("epsilon", 1e-5))
    program = Program(("float32",))
    source = lowering.stored(x)
    lowering.add(RowsOp(node.label, [normal], [], program, source, "normalize", extents, epsilon))
    builder = ProgramBuilder(["float32"] * 3)
    builder.add("add", (builder.add("mul", (0, 1), "float32"), 2), "float32")
    views = [View.of(normal)]
    for value in factors:
        tensor = lowering.stored(value)
        spread = (shape[1], *(1 for _ in shape[2:]))
        if tensor.const is not None:
            shaped = PlanTensor(tensor.name, "float32", spread, const=tensor.const.reshape(spread))
        else:
            shaped = PlanTensor(tensor.name + "/channels", "float32", spread)
            lowering.add(ReshapeOp(node.label, [shaped], tensor))
        views.append(View.of(shaped))
    output = lowering.tensor(y, "float32")
    lowering.add(ElementwiseOp(node.label, [output], views, builder.build()))
    lowering.items[y] = Stored(output)
    return True


def reduction(lowering: Lowering, node: Node) -> bool:
    """Over neighbouring axes of float32, known at compile time."""
    x, y = node.input(0), node.output(0)
    if x is None or y is None or not lowering.is_float(x):
        return False
    shape = lowering.shape(x)
    given: npt.ArrayLike | None = node.get("axes")
    if given is None and node.input(1) is not None:
        given = lowering.constant(node.input(1))
        if given is None:
            return False
    axes = sorted({int(a) % len(shape) for a in np.ravel(given)}) if given is not None else []
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            return False
        axes = list(range(len(shape)))
    moved = [a for a in range(axes[0], axes[-1] + 1) if a not in axes and shape[a] != 1]
    if not axes or moved or 0 in shape:
        return False
    extents = _extents(shape, axes[0], axes[-1] + 1)
    _emit(lowering, node, _REDUCTIONS[node.op_type], extents, y)
    return True


def _emit(
    lowering: Lowering,
    node: Node,
    kind: str,
    extents: tuple[int, int, int],
    y: Value,
    epsilon: float = 0.0,
    program: Program | None = None,
    operands: Sequence[PlanTensor] = (),
) -> None:
    x = node.input(0)
    assert x is not None
    if is_open(extents[2]) or (is_open(extents[1]) and extents[2] != 1):
        raise OpenSizeError("rows that lie across others")
    output = lowering.tensor(y, "float32")
    program = program or Program(("float32",))
    source = lowering.stored(x)
    lowering.add(
        RowsOp(node.label, [output], list(operands), program, source, kind, extents, epsilon)
    )
    lowering.items[y] = Stored(output)


def _extents(shape: Sequence[int], start: int, end: int) -> tuple[int, int, int]:
    return math.prod(shape[:start]), math.prod(shape[start:end]), math.prod(shape[end:])


RULES: dict[str, Callable[[Lowering, Node], bool]] = {
    **dict.fromkeys(("Softmax", "LogSoftmax"), softmax),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        layer_normalization,
    ),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), group_normalization),
    **dict.fromkeys(_REDUCTIONS, reduction),
}
