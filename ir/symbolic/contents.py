"""Elements of small integer tensors, one rule per operator: what shape computations compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce

import numpy as np
from onnx import TensorProto, numpy_helper

from ..element_count import element_count
from ..graph import Node, Value
from . import expressions as e
from .expressions import Size
from .facts import (
    INTEGERS,
    LARGEST_SCALE,
    LIMIT,
    Contents,
    Facts,
    Misfit,
    position,
    scalar,
    unknown_elements,
    vector,
)
from .registry import contents_rule
from .shapes import equal_parts, reduced_axes

Found = Sequence[Contents | None]


def elementwise(function: Callable[..., Size], *operands: Contents) -> Contents:
    """A function of each element of the operands, broadcast against each other."""
    try:
        return np.asarray(np.frompyfunc(function, len(operands), 1)(*operands), object)
    except ValueError as error:  # shapes that don't broadcast
        raise Misfit(str(error)) from None


# --- sizes -----------------------------------------------------------------------------------


@contents_rule("Shape")
def shape_of(node: Node, facts: Facts) -> Found:
    shape = facts.shape(node.input(0))
    if shape is None:
        return [None]
    return [vector(shape[node.get("start", 0) : node.get("end", len(shape))])]


@contents_rule("Size")
def size_of(node: Node, facts: Facts) -> Found:
    shape = facts.shape(node.input(0))
    return [None if shape is None else scalar(e.multiply(*shape))]


@contents_rule("ConstantOfShape")
def constant_of_shape(node: Node, facts: Facts) -> Found:
    sizes, value = facts.integers(node.input(0)), node.get("value")
    if sizes is None or value is None or value.data_type not in INTEGERS:
        return [None]
    if element_count(sizes, LIMIT) is None:
        return [None]
    filled = np.empty(sizes, object)
    filled[...] = int(numpy_helper.to_array(value).reshape(-1)[0])
    return [filled]


@contents_rule("Range")
def range_(node: Node, facts: Facts) -> Found:
    bounds = [facts.integers(v) for v in node.inputs]
    known = [b[0] for b in bounds if b is not None and len(b) == 1]
    if len(known) != 3 or known[2] == 0:
        return [None]
    numbers = range(*known)
    return [vector(list(numbers)) if len(numbers) <= LIMIT else None]


# --- movement --------------------------------------------------------------------------------


@contents_rule("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten")
def forward(node: Node, facts: Facts) -> Found:
    """The same elements in the result's shape."""
    data = facts.contents(node.input(0))
    if data is None or node.op_type == "Identity":
        return [data]
    shape = facts.shape(node.output(0))
    if shape is None:
        return [None]
    sizes = [size for size in shape if isinstance(size, int)]
    if len(sizes) < len(shape):
        return [data.reshape(-1) if len(shape) == 1 else None]
    if math.prod(sizes) != data.size:
        return [None]
    return [data.reshape(sizes)]


@contents_rule("Cast")
def cast(node: Node, facts: Facts) -> Found:
    if node.get("to") not in INTEGERS:
        return [None]
    data = facts.contents(node.input(0))
    if data is None:
        return [None if node.get("to") == TensorProto.BOOL else _scaled(node.input(0), facts)]
    if node.get("to") == TensorProto.BOOL:
        return [elementwise(lambda x: _negated(e.equal(x, 0)), data)]
    return [data]


def _scaled(value: Value | None, facts: Facts) -> Contents | None:
    """Sizes that were multiplied as 32-bit floats, and lose their fractions."""
    node = None if value is None else value.producer
    while node is not None and node.op_type in ("Floor", "Identity"):
        value = node.input(0)
        node = None if value is None else value.producer
    if node is None or node.op_type != "Mul" or value is None or value.dtype != TensorProto.FLOAT:
        return None
    for sizes, factors in (node.inputs, node.inputs[::-1]):
        cast = None if sizes is None else sizes.producer
        known, factor = None, facts.model.constant(factors)
        if cast is not None and cast.op_type == "Cast":
            known = facts.contents(cast.input(0))
        if known is None or factor is None or factor.size != 1:
            continue
        scale = float(factor.numpy().reshape(()))
        if 0 < scale < LARGEST_SCALE and all(e.is_nonnegative(size) for size in known.flat):
            return elementwise(partial(e.scaled, scale=scale), known)
    return None


