"""Quantized operators as DequantizeLinear, the float operator, QuantizeLinear, for integer rules.

Those whose activations are quantized at run time become integer operators, and products with
the scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from .....ir.graph import Value, normalize_domain
from .....ir.stand_ins import BLOCK_PRODUCT
from .....ir.tensor import Array
from .body import Body, Declined, definition
from .movement import channels_first, channels_last

WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _operand(b: Body, index: int) -> str:
    """A tensor, its scale and its zero point: three inputs in turn."""
    return b.dequantized(b.required(index), b.required(index + 1), b.given(index + 2))


def _quantized(b: Body, x: str, index: int) -> str:
    """By the result's scale, an input, and the zero point after it."""
    return b("QuantizeLinear", x, b.required(index), b.given(index + 1))


def _binary(op_type: str) -> Callable[[Body], list[str]]:
    def define(b: Body) -> list[str]:
        return [_quantized(b, b(op_type, _operand(b, 0), _operand(b, 3)), 6)]

    return define


for _name in ("Add", "Mul"):
    definition(f"QLinear{_name}")(_binary(_name))


@definition("QLinearSigmoid")
def _sigmoid(b: Body) -> list[str]:
    return [_quantized(b, b("Sigmoid", _operand(b, 0)), 3)]


@definition("QLinearLeakyRelu")
def _leaky_relu(b: Body) -> list[str]:
    alpha = float(b.attribute("alpha", 0.01))
    return [_quantized(b, b("LeakyRelu", _operand(b, 0), alpha=alpha), 3)]


@definition("QLinearSoftmax")
def _softmax(b: Body) -> list[str]:
    """The attribute `opset` says which Softmax it was: before 13 all axes from one on were one."""
    rank = b.rank(0)
    axis = int(b.attribute("axis", -1)) % max(rank, 1)
    joint = int(b.attribute("opset", 13)) < 13
    if axis == rank - 1 or (joint and b.opset < 13) or (not joint and b.opset >= 13):
        return [_quantized(b, b("Softmax", _operand(b, 0), axis=axis), 3)]
    if joint:
        flat = b("Softmax", b("Flatten", _operand(b, 0), axis=axis), axis=-1)
        return [_quantized(b, b("Reshape", flat, b("Shape", b.required(0))), 3)]
    order = [i for i in range(rank) if i != axis] + [axis]
    back = [order.index(i) for i in range(rank)]
    last = b("Softmax", b("Transpose", _operand(b, 0), perm=order), axis=rank - 1)
    return [_quantized(b, b("Transpose", last, perm=back), 3)]


@definition("QLinearConcat")
def _concat(b: Body) -> list[str]:
    """Inputs: the result's scale and zero point, then (tensor, scale, zero point) each."""
    operands = [_operand(b, i) for i in range(2, len(b.node.inputs), 3)]
    return [_quantized(b, b("Concat", *operands, axis=int(b.attribute("axis", 0))), 0)]


@definition("QLinearWhere")
def _where(b: Body) -> list[str]:
    return [_quantized(b, b("Where", b.required(0), _operand(b, 1), _operand(b, 4)), 7)]


def _of_images(b: Body, compute: Callable[[str], str], result: int) -> list[str]:
    """What is computed of input 0 with channels first; bytes are transposed where they are last."""
    last, x = bool(int(b.attribute("channels_last", 0))), b.required(0)
    x = channels_first(b, x, b.rank(0)) if last else x
    y = _quantized(b, compute(b.dequantized(x, b.required(1), b.given(2))), result)
    return [channels_last(b, y, b.rank(0)) if last else y]


@definition("QLinearGlobalAveragePool")
def _global_average_pool(b: Body) -> list[str]:
    return _of_images(b, lambda x: b("GlobalAveragePool", x), 3)


@definition("QLinearAveragePool")
def _average_pool(b: Body) -> list[str]:
    names = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
    return _of_images(b, lambda x: b("AveragePool", x, **b.attributes(*names)), 3)


def _check_parameters(b: Body, *indices: int) -> None:
    """Parameters of the whole tensor as constants: other forms are plain loops."""
    for index in indices:
        found = b.constant(index)
        if b.given(index) is not None and (found is None or found.size != 1):
            raise Declined


