"""Elementwise operators: axes are unified, size-1 axes broadcast. This ties residuals."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from onnx import TensorProto

from ..axes import dims
from ..axes.contents import (
    apply_elementwise,
    choose,
    equal,
    greater,
    is_small,
    less,
    truncated_divide,
)
from ..axes.dims import ONE, Axis
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from ..axes.sizes import settled
from .registry import MICROSOFT, rule

# Operators of one input that compute each element from the same element.
UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitCast",
    "BitwiseNot",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]

VARIADIC = [
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "PRelu",
    "Sub",
    "Sum",
    "SwiGLU",
    "Where",
    "Xor",
]

INTEGER_TYPES = {TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}

_CONTENT: dict[str, Callable[..., int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": truncated_divide,
    "Mod": operator.mod,
    "Max": max,
    "Min": min,
    "Neg": operator.neg,
    "Identity": int,
    "Equal": equal,
    "Greater": greater,
    "Less": less,
    "Where": choose,
}


def broadcast(r: NodeAxes, operands: Sequence[Axes]) -> Axes:
    """Axes of the multidirectional broadcast of operands (ONNX, "Broadcasting")."""
    rank = max((len(axes) for axes in operands), default=0)
    result: list[Axis] = []
    for position in range(-rank, 0):
        meeting = [axes[position] for axes in operands if len(axes) >= -position]
        result.append(_meet(r, [axis for axis in meeting if axis != ONE]))
    return tuple(result)


def _meet(r: NodeAxes, axes: list[Axis]) -> Axis:
    """The axis that axes at one position, none of them of size 1, broadcast to."""
    if not axes:
        return ONE
    unknown = [axis for axis in axes if dims.axis_size(axis) is None]
    known = [axis for axis in axes if dims.axis_size(axis) is not None]
    if known and unknown:
        # An unknown size may turn out to be 1 or equal; either way nothing may go.
        r.lock_all(axes, "meets an axis whose size is known only at run time")
        return known[0]
    if unknown:
        return _meet_unknown(r, unknown)
    for axis in known[1:]:
        r.unify(known[0], axis)
    return known[0]


def _meet_unknown(r: NodeAxes, axes: list[Axis]) -> Axis:
    """Where sizes aren't provably equal, one may be 1 at run time: nothing may go."""
    size = dims.unknown_size(axes[0])
    if size is None or any(dims.unknown_size(axis) != size for axis in axes[1:]):
        if all(dims.resolve(axis) == dims.resolve(axes[0]) for axis in axes[1:]):
            return axes[0]
        r.lock_all(axes, "meets another axis whose size is known only at run time")
        return r.literal(None, "broadcast of axes of unknown size")
    for axis in axes[1:]:
        r.unify(axes[0], axis)
    return axes[0]


@rule(*UNARY)
@rule("FastGelu", "QuickGelu", "BiasGelu", "Gelu", "BiasAdd", domain=MICROSOFT)
@rule(*VARIADIC)
def elementwise(r: NodeAxes) -> None:
    if r.get("axis") is not None and r.opset < 7:
        raise Opaque("broadcasting as before opset 7")
    _elementwise_content(r)
    operands = [r.axes(i) for i in range(len(r.node.inputs)) if r.has(i)]
    r.set(broadcast(r, operands))


@rule("Clip")
def clip(r: NodeAxes) -> None:
    """Bounds are scalars."""
    r.set(r.axes(0))


@rule("Dropout")
def dropout(r: NodeAxes) -> None:
    if r.opset >= 12 and r.has(2):
        training = r.constant(2)
        if training is None or training.any():
            raise Opaque("training mode, or decided at run time")
    axes = r.axes(0)
    r.set(axes)
    r.set(axes, 1)


@rule("Cast")
def cast(r: NodeAxes) -> None:
    if r.get("to") in INTEGER_TYPES:
        content = r.peek(0)
        if content is not None:
            r.follow(content)
    r.set(r.axes(0))


@rule("CastLike")
def cast_like(r: NodeAxes) -> None:
    r.measure(1)
    r.set(r.axes(0))


@rule("Constant")
def constant(r: NodeAxes) -> None:
    """Each use of a constant has axes of its own (see `NodeAxes.maybe_axes`)."""


def _elementwise_content(r: NodeAxes) -> None:
    """Follow shape arithmetic where every operand's content is known."""
    compute = _CONTENT.get(r.node.op_type)
    output = r.node.output(0)
    if compute is None or output is None or output.dtype not in INTEGER_TYPES:
        return
    if r.knows_content():
        operands = [r.peek(i) for i in range(len(r.node.inputs))]
        content = apply_elementwise(compute, *(o for o in operands if o is not None))
        if is_small(content):
            r.follow(settled(content) if compute in (equal, greater, less) else content)
