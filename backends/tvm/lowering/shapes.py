"""Rules of the operators that move data: reshaping, transposition, slices, concatenation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ....ir.graph import Node, Value
from ....ir.ops import Trait, with_trait
from ....ir.symbolic import expressions as e
from ....ir.symbolic.shapes import slice_range
from ..graph.most import is_decided
from ..plan.operations import ConcatOp, ElementwiseOp, ReshapeOp
from ..plan.programs import Program, dequantize, quantize, simplify
from ..plan.sizes import (
    OpenSizeError,
    in_words_of,
    is_open,
    place_of,
    size_of,
    stand_in,
)
from ..plan.tensors import PlanTensor, View
from .context import Constant, Item, Lowering, Quantized, Stored


def reshape(lowering: Lowering, node: Node) -> bool:
    """Every operator whose result has the same elements in the same order."""
    x, y = node.input(0), node.output(0)
    if x is None or y is None or any(v is not None and v.uses for v in node.outputs[1:]):
        return False
    if node.op_type == "Dropout" and _is_training(lowering, node):
        return False
    source = _source(lowering, x)
    shape = lowering.shape(y)
    if source is None or math.prod(shape) != source.elements:
        return False
    if shape == source.shape:
        lowering.items[y] = _with(lowering.item(x), source)
        return True
    output = PlanTensor(y.name, source.dtype, shape)
    lowering.add(ReshapeOp(node.label, [output], source))
    lowering.items[y] = _with(lowering.item(x), output)
    return True


def _is_training(lowering: Lowering, node: Node) -> bool:
    mode = node.input(2)
    if mode is None:
        return bool(node.get("is_test", 1) == 0) and lowering.model.opset < 7
    value = lowering.constant(mode)
    return value is None or bool(value.reshape(()))


def transpose(lowering: Lowering, node: Node) -> bool:
    x, y = node.input(0), node.output(0)
    if x is None or y is None:
        return False
    source = _source(lowering, x)
    if source is None:
        return False
    rank = len(source.shape)
    order = [int(p) for p in node.get("perm", list(reversed(range(rank))))]
    shape = tuple(source.shape[p] for p in order)
    moved = [p for p in order if source.shape[p] != 1]
    if moved == sorted(moved):
        output = PlanTensor(y.name, source.dtype, shape)
        lowering.add(ReshapeOp(node.label, [output], source))
        lowering.items[y] = _with(lowering.item(x), output)
        return True
    strides = _strides(source.shape)
    view = View(source, shape, tuple(strides[p] for p in order))
    return _copy(lowering, node, y, view, lowering.item(x))


def expand(lowering: Lowering, node: Node) -> bool:
    x, y = node.input(0), node.output(0)
    if x is None or y is None:
        return False
    source = _source(lowering, x)
    if source is None:
        return False
    shape = lowering.shape(y)
    own = (1,) * (len(shape) - len(source.shape)) + source.shape
    strides = tuple(s if size != 1 else 0 for s, size in zip(_strides(own), own, strict=True))
    return _copy(lowering, node, y, View(source, shape, strides), lowering.item(x))


def slice_(lowering: Lowering, node: Node) -> bool:
    """Constant bounds with any steps (opset 1 to 9: attributes)."""
    x, y = node.input(0), node.output(0)
    if x is None or y is None:
        return False
    bounds = _slice_bounds(lowering, node)
    source = _source(lowering, x)
    if source is None and lowering.is_open(node) and 0 not in lowering.shape(x):
        source = lowering.stored(x)
    if source is None or bounds is None:
        return False
    starts, ends, axes, steps = bounds
    rank = len(source.shape)
    strides = _strides(source.shape)
    shape, offset = list(source.shape), 0
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= rank
        size = lowering.size(x, axis)
        if step == 1 and any(is_decided(size_of(n)) for n in (start, end, size)):
            shape[axis] = lowering.shape(y)[axis]
            offset += _decided_start(start, shape[axis], size) * strides[axis]
            continue
        if is_open(start, end, size):
            shape[axis] = lowering.shape(y)[axis]
            first = _first(start, end, step, source.shape[axis])
            if e.mentions(size_of(first), "max", "min"):  # in the words of the length
                first = _first(start, end, step, size)
            offset += in_words_of(source.shape[axis], first) * strides[axis]
            strides[axis] *= step
            continue
        if step < 0:  # not beyond the first, as ONNX Runtime has it
            start = max(start, -source.shape[axis])
        chosen = range(*slice(_bound(start), _bound(end), step).indices(source.shape[axis]))
        if step < 0 and end < -source.shape[axis]:
            chosen = range(*slice(_bound(start), None, step).indices(source.shape[axis]))
        shape[axis] = len(chosen)
        offset += (chosen[0] if len(chosen) else 0) * strides[axis]
        strides[axis] *= step
    if 0 in shape or tuple(shape) != lowering.shape(y):
        return False
    view = View(source, tuple(shape), tuple(strides), offset)
    return _copy(lowering, node, y, view, lowering.item(x))


def _first(start: int, end: int, step: int, size: int) -> int:
    """The first index of those from `start` up to before `end`."""
    first, _ = slice_range(size_of(start), size_of(end), size_of(step), size_of(size))
    if first is None or is_open(step):
        raise OpenSizeError("the sign of a slice's bound")
    return stand_in(first)


def _decided_start(start: int, length: int, size: int) -> int:
    """Where a slice begins whose length data decide, whatever the sign of its bounds."""
    whole, index = size_of(size), size_of(start)
    wrapped = e.choose(e.less(index, 0), e.add(index, whole), index)
    return place_of(stand_in(e.maximum(0, e.minimum(wrapped, whole))), length, size)


def _bound(value: int) -> int:
    return max(min(value, 2**62), -(2**62))


def _slice_bounds(
    lowering: Lowering, node: Node
) -> tuple[list[int], list[int], list[int] | None, list[int] | None] | None:
    if lowering.model.opset < 10:
        return node.get("starts"), node.get("ends"), node.get("axes"), None
    lists: list[list[int] | None] = []
    for index in range(1, 5):
        value = node.input(index)
        found = lowering.constant(value)
        if found is None:
            found = lowering.told(value)
        if value is not None and found is None:
            return None
        lists.append(None if found is None else found.reshape(-1).tolist())
    if lists[0] is None or lists[1] is None:
        return None
    return lists[0], lists[1], lists[2], lists[3]


def split(lowering: Lowering, node: Node) -> bool:
    """All results have names by now: the sizes of those before say where a part begins."""
    x = node.input(0)
    if x is None:
        return False
    source = _source(lowering, x)
    if source is None or source.dtype == "bool":
        return False
    axis = int(node.get("axis", 0)) % len(source.shape)
    strides = tuple(_strides(source.shape))
    first = 0
    outputs = [v for v in node.outputs if v is not None]
    sizes = [lowering.shape(v)[axis] for v in outputs]
    whole = source.shape[axis]
    are_decided = any(is_decided(size_of(size)) for size in sizes)
    if are_decided:
        lowering.require_equal(sum(sizes), whole)
    elif sum(sizes) != whole or 0 in sizes:
        return False
    with_rest = is_open(*sizes) and any(size != sizes[0] for size in sizes)
    if with_rest and not are_decided and not outputs[-1].uses:
        return False  # no run would find its size to be negative
    for y, size in zip(outputs, sizes, strict=True):
        if y.uses:
            shape = (*source.shape[:axis], size, *source.shape[axis + 1 :])
            begin = place_of(first, size, whole) if with_rest or are_decided else first
            part = View(source, shape, strides, begin * strides[axis])
            _copy(lowering, node, y, part, lowering.item(x))
        first += lowering.size(y, axis) if are_decided else size
    return True


def concat(lowering: Lowering, node: Node) -> bool:
    """Of integers where the result is quantized at once or all parameters agree."""
    values = [v for v in node.inputs if v is not None]
    y = node.output(0)
    if y is None:
        return False
    shape = lowering.shape(y)
    axis = int(node.get("axis", 1)) % len(shape)
    values = [v for v in values if 0 not in lowering.shape(v)]
    if not values or any(
        lowering.shape(v)[a] != size for v in values for a, size in enumerate(shape) if a != axis
    ):
        return False  # sizes that only have to be equal in a run
    items = [lowering.item(v) for v in values]
    quantized = [i for i in items if isinstance(i, Quantized)]
    parameters = lowering.sole_quantize(y)
    if len(quantized) == len(items) and parameters is None:
        first = quantized[0]
        if all(
            (i.scale, i.zero, i.tensor.dtype) == (first.scale, first.zero, first.tensor.dtype)
            for i in quantized
        ):
            output = PlanTensor(y.name, first.tensor.dtype, shape)
            lowering.add(ConcatOp(node.label, [output], [i.tensor for i in quantized], axis))
            lowering.items[y] = Quantized(output, first.scale, first.zero)
            return True
    if len(quantized) == len(items) and parameters is not None:
        tensors = []
        for item in quantized:
            program = quantize(
                dequantize(item.tensor.dtype, item.scale, item.zero),
                parameters.scale,
                parameters.zero,
                parameters.dtype,
            )
            program = simplify(program)
            if program.is_identity:
                tensors.append(item.tensor)
                continue
            part = PlanTensor(
                item.tensor.name + "/requantized", parameters.dtype, item.tensor.shape
            )
            lowering.add(ElementwiseOp(node.label, [part], [View.of(item.tensor)], program))
            tensors.append(part)
        output = PlanTensor(parameters.output.name, parameters.dtype, shape)
        lowering.add(ConcatOp(node.label, [output], tensors, axis))
        lowering.items[parameters.output] = Stored(output)
        lowering.items[y] = Quantized(output, parameters.scale, parameters.zero)
        return True
    tensors = [lowering.stored(v) for v in values]
    if len({t.dtype for t in tensors}) != 1 or tensors[0].dtype == "bool":
        return False
    output = PlanTensor(y.name, tensors[0].dtype, shape)
    lowering.add(ConcatOp(node.label, [output], tensors, axis))
    lowering.items[y] = Stored(output)
    return True


def _copy(lowering: Lowering, node: Node, y: Value, view: View, item: Item) -> bool:
    if view.tensor.dtype == "bool":
        return False
    output = PlanTensor(y.name, view.tensor.dtype, view.shape)
    program = Program((view.tensor.dtype,))
    lowering.add(ElementwiseOp(node.label, [output], [view], program))
    lowering.items[y] = _with(item, output)
    return True


def _source(lowering: Lowering, value: Value) -> PlanTensor | None:
    """The tensor in memory, integers for quantized values; None for constants and empties."""
    item = lowering.item(value)
    if isinstance(item, Constant) or 0 in item.tensor.shape:
        return None
    return item.tensor


def _with(item: Item, tensor: PlanTensor) -> Item:
    """The same kind of item in another tensor."""
    if isinstance(item, Quantized):
        return Quantized(tensor, item.scale, item.zero)
    return Stored(tensor)


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


RULES: dict[str, Callable[[Lowering, Node], bool]] = {
    **dict.fromkeys((*with_trait(Trait.IN_ORDER), "Identity", "Dropout"), reshape),
    "Transpose": transpose,
    "Expand": expand,
    "Slice": slice_,
    "Split": split,
    "Concat": concat,
}
