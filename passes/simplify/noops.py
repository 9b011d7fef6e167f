"""Operators that hand on their input unchanged."""

from __future__ import annotations

import numpy as np

from ...ir.graph import Node, Value
from .rewriter import Rewriter, RuleSet
from .shapes import integers, is_definite, same_after_reshape, same_shape, static_shape

RULES = RuleSet()

_UNBOUNDED = 2**31 - 1
"""Slice ends at or above this mean "to the end" in exporters' practice."""


def _forward(node: Node, rewriter: Rewriter, source: Value | None = None) -> bool:
    """Let readers of the node's first output read its first input instead."""
    source = source if source is not None else node.input(0)
    output = node.output(0)
    if source is None or output is None or any(v is not None and v.uses for v in node.outputs[1:]):
        return False
    return rewriter.replace(output, source)


@RULES.on("Identity")
def remove_identity(node: Node, rewriter: Rewriter) -> bool:
    return _forward(node, rewriter)


@RULES.on("Dropout")
def remove_dropout(node: Node, rewriter: Rewriter) -> bool:
    if rewriter.opset < 7:
        inference = node.get("is_test", 0) == 1
    elif node.input(2) is None:
        inference = True
    else:
        training = rewriter.array(node.input(2), 1)
        inference = training is not None and not training.any()
    return inference and _forward(node, rewriter)


@RULES.on("Cast", "CastLike")
def remove_cast_to_same_type(node: Node, rewriter: Rewriter) -> bool:
    source, target = node.input(0), node.output(0)
    if source is None or target is None or not source.dtype:
        return False
    if node.op_type == "Cast":
        wanted = node.get("to")
    else:
        like = node.input(1)
        wanted = 0 if like is None else like.dtype
    return wanted == source.dtype and _forward(node, rewriter)


@RULES.on("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def remove_reshape_to_same_shape(node: Node, rewriter: Rewriter) -> bool:
    same = is_definite(node, rewriter) and same_after_reshape(node.input(0), node.output(0))
    return same and _forward(node, rewriter)


@RULES.on("Expand", "Tile")
def remove_expand_to_same_shape(node: Node, rewriter: Rewriter) -> bool:
    if node.op_type == "Tile":
        repeats = rewriter.ints(node.input(1)) if rewriter.opset >= 6 else None
        if repeats is not None and all(count == 1 for count in repeats):
            return _forward(node, rewriter)
    return same_shape(node.input(0), node.output(0)) and _forward(node, rewriter)


@RULES.on("Transpose")
def remove_transpose_in_order(node: Node, rewriter: Rewriter) -> bool:
    source = node.input(0)
    rank = None if source is None else source.rank
    order = node.get("perm")
    if order is None:
        return rank is not None and rank < 2 and _forward(node, rewriter)
    return list(order) == sorted(order) and _forward(node, rewriter)


@RULES.on("Slice")
def remove_slice_of_everything(node: Node, rewriter: Rewriter) -> bool:
    source = node.input(0)
    starts, ends = integers(rewriter, node, "starts", 1), integers(rewriter, node, "ends", 2)
    axes = integers(rewriter, node, "axes", 3)
    steps = rewriter.ints(node.input(4))
    if source is None or starts is None or ends is None:
        return False
    if (axes is None and node.input(3) is not None) or (
        steps is None and node.input(4) is not None
    ):
        return False
    axes = axes if axes is not None else list(range(len(starts)))
    shape = source.shape
    for i, axis in enumerate(axes):
        size = None if shape is None else shape[axis]
        reaches_end = ends[i] >= (size if isinstance(size, int) else _UNBOUNDED)
        first = starts[i] == 0 or (isinstance(size, int) and starts[i] <= -size)
        if not first or not reaches_end or (steps is not None and steps[i] != 1):
            return False
    return _forward(node, rewriter)


@RULES.on("Pad")
def remove_pad_by_nothing(node: Node, rewriter: Rewriter) -> bool:
    pads = integers(rewriter, node, "pads", 1)
    return pads is not None and not any(pads) and _forward(node, rewriter)


@RULES.on("Concat", "Sum", "Max", "Min", "Mean")
def remove_combination_of_one(node: Node, rewriter: Rewriter) -> bool:
    return len(node.inputs) == 1 and _forward(node, rewriter)


@RULES.on("Split")
def remove_split_into_one(node: Node, rewriter: Rewriter) -> bool:
    return len(node.outputs) == 1 and _forward(node, rewriter)


_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1}


