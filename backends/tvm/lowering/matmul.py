"""Rules of Gemm and MatMul by constants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....ir.graph import Node
from ....ir.stand_ins import BLOCK_PRODUCT
from ....ir.tensor import Array
from ..plan.operations import BlockProductOp, MatMulOp
from ..plan.programs import Program, ProgramBuilder
from ..plan.tensors import PlanTensor
from . import product
from .accumulators import accumulator_program, accumulator_scales, integer_bias, integer_weights
from .context import Constant, Lowering, Quantized, Stored, check_int32
from .loops import key


def gemm(lowering: Lowering, node: Node) -> bool:
    """alpha * A @ B + beta * C with constant B."""
    a, b, y = node.input(0), node.input(1), node.output(0)
    if a is None or b is None or y is None:
        return False
    if lowering.constant(b) is None or node.get("transA", 0):
        return product.gemm(lowering, node)
    weights = lowering.item(b)
    assert isinstance(weights, Constant)
    transposed = bool(node.get("transB", 0))
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    c = node.input(2)
    item = lowering.item(a)
    columns = weights.array.shape[0 if transposed else 1]
    if isinstance(item, Quantized) and item.tensor.dtype in ("uint8", "int8"):
        integer = integer_weights(weights, 0 if transposed else 1)
        plain_bias = c is None or beta == 1.0
        if integer is not None and plain_bias:
            assert weights.scale is not None
            scales = np.float32(alpha) * np.float32(item.scale) * weights.scale.reshape(-1)
            scales = np.broadcast_to(scales.astype(np.float32), (columns,))
            per_column = c is None or _is_per_column(lowering.shape(c), columns)
            found = integer_bias(lowering, c, scales, columns) if per_column else None
            if found is not None:
                matrix = integer.T if transposed else integer
                return _integer(lowering, node, item, matrix, scales, *found)
    if not lowering.is_float(a) or weights.dequantized().dtype != np.float32:
        return False
    matrix = weights.dequantized()
    matrix = (matrix.T if transposed else matrix) * np.float32(alpha)
    bias = lowering.constant(c) if c is not None else None
    operands: list[PlanTensor] = []
    program = Program(("float32",))
    zeros = np.zeros(columns, np.float32)
    if c is not None and bias is not None and _is_per_column(bias.shape, columns):
        zeros = np.broadcast_to(bias.astype(np.float32).reshape(-1) * np.float32(beta), (columns,))
    elif c is not None:
        if beta != 1.0 or not lowering.is_float(c):
            return False
        operands = [lowering.stored(c)]
        builder = ProgramBuilder(("float32", "float32"))
        builder.add("add", (0, 1), "float32")
        program = builder.build()
    output = lowering.tensor(y, "float32")
    lowering.add(
        MatMulOp(node.label, [output], operands, program, lowering.stored(a), matrix, zeros)
    )
    lowering.items[y] = Stored(output)
    return True


def matmul(lowering: Lowering, node: Node) -> bool:
    """A @ B with a constant matrix B."""
    a, b, y = node.input(0), node.input(1), node.output(0)
    if a is None or b is None or y is None:
        return False
    weights = lowering.item(b)
    if not isinstance(weights, Constant) or weights.array.ndim != 2 or len(lowering.shape(a)) < 2:
        return product.matmul(lowering, node)
    item = lowering.item(a)
    columns = weights.array.shape[1]
    if isinstance(item, Quantized) and item.tensor.dtype in ("uint8", "int8"):
        integer = integer_weights(weights, 1)
        if integer is not None:
            scales = accumulator_scales(item, weights, columns)
            bias = np.zeros(columns, np.int64)
            return _integer(lowering, node, item, integer, scales, bias, None)
    if not lowering.is_float(a) or weights.dequantized().dtype != np.float32:
        return False
    output = lowering.tensor(y, "float32")
    lowering.add(
        MatMulOp(
            node.label,
            [output],
            [],
            Program(("float32",)),
            lowering.stored(a),
            weights.dequantized(),
            np.zeros(columns, np.float32),
        )
    )
    lowering.items[y] = Stored(output)
    return True


def _integer(
    lowering: Lowering,
    node: Node,
    item: Quantized,
    matrix: Array,
    scales: Array,
    bias: Array,
    rest: Array | None,
) -> bool:
    y = node.output(0)
    assert y is not None
    program, operands = accumulator_program(node.label, item.scale, scales, rest, ())
    sums = matrix.astype(np.int64).sum(0)
    output = lowering.tensor(y, "float32")
    lowering.add(
        MatMulOp(
            node.label,
            [output],
            operands,
            program,
            item.tensor,
            matrix,
            check_int32(bias - item.zero * sums),
        )
    )
    lowering.items[y] = Stored(output)
    return True


def _is_per_column(shape: tuple[int, ...], columns: int) -> bool:
    """Whether a bias is the same in every row."""
    return len(shape) <= 2 and shape[:-1] in ((), (1,)) and shape[-1:] in ((), (1,), (columns,))


def block_product(lowering: Lowering, node: Node) -> bool:
    """Rows by constants of a few bits, which stay so."""
    x, y = node.input(0), node.output(0)
    assert x is not None
    assert y is not None
    numbers, scales, zeros = (lowering.constant(node.input(i)) for i in (1, 2, 3))
    assert numbers is not None
    assert scales is not None
    output = lowering.tensor(y, "float32")
    lowering.add(
        BlockProductOp(
            node.label,
            [output],
            [],
            Program(("float32",)),
            lowering.stored(x),
            numbers,
            scales,
            zeros,
            int(node.get("bits", 4)),
            bool(node.get("rounds", 0)),
        )
    )
    lowering.items[y] = Stored(output)
    return True


RULES: dict[str, Callable[[Lowering, Node], bool]] = {
    key(BLOCK_PRODUCT[1], BLOCK_PRODUCT[0]): block_product,
    "Gemm": gemm,
    "MatMul": matmul,
}
