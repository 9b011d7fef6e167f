"""Rule of ConvTranspose: one convolution for all phases of its stride.

Output row s * q + r - pad gathers the taps k with k * dilation = r modulo s, from input
rows q - (k * dilation - r) / s. So the rows of one phase r are a convolution of stride 1
with every s-th tap, and all phases together are one of s times as many channels, whose
results are stored interleaved (the sub-pixel form).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ....ir.graph import Node
from ....ir.tensor import Array
from ..plan.geometry import Geometry, Upsampling
from ..plan.operations import ConvolutionOp
from ..plan.programs import Program
from ..plan.sizes import is_open
from ..plan.tensors import PlanTensor
from .accumulators import integer_accumulator, integer_weights
from .context import Constant, Lowering, Quantized, Stored, check_int32
from .convolution import image_weights

LIMIT = 2**26
"""Elements up to which grouped weights are spelled out as dense ones."""


def conv_transpose(lowering: Lowering, node: Node) -> bool:
    x, w, y = node.input(0), node.input(1), node.output(0)
    if x is None or w is None or y is None or lowering.constant(w) is None:
        return False
    shape, out = lowering.shape(x), lowering.shape(y)
    weights = lowering.item(w)
    if (
        len(shape) not in (3, 4)
        or is_open(shape[1])
        or 0 in shape
        or 0 in out
        or not isinstance(weights, Constant)
    ):
        return False
    if weights.dequantized().dtype != np.float32:
        return False
    groups = int(node.get("group", 1))
    phases = find_phases(node, shape[2:], out[2:], weights.array.shape[2:])
    if phases is None or weights.array.size * groups > LIMIT:
        return False
    item = lowering.item(x)
    values = _dense(image_weights(weights.dequantized()), groups)
    bias, fill, source = lowering.constant(node.input(2)), 0, None
    if bias is None and node.input(2) is not None:
        return False
    channels = values.shape[1]
    program: Program = Program(("float32",))
    operands: list[PlanTensor] = []
    accumulator: Array = np.zeros(channels, np.float32) if bias is None else bias
    if isinstance(item, Quantized) and item.tensor.dtype in ("uint8", "int8"):
        integer = integer_weights(weights, 1) if groups == 1 else None
        if integer is not None:
            found = integer_accumulator(lowering, node, item, weights, channels)
            if found is None:
                return False
            accumulator, program, operands = found
            values, fill, source = image_weights(integer), item.zero, item.tensor
    elif not isinstance(item, Stored) or item.tensor.dtype != "float32":
        return False
    geometry, upsampling, taps = phases
    packed = split_weights(values, upsampling, taps)
    per_phase = np.tile(accumulator, math.prod(upsampling.factors))
    if source is not None:
        sums = packed.reshape(packed.shape[0], -1).astype(np.int64).sum(1)
        per_phase = check_int32(per_phase - fill * sums)
    output = lowering.tensor(y, "float32")
    lowering.add(
        ConvolutionOp(
            label=node.label,
            outputs=[output],
            operands=operands,
            program=program,
            input=lowering.stored(x) if source is None else source,
            weights=packed,
            bias=per_phase,
            geometry=geometry,
            groups=1,
            fill=fill,
            upsampling=upsampling,
        )
    )
    lowering.items[y] = Stored(output)
    return True


Taps = tuple[list[list[tuple[int, int]]], ...]
"""Per axis and phase the pairs of a tap of the convolution and one of the original."""


def find_phases(
    node: Node, sizes: tuple[int, ...], out: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[Geometry, Upsampling, Taps] | None:
    """The convolution's window, how its results are stored, and where its taps come from."""
    rank = len(sizes)
    strides = [int(s) for s in node.get("strides", [1] * rank)]
    dilations = [int(d) for d in node.get("dilations", [1] * rank)]
    pads = begin_pads(node, sizes, out, kernel, strides, dilations)
    axes = [_axis(*a) for a in zip(sizes, out, kernel, strides, dilations, pads, strict=True)]
    if rank == 1:
        axes.insert(0, _axis(1, 1, 1, 1, 1, 0))
    if any(a is None for a in axes):
        return None
    high, wide = axes
    assert high is not None
    assert wide is not None
    geometry = Geometry(
        (high.width, wide.width),
        (1, 1),
        (1, 1),
        (high.before, wide.before, high.after, wide.after),
    )
    upsampling = Upsampling(
        (high.stride, wide.stride),
        (high.offset, wide.offset),
        (high.size, wide.size),
        (high.windows, wide.windows),
    )
    return geometry, upsampling, (high.taps, wide.taps)