@RULES.on("Where")
def remove_choice_that_is_made(node: Node, rewriter: Rewriter) -> bool:
    """A condition that is true, or false, everywhere."""
    condition = rewriter.array(node.input(0))
    if condition is None or not condition.size or condition.any() != condition.all():
        return False
    chosen, output = node.input(1 if condition.all() else 2), node.output(0)
    if chosen is None or output is None or not same_shape(chosen, output):
        return False
    return rewriter.forward(node, output, chosen)


@RULES.on(*_NEUTRAL)
def remove_arithmetic_with_neutral_element(node: Node, rewriter: Rewriter) -> bool:
    if rewriter.opset < 7:  # broadcasting followed other rules
        return False
    sides = [(0, 1)] if node.op_type in ("Sub", "Div", "Pow") else [(0, 1), (1, 0)]
    for kept, constant in sides:
        source, other = node.input(kept), node.input(constant)
        array = rewriter.array(other)
        if source is None or array is None or array.dtype.kind not in "fiu":
            continue
        if not _broadcasts_into(array.shape, source, node.output(0)):
            continue
        if np.all(array == _NEUTRAL[node.op_type]) and _forward(node, rewriter, source):
            return True
    return False


def _broadcasts_into(shape: tuple[int, ...], source: Value, output: Value | None) -> bool:
    """Whether broadcasting `source` with an operand of `shape` leaves its shape alone."""
    if not shape:
        return True
    if source.rank is None or len(shape) > source.rank:
        return False
    return all(size == 1 for size in shape) or same_shape(source, output)


@RULES.on("MaxPool", "AveragePool")
def remove_pooling_of_single_elements(node: Node, rewriter: Rewriter) -> bool:
    ones = all(size == 1 for size in node.get("kernel_shape", [0]))
    strides = all(step == 1 for step in node.get("strides", []))
    return ones and strides and not any(node.get("pads", [])) and _forward(node, rewriter)


@RULES.on("GlobalAveragePool", "GlobalMaxPool")
def remove_global_pooling_of_single_elements(node: Node, rewriter: Rewriter) -> bool:
    source = node.input(0)
    shape = None if source is None else source.shape
    single = shape is not None and len(shape) > 2 and all(size == 1 for size in shape[2:])
    return single and _forward(node, rewriter)


@RULES.on("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")
def remove_reduction_of_single_elements(node: Node, rewriter: Rewriter) -> bool:
    source = node.input(0)
    axes = integers(rewriter, node, "axes", 1)
    if source is None or not node.get("keepdims", 1):
        return False
    if not axes:
        absent = node.input(1) is None and not node.get("axes")
        nothing = axes == [] or absent
        return bool(node.get("noop_with_empty_axes", 0)) and nothing and _forward(node, rewriter)
    shape = source.shape
    if shape is None or any(not -len(shape) <= axis < len(shape) for axis in axes):
        return False
    return all(shape[axis] == 1 for axis in axes) and _forward(node, rewriter)


@RULES.on("Resize", "Upsample")
def remove_resize_to_same_size(node: Node, rewriter: Rewriter) -> bool:
    if node.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    source, output = static_shape(node.input(0)), static_shape(node.output(0))
    if source is None or source != output:
        return False
    sizes = rewriter.ints(node.input(3))
    if node.op_type == "Resize" and sizes is not None:
        return _forward(node, rewriter)
    scales = node.get("scales")
    if scales is None:
        late = node.op_type == "Resize" and rewriter.opset >= 11
        scales = rewriter.array(node.input(2 if late else 1), 64)
    return (
        scales is not None
        and len(scales) > 0
        and all(scale == 1 for scale in scales)
        and _forward(node, rewriter)
    )


@RULES.on("DepthToSpace", "SpaceToDepth")
def remove_unit_blocks(node: Node, rewriter: Rewriter) -> bool:
    return node.get("blocksize") == 1 and _forward(node, rewriter)


@RULES.on("Clip")
def remove_clip_without_bounds(node: Node, rewriter: Rewriter) -> bool:
    free = rewriter.opset >= 11 and node.input(1) is None and node.input(2) is None
    return free and _forward(node, rewriter)
