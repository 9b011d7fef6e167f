"""Rules of Conv and of the pooling operators."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ....ir.graph import Node, Value
from ....ir.pooled_shapes import same_pads
from ....ir.tensor import Array
from ..plan.geometry import Geometry
from ..plan.operations import ConvolutionOp, PoolingOp, ReshapeOp
from ..plan.programs import Program, ProgramBuilder, dequantize
from ..plan.tensors import PlanTensor
from .context import Constant, Lowering, Quantized, Stored, check_int32


def convolution(lowering: Lowering, node: Node) -> bool:
    x, w, y = node.input(0), node.input(1), node.output(0)
    if x is None or w is None or y is None or lowering.constant(w) is None:
        return False
    shape = lowering.shape(x)
    if len(shape) not in (3, 4) or 0 in shape:
        return False
    weights = lowering.item(w)
    assert isinstance(weights, Constant)
    geometry = window(node, shape, weights.array.shape[2:])
    item = lowering.item(x)
    groups = int(node.get("group", 1))
    if isinstance(item, Quantized) and item.tensor.dtype in ("uint8", "int8"):
        integer = integer_weights(weights, 0)
        if integer is not None:
            return _integer_convolution(lowering, node, item, weights, integer, geometry, groups)
    if not _is_float32(lowering, x) or weights.dequantized().dtype != np.float32:
        return False
    bias_value = node.input(2)
    bias = lowering.constant(bias_value)
    if bias_value is not None and bias is None:
        return False
    values = image_weights(weights.dequantized())
    if bias is None:
        bias = np.zeros(values.shape[0], np.float32)
    output = lowering.tensor(y, "float32")
    lowering.add(
        ConvolutionOp(
            label=node.label,
            outputs=[output],
            operands=[],
            program=Program(("float32",)),
            input=lowering.stored(x),
            weights=values,
            bias=bias,
            geometry=geometry,
            groups=groups,
            fill=0,
        )
    )
    lowering.items[y] = Stored(output)
    return True


def _integer_convolution(
    lowering: Lowering,
    node: Node,
    item: Quantized,
    weights: Constant,
    integer: Array,
    geometry: Geometry,
    groups: int,
) -> bool:
    y = node.output(0)
    assert y is not None
    channels = integer.shape[0]
    found = integer_accumulator(lowering, node, item, weights, channels)
    if found is None:
        return False
    bias, program, operands = found
    values = image_weights(integer)
    sums = values.reshape(channels, -1).astype(np.int64).sum(1)
    output = lowering.tensor(y, "float32")
    lowering.add(
        ConvolutionOp(
            label=node.label,
            outputs=[output],
            operands=operands,
            program=program,
            input=item.tensor,
            weights=values,
            bias=check_int32(bias - item.zero * sums),
            geometry=geometry,
            groups=groups,
            fill=item.zero,
        )
    )
    lowering.items[y] = Stored(output)
    return True


def integer_weights(weights: Constant, axis: int) -> Array | None:
    """Weights minus their zero points as int16, where scales are per tensor or along `axis`."""
    if weights.scale is None or weights.array.dtype not in (np.int8, np.uint8):
        return None
    if weights.scale.size != 1 and weights.axis != axis:
        return None
    zero = weights.along(weights.zero).astype(np.int16)
    return weights.array.astype(np.int16) - zero


def accumulator_scales(item: Quantized, weights: Constant, channels: int) -> Array:
    """The scale of the accumulator of each output channel."""
    assert weights.scale is not None
    scales = np.float32(item.scale) * weights.scale.astype(np.float32).reshape(-1)
    return np.broadcast_to(scales, (channels,))


def integer_accumulator(
    lowering: Lowering, node: Node, item: Quantized, weights: Constant, channels: int
) -> tuple[Array, Program, list[PlanTensor]] | None:
    """A convolution's bias in units of the accumulator, and the program that dequantizes
    it with its operands. None where the bias isn't constant."""
    scales = accumulator_scales(item, weights, channels)
    found = integer_bias(lowering, node.input(2), scales, channels)
    if found is None:
        return None
    bias, rest = found
    tail = (1,) * (weights.array.ndim - 2)
    program, operands = accumulator_program(node.label, item.scale, scales, rest, tail)
    return bias, program, operands