def _weights(b: Body, index: int, axis: int) -> str:
    """Constant weights with scales of all, or along an axis."""
    scale, zero = b.constant(index + 1), b.constant(index + 2)
    if b.constant(index) is None or scale is None or (b.given(index + 2) and zero is None):
        raise Declined
    if scale.size != 1 and b.opset < 13:
        raise Declined
    if scale.ndim > 1 or (zero is not None and zero.size != scale.size):
        raise Declined
    along = {"axis": axis} if scale.size != 1 else {}
    return b.dequantized(b.required(index), b.required(index + 1), b.given(index + 2), **along)


@definition("QLinearConv", domain="")
def _conv(b: Body) -> list[str]:
    """x, w, y each with scale and zero point, then a bias in units of the accumulator."""
    _check_parameters(b, 1, 2, 6, 7)
    if b.dtype(0).itemsize != 1:
        raise Declined
    inputs = [_operand(b, 0), _weights(b, 3, 0), *_biases(b, 8, 1, 4)]
    return [_quantized(b, b("Conv", *inputs, **b.attributes(*WINDOW)), 6)]


@definition("QLinearConv")
def _own_conv(b: Body) -> list[str]:
    """With channels last, if it says so: of the weights, too, they are the first axis."""
    for index in (1, 2, 6, 7):
        if b.given(index) is not None and b.known(index).size != 1:
            b.fail(f"input {index} isn't one number")
    if b.known(4).size != 1 and b.opset < 13:
        b.fail("scales of channels need opset 13")
    along = {"axis": 0} if b.known(4).size != 1 else {}
    w = b.dequantized(b.required(3), b.required(4), b.given(5), **along)
    rest = _biases(b, 8, 1, 4)
    return _of_images(b, lambda x: b("Conv", x, w, *rest, **b.attributes(*WINDOW)), 6)


def _biases(b: Body, index: int, *scales: int, factor: float = 1.0) -> list[str]:
    """A bias of 32 bits, whose scale is the product of the operands'; none where it isn't given."""
    if b.given(index) is None:
        return []
    known = [b.known(i).astype(np.float32).reshape(-1) for i in scales]
    scale = known[0] * known[1] * np.float32(factor)
    if scale.size == 1:
        return [b.dequantized(b.required(index), b.value(scale.reshape(()), np.float32), None)]
    if b.opset < 13:
        return [b("Mul", b.cast(b.required(index), np.float32), b.value(scale, np.float32))]
    axis = b.rank(index) - 1
    return [b.dequantized(b.required(index), b.value(scale), None, axis=axis)]


@definition("QLinearMatMul", domain="")
def _matmul(b: Body) -> list[str]:
    """a, b, y each with scale and zero point."""
    _check_parameters(b, 1, 2, 6, 7)
    if b.dtype(0).itemsize != 1 or b.dtype(3).itemsize != 1:
        raise Declined
    constant = b.constant(3) is not None and b.rank(3) == 2
    if not constant:
        _check_parameters(b, 4, 5)
    right = _weights(b, 3, 1) if constant else _operand(b, 3)
    return [_quantized(b, b("MatMul", _operand(b, 0), right), 6)]


@definition("QGemm")
def _gemm(b: Body) -> list[str]:
    """A, B with scales and zero points, C in units of the accumulator; the result's may follow."""
    transposed = bool(int(b.attribute("transB", 0)))
    scale = b.known(4)
    if scale.size != 1 and b.opset < 13:
        b.fail("scales of columns need opset 13")
    along = {"axis": 0 if transposed else 1} if scale.size != 1 else {}
    right = b.dequantized(b.required(3), b.required(4), b.given(5), **along)
    alpha = float(b.attribute("alpha", 1.0))
    names = b.attributes("alpha", "transA", "transB")
    result = b("Gemm", _operand(b, 0), right, *_biases(b, 6, 1, 4, factor=alpha), **names)
    return [result if b.given(7) is None else _quantized(b, result, 7)]


# --- activations that a run quantizes ------------------------------------------------------


def integer_product(
    b: Body, x: str, zero: str | None, scale: str, weights: tuple[int, int, int], bias: int
) -> str:
    """Bytes by weights (inputs: tensor, scale, zero point), scaled, with a float bias."""
    w, w_scale, w_zero = weights
    sums = b("MatMulInteger", x, b.required(w), zero, b.given(w_zero))
    result = b("Mul", b.cast(sums, np.float32), b("Mul", scale, b.required(w_scale)))
    given = b.given(bias)
    return result if given is None else b("Add", result, given)


@definition("DynamicQuantizeMatMul")
def _dynamic_matmul(b: Body) -> list[str]:
    x, scale, zero = b.several("DynamicQuantizeLinear", 3, b.required(0))
    return [integer_product(b, x, zero, scale, (1, 2, 3), 4)]


