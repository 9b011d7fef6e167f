"""Pad folded into the convolution or pooling after it."""

from __future__ import annotations

import numpy as np

from ...ir.graph import Node, Value
from ...ir.ops import Trait, traits
from .rewriter import Rewriter, RuleSet, only_reader, producer
from .shapes import integers

RULES = RuleSet()


@RULES.on("Conv", "AveragePool", "MaxPool")
def fold_padding(node: Node, rewriter: Rewriter) -> bool:
    """Constant padding of the spatial axes becomes part of the operator's own."""
    padding = producer(node.input(0), "Pad")
    padded = node.input(0)
    source = None if padding is None else padding.input(0)
    if padding is None or padded is None or source is None or only_reader(padded) is not node:
        return False
    pads = _spatial_pads(padding, source, rewriter)
    if pads is None or node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    old = node.get("pads") or [0] * len(pads)
    if len(old) != len(pads) or not _pads_alike(node, padding, source, old, rewriter):
        return False
    new = [a + b for a, b in zip(old, pads, strict=True)]
    if node.op_type != "Conv" and not _fits_window(node, new):
        return False
    if node.op_type == "AveragePool":
        node.set("count_include_pad", 1)
    node.attributes.pop("auto_pad", None)
    node.set("pads", new)
    rewriter.set_input(node, 0, source)
    return True


def _spatial_pads(node: Node, source: Value, rewriter: Rewriter) -> list[int] | None:
    """Padding as convolutions write it; None where it is none that they have."""
    pads = integers(rewriter, node, "pads", 1)
    if node.get("mode", "constant") != "constant" or pads is None:
        return None
    begins, ends = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if node.input(3) is not None:
        axes, rank = rewriter.ints(node.input(3)), source.rank
        if axes is None or rank is None:
            return None
        begins, ends = _by_axis(axes, begins, rank), _by_axis(axes, ends, rank)
    if min(begins + ends) < 0 or len(begins) < 3:
        return None
    if any(begins[:2]) or any(ends[:2]):
        return None
    return begins[2:] + ends[2:]


def _by_axis(axes: list[int], sizes: list[int], rank: int) -> list[int]:
    """Sizes of all axes, of which those not in `axes` are 0."""
    given = {axis % rank: size for axis, size in zip(axes, sizes, strict=True)}
    return [given.get(axis, 0) for axis in range(rank)]


def _pads_alike(
    node: Node, padding: Node, source: Value, old: list[int], rewriter: Rewriter
) -> bool:
    """Whether the operator's own padding has the same effect as the elements put in before."""
    value = _fill(padding, rewriter)
    if value is None:
        return False
    if node.op_type == "Conv":
        return value == 0
    if node.get("ceil_mode", 0):
        return False  # windows that end in the padding are counted differently
    if node.op_type == "AveragePool":
        # Only padding that is counted is like elements, so there must be no other.
        counted = bool(node.get("count_include_pad", 0))
        return value == 0 and rewriter.opset >= 7 and (counted or not any(old))
    if value == -np.inf:
        return len(node.outputs) == 1
    made = source.producer
    positive = made is not None and Trait.NON_NEGATIVE in traits(made)
    return value == 0 and positive and len(node.outputs) == 1


def _fill(node: Node, rewriter: Rewriter) -> float | None:
    if rewriter.opset < 11:
        return float(node.get("value", 0.0))
    return 0.0 if node.input(2) is None else rewriter.scalar(node.input(2))


def _fits_window(node: Node, pads: list[int]) -> bool:
    """Whether no window lies in the padding altogether."""
    kernel = node.get("kernel_shape", [])
    dilations = node.get("dilations") or [1] * len(kernel)
    if any(step != 1 for step in dilations):
        return False
    return all(pad < size for pad, size in zip(pads, [*kernel, *kernel], strict=True))
