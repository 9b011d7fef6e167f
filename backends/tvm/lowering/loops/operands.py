"""Shapes that operands must have: what ONNX's inference doesn't check, and kernels rely on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ...plan.sizes import is_open
from .base import OperatorCall

Shape = tuple[int, ...]

_NUMBERS: dict[str, tuple[int, ...]] = {
    "BlackmanWindow": (0,),
    "Clip": (1, 2),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,),
    "Pad": (2,),
    "Range": (0, 1, 2),
    "STFT": (1, 3),
    "TopK": (1,),
    "Trilu": (1,),
}
"""Operands that are one number, of any rank."""

_CHANNELS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
}
"""Operands with one number for each channel."""


def check_operands(call: OperatorCall) -> None:
    """Raise UnsupportedError where an operand's shape doesn't go with the others'."""
    op_type = call.node.op_type
    for index in _NUMBERS.get(op_type, ()):
        if call.has(index) and np.prod(call.shape(index)) != 1:
            _refuse(call, index, "one number")
    for index in _CHANNELS.get(op_type, ()):
        channels = call.shape(0)[1] if call.rank(0) > 1 else 1
        _expect(call, index, (channels,))
    check = _RULES.get(op_type)
    if check is not None:
        check(call)


def _refuse(call: OperatorCall, index: int, expected: str) -> None:
    value = call.value(index)
    call.fail(f"operand '{value.name}' has shape {list(call.shape(index))}, not {expected}")


def _expect(call: OperatorCall, index: int, *shapes: Sequence[int]) -> None:
    if call.has(index) and call.shape(index) not in [tuple(s) for s in shapes]:
        _refuse(call, index, " or ".join(str(list(s)) for s in shapes))


def _expect_broadcast(call: OperatorCall, index: int, shape: Shape) -> None:
    """An operand that broadcasts to a shape, and not the other way round."""
    if not call.has(index):
        return
    own = call.shape(index)
    aligned = (1,) * (len(shape) - len(own)) + own
    if len(aligned) != len(shape) or any(a not in (1, b) for a, b in zip(aligned, shape)):  # noqa: B905
        _refuse(call, index, f"one that broadcasts to {list(shape)}")


def _weights(call: OperatorCall, index: int) -> None:
    """A convolution's, of its input's channels and of the kernel that attributes may state."""
    weights, groups = call.shape(index), int(call.node.get("group", 1))
    if call.shape()[1] != weights[1] * groups or weights[0] % groups:
        _refuse(call, index, f"one for {call.shape()[1]} channels in {groups} groups")
    _expect(call, index, (*weights[:2], *call.node.get("kernel_shape", weights[2:])))


def _conv(call: OperatorCall) -> None:
    _weights(call, 1)
    _expect(call, 2, (call.shape(1)[0],))


def _conv_transpose(call: OperatorCall) -> None:
    weights = call.shape(1)
    _expect(call, 1, (call.shape()[1], weights[1], *call.node.get("kernel_shape", weights[2:])))
    _expect(call, 2, (weights[1] * int(call.node.get("group", 1)),))


def _qlinear_conv(call: OperatorCall) -> None:
    _weights(call, 3)
    channels = call.shape(3)[0]
    for index in (1, 2, 6, 7):
        _expect(call, index, (), (1,))
    for index in (4, 5):
        _expect(call, index, (), (1,), (channels,))
    _expect(call, 8, (channels,))


def _conv_integer(call: OperatorCall) -> None:
    _weights(call, 1)
    _expect(call, 2, (), (1,))
    _expect(call, 3, (), (1,), (call.shape(1)[0],))


def _gemm(call: OperatorCall) -> None:
    _expect_broadcast(call, 2, call.output_shape())


def _prelu(call: OperatorCall) -> None:
    if call.opset >= 7:
        _expect_broadcast(call, 1, call.shape(0))


def _layer_normalization(call: OperatorCall) -> None:
    axis = call.axis(call.rank(), -1)
    for index in (1, 2):
        _expect_broadcast(call, index, call.shape()[axis:])


def _group_normalization(call: OperatorCall) -> None:
    groups, channels = int(call.node.get("num_groups")), call.shape()[1]
    for index in (1, 2):
        _expect(call, index, (groups if call.opset < 21 else channels,))


