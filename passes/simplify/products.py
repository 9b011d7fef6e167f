"""Matrix products: MatMul and Add as Gemm or back, and scalars moved into constant weights."""

from __future__ import annotations

import dataclasses

import numpy as np

from ...ir.graph import Node, Value
from ...ir.ops import Trait, traits
from ...ir.tensor import FLOAT_TYPES, Array
from .movement import RESHAPES
from .rewriter import Rewriter, RuleSet, only_reader, producer
from .shape_chains import reshape_target

RULES = RuleSet()


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
        if product.rank != 2 or product.dtype not in FLOAT_TYPES:
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


@dataclasses.dataclass(frozen=True)
class _Linear:
    """Reshape(x W + bias): what Gemm computes of the rows of x, where x has more axes."""

    matmul: Node
    bias: Value
    reshape: Node
    target: list[int]


@RULES.on("MatMul")
def gemm_of_rows(node: Node, rewriter: Rewriter) -> bool:
    """Several MatMul -> Add -> Reshape of one value: Gemm -> Reshape of its rows.

    The Reshape to rows must pay: several share it (each gets one, which merge as equal
    computations), or another Reshape absorbs it.
    """
    source = node.input(0)
    if source is None or rewriter.opset < 7 or (source.rank or 0) < 3:
        return False
    near = (user for user in source.users if user.graph is node.graph)
    found = [_match_linear(user, source, rewriter) for user in near]
    layers = [layer for layer in found if layer is not None]
    absorbed = producer(source, *RESHAPES) is not None and len(layers) == len(source.uses)
    if not layers or len(layers) + absorbed < 2:
        return False
    for layer in layers:
        _write_gemm(layer, source, rewriter)
    return True


def _match_linear(matmul: Node, source: Value, rewriter: Rewriter) -> _Linear | None:
    if matmul.op_type != "MatMul" or matmul.domain or matmul.input(0) is not source:
        return None
    product, weight = matmul.outputs[0], rewriter.tensor(matmul.input(1))
    add = None if product is None else only_reader(product)
    if weight is None or len(weight.shape) != 2 or weight.dtype not in FLOAT_TYPES:
        return None
    if add is None or add.op_type != "Add" or add.domain:
        return None
    bias = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    constant, result = rewriter.tensor(bias), add.outputs[0]
    if bias is None or constant is None or constant.shape not in ((), (1,), weight.shape[1:]):
        return None
    reshape = None if result is None else only_reader(result)
    if reshape is None or result is None or reshape.op_type not in RESHAPES:
        return None
    shape, before = (rewriter.analysis.shape(v) for v in (reshape.outputs[0], result))
    if shape is None or shape == before or 0 in shape:
        return None
    target = reshape_target(list(shape), None)
    return None if target is None else _Linear(matmul, bias, reshape, target)


def _write_gemm(layer: _Linear, source: Value, rewriter: Rewriter) -> None:
    node, output, weight = layer.reshape, layer.reshape.outputs[0], layer.matmul.inputs[1]
    assert output is not None
    assert weight is not None
    assert weight.shape is not None
    width, height = weight.shape
    rows_shape = rewriter.constant(layer.matmul, np.array([-1, width], np.int64))
    rows = rewriter.add(layer.matmul, "Reshape", [source, rows_shape])
    rows.set_tensor_type(source.dtype, [None, width])
    product = rewriter.add(node, "Gemm", [rows, weight, layer.bias], hint=layer.matmul.name)
    product.set_tensor_type(source.dtype, [None, height])
    target = rewriter.constant(node, np.array(layer.target, np.int64), f"{node.label}_shape")
    new = rewriter.add(node, "Reshape", [product, target], type=output.type, hint=node.name)
    rewriter.replace(output, new)


@RULES.on("Gemm")
def product_instead_of_rows(node: Node, rewriter: Rewriter) -> bool:
    """Reshape to rows -> Gemm -> Reshape back is MatMul and Add, where that is less."""
    rows, product = node.input(0), node.outputs[0]
    before = producer(rows, *RESHAPES)
    after = None if product is None else only_reader(product)
    source, weight = (None if before is None else before.input(0)), rewriter.array(node.input(1))
    if rows is None or source is None or weight is None or only_reader(rows) is not node:
        return False
    if after is None or after.op_type not in RESHAPES or not _is_plain(node):
        return False
    weight = weight.T if node.get("transB", 0) else weight
    shape, output = rewriter.analysis.shape(source), after.outputs[0]
    if not shape or output is None or shape[-1] != weight.shape[0]:
        return False
    if rewriter.analysis.shape(output) != (*shape[:-1], weight.shape[1]):
        return False
    bias = node.input(2)
    constant = rewriter.tensor(bias)
    if bias is not None and (constant is None or any(s != 1 for s in constant.shape[:-1])):
        return False
    operand = node.inputs[1]
    if node.get("transB", 0):
        operand = rewriter.constant(node, np.ascontiguousarray(weight))
    new = rewriter.add(after, "MatMul", [source, operand], type=output.type, hint=node.name)
    if bias is not None:
        new = rewriter.add(after, "Add", [new, bias], type=output.type, hint=node.name)
    return rewriter.replace(output, new)


def _is_plain(gemm: Node) -> bool:
    return gemm.get("alpha", 1.0) == gemm.get("beta", 1.0) == 1.0 and not gemm.get("transA", 0)


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
    if Trait.MOVES in traits(node) and len(node.outputs) == 1:
        return _scale_operand(node, 0, number, rewriter, depth)
    if node.op_type == "MatMul":
        if any(_scale_constant(node, i, number, rewriter) for i in (1, 0)):
            return True
        return depth == 0 and any(_scale_operand(node, i, number, rewriter, 1) for i in (0, 1))
    if node.op_type == "Add":
        return _scale_sum(node, number, rewriter, depth)
    return node.op_type == "Gemm" and _scale_gemm(node, number, rewriter)


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


def _scale_gemm(node: Node, number: float, rewriter: Rewriter) -> bool:
    """A constant weight and the constant bias, if there is one: both scaled, or none."""
    operands = {1: node.input(1)} | ({2: node.input(2)} if node.input(2) else {})
    arrays = {index: rewriter.array(value) for index, value in operands.items()}
    scaled = {i: None if a is None else _times(a, number) for i, a in arrays.items()}
    known = {i: array for i, array in scaled.items() if array is not None}
    if known.keys() != operands.keys():
        return False
    for index, array in known.items():
        rewriter.set_constant(node, index, array)
    return True


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