def integer_bias(
    lowering: Lowering, value: Value | None, scales: Array, channels: int
) -> tuple[Array, Array | None] | None:
    """A bias in units of the accumulator, or else (zeros, the float bias to add later).

    None where the bias isn't constant.
    """
    zeros = np.zeros(channels, np.int64)
    if value is None:
        return zeros, None
    if lowering.constant(value) is None:
        return None
    item = lowering.item(value)
    assert isinstance(item, Constant)
    if item.scale is not None and item.array.dtype == np.int32 and not np.any(item.zero):
        given = np.broadcast_to(item.scale.reshape(-1), (channels,))
        if np.allclose(given, scales, rtol=1e-4, atol=0):
            return np.broadcast_to(item.array.reshape(-1), (channels,)).astype(np.int64), None
    floats = np.broadcast_to(item.dequantized().astype(np.float32).reshape(-1), (channels,))
    return (zeros, None) if not floats.any() else (zeros, floats)


def accumulator_program(
    label: str, scale: float, scales: Array, bias: Array | None, tail: tuple[int, ...]
) -> tuple[Program, list[PlanTensor]]:
    """From the integer accumulator to floats: scales per channel, perhaps a float bias.

    Returns the program of operands (accumulator, scales, [bias]) and the latter's tensors.
    """
    shape = (-1, *tail)
    arrays = [scales] if bias is None else [scales, bias]
    builder = ProgramBuilder(["int32"] + ["float32"] * len(arrays))
    result = builder.add("scale_accumulator", (0, 1), "float32", input_scale=scale)
    if bias is not None:
        builder.add("add", (result, 2), "float32")
    tensors = []
    for name, array in zip(("scale", "bias"), arrays, strict=False):
        values = np.ascontiguousarray(array, np.float32).reshape(shape)
        tensors.append(PlanTensor(f"{label}/{name}", "float32", values.shape, const=values))
    return builder.build(), tensors


def image_weights(weights: Array) -> Array:
    """[O, I, K] of 1-D convolutions as [O, I, 1, K]."""
    return weights[:, :, None, :] if weights.ndim == 3 else weights


