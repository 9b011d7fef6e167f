"""Rules of matrix products whose right operand is computed at run time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ....ir.graph import Node, Value
from ..plan.operations import ProductOp
from ..plan.programs import Program, ProgramBuilder
from ..plan.sizes import is_open
from ..plan.strides import row_major
from ..plan.tensors import PlanTensor, View
from .accumulators import accumulator_program
from .context import Constant, Lowering, Quantized, Stored


def matmul(lowering: Lowering, node: Node) -> bool:
    """Batched A @ B; of integers where ONNX Runtime multiplies integers."""
    a, b, y = node.input(0), node.input(1), node.output(0)
    if a is None or b is None or y is None:
        return False
    shape = lowering.shape(y)
    if min(len(lowering.shape(a)), len(lowering.shape(b))) < 2 or 0 in shape:
        return False
    left, right = _integers(lowering, a), _integers(lowering, b)
    if left is not None and right is not None:
        types = (left.tensor.dtype, right.tensor.dtype)
        if types != ("int8", "uint8"):
            scale = np.float32(left.scale) * np.float32(right.scale)
            scales = np.full(1 if is_open(shape[-1]) else shape[-1], scale, np.float32)
            program, operands = accumulator_program(node.label, left.scale, scales, None, ())
            return _emit(lowering, node, left, right, program, operands)
    if not (lowering.is_float(a) and lowering.is_float(b)):
        return False
    first, second = (Quantized(lowering.stored(v), 1.0, 0) for v in (a, b))
    return _emit(lowering, node, first, second, Program(("float32",)), [])


def gemm(lowering: Lowering, node: Node) -> bool:
    """alpha * op(A) @ op(B) + beta * C in float32."""
    a, b, c, y = node.input(0), node.input(1), node.input(2), node.output(0)
    if a is None or b is None or y is None or lowering.model.opset < 7:
        return False
    given = [v for v in (a, b, c) if v is not None]
    if not all(lowering.is_float(v) for v in given) or 0 in lowering.shape(y):
        return False
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    operands = [lowering.stored(c)] if c is not None else []
    builder = ProgramBuilder(["float32"] * (1 + len(operands)))
    result = 0

    def scaled(value: int, factor: float) -> int:
        if factor == 1.0:
            return value
        constant = builder.add("constant", (), "float32", value=factor)
        return builder.add("mul", (value, constant), "float32")

    result = scaled(result, alpha)
    if operands:
        builder.add("add", (result, scaled(1, beta)), "float32")
    views = []
    for value, flag in ((a, "transA"), (b, "transB")):
        tensor = lowering.stored(value)
        view = View.of(tensor)
        if node.get(flag, 0):
            view = View(tensor, tensor.shape[::-1], row_major(tensor.shape)[::-1])
        views.append(view)
    if 0 in views[0].shape:
        return False
    output = lowering.tensor(y, "float32")
    program = builder.build()
    lowering.add(
        ProductOp(node.label, [output], operands, program, views[0], views[1], 0, 0, output.shape)
    )
    lowering.items[y] = Stored(output)
    return True


def _emit(
    lowering: Lowering,
    node: Node,
    left: Quantized,
    right: Quantized,
    program: Program,
    operands: list[PlanTensor],
) -> bool:
    y = node.output(0)
    assert y is not None
    shape = lowering.shape(y)
    open_ = is_open(*shape, *left.tensor.shape)
    if (
        open_
        and left.tensor.dtype != "float32"
        and not keeps_bytes(lowering, left.zero, right.zero)
    ):
        left, right = (
            Quantized(widened(lowering, node, item.tensor, item.zero), item.scale, 0)
            for item in (left, right)
        )
    views = [aligned(item.tensor, len(shape)) for item in (left, right)]
    if any(0 in v.shape for v in views) or (not open_ and math.prod(shape) >= 2**31):
        return False
    output = lowering.tensor(y, "float32")
    lowering.add(
        ProductOp(
            node.label,
            [output],
            operands,
            program,
            views[0],
            views[1],
            left.zero,
            right.zero,
            output.shape,
        )
    )
    lowering.items[y] = Stored(output)
    return True


def keeps_bytes(lowering: Lowering, *zeros: int | PlanTensor) -> bool:
    """Whether kernels of open sizes multiply bytes as they are: where zero points are known, and
    an instruction takes four neighbours of one row, so that rows and depth may have any size."""
    target = lowering.target
    by_fours = target.machine == "x86_64" or target.prefers_signed_bytes
    return by_fours and all(isinstance(zero, int) for zero in zeros)


def widened(
    lowering: Lowering, node: Node, tensor: PlanTensor, zero: int | PlanTensor
) -> PlanTensor:
    """Bytes less their zero point as floats, whose products kernels for open sizes add exactly."""
    name = f"{tensor.name}/whole"
    if tensor.const is not None and isinstance(zero, int):
        whole = np.asarray(tensor.const).astype(np.float32) - np.float32(zero)
        return PlanTensor(name, "float32", tensor.shape, const=whole)
    output = PlanTensor(name, "float32", tensor.shape)
    zeros = [zero] if isinstance(zero, PlanTensor) else []
    builder = ProgramBuilder((tensor.dtype, *(z.dtype for z in zeros)))
    value = builder.add("cast", (0,), "int32")
    if isinstance(zero, PlanTensor):
        value = builder.add("sub", (value, builder.add("cast", (1,), "int32")), "int32")
    elif zero:
        number = builder.add("constant", (), "int32", value=zero)
        value = builder.add("sub", (value, number), "int32")
    builder.add("cast", (value,), "float32")
    operands = [(View.of(t), Program((t.dtype,))) for t in (tensor, *zeros)]
    lowering.elementwise(node.label, operands, builder.build(), output)
    return output


def aligned(tensor: PlanTensor, rank: int) -> View:
    """The tensor with leading axes of size 1 up to a rank."""
    shape: Sequence[int] = (1,) * (rank - len(tensor.shape)) + tensor.shape
    return View(tensor, tuple(shape), row_major(shape))


def _integers(lowering: Lowering, value: Value) -> Quantized | None:
    """A value that is in memory as 8-bit integers with one scale, constants included."""
    item = lowering.item(value)
    if isinstance(item, Constant):
        if item.scale is None or item.scale.size != 1:
            return None
        if item.zero is not None and item.zero.size != 1:
            return None
        zero = 0 if item.zero is None else int(item.zero.reshape(()))
        array = item.array
        tensor = PlanTensor(value.name, str(array.dtype), tuple(array.shape), const=array)
        item = Quantized(tensor, float(item.scale.reshape(())), zero)
    if isinstance(item, Quantized) and item.tensor.dtype in ("uint8", "int8"):
        return item
    return None
