"""Rules of products of 8-bit integers whose scales are operators of their own.

That is how models are written whose activations are quantized at run time: DynamicQuantizeLinear,
MatMulInteger or ConvInteger, Cast, Mul. The kernels are those of other 8-bit products; a zero
point that a run computes is taken off the sums: sum((x - z) * w) = sum(x * w) - z * sum(w).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....ir.graph import Node, Value
from ....ir.tensor import Array
from ..plan.blocked import Fill
from ..plan.operations import ConvolutionOp, MatMulOp, ProductOp, QuantizationRangeOp
from ..plan.programs import Program, ProgramBuilder
from ..plan.sizes import is_open
from ..plan.tensors import PlanTensor, View
from .context import Constant, Lowering, Stored, check_int32
from .convolution import image_weights, window
from .one_channel import fold_taps
from .product import aligned, keeps_bytes, widened

_BYTES = ("uint8", "int8")


def dynamic_quantize_linear(lowering: Lowering, node: Node) -> bool:
    """The range of the whole tensor, then an elementwise program by scale and zero point."""
    x, y = node.input(0), node.output(0)
    scale, zero = node.output(1), node.output(2)
    if x is None or y is None or not lowering.is_computed_float(x) or 0 in lowering.shape(x):
        return False
    source = lowering.stored(x)
    made = [
        PlanTensor(value.name if value is not None else f"{node.label}/{name}", dtype, ())
        for value, name, dtype in ((scale, "scale", "float32"), (zero, "zero", "uint8"))
    ]
    lowering.add(QuantizationRangeOp(node.label, made, source))
    for value, tensor in zip((scale, zero), made, strict=True):
        if value is not None:
            lowering.items[value] = Stored(tensor)
    builder = ProgramBuilder(("float32", "float32", "uint8"))
    builder.add("quantize_by", (0, 1, 2), "uint8")
    operands = [(View.of(t), Program((t.dtype,))) for t in (source, *made)]
    output = lowering.tensor(y, "uint8")
    lowering.elementwise(node.label, operands, builder.build(), output)
    lowering.items[y] = Stored(output)
    return True


def matmul_integer(lowering: Lowering, node: Node) -> bool:
    """A @ B with 8-bit operands, of which B may be constant, and 32-bit sums."""
    a, b, y = node.input(0), node.input(1), node.output(0)
    if a is None or b is None or y is None or 0 in lowering.shape(y) or 0 in lowering.shape(a):
        return False
    zero = _zero(lowering, node.input(2))
    if zero is None or lowering.dtype(a) not in _BYTES:
        return False
    weights = _weights(lowering, b, node.input(3), 1)
    if weights is None or weights.ndim != 2 or len(lowering.shape(a)) < 2:
        return _product(lowering, node, zero)
    if isinstance(lowering.item(a), Constant):
        return False
    output = lowering.tensor(y, "int32")
    bias, program, operands = _without_zero(node, zero, weights.astype(np.int64).sum(0), ())
    source = lowering.stored(a)
    own = None
    if lowering.target.multiplies_bytes and (weights.min() < -128 or weights.max() > 127):
        given = lowering.constant(b)
        assert given is not None
        weights, own = _signed(given, lowering.constant(node.input(3)))
    lowering.add(MatMulOp(node.label, [output], operands, program, source, weights, bias, own))
    lowering.items[y] = Stored(output)
    return True


def conv_integer(lowering: Lowering, node: Node) -> bool:
    """A convolution of bytes by constant weights with 32-bit sums."""
    x, w, y = node.input(0), node.input(1), node.output(0)
    if x is None or w is None or y is None or isinstance(lowering.item(x), Constant):
        return False
    shape = lowering.shape(x)
    zero = _zero(lowering, node.input(2))
    weights = _weights(lowering, w, node.input(3), 0)
    if zero is None or weights is None or len(shape) not in (3, 4) or 0 in shape:
        return False
    if lowering.dtype(x) not in _BYTES:
        return False
    values = image_weights(weights)
    sums = values.reshape(values.shape[0], -1).astype(np.int64).sum(1)
    bias, program, operands = _without_zero(node, zero, sums, (1,) * (weights.ndim - 2))
    fill: Fill = zero
    output = lowering.tensor(y, "int32")
    op = ConvolutionOp(
        label=node.label,
        outputs=[output],
        operands=operands,
        program=program,
        input=lowering.stored(x),
        weights=values,
        bias=bias,
        geometry=window(node, shape, weights.shape[2:]),
        groups=int(node.get("group", 1)),
        fill=fill,
    )
    lowering.add(fold_taps(lowering, op))
    lowering.items[y] = Stored(output)
    return True


def cast(lowering: Lowering, node: Node) -> bool:
    """Integers of up to 32 bits as float32."""
    x, y = node.input(0), node.output(0)
    if x is None or y is None or lowering.dtype(y) != "float32":
        return False
    item = lowering.item(x)
    if not isinstance(item, Stored) or item.tensor.dtype not in (*_BYTES, "int16", "int32"):
        return False
    output = lowering.tensor(y, "float32")
    program = Program((item.tensor.dtype,)).then("cast", "float32")
    lowering.elementwise(node.label, [lowering.operand(x)], program, output)
    lowering.items[y] = Stored(output)
    return True


def _product(lowering: Lowering, node: Node, zero: int | PlanTensor) -> bool:
    """A product of two run-time values, or of batches of constants."""
    a, b, y = node.input(0), node.input(1), node.output(0)
    assert a is not None
    assert b is not None
    assert y is not None
    if min(len(lowering.shape(a)), len(lowering.shape(b))) < 2 or 0 in lowering.shape(b):
        return False
    right = _zero(lowering, node.input(3))
    types = lowering.dtype(a), lowering.dtype(b)
    if right is None or types[1] not in _BYTES or types == ("int8", "uint8"):
        return False
    shape = lowering.shape(y)
    output = lowering.tensor(y, "int32")
    tensors = [lowering.stored(value) for value in (a, b)]
    if is_open(*shape, *tensors[0].shape) and not keeps_bytes(lowering, zero, right):
        zeros = zip(tensors, (zero, right), strict=True)
        tensors = [widened(lowering, node, tensor, point) for tensor, point in zeros]
        zero = right = 0
    first, second = (aligned(tensor, len(shape)) for tensor in tensors)
    program = Program(("int32",))
    lowering.add(ProductOp(node.label, [output], [], program, first, second, zero, right, shape))
    lowering.items[y] = Stored(output)
    return True


def _zero(lowering: Lowering, value: Value | None) -> int | PlanTensor | None:
    """A zero point: a number, or a tensor of one element; None where there are several."""
    if value is None:
        return 0
    known = lowering.constant(value)
    if known is not None:
        return int(known.reshape(())) if known.size == 1 else None
    return lowering.stored(value) if lowering.stored(value).elements == 1 else None


def _weights(lowering: Lowering, value: Value, zero: Value | None, axis: int) -> Array | None:
    """Constant weights less their zero points, of all or along an axis, as int16."""
    array, points = lowering.constant(value), lowering.constant(zero)
    if array is None or array.dtype not in (np.int8, np.uint8) or (zero and points is None):
        return None
    if points is None:
        return array.astype(np.int16)
    if points.size == 1:
        return array.astype(np.int16) - points.reshape(()).astype(np.int16)
    if points.ndim != 1 or array.ndim <= axis or points.size != array.shape[axis]:
        return None
    shape = [1] * array.ndim
    shape[axis] = -1
    return array.astype(np.int16) - points.astype(np.int16).reshape(shape)


def _signed(weights: Array, points: Array | None) -> tuple[Array, Array]:
    """Weights [depth, columns] as signed bytes, in 16 bits, with the zero point of each column."""
    offset = 128 if weights.dtype == np.uint8 else 0
    zero = np.zeros(1, np.int32) if points is None else points.astype(np.int32).reshape(-1)
    zeros = np.broadcast_to(zero - offset, (weights.shape[1],))
    return weights.astype(np.int16) - np.int16(offset), zeros


def _without_zero(
    node: Node, zero: int | PlanTensor, sums: Array, tail: tuple[int, ...]
) -> tuple[Array, Program, list[PlanTensor]]:
    """What takes an activation's zero point off the accumulator of each channel.

    `sums` are those of the channel's weights. Gives the bias, and a program with its operands.
    """
    if not isinstance(zero, PlanTensor):
        return check_int32(-zero * sums), Program(("int32",)), []
    values = check_int32(sums).reshape(-1, *tail)
    constant = PlanTensor(f"{node.label}/sums", "int32", values.shape, const=values)
    builder = ProgramBuilder(("int32", zero.dtype, "int32"))
    product = builder.add("mul", (builder.add("cast", (1,), "int32"), 2), "int32")
    builder.add("sub", (0, product), "int32")
    return np.zeros(sums.shape, np.int32), builder.build(), [zero, constant]


RULES: dict[str, Callable[[Lowering, Node], bool]] = {
    "Cast": cast,
    "ConvInteger": conv_integer,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer,
}