@contents_rule("Transpose")
def transpose(node: Node, facts: Facts) -> Found:
    data, order = facts.contents(node.input(0)), node.get("perm")
    if data is None or (order is not None and sorted(order) != list(range(data.ndim))):
        return [None]
    return [data.transpose(order)]


@contents_rule("Gather")
def gather(node: Node, facts: Facts) -> Found:
    data = facts.contents(node.input(0))
    if data is None or data.ndim == 0:
        return [None]
    indices, shape = facts.integers(node.input(1)), facts.contents(node.input(1))
    if indices is None or shape is None or data.size * max(1, len(indices)) > LIMIT * LIMIT:
        return [None]
    axis = position(node.get("axis", 0), data.ndim)
    if any(not -data.shape[axis] <= i < data.shape[axis] for i in indices):
        return [None]
    picked = data.take(np.array(indices, np.int64).reshape(shape.shape), axis)
    return [picked if isinstance(picked, np.ndarray) else scalar(picked)]


@contents_rule("Slice")
def slice_(node: Node, facts: Facts) -> Found:
    data, bounds = facts.contents(node.input(0)), facts.slice_bounds(node)
    if data is None or bounds is None:
        return [None]
    picked = [slice(None)] * data.ndim
    for axis, start, end, step in bounds:
        if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int):
            return [None]
        if step == 0 or axis >= data.ndim:
            raise Misfit(f"a step of {step} along axis {axis}")
        size = data.shape[axis]
        stop = None if step < 0 and end < -size else end
        picked[axis] = slice(max(start, -size) if step < 0 else start, stop, step)
    return [data[tuple(picked)]]


@contents_rule("Split")
def split(node: Node, facts: Facts) -> Found:
    data, count = facts.contents(node.input(0)), len(node.outputs)
    if data is None or data.ndim == 0:
        return [None] * count
    axis = position(node.get("axis", 0), data.ndim)
    sizes = node.get("split") or facts.integers(node.input(1))
    if sizes is None:
        if node.input(1) is not None:
            return [None] * count
        sizes = equal_parts(data.shape[axis], count)
    if len(sizes) != count or sum(sizes) != data.shape[axis]:
        return [None] * count
    return np.split(data, np.cumsum(sizes)[:-1].tolist(), axis)


@contents_rule("Concat")
def concat(node: Node, facts: Facts) -> Found:
    """Of parts whose elements are unknown the number has to be known."""
    parts = [facts.contents(v) for v in node.inputs]
    if all(part is None for part in parts):
        return [None]
    for index, part in enumerate(parts):
        if part is None:
            shape = facts.shape(node.inputs[index])
            size = shape[0] if shape is not None and len(shape) == 1 else None
            if not isinstance(size, int) or size > LIMIT:
                return [None]
            parts[index] = unknown_elements(size)
    known = [part for part in parts if part is not None]
    rank = known[0].ndim
    if rank == 0 or any(part.ndim != rank for part in known):
        return [None]
    axis = position(node.get("axis", 1), rank)
    if len({part.shape[:axis] + part.shape[axis + 1 :] for part in known}) > 1:
        raise Misfit("parts of different sizes")
    return [np.concatenate(known, axis)]


@contents_rule("Expand")
def expand(node: Node, facts: Facts) -> Found:
    data, sizes = facts.contents(node.input(0)), facts.integers(node.input(1))
    if data is None or sizes is None or min(sizes, default=1) < 1:
        return [None]
    rank = max(data.ndim, len(sizes))
    shapes = ([1] * (rank - data.ndim) + list(data.shape), [1] * (rank - len(sizes)) + sizes)
    result = [b if a == 1 else a for a, b in zip(*shapes, strict=True)]
    if any(1 != b != a for a, b in zip(result, shapes[1], strict=True)):
        raise Misfit(f"{data.shape} doesn't expand to {sizes}")
    if element_count(result, LIMIT) is None:
        return [None]
    return [np.broadcast_to(data, result)]