def window(node: Node, shape: tuple[int, ...], kernel: tuple[int, ...]) -> Geometry:
    """The window that a node's attributes describe, over an input of `shape`."""
    rank = len(shape) - 2
    kernel = tuple(int(k) for k in kernel)
    strides = [int(s) for s in node.get("strides", [1] * rank)]
    dilations = [int(d) for d in node.get("dilations", [1] * rank)]
    pads = [int(p) for p in node.get("pads", [0] * 2 * rank)]
    auto = node.get("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = [0] * 2 * rank
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        for axis in range(rank):
            pads[axis], pads[axis + rank] = same_pads(
                node, shape[2 + axis], kernel[axis], strides[axis], dilations[axis]
            )
    if rank == 1:
        return Geometry(
            (1, kernel[0]), (1, strides[0]), (1, dilations[0]), (0, pads[0], 0, pads[1])
        )
    return Geometry(
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (dilations[0], dilations[1]),
        (pads[0], pads[1], pads[2], pads[3]),
    )


def _pool_window(node: Node, shape: tuple[int, ...], output: tuple[int, ...]) -> Geometry:
    """A pooling window; ceil_mode lets it pass the lower right edge, as extra padding."""
    geometry = window(node, shape, tuple(node.get("kernel_shape")))
    height, width = (1, shape[2]) if len(shape) == 3 else shape[2:]
    out_h, out_w = (1, output[2]) if len(output) == 3 else output[2:]
    top, left, bottom, right = geometry.pads
    need = []
    for axis, (size, out, before, after) in enumerate(
        ((height, out_h, top, bottom), (width, out_w, left, right))
    ):
        extent = (geometry.kernel[axis] - 1) * geometry.dilations[axis] + 1
        need.append(max(after, (out - 1) * geometry.strides[axis] + extent - size - before))
    return Geometry(
        geometry.kernel, geometry.strides, geometry.dilations, (top, left, need[0], need[1])
    )


def max_pool(lowering: Lowering, node: Node) -> bool:
    x, y = node.input(0), node.output(0)
    if x is None or y is None or node.output(1) is not None:
        return False
    shape = lowering.shape(x)
    if len(shape) not in (3, 4) or node.get("storage_order", 0):
        return False
    geometry = _pool_window(node, shape, lowering.shape(y))
    return min(geometry.pads) >= 0 and _maximum(lowering, node, x, y, geometry)


def global_max_pool(lowering: Lowering, node: Node) -> bool:
    x, y = node.input(0), node.output(0)
    if x is None or y is None or len(lowering.shape(x)) not in (3, 4):
        return False
    return _maximum(lowering, node, x, y, _whole_image(lowering.shape(x)))


def _maximum(lowering: Lowering, node: Node, x: Value, y: Value, geometry: Geometry) -> bool:
    """Maxima of the integers where the value is quantized (scales are positive)."""
    item = lowering.item(x)
    source = item.tensor if isinstance(item, Quantized) else lowering.stored(x)
    if source.dtype not in ("float32", "uint8", "int8"):
        return False
    output = lowering.tensor(y, source.dtype)
    lowest = {"float32": -math.inf, "uint8": 0, "int8": -128}[source.dtype]
    lowering.add(
        PoolingOp(
            label=node.label,
            outputs=[output],
            operands=[],
            program=Program((source.dtype,)),
            input=source,
            kind="maximum",
            geometry=geometry,
            element=Program((source.dtype,)),
            counts=None,
            fill=lowest,
        )
    )
    if isinstance(item, Quantized):
        lowering.items[y] = Quantized(output, item.scale, item.zero)
    else:
        lowering.items[y] = Stored(output)
    return True


def average_pool(lowering: Lowering, node: Node) -> bool:
    x, y = node.input(0), node.output(0)
    if x is None or y is None:
        return False
    shape = lowering.shape(x)
    if len(shape) not in (3, 4) or not _is_float32(lowering, x):
        return False
    given = window(node, shape, tuple(node.get("kernel_shape")))
    geometry = _pool_window(node, shape, lowering.shape(y))
    if min(given.pads) < 0:
        return False
    if given.kernel == _whole_image(shape).kernel and not any(geometry.pads):
        return global_average_pool(lowering, node)
    counts = _counts(given, shape, lowering.shape(y), bool(node.get("count_include_pad", 0)))
    return _average(lowering, node, x, y, geometry, counts)


def reduce_mean(lowering: Lowering, node: Node) -> bool:
    """A mean over all spatial axes is pooling of the whole image."""
    x, y = node.input(0), node.output(0)
    if x is None or y is None or not _is_float32(lowering, x):
        return False
    shape = lowering.shape(x)
    axes = node.get("axes")
    if axes is None and node.input(1) is not None:
        given = lowering.constant(node.input(1))
        axes = None if given is None else given.reshape(-1).tolist()
    if axes is None or len(shape) not in (3, 4):
        return False
    if sorted(a % len(shape) for a in axes) != list(range(2, len(shape))):
        return False
    counts = np.full((1, 1), float(np.prod(shape[2:])), np.float32)
    pooled = PlanTensor(y.name, "float32", (*shape[:2], *(1 for _ in shape[2:])))
    _emit_average(lowering, node, x, pooled, _whole_image(shape), counts)
    if len(lowering.shape(y)) == 2:
        output = lowering.tensor(y)
        lowering.add(ReshapeOp(node.label, [output], pooled))
        pooled = output
    lowering.items[y] = Stored(pooled)
    return True


def global_average_pool(lowering: Lowering, node: Node) -> bool:
    """Of quantized values: the integer sum, scaled once, as in QLinearGlobalAveragePool."""
    x, y = node.input(0), node.output(0)
    if x is None or y is None:
        return False
    shape = lowering.shape(x)
    if len(shape) not in (3, 4) or not _is_float32(lowering, x):
        return False
    item = lowering.item(x)
    count = int(np.prod(shape[2:]))
    if not isinstance(item, Quantized) or item.tensor.dtype not in ("uint8", "int8"):
        counts = np.full((1, 1), float(count), np.float32)
        return _average(lowering, node, x, y, _whole_image(shape), counts)
    builder = ProgramBuilder(("int32",))
    builder.add(
        "scale_sum", (0,), "float32", input_scale=item.scale, count=count, zero_point=item.zero
    )
    output = lowering.tensor(y, "float32")
    lowering.add(
        PoolingOp(
            label=node.label,
            outputs=[output],
            operands=[],
            program=builder.build(),
            input=item.tensor,
            kind="sum",
            geometry=_whole_image(shape),
            element=Program((item.tensor.dtype,)),
            counts=None,
            fill=0,
        )
    )
    lowering.items[y] = Stored(output)
    return True


def _average(
    lowering: Lowering, node: Node, x: Value, y: Value, geometry: Geometry, counts: Array
) -> bool:
    output = lowering.tensor(y, "float32")
    _emit_average(lowering, node, x, output, geometry, counts)
    lowering.items[y] = Stored(output)
    return True


def _emit_average(
    lowering: Lowering, node: Node, x: Value, output: PlanTensor, geometry: Geometry, counts: Array
) -> None:
    item = lowering.item(x)
    if isinstance(item, Quantized):
        source, fill = item.tensor, float(item.zero)
        element = dequantize(source.dtype, item.scale, item.zero)
    else:
        source, fill, element = lowering.stored(x), 0.0, Program(("float32",))
    lowering.add(
        PoolingOp(
            label=node.label,
            outputs=[output],
            operands=[],
            program=Program(("float32",)).then("pool_average"),
            input=source,
            kind="average",
            geometry=geometry,
            element=element,
            counts=counts,
            fill=fill,
        )
    )


def _counts(
    geometry: Geometry, shape: tuple[int, ...], output: tuple[int, ...], include_pad: bool
) -> Array:
    """Number of elements that each output pixel averages: [OH, OW] float32."""
    sizes = (1, shape[2]) if len(shape) == 3 else shape[2:]
    out = (1, output[2]) if len(output) == 3 else output[2:]
    per_axis = []
    for axis in range(2):
        before, after = geometry.pads[axis], geometry.pads[axis + 2]
        low, high = (-before, sizes[axis] + after) if include_pad else (0, sizes[axis])
        starts = np.arange(out[axis])[:, None] * geometry.strides[axis] - before
        at = starts + np.arange(geometry.kernel[axis])[None] * geometry.dilations[axis]
        per_axis.append(((at >= low) & (at < high)).sum(1))
    rows, columns = per_axis
    return np.outer(rows, columns).astype(np.float32)


def _whole_image(shape: tuple[int, ...]) -> Geometry:
    kernel = (1, shape[2]) if len(shape) == 3 else (shape[2], shape[3])
    return Geometry(kernel, (1, 1), (1, 1), (0, 0, 0, 0))


def _is_float32(lowering: Lowering, value: Value) -> bool:
    item = lowering.item(value)
    return isinstance(item, Quantized) or (
        isinstance(item, Stored) and item.tensor.dtype == "float32"
    )


RULES: dict[str, Callable[[Lowering, Node], bool]] = {
    "Conv": convolution,
    "MaxPool": max_pool,
    "GlobalMaxPool": global_max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "ReduceMean": reduce_mean,
}
