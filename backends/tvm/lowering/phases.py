"""ConvTranspose to few channels: its phases as the channels of a convolution, put in order after.

Convolutions compute whole blocks of channels. Stored interleaved, each phase of a stride would be a
block of its own, of which a result of one channel uses one lane; side by side the phases share it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ....ir.graph import Node, Value, normalize_domain
from ....ir.model import Model
from ....ir.tensor import Array, Tensor
from .convolution_transpose import find_phases, split_weights

log = logging.getLogger(__name__)

FEW = 8
"""Channels from which on a phase fills at least half of a block on any target."""

_SLICE_BY_OPERANDS = 10
"""The operator set from which on Slice takes its bounds as operands."""


def part_phases(model: Model) -> None:
    """Replace ConvTranspose of float32 to few channels by Conv, DepthToSpace and Slice."""
    nodes: list[Node] = []
    for node in model.graph.nodes:
        made = _parted(model, node)
        if made:
            log.debug("%s (ConvTranspose): its phases are channels of a convolution", node.label)
            node.detach_inputs()
            node.graph = None
        nodes += made or [node]
    model.graph.nodes = nodes
    for node in nodes:
        node.graph = model.graph


def _parted(model: Model, node: Node) -> list[Node]:
    """What takes a node's place; empty where it stays."""
    if node.op_type != "ConvTranspose" or normalize_domain(node.domain) != "":
        return []
    x, y = node.input(0), node.output(0)
    weights, bias = _constant(model, node.input(1)), _constant(model, node.input(2))
    if x is None or y is None or weights is None or model.opset < _SLICE_BY_OPERANDS:
        return []
    if (bias is None) != (node.input(2) is None) or x.dtype != y.dtype:
        return []
    sizes, out = _static(x), _static(y)
    if sizes is None or out is None or len(sizes) != 4 or 0 in (*sizes, *out) or out[1] >= FEW:
        return []
    if int(node.get("group", 1)) != 1 or weights.dtype != np.float32:
        return []
    phases = find_phases(node, sizes[2:], out[2:], weights.shape[2:])
    if phases is None:
        return []
    geometry, upsampling, taps = phases
    stride = upsampling.factors[0]
    if stride == 1 or upsampling.factors[1] != stride:
        return []
    packed = split_weights(weights, upsampling, taps)
    made: list[Node] = []

    def add(
        op_type: str, inputs: Sequence[Value], shape: Sequence[int], **attributes: object
    ) -> Value:
        result = Value(model.fresh_name(f"{y.name}/{op_type}"))
        result.set_tensor_type(y.dtype, shape)
        made.append(Node(op_type, inputs, [result], name=node.label))
        for name, value in attributes.items():
            made[-1].set(name, value)
        return result

    def constant(array: Array) -> Value:
        name = model.fresh_name(f"{y.name}/constant")
        return model.graph.add_initializer(name, Tensor.from_array(np.ascontiguousarray(array)))

    operands = [x, constant(packed)]
    if bias is not None:
        operands.append(constant(np.tile(bias, stride * stride)))
    high, wide = upsampling.size
    shape = (out[0], len(packed), high, wide)
    side = add(
        "Conv", operands, shape, pads=list(geometry.pads), kernel_shape=list(geometry.kernel)
    )
    shape = (out[0], out[1], high * stride, wide * stride)
    whole = add("DepthToSpace", [side], shape, blocksize=stride)
    starts = np.asarray([-offset for offset in upsampling.offset], np.int64)
    bounds = [constant(starts), constant(starts + out[2:]), constant(np.asarray([2, 3], np.int64))]
    made.append(Node("Slice", [whole, *bounds], [y], name=node.label))
    return made


def _constant(model: Model, value: Value | None) -> Array | None:
    tensor = model.constant(value)
    return None if tensor is None else tensor.numpy()


def _static(value: Value) -> tuple[int, ...] | None:
    shape = value.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(size for size in shape if isinstance(size, int))
