"""Rules of the elementwise operators and of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ....ir.graph import Node, Value
from ..functions.definitions import by_operator
from ..plan.programs import Program, ProgramBuilder, quantize
from ..plan.tensors import PlanTensor, View
from .context import Constant, Lowering, Quantized, Stored

LARGEST = float(np.finfo(np.float32).max)
"""The bound of a Clip that has none."""

_BINARY: dict[str, str] = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}
_VARIADIC: dict[str, str] = {"Max": "max", "Min": "min", "Sum": "add"}


PLAIN_FUNCTIONS = {
    "Swish": "of -infinity it is NaN, but the vectors' sigmoid doesn't become zero",
}
"""Functions that are left to plain loops, and why."""


def unary(lowering: Lowering, node: Node) -> bool:
    """The operator's function, whose parameters are attributes."""
    function = by_operator()[node.op_type]
    given = {name: float(node.get(name, v)) for name, v in function.parameters.items()}
    return _emit(lowering, node, lambda b: b.add(function.name, (0,), "float32", **given))


def binary(lowering: Lowering, node: Node) -> bool:
    if lowering.model.opset < 7:  # broadcasting was by attributes
        return False
    return _emit(lowering, node, lambda b: b.add(_BINARY[node.op_type], (0, 1), "float32"))


def power(lowering: Lowering, node: Node) -> bool:
    """By the exponents that models have: what products and roots compute."""
    base, exponent = node.input(0), lowering.constant(node.input(1))
    if base is None or exponent is None or exponent.size != 1 or exponent.dtype != np.float32:
        return False
    value = float(exponent.reshape(()))
    if value not in POWERS or exponent.ndim > len(lowering.shape(base)):
        return False

    def build(b: ProgramBuilder) -> None:
        result = 0
        for name, arguments in POWERS[value]:
            result = b.add(name, [(0, result)[a] for a in arguments], "float32")

    return _emit(lowering, node, build, [base])


POWERS: dict[float, list[tuple[str, tuple[int, ...]]]] = {
    1.0: [("identity", (0,))],
    2.0: [("mul", (0, 0))],
    3.0: [("mul", (0, 0)), ("mul", (1, 0))],
    0.5: [("root", (0,))],
    -1.0: [("reciprocal", (0,))],
    -0.5: [("root", (0,)), ("reciprocal", (1,))],
}
"""Steps by exponent; argument 0 is the base, 1 the step before."""


def variadic(lowering: Lowering, node: Node) -> bool:
    """From left to right; of Max and Min, operands that are one number are bounds."""
    if lowering.model.opset < 8:
        return False
    bounds = {} if node.op_type == "Sum" else _bounds(lowering, node)
    values = [v for i, v in enumerate(node.inputs) if i not in bounds]

    def build(b: ProgramBuilder) -> None:
        total = 0
        for i in range(1, len(b.operands)):
            total = b.add(_VARIADIC[node.op_type], (total, i), "float32")
        if bounds and node.op_type == "Max":
            b.add("clip", (total,), "float32", low=max(bounds.values()), high=math.inf)
        elif bounds:
            b.add("clip", (total,), "float32", low=-math.inf, high=min(bounds.values()))

    return _emit(lowering, node, build, values)


def _bounds(lowering: Lowering, node: Node) -> dict[int, float]:
    """Operands by position that are one number, no NaN, and don't change the result's shape."""
    found: dict[int, float] = {}
    ranks = [len(lowering.shape(v)) for v in node.inputs if v and lowering.constant(v) is None]
    for i, value in enumerate(node.inputs):
        array = lowering.constant(value)
        if array is None or array.size != 1 or np.isnan(array).any():
            continue
        if array.ndim <= max(ranks, default=-1):
            found[i] = float(array.reshape(()))
    return found


def gelu(lowering: Lowering, node: Node) -> bool:
    if node.get("approximate", "none") != "none":
        return False
    return _emit(lowering, node, lambda b: b.add("gelu", (0,), "float32"))


def clip(lowering: Lowering, node: Node) -> bool:
    """Bounds are attributes before opset 11, then optional inputs; finite where omitted."""
    low: float = node.get("min", -LARGEST)
    high: float = node.get("max", LARGEST)
    for index in (1, 2):
        value = node.input(index)
        if value is None:
            continue
        bound = lowering.constant(value)
        if bound is None or bound.size != 1:
            return False
        if index == 1:
            low = bound.reshape(()).item()
        else:
            high = bound.reshape(()).item()
    if not low <= high:  # crossed, or NaN
        return False
    return _emit(
        lowering,
        node,
        lambda b: b.add("clip", (0,), "float32", low=float(low), high=float(high)),
        node.inputs[:1],
    )


def prelu(lowering: Lowering, node: Node) -> bool:
    if lowering.model.opset < 7:  # slopes were per channel
        return False
    return _emit(lowering, node, lambda b: b.add("prelu", (0, 1), "float32"))


