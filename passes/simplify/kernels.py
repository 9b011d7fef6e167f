"""Operators that numpy computes exactly as ONNX Runtime does.

They only move elements, or round once per element as IEEE 754 says, so that folding
them here gives the same bits, without a session and, for the most part, as views
without copies. A kernel returns None where it is not sure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ...ir.errors import MISFITS
from ...ir.graph import Node
from ...ir.tensor import Array

Kernel = Callable[[Node, "Sequence[Array | None]"], "Array | None"]

KERNELS: dict[str, Kernel] = {}

_LARGEST = 2**31
"""Bytes up to which a kernel copies; folding applies its own, lower limit to results."""


def kernel(*op_types: str) -> Callable[[Kernel], Kernel]:
    def register(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(op_types, function))
        return function

    return register


def compute(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    """The node's only output for constant inputs, or None where there is no kernel for it."""
    function = KERNELS.get(node.op_type)
    if function is None or len(node.outputs) != 1:
        return None
    try:
        with np.errstate(all="ignore"):
            return function(node, inputs)
    except MISFITS:
        return None  # ONNX Runtime will say so


def _integers(node: Node, name: str, array: Array | None) -> list[int] | None:
    """An operand that is an attribute in old opsets and an input in new ones."""
    if name in node.attributes:
        return [int(x) for x in node.get(name)]
    return None if array is None else [int(x) for x in array.reshape(-1)]


def _operand(inputs: Sequence[Array | None], index: int) -> Array | None:
    return inputs[index] if index < len(inputs) else None


