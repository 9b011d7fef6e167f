"""Matrix products: MatMul and Add as Gemm, and scalars moved into constant weights."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ...ir.graph import Node, Value
from ...ir.tensor import Array
from .rewriter import Rewriter, RuleSet, only_reader, producer

RULES = RuleSet()

_GEMM_TYPES = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@RULES.on("Add")
def gemm_of_product_and_bias(node: Node, rewriter: Rewriter) -> bool:
    """MatMul of matrices plus a constant bias is Gemm."""
    output = node.output(0)
    if output is None or rewriter.opset < 7:
        return False
    for product, bias in (node.inputs, reversed(node.inputs)):
        matmul = producer(product, "MatMul")
        if matmul is None or product is None or bias is None or only_reader(product) is not node:
            continue
        if product.rank != 2 or product.dtype not in _GEMM_TYPES:
            continue
        if any(v is None or v.rank != 2 for v in matmul.inputs):
            continue
        if not _is_bias(bias, product, rewriter):
            continue
        new = rewriter.add(node, "Gemm", [*matmul.inputs, bias], type=output.type, hint=matmul.name)
        return rewriter.replace(output, new)
    return False


def _is_bias(bias: Value, product: Value, rewriter: Rewriter) -> bool:
    """Whether a constant broadcasts into the product without enlarging it."""
    tensor, shape = rewriter.tensor(bias), product.shape
    if tensor is None or shape is None or len(tensor.shape) > 2:
        return False
    padded = (1,) * (2 - len(tensor.shape)) + tensor.shape
    return all(size in (1, whole) for size, whole in zip(padded, shape, strict=True))


_CARRIES_SCALE = ("Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


@RULES.on("Mul", "Div")
def move_scalar_into_weights(node: Node, rewriter: Rewriter) -> bool:
    """A scalar factor of a product of two values goes into the weights behind one of them.

    That is how attention scales its scores: `(x W) k^T * s` is `(x (s W)) k^T`.
    """
    output = node.output(0)
    if output is None or rewriter.opset < 7:
        return False
    sides = [(0, 1)] if node.op_type == "Div" else [(0, 1), (1, 0)]
    for scaled, factor in sides:
        value, number = node.input(scaled), rewriter.scalar(node.input(factor))
        constant = rewriter.tensor(node.input(factor))
        if value is None or number is None or constant is None or value.rank is None:
            continue
        if len(constant.shape) > value.rank or not output.can_be_replaced_by(value):
            continue
        if node.op_type == "Div":
            number = 1.0 / number if number else float("inf")
        if only_reader(value) is node and _scale(value, number, rewriter, depth=0):
            return rewriter.replace(output, value)
    return False


def _scale(value: Value | None, number: float, rewriter: Rewriter, depth: int) -> bool:
    """Multiply a value that has one reader by scaling constants that it is made of."""
    node = None if value is None else value.producer
    if value is None or node is None or depth > 8 or not np.isfinite(number):
        return False
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in _CARRIES_SCALE:
        return _scale_operand(node, 0, number, rewriter, depth)
    if node.op_type == "MatMul":
        if any(_scale_constant(node, i, number, rewriter) for i in (1, 0)):
            return True
        return depth == 0 and any(_scale_operand(node, i, number, rewriter, 1) for i in (0, 1))
    if node.op_type == "Add":
        return _scale_sum(node, number, rewriter, depth)
    return False


def _scale_operand(node: Node, index: int, number: float, rewriter: Rewriter, depth: int) -> bool:
    operand = node.input(index)
    if operand is None or only_reader(operand) is not node:
        return False
    return _scale(operand, number, rewriter, depth + 1)


def _scale_sum(node: Node, number: float, rewriter: Rewriter, depth: int) -> bool:
    """A product plus a constant bias: both scaled, or none."""
    for product, bias in ((0, 1), (1, 0)):
        array = rewriter.array(node.input(bias))
        scaled = None if array is None else _times(array, number)
        if scaled is not None and _scale_operand(node, product, number, rewriter, depth):
            rewriter.set_constant(node, bias, scaled)
            return True
    return False


def _scale_constant(node: Node, index: int, number: float, rewriter: Rewriter) -> bool:
    array = rewriter.array(node.input(index))
    scaled = None if array is None else _times(array, number)
    if scaled is None:
        return False
    rewriter.set_constant(node, index, scaled)
    return True


def _times(array: Array, number: float) -> Array | None:
    """The product, rounded once; None where a number would not survive."""
    if array.dtype.kind != "f":
        return None
    with np.errstate(all="ignore"):
        scaled = (array.astype(np.float64) * number).astype(array.dtype)
    lost = bool(((scaled == 0) & (array != 0)).any()) if number else False
    return scaled if np.isfinite(scaled).all() and not lost else None
