"""LayerNormalization and RMSNormalization recognised from the arithmetic they stand for."""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import TensorProto, helper

from ...ir.graph import Node, Value
from .activations import scalar_operand
from .rewriter import Rewriter, RuleSet, only_reader, producer
from .shapes import integers

RULES = RuleSet()

_LAYER_SINCE, _RMS_SINCE = 17, 23


@dataclasses.dataclass(frozen=True)
class _Normalized:
    """`source / sqrt(mean(source**2) + epsilon)` over the last `count` axes."""

    source: Value
    count: int
    epsilon: float


@RULES.on("Div", "Mul")
def recognise_normalization(node: Node, rewriter: Rewriter) -> bool:
    """What Pow, ReduceMean, Add, Sqrt and Div make, with the scale and shift that follow."""
    if rewriter.opset < _LAYER_SINCE:
        return False
    found = _match_division(node, rewriter)
    output = node.output(0)
    if found is None or output is None or found.source.shape != output.shape:
        return False
    if found.source.dtype not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        return False
    centred = _match_centring(found.source, found.count, rewriter)
    if centred is None and rewriter.opset < _RMS_SINCE:
        return False
    sizes = (output.shape or ())[-found.count :]
    if not all(isinstance(size, int) for size in sizes):
        return False
    return _write(node, found, centred, [s for s in sizes if isinstance(s, int)], rewriter)


def _write(
    node: Node, found: _Normalized, centred: Value | None, sizes: list[int], rewriter: Rewriter
) -> bool:
    last, scale = _following(node, "Mul", sizes, rewriter)
    shift: Value | None = None
    if centred is not None:
        last, shift = _following(last, "Add", sizes, rewriter)
    result = last.output(0)
    if result is None:
        return False
    if scale is None:
        dtype = helper.tensor_dtype_to_np_dtype(found.source.dtype)
        scale = rewriter.constant(node, np.ones(sizes, dtype), f"{node.label}_scale")
    operator = "RMSNormalization" if centred is None else "LayerNormalization"
    inputs = [centred if centred is not None else found.source, scale]
    inputs += [shift] if shift is not None else []
    attributes = {"axis": -found.count, "epsilon": found.epsilon}
    new = rewriter.add(last, operator, inputs, attributes, type=result.type, hint=node.name)
    return rewriter.replace(result, new)


def _match_division(node: Node, rewriter: Rewriter) -> _Normalized | None:
    if node.op_type == "Div":
        return _match_root(node.input(0), _root(node.input(1), rewriter), rewriter)
    for source, inverse in (node.inputs, reversed(node.inputs)):
        reciprocal = producer(inverse, "Reciprocal")
        root = None if reciprocal is None else _root(reciprocal.input(0), rewriter)
        root = root or _power(inverse, -0.5, rewriter)
        if root is not None:
            return _match_root(source, root, rewriter)
    return None


def _root(value: Value | None, rewriter: Rewriter) -> Node | None:
    return producer(value, "Sqrt") or _power(value, 0.5, rewriter)


def _power(value: Value | None, exponent: float, rewriter: Rewriter) -> Node | None:
    node = producer(value, "Pow")
    return node if node is not None and rewriter.scalar(node.input(1)) == exponent else None


def _match_root(source: Value | None, root: Node | None, rewriter: Rewriter) -> _Normalized | None:
    raised = None if root is None else producer(root.input(0), "Add")
    operands = None if raised is None else scalar_operand(raised, rewriter)
    if source is None or operands is None:
        return None
    mean = producer(operands[0], "ReduceMean")
    axes = _last_axes(mean, source, rewriter)
    if mean is None or axes is None or not _is_square(mean.input(0), source, rewriter):
        return None
    return _Normalized(source, axes, operands[1])


def _is_square(value: Value | None, source: Value, rewriter: Rewriter) -> bool:
    node = producer(value, "Pow", "Mul")
    if node is None:
        return False
    if node.op_type == "Mul":
        return node.inputs == (source, source)
    return node.input(0) is source and rewriter.scalar(node.input(1)) == 2.0


def _match_centring(value: Value, count: int, rewriter: Rewriter) -> Value | None:
    """`x` of a value that is `x - mean(x)` over the last `count` axes."""
    node = producer(value, "Sub")
    source = None if node is None else node.input(0)
    if node is None or source is None:
        return None
    mean = producer(node.input(1), "ReduceMean")
    if mean is None or mean.input(0) is not source:
        return None
    return source if _last_axes(mean, source, rewriter) == count else None


def _last_axes(mean: Node | None, source: Value, rewriter: Rewriter) -> int | None:
    """How many axes a mean goes over, where those are the last ones and are kept."""
    rank = source.rank
    if mean is None or not rank or not mean.get("keepdims", 1):
        return None
    axes = integers(rewriter, mean, "axes", 1)
    if not axes:
        return None
    found = sorted(axis % rank for axis in axes)
    return len(found) if found == list(range(rank - len(found), rank)) else None


def _following(
    node: Node, op_type: str, sizes: list[int], rewriter: Rewriter
) -> tuple[Node, Value | None]:
    """The next node and its constant, where it scales or shifts along the last axes."""
    output = node.output(0)
    reader = None if output is None else only_reader(output)
    if reader is None or output is None or reader.op_type != op_type or reader.domain:
        return node, None
    other = reader.inputs[1] if reader.inputs[0] is output else reader.inputs[0]
    array = rewriter.array(other)
    if array is None or other is None or array.ndim > (output.rank or 0):
        return node, None
    rest = array.ndim - len(sizes)
    if rest < 0 or list(array.shape) != [1] * rest + sizes:
        return node, None
    return reader, rewriter.constant(reader, array.reshape(sizes), other.name) if rest else other
