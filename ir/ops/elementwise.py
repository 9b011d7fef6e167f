"""Elementwise operators: axes are unified, size-1 axes broadcast. This ties residuals."""

from __future__ import annotations

from collections.abc import Sequence

from ..axes import dims
from ..axes.dims import ONE, Axis
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from .records import MICROSOFT, Trait, rule

_ZERO, _ANY, _FIRST = Trait.ZERO_AT_ZERO, Trait.ZERO_AT_ANY_ZERO, Trait.ZERO_AT_FIRST_ZERO
_POSITIVE, _SCALES, _NONE = Trait.NON_NEGATIVE, Trait.HOMOGENEOUS, Trait.NONE

UNARY = {
    "Abs": _POSITIVE | _SCALES,
    "Acos": _POSITIVE,
    "Acosh": _POSITIVE,
    "Asin": _ZERO,
    "Asinh": _ZERO,
    "Atan": _ZERO,
    "Atanh": _ZERO,
    "BitCast": _ZERO,
    "BitwiseNot": _NONE,
    "Ceil": _ZERO,
    "Celu": _ZERO,
    "Cos": _NONE,
    "Cosh": _POSITIVE,
    "Elu": _ZERO,
    "Erf": _ZERO,
    "Exp": _POSITIVE,
    "Floor": _ZERO,
    "Gelu": _ZERO,
    "HardSigmoid": _POSITIVE,
    "HardSwish": _ZERO,
    "Identity": Trait.MOVES | Trait.LINEAR,
    "IsInf": _ZERO,
    "IsNaN": _ZERO,
    "LeakyRelu": _SCALES,
    "Log": _NONE,
    "Mish": _ZERO,
    "Neg": Trait.LINEAR,
    "Not": _NONE,
    "Reciprocal": _NONE,
    "Relu": _POSITIVE | _SCALES,
    "Round": _ZERO,
    "Selu": _ZERO,
    "Shrink": _ZERO,
    "Sigmoid": _POSITIVE,
    "Sign": _ZERO,
    "Sin": _ZERO,
    "Sinh": _ZERO,
    "Softplus": _POSITIVE,
    "Softsign": _ZERO,
    "Sqrt": _ZERO | _POSITIVE,
    "Swish": _ZERO,
    "Tan": _ZERO,
    "Tanh": _ZERO,
    "ThresholdedRelu": _ZERO,
}
"""Operators of one operand, and what is true of them whatever their attributes."""

VARIADIC = {
    "Add": _ZERO,
    "And": _ANY,
    "BitShift": _FIRST,
    "BitwiseAnd": _ANY,
    "BitwiseOr": _ZERO,
    "BitwiseXor": _ZERO,
    "Div": _FIRST,
    "Equal": _NONE,
    "Greater": _ZERO,
    "GreaterOrEqual": _NONE,
    "Less": _ZERO,
    "LessOrEqual": _NONE,
    "Max": _ZERO,
    "Mean": _ZERO,
    "Min": _ZERO,
    "Mod": _FIRST,
    "Mul": _ANY,
    "Or": _ZERO,
    "Pow": _FIRST,
    "PRelu": _FIRST | _SCALES,
    "Sub": _ZERO,
    "Sum": _ZERO,
    "SwiGLU": _ANY,
    "Where": _ZERO,
    "Xor": _ZERO,
}
"""Operators whose operands broadcast."""

_LEGACY = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")
"""Those that before opset 7 broadcast as attributes said."""

_MODERN = 7


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


def elementwise(r: NodeAxes) -> None:
    operands = [r.axes(i) for i in range(len(r.node.inputs)) if r.has(i)]
    r.set(broadcast(r, operands))


for _name, _traits in UNARY.items():
    rule(_name, traits=_traits | Trait.POINTWISE)(elementwise)

for _name, _traits in VARIADIC.items():
    _since = _MODERN if _name in _LEGACY else 1
    rule(_name, traits=_traits | Trait.BROADCASTS, since=_since)(elementwise)

rule("FastGelu", "QuickGelu", "BiasGelu", "Gelu", "BiasAdd", domain=MICROSOFT)(elementwise)


@rule(*_LEGACY, until=_MODERN)
def legacy_elementwise(r: NodeAxes) -> None:
    """Before opset 7 the second operand's axes align at `axis`."""
    if r.get("axis") is not None:
        raise Opaque("broadcasting as before opset 7")
    elementwise(r)


@rule("Clip", traits=Trait.POINTWISE)
def clip(r: NodeAxes) -> None:
    """Bounds are scalars."""
    r.set(r.axes(0))


@rule("Dropout", traits=Trait.SAME_SHAPE | Trait.LINEAR | Trait.RANDOM)
def dropout(r: NodeAxes) -> None:
    if r.opset >= 12 and r.has(2):
        training = r.constant(2)
        if training is None or training.any():
            raise Opaque("training mode, or decided at run time")
    axes = r.axes(0)
    r.set(axes)
    r.set(axes, 1)


@rule("Cast", traits=Trait.POINTWISE | Trait.ZERO_AT_ZERO)
def cast(r: NodeAxes) -> None:
    r.set(r.axes(0))


@rule("CastLike", traits=Trait.POINTWISE | Trait.ZERO_AT_ZERO)
def cast_like(r: NodeAxes) -> None:
    r.measure(1)
    r.set(r.axes(0))


@rule("Constant")
def constant(r: NodeAxes) -> None:
    """Each use of a constant has axes of its own (see `NodeAxes.maybe_axes`)."""
