"""How far two right executions of a quantized graph may lie apart: interval arithmetic along it.

Integer arithmetic has no room. Float operators have that of float32's rounding in any order of
their sums; where it reaches across a tie of a QuantizeLinear, the integer may be the next one, and
so on behind it. What lies further apart than that is a fault, not a tie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from secateur.ir.graph import Node
from secateur.ir.model import Model

from .quantization_error import LIPSCHITZ, MOVES, all_values, run_alone

Array = Any

FLOAT_NOISE = 2e-6
"""Of a float operator's result, as a share of what it sums."""

EXACT = {"Cast", "Constant", "ConstantOfShape", "DequantizeLinear", "Identity", "Reshape", "Shape"}
EXACT |= {"Abs", "Clip", "Concat", "Dropout", "Flatten", "Gather", "Max", "MaxPool", "Min", "Neg"}
EXACT |= {"Pad", "ReduceMax", "ReduceMin", "Relu", "Slice", "Split", "Squeeze", "Transpose"}
EXACT |= {"Unsqueeze", "DepthToSpace", "Expand", "SpaceToDepth", "Tile"}
"""Operators that round nothing."""


class UnknownError(Exception):
    """An operator without a rule."""


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def room(model: Model, feeds: dict[str, Array]) -> dict[str, Array]:
    """For each value of the main graph the largest possible distance. Raises UnknownError."""
    values = all_values(model, feeds)
    found: dict[str, Array] = {name: np.zeros(np.shape(a)) for name, a in values.items()}
    for node in model.graph.nodes:
        results = [values[v.name] for v in node.outputs if v is not None]
        off = [None if v is None else found[v.name] for v in node.inputs]
        ins = [None if v is None else values[v.name] for v in node.inputs]
        bounds = _node(node, model.opset, ins, off, results)
        outputs = [v for v in node.outputs if v is not None]
        for value, bound, result in zip(outputs, bounds, results, strict=False):
            whole = np.broadcast_to(np.nan_to_num(bound, nan=np.inf), np.shape(result))
            found[value.name] = whole
    return found


def _node(
    node: Node, opset: int, ins: list[Array], off: list[Array], results: list[Array]
) -> list[Array]:
    kind = node.op_type
    if kind in RULES:
        return RULES[kind](node, ins, off, results)
    if kind in PRODUCTS:
        return [_product(node, opset, ins, off)]
    own = 0.0 if kind in EXACT else FLOAT_NOISE * _largest(results[0])
    if not any(o is not None and np.any(o) for o in off):
        return [own] * len(results)
    if kind in LIPSCHITZ:
        return [off[0] + own]
    if kind in MOVES:
        moved = run_alone(node, opset, [off[0], *ins[1:]])
        return [each + own for each in moved]
    raise UnknownError(kind)


def _largest(array: Array) -> float:
    array = np.abs(np.asarray(array, np.float64))
    return float(array[np.isfinite(array)].max(initial=0.0))


# --- products ----------------------------------------------------------------------

PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger"}


def _product(node: Node, opset: int, ins: list[Array], off: list[Array]) -> Array:
    """|sum (x + dx) * (w + dw) - x * w| <= sum (|x| + |dx|) * (|w| + |dw|) - |x| * |w|"""
    integer = node.op_type.endswith("Integer")
    x, w = (np.asarray(a, np.float64) for a in ins[:2])
    dx, dw, rest = off[0], off[1], list(ins[2:])
    if integer:
        points = [*ins[2:4], None, None]
        shifts = [*off[2:4], None, None]
        x = x - (0.0 if points[0] is None else np.asarray(points[0], np.float64))
        dx = dx + (0.0 if shifts[0] is None else np.max(shifts[0], initial=0.0))
        w = w - (0.0 if points[1] is None else np.asarray(points[1], np.float64))
        rest = []
    if not integer or np.any(dx) or np.any(dw):
        alone = Node(node.op_type.removesuffix("Integer"), [], node.outputs, node.attributes)
        far = run_alone(alone, opset, [abs(x) + dx, abs(w) + dw, *[abs(r) for r in rest]])[0]
        near = run_alone(alone, opset, [abs(x), abs(w), *[abs(r) for r in rest]])[0]
        extra = sum((np.max(o, initial=0.0) for o in off[2:] if o is not None), 0.0)
        moved = np.maximum(far.astype(np.float64) - near, 0.0)
        slack = 1e-6 * far if np.any(moved) else 0.0
        noise = 0.0 if integer else FLOAT_NOISE * near + extra
        return np.where(moved > 0, moved + slack, 0.0) + noise
    return 0.0


# --- rounding ----------------------------------------------------------------------


def _between(lower: Array, upper: Array, result: Array) -> Array:
    """The furthest of the integers from `lower` to `upper`, which are rounded to."""
    info = np.iinfo(result.dtype)
    ends = [np.clip(np.rint(end), info.min, info.max) for end in (lower, upper)]
    return np.maximum(*(abs(end - result.astype(np.float64)) for end in ends))