@contents_rule("Tile")
def tile(node: Node, facts: Facts) -> Found:
    data, repeats = facts.contents(node.input(0)), facts.integers(node.input(1))
    if data is None or repeats is None or len(repeats) != data.ndim:
        return [None]
    if element_count((*data.shape, *repeats), LIMIT) is None:
        return [None]
    return [np.tile(data, repeats)]


# --- arithmetic ------------------------------------------------------------------------------


@contents_rule("Add", "Sub", "Mul", "Div", "Mod", "And", "Or", "Xor")
@contents_rule("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def binary(node: Node, facts: Facts) -> Found:
    a, b = facts.contents(node.input(0)), facts.contents(node.input(1))
    if a is None or b is None or (facts.opset < 7 and a.shape != b.shape):
        return [None]
    if node.op_type == "Mod" and node.get("fmod", 0):
        return [elementwise(_truncated_rest, a, b)]
    return [elementwise(_BINARY[node.op_type], a, b)]


def _negated(truth: Size) -> Size:
    return e.subtract(1, truth)


def _truncated_rest(a: Size, b: Size) -> Size:
    return e.subtract(a, e.multiply(b, e.divide(a, b)))


_BINARY: dict[str, Callable[[Size, Size], Size]] = {
    "Add": e.add,
    "And": e.multiply,
    "Div": e.divide,
    "Equal": e.equal,
    "Greater": lambda a, b: e.less(b, a),
    "GreaterOrEqual": lambda a, b: _negated(e.less(a, b)),
    "Less": e.less,
    "LessOrEqual": lambda a, b: _negated(e.less(b, a)),
    "Mod": e.modulo,
    "Mul": e.multiply,
    "Or": e.maximum,
    "Sub": e.subtract,
    "Xor": lambda a, b: _negated(e.equal(a, b)),
}


@contents_rule("Max", "Min", "Sum")
def variadic(node: Node, facts: Facts) -> Found:
    operands = [facts.contents(v) for v in node.inputs]
    known = [x for x in operands if x is not None]
    if not known or len(known) < len(operands):
        return [None]
    function = _FOLDED[node.op_type]
    return [reduce(lambda a, b: elementwise(function, a, b), known)]


_FOLDED: dict[str, Callable[[Size, Size], Size]] = {
    "Max": e.maximum,
    "Min": e.minimum,
    "ReduceMax": e.maximum,
    "ReduceMin": e.minimum,
    "ReduceProd": e.multiply,
    "ReduceSum": e.add,
    "Sum": e.add,
}


@contents_rule("Neg", "Not", "Abs")
def unary(node: Node, facts: Facts) -> Found:
    data = facts.contents(node.input(0))
    if data is None:
        return [None]
    functions: dict[str, Callable[[Size], Size]] = {
        "Neg": e.negative,
        "Not": _negated,
        "Abs": lambda x: e.maximum(x, e.negative(x)),
    }
    return [elementwise(functions[node.op_type], data)]


@contents_rule("Where")
def where(node: Node, facts: Facts) -> Found:
    """What is chosen for certain has to be known, and the rest only where it might be."""
    condition, yes, no = (facts.contents(node.input(i)) for i in range(3))
    if condition is None or yes is None or no is None:
        return [None]
    return [elementwise(e.choose, condition, yes, no)]


@contents_rule("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def reduction(node: Node, facts: Facts) -> Found:
    data = facts.contents(node.input(0))
    if data is None or data.size == 0:
        return [None]
    axes = reduced_axes(node, facts, data.ndim)
    if axes is None:
        return [None]
    kept = [i for i in range(data.ndim) if i not in axes]
    rows = data.transpose([*kept, *sorted(axes)]).reshape([data.shape[i] for i in kept] + [-1])
    result = np.empty(rows.shape[:-1], object)
    for index in np.ndindex(*result.shape):
        result[index] = reduce(_FOLDED[node.op_type], list(rows[index]))
    if not node.get("keepdims", 1):
        return [result]
    sizes = [1 if i in axes else size for i, size in enumerate(data.shape)]
    return [result.reshape(sizes)]
