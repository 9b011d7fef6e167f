"""Shape rules of convolutions and pooling: windows that slide over the spatial axes."""

from __future__ import annotations

from ....ir.graph import Node
from . import expression as e
from .expression import Size
from .facts import Facts, Shape
from .shapes import Rule


def convolution(node: Node, facts: Facts) -> list[Shape | None]:
    shape, weight = facts.shape(node.input(0)), facts.shape(node.input(1))
    if shape is None or weight is None or len(shape) != len(weight):
        return [None]
    spatial = _windows(node, shape[2:], list(weight[2:]))
    return [None if spatial is None else (shape[0], weight[0], *spatial)]


def pooling(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    spatial = None if shape is None else _windows(node, shape[2:], node.get("kernel_shape", []))
    if shape is None or spatial is None:
        return [None] * len(node.outputs)
    return [(*shape[:2], *spatial)] * len(node.outputs)


def _windows(node: Node, sizes: Shape, kernel: list[Size]) -> list[Size] | None:
    """How many windows fit along each axis; None where it isn't plain arithmetic."""
    rank = len(sizes)
    strides = node.get("strides") or [1] * rank
    dilations = node.get("dilations") or [1] * rank
    pads = node.get("pads") or [0] * (2 * rank)
    automatic = node.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID") or node.get("ceil_mode", 0):
        return None
    if not len(kernel) == len(strides) == len(dilations) == len(pads) // 2 == rank:
        return None
    counts: list[Size] = []
    for axis, size in enumerate(sizes):
        window, step = kernel[axis], strides[axis]
        if not isinstance(window, int) or step < 1:
            return None
        padding = pads[axis] + pads[axis + rank] if automatic == "NOTSET" else 0
        room = e.add(size, padding - dilations[axis] * (window - 1) - 1)
        counts.append(e.add(e.divide(room, step), 1))
    return counts


RULES: dict[str, Rule] = {
    "AveragePool": pooling,
    "Conv": convolution,
    "LpPool": pooling,
    "MaxPool": pooling,
}