def _quantize(node: Node, ins: list[Array], off: list[Array], results: list[Array]) -> list[Array]:
    scale = np.asarray(ins[1], np.float64)
    point = 0.0 if len(ins) < 3 or ins[2] is None else np.asarray(ins[2], np.float64)
    if scale.ndim and scale.size > 1:
        shape = [-1 if i == node.get("axis", 1) else 1 for i in range(ins[0].ndim)]
        scale, point = scale.reshape(shape), np.reshape(point, shape)
    steps = np.asarray(ins[0], np.float64) / scale
    noise = off[0] / scale + FLOAT_NOISE / 8 * abs(steps)  # of the quotient, in float32
    return [_between(steps - noise + point, steps + noise + point, results[0])]


def _dequantize(
    node: Node, ins: list[Array], off: list[Array], results: list[Array]
) -> list[Array]:
    scale = np.asarray(ins[1], np.float64)
    if scale.ndim and scale.size > 1:
        scale = scale.reshape([-1 if i == node.get("axis", 1) else 1 for i in range(ins[0].ndim)])
    return [off[0] * scale]


def _dynamic(node: Node, ins: list[Array], off: list[Array], results: list[Array]) -> list[Array]:
    """Of a known input all three results are known to the bit."""
    if not np.any(off[0]):
        return [0.0, 0.0, 0.0]
    moved = float(np.max(off[0], initial=0.0))
    scale, point = float(results[1]), float(results[2])
    step = 2 * moved / 255
    if not np.isfinite(moved) or step >= scale / 2:
        return [255.0, step, 255.0]
    smallest = min(float(np.min(ins[0], initial=0.0)), 0.0)
    ends = [-(smallest + s * moved) / (scale + t * step) for s in (-1, 1) for t in (-1, 1)]
    shift = float(_between(np.min(ends), np.max(ends), results[2]))
    x = np.asarray(ins[0], np.float64)
    ends = [
        (x + s * off[0]) / (scale + t * step) + point + p for s in (-1, 1) for t in (-1, 1)
        for p in (-shift, shift)
    ]  # fmt: skip
    return [_between(np.min(ends, axis=0), np.max(ends, axis=0), results[0]), step, shift]


# --- arithmetic --------------------------------------------------------------------


def _sum(node: Node, ins: list[Array], off: list[Array], results: list[Array]) -> list[Array]:
    return [off[0] + off[1] + FLOAT_NOISE / 8 * abs(np.asarray(results[0], np.float64))]


def _mul(node: Node, ins: list[Array], off: list[Array], results: list[Array]) -> list[Array]:
    a, b = (np.abs(np.asarray(x, np.float64)) for x in ins)
    moved = a * off[1] + b * off[0] + off[0] * off[1]
    return [moved + FLOAT_NOISE / 8 * a * b]


def _div(node: Node, ins: list[Array], off: list[Array], results: list[Array]) -> list[Array]:
    a, b = (np.abs(np.asarray(x, np.float64)) for x in ins)
    least = b - off[1]
    far = np.where(least > 0, (a + off[0]) / np.where(least > 0, least, 1.0), np.inf)
    return [np.where(off[0] + off[1] > 0, far - a / b, 0.0) + FLOAT_NOISE / 8 * a / b]


def _largest_of(
    node: Node, ins: list[Array], off: list[Array], results: list[Array]
) -> list[Array]:
    bound: Array = 0.0
    for each in off:
        bound = np.maximum(bound, each)
    return [bound]


def _reduced(node: Node, ins: list[Array], off: list[Array], results: list[Array]) -> list[Array]:
    return [np.max(off[0], axis=-1, keepdims=True, initial=0.0)
            if np.ndim(results[0]) == np.ndim(off[0]) else np.max(off[0], initial=0.0)]  # fmt: skip


def _softmax(node: Node, ins: list[Array], off: list[Array], results: list[Array]) -> list[Array]:
    return [np.max(off[0], initial=0.0) + FLOAT_NOISE * _largest(results[0])]


def _concat(node: Node, ins: list[Array], off: list[Array], results: list[Array]) -> list[Array]:
    return [np.concatenate(off, axis=node.get("axis"))]


def _normalized(
    node: Node, ins: list[Array], off: list[Array], results: list[Array]
) -> list[Array]:
    shape = [-1 if i == 1 else 1 for i in range(ins[0].ndim)]
    slope = abs(ins[1]) / np.sqrt(ins[4] + node.get("epsilon", 1e-5))
    own = FLOAT_NOISE * (_largest(results[0]) + _largest(ins[2]))
    return [off[0] * slope.reshape(shape) + own]


Rule = Callable[[Node, list[Array], list[Array], list[Array]], list[Array]]

RULES: dict[str, Rule] = {
    "Add": _sum,
    "BatchNormalization": _normalized,
    "Concat": _concat,
    "DequantizeLinear": _dequantize,
    "Div": _div,
    "DynamicQuantizeLinear": _dynamic,
    "Max": _largest_of,
    "Min": _largest_of,
    "Mul": _mul,
    "QuantizeLinear": _quantize,
    "ReduceMax": _reduced,
    "ReduceMin": _reduced,
    "Softmax": _softmax,
    "Sub": _sum,
}