@definition("MatMulIntegerToFloat")
def _matmul_to_float(b: Body) -> list[str]:
    return [integer_product(b, b.required(0), b.given(4), b.required(2), (1, 3, 5), 6)]


@definition("DequantizeLinear")
def _dequantize(b: Body) -> list[str]:
    axis = int(b.attribute("axis", 1))
    if not _is_spelled_out(b, b.dtype(0)):
        return [b.dequantized(b.required(0), b.required(1), b.given(2), axis=axis)]
    numbers = b.cast(b.required(0), np.int32)
    if b.given(2) is not None:
        numbers = b("Sub", numbers, b.cast(_along(b, 2, axis), np.int32))
    return [b("Mul", b.cast(numbers, b.dtype(1)), _along(b, 1, axis))]


@definition("QuantizeLinear")
def _quantize(b: Body) -> list[str]:
    axis = int(b.attribute("axis", 1))
    zero = b.given(2)
    if zero is None or not _is_spelled_out(b, b.dtype(2)):
        along = {"axis": axis} if b.opset >= 13 else {}
        return [b("QuantizeLinear", b.required(0), b.required(1), zero, **along)]
    dtype = b.dtype(2)
    limits = np.iinfo(dtype)
    steps = b("Round", b("Div", b.required(0), _along(b, 1, axis)))
    steps = b("Add", steps, b.cast(_along(b, 2, axis), b.dtype(0)))
    low, high = (b.number(float(limit)) for limit in (limits.min, limits.max))
    return [b.cast(b.cast(b("Min", b("Max", steps, low), high), np.int32), dtype)]


_SIXTEEN_BITS = 21
"""The operator set from which on the standard's operators have 16 bits."""


def _is_spelled_out(b: Body, dtype: np.dtype[Any]) -> bool:
    return dtype.itemsize == 2 and b.opset < _SIXTEEN_BITS


def _along(b: Body, index: int, axis: int) -> str:
    """A scale or zero point as it is broadcast: a vector lies along an axis of the first input."""
    if b.rank(index) == 0 or b.shape(index) == (1,):
        return b.reshaped(b.required(index), *[1] * b.rank(0))
    sizes = [1] * b.rank(0)
    sizes[axis] = -1
    return b.reshaped(b.required(index), *sizes)


@definition("MatMulInteger16")
def _matmul_16(b: Body) -> list[str]:
    return [b("MatMul", b.cast(b.required(0), np.int32), b.cast(b.required(1), np.int32))]


# --- weights in blocks ---------------------------------------------------------------------


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """[..., bytes] of 2, 4 or 8 bits, the lowest first, as [..., numbers]."""
    per_byte = 8 // bits
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    numbers = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return numbers.reshape(*packed.shape[:-1], -1)


