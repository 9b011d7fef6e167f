"""Lowering of Conv."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....ir.graph import Node
from ....ir.tensor import Array
from ..plan.geometry import Geometry
from ..plan.operations import ConvolutionOp
from ..plan.padding import automatic_pads
from ..plan.programs import Program
from ..plan.sizes import is_open
from .accumulators import integer_accumulator, integer_weights
from .context import Constant, Lowering, Quantized, Stored, check_int32
from .one_channel import fold_taps


def convolution(lowering: Lowering, node: Node) -> bool:
    x, w, y = node.input(0), node.input(1), node.output(0)
    if x is None or w is None or y is None or lowering.constant(w) is None:
        return False
    shape = lowering.shape(x)
    if len(shape) not in (3, 4) or 0 in shape or is_open(shape[1]):
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
    if not lowering.is_computed_float(x) or weights.dequantized().dtype != np.float32:
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
    op = ConvolutionOp(
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
    lowering.add(fold_taps(lowering, op))
    lowering.items[y] = Stored(output)
    return True


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
            pads[axis], pads[axis + rank] = automatic_pads(
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


RULES: dict[str, Callable[[Lowering, Node], bool]] = {
    "Conv": convolution,
}
