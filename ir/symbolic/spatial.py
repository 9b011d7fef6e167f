"""Shape rules of operators on images: windows that slide, and sizes that are scaled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..graph import Node
from . import expressions as e
from .expressions import Size
from .facts import LARGEST_SCALE, LIMIT, Facts, Misfit, Shape, position
from .registry import shape_rule

Attribute = Callable[[str, Any], Any]
"""Gives an attribute by its name, or the second argument where it is absent."""

POOLING = ("AveragePool", "LpPool", "MaxPool")
"""Operators with a sliding window and no weights."""

_SAME = ("SAME_UPPER", "SAME_LOWER")


@shape_rule("Conv", "ConvInteger")
def convolution(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape, weight = facts.shape(node.input(0)), facts.shape(node.input(1))
    if shape is None or weight is None or len(shape) != len(weight) or len(shape) < 3:
        return [None]
    counts = convolved_sizes(node.get, shape[2:], weight[2:])
    return [None if counts is None else (shape[0], weight[0], *counts)]


@shape_rule("ConvTranspose")
def transposed_convolution(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape, weight = facts.shape(node.input(0)), facts.shape(node.input(1))
    if shape is None or weight is None or len(shape) != len(weight) or len(shape) < 3:
        return [None]
    rank = len(shape) - 2
    channels = e.multiply(weight[1], node.get("group", 1))
    given = node.get("output_shape")
    if given is not None:
        return [(shape[0], channels, *given[-rank:]) if len(given) >= rank else None]
    strides, dilations = (_each(node.get, name, 1, rank) for name in ("strides", "dilations"))
    added = _each(node.get, "output_padding", 0, rank)
    pads = node.get("pads") or [0] * (2 * rank)
    automatic = node.get("auto_pad", "NOTSET")
    if len(pads) != 2 * rank:
        raise Misfit(f"{len(pads)} pads for {rank} axes")
    sizes: list[Size] = []
    for axis, size in enumerate(shape[2:]):
        if automatic in _SAME:
            sizes.append(e.multiply(size, strides[axis]))
            continue
        window = e.multiply(e.add(weight[2 + axis], -1), dilations[axis])
        cut = pads[axis] + pads[axis + rank] if automatic == "NOTSET" else 0
        steps = e.multiply(e.add(size, -1), strides[axis])
        sizes.append(e.add(steps, window, 1 + added[axis] - cut))
    return [(shape[0], channels, *sizes)]


@shape_rule(*POOLING)
def pooling(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    if shape is None or len(shape) < 3:
        return [None] * len(node.outputs)
    return [(*shape[:2], *pooled_sizes(node.get, shape[2:]))] * len(node.outputs)


@shape_rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    return [None if shape is None else (*shape[:2], *[1] * (len(shape) - 2))]


def convolved_sizes(
    get: Attribute, sizes: Sequence[Size], kernel: Sequence[Size]
) -> list[Size] | None:
    """How many windows of a convolution fit along each axis."""
    rank = len(sizes)
    strides, dilations = (_each(get, name, 1, rank) for name in ("strides", "dilations"))
    pads = get("pads", None) or [0] * (2 * rank)
    automatic = get("auto_pad", "NOTSET")
    if len(pads) != 2 * rank or min(strides, default=1) < 1:
        raise Misfit(f"pads {pads} and strides {strides} for {rank} axes")
    counts: list[Size] = []
    for axis, size in enumerate(sizes):
        if automatic in _SAME:
            counts.append(e.ceil_divide(size, strides[axis]))
            continue
        window = e.multiply(e.add(kernel[axis], -1), -dilations[axis])
        padding = pads[axis] + pads[axis + rank] if automatic == "NOTSET" else 0
        room = e.add(size, window, padding - 1)
        counts.append(e.add(e.floor_divide(room, strides[axis]), 1))
    return counts


def pooled_sizes(get: Attribute, sizes: Sequence[Size]) -> list[Size]:
    """The size of each spatial axis after pooling, as ONNX Runtime has it.

    In `ceil_mode` a last window that begins behind the image is left out, and what
    `auto_pad` adds is for windows without their dilation, and may be negative.
    """
    rank = len(sizes)
    kernel = get("kernel_shape", [])
    strides, dilations = (_each(get, name, 1, rank) for name in ("strides", "dilations"))
    pads = get("pads", None) or [0] * (2 * rank)
    automatic = get("auto_pad", "NOTSET")
    if len(kernel) != rank or len(pads) != 2 * rank or min(strides, default=1) < 1:
        raise Misfit(f"windows of {len(kernel)} axes, pads {pads} for {rank} axes")
    counts: list[Size] = []
    for axis, size in enumerate(sizes):
        stride, before, padding = strides[axis], pads[axis], pads[axis] + pads[axis + rank]
        first, added = e.add(size, before), e.add(size, padding)
        if automatic == "VALID":
            first = added = size
        elif automatic in _SAME:
            total = automatic_padding(size, kernel[axis], stride)
            odd = 1 if automatic == "SAME_LOWER" else 0
            first = e.add(size, e.divide(e.add(total, odd), 2))
            added = e.add(size, total)
        room = e.add(added, -dilations[axis] * (kernel[axis] - 1) - 1)
        count = e.add(e.floor_divide(room, stride), 1)
        if get("ceil_mode", 0):
            count = e.add(e.ceil_divide(room, stride), 1)
            begins = e.multiply(e.add(count, -1), stride)
            # The last window begins at most `stride` - 1 after the last that fits.
            after = e.subtract(added, first)
            least = dilations[axis] * (kernel[axis] - 1) + 2 - stride
            is_inside = isinstance(after, int) and after < least
            count = e.add(count, -1, 1 if is_inside else e.less(begins, first))
        counts.append(count)
    return counts


def automatic_padding(size: Size, kernel: int, stride: int) -> Size:
    """What `auto_pad` adds to an axis in all. Where strides are longer than windows it may be
    negative: pixels that pooling leaves out."""
    steps = e.add(e.ceil_divide(size, stride), -1)
    return e.add(e.multiply(steps, stride), kernel, e.negative(size))


def _each(get: Attribute, name: str, default: int, rank: int) -> list[int]:
    given = get(name, None) or [default] * rank
    if len(given) != rank:
        raise Misfit(f"{name} {given} for {rank} axes")
    return list(given)


# --- sizes that are scaled -------------------------------------------------------------------


@shape_rule("DepthToSpace", "SpaceToDepth")
def blocks(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape, block = facts.shape(node.input(0)), node.get("blocksize", 1)
    if shape is None or len(shape) != 4 or block < 1:
        return [None]
    batch, channels, *image = shape
    if node.op_type == "DepthToSpace":
        depth = e.floor_divide(channels, block * block)
        return [(batch, depth, *(e.multiply(size, block) for size in image))]
    return [
        (
            batch,
            e.multiply(channels, block * block),
            *(e.floor_divide(size, block) for size in image),
        )
    ]


@shape_rule("Resize", "Upsample")
def resize(node: Node, facts: Facts) -> Sequence[Shape | None]:
    """To given sizes, or by scales, which data may decide."""
    shape = facts.shape(node.input(0))
    if shape is None:
        return [None]
    axes = [position(a, len(shape)) for a in node.get("axes") or range(len(shape))]
    sizes = facts.elements(node.input(3))
    if sizes is not None and len(sizes) == len(axes):
        if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return [_fitted(node, facts, shape, dict(zip(axes, sizes, strict=True)))]
        told = [facts.as_size(s) if e.mentions(s, "data") else s for s in sizes]
        return [_replaced(shape, dict(zip(axes, told, strict=True)))]
    scales = node.get("scales") or scales_of(node, facts)
    if scales is None or len(scales) != len(axes):
        return [None]
    scaled: dict[int, Size] = {}
    for axis, scale in zip(axes, scales, strict=True):
        if scale is None:
            scaled[axis] = facts.computed(node, axis)
        elif 0 < scale < LARGEST_SCALE:
            scaled[axis] = e.scaled(shape[axis], scale)
        else:
            return [None]
    return [_replaced(shape, scaled)]


def _fitted(node: Node, facts: Facts, shape: Shape, sizes: Mapping[int, Size]) -> Shape | None:
    """A shape whose aspect ratio is kept, by one scale that only a run computes."""
    if all(isinstance(size, int) for size in (*shape, *sizes.values())):
        return None  # ONNX's own inference computes it
    is_most = node.get("keep_aspect_ratio_policy") == "not_larger"
    found = {
        axis: facts.computed(node, axis, size if is_most and e.is_nonnegative(size) else None)
        for axis, size in sizes.items()
    }
    return _replaced(shape, found)


def scales_at(node: Node, opset: int) -> int:
    """Which operand of Resize or Upsample are the scales."""
    return 2 if node.op_type == "Resize" and opset >= 11 else 1


def scales_of(node: Node, facts: Facts) -> list[float | None] | None:
    """The scales that an operand holds, None for those that only a run knows; None where not even
    their number is known."""
    value = node.input(scales_at(node, facts.opset))
    joined = None if value is None else value.producer
    parts = joined.inputs if joined is not None and joined.op_type == "Concat" else (value,)
    scales: list[float | None] = []
    for part in parts:
        known, shape = facts.numbers(part), facts.shape(part)
        if known is not None:
            scales.extend(known)
        elif shape is not None and len(shape) == 1 and isinstance(shape[0], int):
            scales.extend([None] * min(shape[0], LIMIT))
        else:
            return None
    return scales or None


def _replaced(shape: Shape, sizes: Mapping[int, Size]) -> Shape:
    return tuple(sizes.get(axis, size) for axis, size in enumerate(shape))


# --- transforms of signals -------------------------------------------------------------------


@shape_rule("DFT")
def fourier(node: Node, facts: Facts) -> Sequence[Shape | None]:
    """Parts of complex numbers last; half of a spectrum, and one more, where that is asked for.

    Half of one that is turned back gives real numbers, an even number where nothing says how many.
    """
    shape = facts.shape(node.input(0))
    onesided, inverse = bool(node.get("onesided", 0)), bool(node.get("inverse", 0))
    if shape is None or len(shape) < 2:
        return [None]
    axes: Sequence[Size] | None = [node.get("axis", 1)] if facts.opset < 20 else [-2]
    if facts.opset >= 20 and node.input(2) is not None:
        axes = facts.integers(node.input(2))
    given = None if node.input(1) is None else facts.integers(node.input(1))
    if axes is None or not isinstance(axes[0], int) or (node.input(1) is not None and not given):
        return [None]
    axis = position(axes[0], len(shape))
    if onesided and inverse:
        whole = given[0] if given else e.multiply(e.subtract(shape[axis], 1), 2)
        return [_replaced(shape, {axis: whole, len(shape) - 1: 1})]
    length = given[0] if given else shape[axis]
    own = e.add(e.floor_divide(length, 2), 1) if onesided else length
    return [_replaced(shape, {axis: own, len(shape) - 1: 2})]


@shape_rule("STFT")
def framed_fourier(node: Node, facts: Facts) -> Sequence[Shape | None]:
    """[N, samples, ...] -> [N, frames, frequencies, 2]: as many frames as fit."""
    shape, window = facts.shape(node.input(0)), facts.shape(node.input(2))
    step, given = facts.integers(node.input(1)), facts.integers(node.input(3))
    length: Size | None = given[0] if given else window[0] if window else None
    if shape is None or len(shape) < 2 or not step or step[0] < 1 or length is None:
        return [None]
    frames = e.add(e.floor_divide(e.subtract(shape[1], length), step[0]), 1)
    bins = e.add(e.floor_divide(length, 2), 1) if node.get("onesided", 1) else length
    return [(shape[0], frames, bins, 2)]