@definition("MatMulNBits")
def _matmul_n_bits(b: Body) -> list[str]:
    """[N, blocks, bytes] of a few bits with scale and zero point of each block of a column."""
    b.without({4: "order of groups"}, {"weight_prepacked": 0})
    columns, depth = int(b.attribute("N", 0)), int(b.attribute("K", 0))
    bits, block = int(b.attribute("bits", 4)), int(b.attribute("block_size", 0))
    packed, scales = b.known(1), b.known(2)
    if (
        bits not in (2, 4, 8)
        or block < 16
        or block & (block - 1)
        or packed.dtype != np.uint8
        or packed.ndim != 3
    ):
        b.fail("weights of this form aren't supported")
    blocks = -(-depth // block)
    if packed.shape != (columns, blocks, block * bits // 8) or scales.size != columns * blocks:
        b.fail("weights and scales don't have the sizes that N, K and block_size say")
    numbers, scales = _unpacked(packed, bits), scales.astype(np.float32).reshape(columns, blocks)
    zeros = None if b.given(3) is None else b.known(3)
    if zeros is not None and zeros.dtype == np.uint8:
        zeros = _unpacked(zeros.reshape(columns, -1), bits)[:, :blocks]
    elif zeros is not None:
        zeros = zeros.astype(np.float32)
    x = b.cast(b.required(0), np.float32)
    operands = [x, b.value(numbers.reshape(columns, blocks, block)), b.value(scales)]
    if zeros is not None:
        operands.append(b.value(zeros.reshape(columns, blocks)))
    rounds = int(int(b.attribute("accuracy_level", 0)) == 4)
    sizes = {"bits": bits, "columns": columns, "rounds": rounds}
    result = b.cast(b.internal(BLOCK_PRODUCT, operands, **sizes), b.dtype(0))
    bias = b.given(5)
    return [result if bias is None else b("Add", result, bias)]


@definition("MatMul", domain="")
def _matmul_of_blocks(b: Body) -> list[str]:
    """By constants that DequantizeLinear has in blocks along the depth; others are MatMul's own."""
    weights = b.node.input(1)
    made = None if weights is None else weights.producer
    block = 0 if made is None else int(made.get("block_size", 0))
    if made is None or made.op_type != "DequantizeLinear" or normalize_domain(made.domain):
        raise Declined
    packed, scales, zeros = (_array_of(b, made.input(i)) for i in range(3))
    if packed is None or scales is None or (made.input(2) is not None and zeros is None):
        raise Declined
    matrix, source = packed, made.input(0)
    dtype = 0 if source is None else source.dtype
    bits = _BITS.get(dtype)
    if bits is None or matrix.ndim != 2 or int(made.get("axis", 1)) % 2 or block < 16:
        raise Declined
    (depth, columns), blocks = matrix.shape, -(-matrix.shape[0] // block)
    if block & (block - 1) or scales.shape != (blocks, columns):
        raise Declined
    low = 0 if dtype in (TensorProto.UINT4, TensorProto.UINT8) else 1 << (bits - 1)
    numbers = np.zeros((blocks * block, columns), np.uint8)
    numbers[:depth] = matrix.astype(np.int16) + low
    if zeros is None:
        zeros = np.zeros((blocks, columns), np.int16)
    zeros = (zeros.astype(np.int16) + low).astype(np.uint8)
    operands = [
        b.cast(b.required(0), np.float32),
        b.value(np.ascontiguousarray(numbers.T).reshape(columns, blocks, block)),
        b.value(np.ascontiguousarray(scales.T.astype(np.float32))),
        b.value(np.ascontiguousarray(zeros.T)),
    ]
    product = b.internal(BLOCK_PRODUCT, operands, bits=bits, columns=columns, rounds=0)
    return [b.cast(product, b.dtype(0))]


_BITS: dict[int, int] = {
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
}
"""Of the types that such constants have."""


def _array_of(b: Body, value: Value | None) -> Array | None:
    """A constant's elements; None where there is none."""
    tensor = None if value is None else b.model.constant(value)
    return None if tensor is None else np.asarray(tensor.numpy())


@definition("GatherBlockQuantized")
def _gather_blocks(b: Body) -> list[str]:
    """Rows of a table of 2, 4 or 8 bits, which stays packed; each block of a row has a scale."""
    bits, block = int(b.attribute("bits", 4)), int(b.attribute("block_size", 128))
    rank, last = b.rank(0), b.rank(0) - 1
    gathered, blocked = (
        int(b.attribute(f"{n}_axis", d)) for n, d in (("gather", 0), ("quantize", 1))
    )
    if gathered % rank != 0 or blocked % rank != last or rank < 2:
        b.fail("its rows don't lie along the first axis, or its blocks not along the last")
    if b.dtype(0) != np.uint8 or bits not in (2, 4, 8):
        b.fail(f"a table of {bits} bits in {b.dtype(0)}")
    count = b.size(0, last) * (8 // bits)
    if block < 1 or count % block:
        b.fail(f"rows of {count} numbers aren't made of blocks of {block}")
    blocks, leading = count // block, b.rank(1) + rank - 2

    def rows(index: int) -> str:
        return b("Gather", b.required(index), b.required(1), axis=0)

    def unpacked(index: int, numbers: int) -> str:
        packed = b.cast(rows(index), np.int32)
        if bits < 8:
            each = [b("Div", packed, b.value(1 << bits * i, np.int32)) for i in range(8 // bits)]
            each = [b("Mod", part, b.value(1 << bits, np.int32)) for part in each]
            each = [b.unsqueezed(part, leading + 1) for part in each]
            packed = b.reshaped(b("Concat", *each, axis=leading + 1), *[0] * leading, -1)
        return b.sliced(packed, leading, 0, numbers)

    table = b.reshaped(unpacked(0, count), *[0] * leading, blocks, block)
    zero = b.value(1 << (bits - 1), np.int32)
    if b.given(3) is not None:
        zero = b.unsqueezed(unpacked(3, blocks), leading + 1)
    scales = b.unsqueezed(rows(2), leading + 1)
    floats = b("Mul", b.cast(b("Sub", table, zero), b.dtype(2)), scales)
    return [b.reshaped(floats, *[0] * leading, count)]