def _linear(call: OperatorCall) -> None:
    """Scales are per tensor, along the axis, or per block of it; zero points as scales.

    Of one number each may be a scalar where the other isn't.
    """
    shape, scale = call.shape(0), call.shape(1)
    if np.prod(scale) != 1 or not call.has(2) or np.prod(call.shape(2)) != 1:
        _expect(call, 2, scale)
    axis, block = int(call.node.get("axis", 1)), int(call.node.get("block_size", 0))
    if np.prod(scale) == 1 and len(scale) <= 1:
        return
    if not -len(shape) <= axis < len(shape):
        call.fail(f"axis {axis} of a tensor of rank {len(shape)}")
    axis %= len(shape)
    if block:
        blocks = -(-shape[axis] // block)
        _expect(call, 1, (*shape[:axis], blocks, *shape[axis + 1 :]))
    else:
        _expect(call, 1, (shape[axis],))


def _integer_product(
    points: tuple[int, int], matrices: tuple[int, int]
) -> Callable[[OperatorCall], None]:
    """Zero points (and scales) of a product: one number, or one per row, or per column."""

    def check(call: OperatorCall) -> None:
        a, b = (call.shape(i) for i in matrices)
        rows, columns = (a[-2] if len(a) > 1 else 1), (b[-1] if len(b) > 1 else 1)
        _expect(call, points[0], (), (1,), (rows,))
        _expect(call, points[1], (), (1,), (columns,))

    return check


def _qlinear_matmul(call: OperatorCall) -> None:
    for points in ((1, 4), (2, 5)):
        _integer_product(points, (0, 3))(call)
    for index in (6, 7):
        _expect(call, index, (), (1,))


def _recurrent(call: OperatorCall) -> None:
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[call.node.op_type]
    first = bool(call.node.get("layout", 0))
    steps_batch = call.shape(0)[:2]
    batch, size = steps_batch[0 if first else 1], call.shape(0)[2]
    directions = 2 if call.node.get("direction", "forward") == "bidirectional" else 1
    hidden = call.shape(2)[2] if call.rank(2) == 3 else 0
    _expect(call, 1, (directions, gates * hidden, size))
    _expect(call, 2, (directions, gates * hidden, hidden))
    _expect(call, 3, (directions, 2 * gates * hidden))
    _expect(call, 4, (batch,))
    for index in (5, 6):
        state = (batch, directions, hidden) if first else (directions, batch, hidden)
        _expect(call, index, state)
    _expect(call, 7, (directions, 3 * hidden))


def _one_hot(call: OperatorCall) -> None:
    _expect(call, 2, (2,))


def _gather_elements(call: OperatorCall) -> None:
    _within_data(call)


def _scatter_elements(call: OperatorCall) -> None:
    _within_data(call)
    _expect(call, 2, call.shape(1))


def _within_data(call: OperatorCall) -> None:
    """Indices reach no further than the data on all axes but their own."""
    data, indices = call.shape(0), call.shape(1)
    axis = call.axis(len(data), 0)
    others = [pair for a, pair in enumerate(zip(indices, data, strict=False)) if a != axis]
    if len(data) != len(indices) or any(i > d for i, d in others if not is_open(i, d)):
        _refuse(call, 1, f"one within {list(data)}")
    for own, most in others:
        call.lowering.require_at_most(own, most)


def _gather_nd(call: OperatorCall) -> None:
    data, indices = call.shape(0), call.shape(1)
    batch = int(call.node.get("batch_dims", 0))
    if not indices or batch + indices[-1] > len(data) or data[:batch] != indices[:batch]:
        _refuse(call, 1, f"indices into {list(data)}")


def _scatter_nd(call: OperatorCall) -> None:
    data, indices = call.shape(0), call.shape(1)
    if not indices or indices[-1] > len(data):
        _refuse(call, 1, f"indices into {list(data)}")
    _expect(call, 2, (*indices[:-1], *data[indices[-1] :]))


def _roi_align(call: OperatorCall) -> None:
    count = call.shape(1)[0]
    _expect(call, 1, (count, 4))
    _expect(call, 2, (count,))


def _max_roi_pool(call: OperatorCall) -> None:
    _expect(call, 1, (call.shape(1)[0], 5))


def _reverse_sequence(call: OperatorCall) -> None:
    _expect(call, 1, (call.shape()[int(call.node.get("batch_axis", 1))],))


def _grid_sample(call: OperatorCall) -> None:
    shape, grid = call.shape(0), call.shape(1)
    _expect(call, 1, (shape[0], *grid[1:-1], len(shape) - 2))


def _max_unpool(call: OperatorCall) -> None:
    _expect(call, 1, call.shape(0))


def _compress(call: OperatorCall) -> None:
    _expect(call, 1, (math.prod(call.shape(1)),))


def _non_max_suppression(call: OperatorCall) -> None:
    boxes, scores = call.shape(0), call.shape(1)
    _expect(call, 0, (boxes[0], boxes[1], 4))
    _expect(call, 1, (boxes[0], scores[1], boxes[1]))


_RULES: dict[str, Callable[[OperatorCall], None]] = {
    "Compress": _compress,
    "Conv": _conv,
    "ConvInteger": _conv_integer,
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _linear,
    "GRU": _recurrent,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "GridSample": _grid_sample,
    "GroupNormalization": _group_normalization,
    "LSTM": _recurrent,
    "LayerNormalization": _layer_normalization,
    "MatMulInteger": _integer_product((2, 3), (0, 1)),
    "MaxRoiPool": _max_roi_pool,
    "MaxUnpool": _max_unpool,
    "NonMaxSuppression": _non_max_suppression,
    "OneHot": _one_hot,
    "PRelu": _prelu,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _linear,
    "RMSNormalization": _layer_normalization,
    "SimplifiedLayerNormalization": _layer_normalization,
    "RNN": _recurrent,
    "ReverseSequence": _reverse_sequence,
    "RoiAlign": _roi_align,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