class _Axis:
    """One axis: `size` positions of a window of `width` taps, results from `offset` on."""

    def __init__(
        self, size: int, out: int, kernel: int, stride: int, dilation: int, pad: int
    ) -> None:
        self.stride = stride
        moves = [
            [((k * dilation - r) // stride, k) for k in range(kernel) if k * dilation % stride == r]
            for r in range(stride)
        ]
        every = [m for phase in moves for m, _ in phase]
        first, last = min(every), max(every)
        start, end = pad // stride, (out - 1 + pad) // stride
        self.width = last - first + 1
        self.size = end - start + 1
        self.offset = stride * start - pad
        self.before = last - start
        self.after = max(0, end - first - (size - 1))
        self.taps = [[(last - m, k) for m, k in phase] for phase in moves]
        found = [[t for t, _ in phase] or [0] for phase in self.taps]
        self.windows = tuple(
            (min(own), max(own) - min(own) + 1 if phase else 0)
            for own, phase in zip(found, self.taps, strict=True)
        )


def _axis(*arguments: int) -> _Axis | None:
    """None where the output begins past the first window."""
    axis = _Axis(*arguments)
    return axis if axis.before >= 0 else None


def begin_pads(
    node: Node,
    sizes: tuple[int, ...],
    out: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: list[int],
    dilations: list[int],
) -> list[int]:
    """How much of the full result is cut off at the beginning of each axis."""
    rank = len(sizes)
    auto = node.get("auto_pad", "NOTSET")
    extra = [int(p) for p in node.get("output_padding", [0] * rank)]
    if auto == "VALID":
        return [0] * rank
    if auto == "NOTSET" and node.get("output_shape") is None:
        return [int(p) for p in node.get("pads", [0] * 2 * rank)][:rank]
    result = []
    for a in range(rank):
        full = strides[a] * (sizes[a] - 1) + extra[a] + (kernel[a] - 1) * dilations[a] + 1
        total = max(full - out[a], 0)
        result.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
    return result


def _dense(weights: Array, groups: int) -> Array:
    """[I, O / groups, KH, KW] as [I, O, KH, KW]."""
    if groups == 1:
        return weights
    own, per_group = weights.shape[0] // groups, weights.shape[1]
    dense = np.zeros((weights.shape[0], per_group * groups, *weights.shape[2:]), weights.dtype)
    for g in range(groups):
        rows = slice(g * own, (g + 1) * own)
        dense[rows, g * per_group : (g + 1) * per_group] = weights[rows]
    return dense


def split_weights(weights: Array, upsampling: Upsampling, taps: Taps) -> Array:
    """[I, O, KH, KW] to the convolution's [phases * O, I, window], zero where it has no tap."""
    rows, columns = upsampling.factors
    window = [1 + max(t for phase in axis for t, _ in phase) for axis in taps]
    inputs, outputs = weights.shape[:2]
    result = np.zeros((rows, columns, outputs, inputs, *window), weights.dtype)
    for r in range(rows):
        for c in range(columns):
            for th, kh in taps[0][r]:
                for tw, kw in taps[1][c]:
                    result[r, c, :, :, th, tw] = weights[:, :, kh, kw].T
    return result.reshape(rows * columns * outputs, inputs, *window)


RULES: dict[str, Callable[[Lowering, Node], bool]] = {"ConvTranspose": conv_transpose}