def batch_normalization(lowering: Lowering, node: Node) -> bool:
    """In inference form: a multiplication and an addition per channel.

    Both round, as in ONNX Runtime, so that a quantization after them finds the same floats.
    """
    constants = [lowering.constant(v) for v in node.inputs[1:5]]
    x, y = node.input(0), node.output(0)
    if any(c is None for c in constants) or node.get("training_mode", 0) or x is None or y is None:
        return False
    if any(v is not None and v.uses for v in node.outputs[1:]) or node.get("spatial", 1) != 1:
        return False
    if not lowering.is_float(x):
        return False
    scale, bias, mean, variance = (np.asarray(c, np.float32) for c in constants)
    factor = scale * (np.float32(1) / np.sqrt(variance + np.float32(node.get("epsilon", 1e-5))))
    offset = bias - mean * factor
    rank = len(lowering.shape(x))
    shape = (-1,) + (1,) * (rank - 2)
    builder = ProgramBuilder(("float32", "float32", "float32"))
    product = builder.add("rounded", (builder.add("mul", (0, 1), "float32"),), "float32")
    builder.add("add", (product, 2), "float32")
    operands = [lowering.operand(x)]
    for suffix, array in (("factor", factor), ("offset", offset)):
        values = array.astype(np.float32).reshape(shape)
        tensor = PlanTensor(f"{node.label}/{suffix}", "float32", values.shape, const=values)
        operands.append((View.of(tensor), Program(("float32",))))
    output = lowering.tensor(y)
    lowering.elementwise(node.label, operands, builder.build(), output)
    lowering.items[y] = Stored(output)
    return True


def quantize_linear(lowering: Lowering, node: Node) -> bool:
    parameters = lowering.quantize_parameters(node)
    x = node.input(0)
    if parameters is None or x is None or not lowering.is_float(x):
        return False
    y = parameters.output
    if isinstance(lowering.item(x), Constant):
        return False
    view, steps = lowering.operand(x)
    program = quantize(Program(("float32",)), parameters.scale, parameters.zero, parameters.dtype)
    output = lowering.tensor(y, parameters.dtype)
    lowering.elementwise(node.label, [(view, steps)], program, output)
    lowering.items[y] = Stored(output)
    return True


def dequantize_linear(lowering: Lowering, node: Node) -> bool:
    """No operation yet: readers decide whether they work on the integers."""
    x, y = node.input(0), node.output(0)
    scale, zero = lowering.constant(node.input(1)), lowering.constant(node.input(2))
    if x is None or y is None or scale is None or scale.dtype != np.float32:
        return False
    if node.input(2) is not None and zero is None:
        return False
    if node.get("block_size", 0):
        return False
    item = lowering.item(x)
    if isinstance(item, Constant) and item.scale is None:
        if not np.issubdtype(item.array.dtype, np.integer):
            return False
        zeros = np.zeros(scale.shape, item.array.dtype) if zero is None else zero
        axis = int(node.get("axis", 1))
        axis = axis + item.array.ndim if axis < 0 else axis
        if scale.size == 1:
            axis = 0
        lowering.items[y] = Constant(item.array, scale, zeros, axis)
        return True
    if not isinstance(item, Stored) or scale.size != 1:
        return False
    if item.tensor.dtype not in ("uint8", "int8", "int32", "int16", "uint16"):
        return False
    number = 0 if zero is None else int(np.asarray(zero).reshape(()))
    if item.tensor.dtype == "int8" and lowering.dtype(x) == "uint8":
        number -= 128  # kept so, as `quantize_parameters` says
    lowering.items[y] = Quantized(item.tensor, float(scale.reshape(())), number)
    return True


def _emit(
    lowering: Lowering,
    node: Node,
    build: Callable[[ProgramBuilder], object],
    inputs: Sequence[Value | None] | None = None,
) -> bool:
    """Emit the program that `build` appends to float32 inputs, by default all of the node's."""
    values = [v for v in (node.inputs if inputs is None else inputs) if v is not None]
    y = node.output(0)
    if y is None or not all(lowering.is_float(v) for v in values):
        return False
    if all(isinstance(lowering.item(v), Constant) for v in values):
        return False
    if not lowering.broadcasts([lowering.shape(v) for v in values], lowering.shape(y)):
        return False
    output = lowering.tensor(y, "float32")
    builder = ProgramBuilder(["float32"] * len(values))
    build(builder)
    lowering.elementwise(node.label, [lowering.operand(v) for v in values], builder.build(), output)
    lowering.items[y] = Stored(output)
    return True


RULES: dict[str, Callable[[Lowering, Node], bool]] = {
    **dict.fromkeys(by_operator().keys() - PLAIN_FUNCTIONS.keys(), unary),
    "Pow": power,
    **dict.fromkeys(_BINARY, binary),
    **dict.fromkeys(_VARIADIC, variadic),
    "Gelu": gelu,
    "Clip": clip,
    "PRelu": prelu,
    "BatchNormalization": batch_normalization,
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
}