@kernel("Identity")
def _identity(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    return inputs[0]


@kernel("Reshape")
def _reshape(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    array, target = inputs[0], _integers(node, "shape", _operand(inputs, 1))
    if array is None or target is None:
        return None
    if not node.get("allowzero", 0):
        target = [array.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return array.reshape(target)


@kernel("Flatten")
def _flatten(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    array = inputs[0]
    if array is None:
        return None
    axis = node.get("axis", 1)
    rows = math.prod(array.shape[: axis + array.ndim if axis < 0 else axis])
    return array.reshape(rows, -1) if array.size else None


@kernel("Squeeze")
def _squeeze(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    array, axes = inputs[0], _integers(node, "axes", _operand(inputs, 1))
    if array is None:
        return None
    return np.squeeze(array, None if axes is None else tuple(axes))


@kernel("Unsqueeze")
def _unsqueeze(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    array, axes = inputs[0], _integers(node, "axes", _operand(inputs, 1))
    return None if array is None or axes is None else np.expand_dims(array, tuple(axes))


@kernel("Transpose")
def _transpose(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    return None if inputs[0] is None else inputs[0].transpose(node.get("perm"))


@kernel("Concat")
def _concat(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    arrays = [a for a in inputs if a is not None]
    if len(arrays) != len(inputs) or sum(a.nbytes for a in arrays) > _LARGEST:
        return None
    return np.concatenate(arrays, axis=node.get("axis", 1))


@kernel("Slice")
def _slice(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    array = inputs[0]
    starts = _integers(node, "starts", _operand(inputs, 1))
    ends = _integers(node, "ends", _operand(inputs, 2))
    axes = _integers(node, "axes", _operand(inputs, 3))
    steps = _integers(node, "steps", _operand(inputs, 4))
    if array is None or starts is None or ends is None:
        return None
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    index = [slice(None)] * array.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = array.shape[axis]
        first = start + size if start < 0 else start
        last = end + size if end < 0 else end
        if step > 0:
            index[axis] = slice(max(first, 0), max(last, 0), step)
        else:
            index[axis] = slice(max(first, 0), last if last >= 0 else None, step)
    return array[tuple(index)]


@kernel("Gather")
def _gather(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    array, indices = inputs[0], inputs[1]
    if array is None or indices is None:
        return None
    axis = node.get("axis", 0)
    if array.nbytes // max(1, array.shape[axis]) * max(1, indices.size) > _LARGEST:
        return None
    return np.take(array, indices, axis=axis)


@kernel("Expand")
def _expand(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    array, target = inputs[0], _integers(node, "", inputs[1])
    if array is None or target is None:
        return None
    return np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(target)))


@kernel("ConstantOfShape")
def _constant_of_shape(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    sizes = _integers(node, "", inputs[0])
    value = node.get("value")
    element = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return None if sizes is None else np.broadcast_to(element.reshape(()), sizes)


@kernel("Cast")
def _cast(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    array, target = inputs[0], node.get("to")
    if array is None or target == TensorProto.STRING or not _is_plain(array.dtype):
        return None
    dtype = helper.tensor_dtype_to_np_dtype(target)
    if not _is_plain(dtype) or array.nbytes > _LARGEST:
        return None
    if array.dtype.kind == "f" and dtype.kind in "iu":
        return _integers_of(array, dtype)
    if dtype == np.float16:
        array = array.astype(np.float32, copy=False)
    return array.astype(dtype)


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether NumPy itself has this type of numbers: float8e5m2, which it hasn't, says that it is
    of the kind of floats, too, but what it doesn't hold saturates in ONNX."""
    return dtype.kind in "biuf" and dtype.isbuiltin == 1


def _integers_of(array: Array, dtype: np.dtype[Any]) -> Array:
    """Floats as integers, on every machine as ONNX Runtime converts them on x86.

    What int32 and int64 don't hold, NaN included, becomes their lowest number. Narrower
    types take the low bits of the int32; unsigned ones the bits of the signed number, from
    half of their range on of what is left of it.
    """
    wide, bits = array.astype(np.float64), 8 * dtype.itemsize

    def truncated(values: Array, bits: int) -> Array:
        half = 2.0 ** (bits - 1)
        inside = (values >= -half) & (values < half)
        found = np.where(inside, values, 0).astype(f"int{bits}")
        return np.asarray(np.where(inside, found, np.iinfo(found.dtype).min))

    if bits < 32:
        return truncated(wide, 32).astype(dtype)
    if dtype.kind == "i":
        return truncated(wide, bits)
    half = 2 ** (bits - 1)
    upper = truncated(wide - float(half), bits).view(dtype) + dtype.type(half)
    return np.asarray(np.where(wide >= half, upper, truncated(wide, bits).view(dtype)))


@kernel("Range")
def _range(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    arrays = [a for a in inputs if a is not None]
    if len(arrays) != 3 or any(a.dtype.kind != "i" or a.size != 1 for a in arrays):
        return None
    span = range(*(int(a.reshape(())) for a in arrays))
    return np.array(span, arrays[0].dtype) if len(span) < 2**16 else None


_ARITHMETIC: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
}


@kernel(*_ARITHMETIC)
def _arithmetic(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    a, b = inputs
    if a is None or b is None or not _may_broadcast(node, a, b):
        return None
    return np.asarray(_ARITHMETIC[node.op_type](a, b))


@kernel("Div")
def _div(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    a, b = inputs
    if a is None or b is None or not _may_broadcast(node, a, b):
        return None
    if a.dtype.kind == "f":
        return np.asarray(np.divide(a, b))
    if a.dtype.kind not in "iu" or not b.all() or (a < 0).any() or (b < 0).any():
        return None
    return np.asarray(np.floor_divide(a, b))


def _may_broadcast(node: Node, a: Array, b: Array) -> bool:
    """Whether both are plain numbers of one type and numpy's broadcasting applies."""
    if a.dtype != b.dtype or a.dtype.kind not in "biuf" or "broadcast" in node.attributes:
        return False
    return math.prod(np.broadcast_shapes(a.shape, b.shape)) * a.itemsize <= _LARGEST


@kernel("Sqrt")
def _sqrt(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    (a,) = inputs
    return None if a is None or a.dtype not in (np.float32, np.float64) else np.asarray(np.sqrt(a))


@kernel("Neg", "Abs", "Not", "Floor", "Ceil")
def _elementwise(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    functions = {
        "Neg": np.negative,
        "Abs": np.abs,
        "Not": np.logical_not,
        "Floor": np.floor,
        "Ceil": np.ceil,
    }
    (a,) = inputs
    if a is None or a.dtype.kind not in "bif":
        return None
    return np.asarray(functions[node.op_type](a))


@kernel("Where")
def _where(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    condition, a, b = inputs
    if condition is None or a is None or b is None or a.dtype != b.dtype:
        return None
    size = math.prod(np.broadcast_shapes(condition.shape, a.shape, b.shape))
    return np.where(condition, a, b) if size * a.itemsize <= _LARGEST else None


@kernel("ReduceProd")
def _product(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    array, axes = inputs[0], _integers(node, "axes", _operand(inputs, 1))
    if (
        array is None
        or array.dtype.kind != "i"
        or (not axes and "noop_with_empty_axes" in node.attributes)
    ):
        return None
    axis = tuple(axes) if axes else None
    return np.asarray(np.prod(array, axis=axis, keepdims=bool(node.get("keepdims", 1)))).astype(
        array.dtype
    )
