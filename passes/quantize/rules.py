"""What quantization knows about each operator: its role and which inputs it takes as integers.

An operator has a rule if ONNX Runtime's CPU provider runs it on 8-bit integers, or
if it only moves elements, which costs nothing to do on integers. A rule looks at one
node and answers with its `Operands`, or with the reason why the node stays float.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from ...ir.errors import SecateurError
from ...ir.graph import Node, Value
from ...ir.model import Model
from ...ir.ops import Trait, traits
from ...ir.tensor import Array, Tensor
from .parameters import ValueRange


class Role(enum.Enum):
    """Where an operator stands when deciding which parts of a graph become integer."""

    CONVOLUTION = "multiplies by weights; needs its result quantized"
    MATMUL = "multiplies; may leave its result float, straight from the accumulators"
    RECURRENT = "multiplies inputs as integers; states stay float, their weights are stored as int8"
    POOLING = "reduces data; integer wherever its input is"
    ELEMENTWISE = "cheap; integer only where an integer operator reads the result"
    CLIPPING = "absorbed by the quantization of its result"

    @property
    def is_compute(self) -> bool:
        return self in (Role.CONVOLUTION, Role.MATMUL, Role.RECURRENT)

    @property
    def may_leave_floats(self) -> bool:
        """Whether a result is quantized only where an integer operator reads it."""
        return self in (Role.MATMUL, Role.RECURRENT)


@dataclasses.dataclass(frozen=True)
class Weight:
    """A constant for int8, per channel along `axis` (None: per tensor), times `factor`."""

    position: int
    axis: int | None
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Bias:
    """A constant for int32, at the scale of the accumulators, times `factor`."""

    position: int
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Operands:
    """Which inputs of a node take part: activations, constants stored as activations are,
    weights, a bias.

    Where `shares_parameters`, the results' elements are elements of the input or zero,
    so that its parameters serve for them too and the integers are only moved.
    """

    role: Role
    activations: tuple[int, ...]
    constants: tuple[int, ...] = ()
    weight: Weight | None = None
    recurrent_weight: Weight | None = None
    bias: Bias | None = None
    shares_parameters: bool = False

    @property
    def weights(self) -> tuple[Weight, ...]:
        return tuple(w for w in (self.weight, self.recurrent_weight) if w is not None)


class Constants:
    """Looks up constants through Constant nodes and Identity."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def get(self, value: Value | None) -> Tensor | None:
        """The tensor behind `value`, or None where it is computed or can be overridden."""
        return self._model.constant(self.origin(value))

    def finite(self, value: Value, node: Node) -> Array:
        """The numbers of a constant that a node reads. Raises SecateurError for others."""
        tensor = self.get(value)
        assert tensor is not None
        array = tensor.numpy()
        if not np.isfinite(array).all():
            where = f"node '{node.label}' ({node.op_type})"
            raise SecateurError(f"{where}: constant '{value.name}' holds NaN or infinity")
        return array

    @staticmethod
    def origin(value: Value | None) -> Value | None:
        """What `value` is a plain copy of."""
        while (
            value is not None
            and value.producer is not None
            and value.producer.op_type == "Identity"
            and value.producer.domain in ("", "ai.onnx")
        ):
            value = value.producer.input(0)
        return value


Plan = Operands | str
"""What a rule answers: the operands, or why the node stays float."""

Rule = Callable[[Node, Constants], Plan]


def plan(node: Node, constants: Constants) -> Plan:
    """The operands that `node` takes as integers, or the reason why it stays float."""
    if node.domain not in ("", "ai.onnx"):
        return f"domain '{node.domain}' is not quantized"
    rule = rule_of(node)
    if rule is None:
        return REASONS.get(node.op_type, "ONNX Runtime has no integer kernel for this operator")
    answer = rule(node, constants)
    return answer if isinstance(answer, str) else _check_types(node, constants, answer)


def rule_of(node: Node) -> Rule | None:
    """The rule of a node's operator; those that only move elements share one."""
    return RULES.get(node.op_type, _movement if Trait.MOVES in traits(node) else None)


def clip_bounds(node: Node, constants: Constants) -> ValueRange | None:
    """What a Relu or Clip limits its input to; None where that is not constant."""
    if node.op_type == "Relu":
        return ValueRange(0.0, np.inf)
    limits = [-np.inf, np.inf]
    for index in (1, 2):
        if node.input(index) is not None:
            tensor = constants.get(node.input(index))
            if tensor is None or tensor.size != 1:
                return None
            limits[index - 1] = float(tensor.numpy().reshape(()))
    return ValueRange(limits[0], limits[1])


def possible_range(value: Value, constants: Constants) -> ValueRange:
    """What a value can take, whatever it is computed from."""
    node = value.producer
    if node is not None and node.op_type in ("Clip", "Relu"):
        return clip_bounds(node, constants) or EVERYTHING
    return _RANGES.get(node.op_type, EVERYTHING) if node is not None else EVERYTHING


EVERYTHING = ValueRange(-np.inf, np.inf)

_RANGES = {
    "HardSigmoid": ValueRange(0.0, 1.0),
    "Sigmoid": ValueRange(0.0, 1.0),
    "Softmax": ValueRange(0.0, 1.0),
    "Tanh": ValueRange(-1.0, 1.0),
}
"""What operators can put out, where that has ends."""


# --- checks ----------------------------------------------------------------------


def _check_types(node: Node, constants: Constants, operands: Operands) -> Plan:
    """Refuse what is not float32, and constants that a caller may override."""
    weights = [weight.position for weight in operands.weights]
    bias = () if operands.bias is None else (operands.bias.position,)
    for position in (*operands.activations, *operands.constants, *weights, *bias):
        value = node.input(position)
        assert value is not None
        if value.dtype not in (TensorProto.FLOAT, TensorProto.UNDEFINED):
            return f"'{value.name}' is {_type_name(value)}; only float32 is quantized"
        if position in operands.activations and value.const is not None:
            return f"'{value.name}' is an input with a default value, which a caller may override"
        if position not in operands.activations:
            reason = _check_constant(value, constants)
            if reason:
                return reason
    for value in node.outputs:
        if value is not None and value.dtype != TensorProto.FLOAT:
            return f"its result is {_type_name(value)}; only float32 is quantized"
    return operands


def _check_constant(value: Value, constants: Constants) -> str | None:
    tensor = constants.get(value)
    assert tensor is not None
    if tensor.dtype != TensorProto.FLOAT:
        return f"constant '{value.name}' is not float32"
    if tensor.size == 0:
        return f"constant '{value.name}' is empty"
    return None


def _type_name(value: Value) -> str:
    if value.dtype == TensorProto.UNDEFINED:
        return "of unknown type"
    return str(TensorProto.DataType.Name(value.dtype)).lower()


def _not_constant(what: str, value: Value | None) -> str:
    if value is not None and value.const is not None:
        return f"its {what} '{value.name}' is an input with a default, which a caller may override"
    return f"its {what} is not a constant"


# --- one rule per operator -------------------------------------------------------


def _convolution(axis: int) -> Rule:
    def rule(node: Node, constants: Constants) -> Plan:
        weight = constants.get(node.input(1))
        if weight is None:
            return _not_constant("weight", node.input(1))
        if len(weight.shape) < 3:
            return "its weight has no spatial axis"
        bias = None
        if node.input(2) is not None:
            if constants.get(node.input(2)) is None:
                return _not_constant("bias", node.input(2))
            bias = Bias(2)
        return Operands(Role.CONVOLUTION, (0,), weight=Weight(1, axis), bias=bias)

    return rule


def _gemm(node: Node, constants: Constants) -> Plan:
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    bias = None
    if node.input(2) is not None:
        if constants.get(node.input(2)) is None:
            return _not_constant("C", node.input(2))
        bias = Bias(2, beta)
    if constants.get(node.input(0)) is not None:
        return "its A is a constant"
    if constants.get(node.input(1)) is not None:
        weight = Weight(1, 0 if node.get("transB", 0) else 1, alpha)
        return Operands(Role.MATMUL, (0,), weight=weight, bias=bias)
    if alpha != 1.0:
        return "alpha is not 1 and B is not a constant to multiply by it"
    return Operands(Role.MATMUL, (0, 1), bias=bias)


def _matmul(node: Node, constants: Constants) -> Plan:
    left, right = constants.get(node.input(0)), constants.get(node.input(1))
    if left is not None and right is not None:
        return "both operands are constants"
    if right is not None:
        # A batch of matrices has one scale per tensor: QLinearMatMul wants [..., 1, N] scales,
        # which DequantizeLinear can't express.
        axis = 1 if len(right.shape) == 2 else None
        return Operands(Role.MATMUL, (0,), weight=Weight(1, axis))
    if left is not None:
        return Operands(Role.MATMUL, (1,), constants=(0,))
    return Operands(Role.MATMUL, (0, 1))


def _recurrent(node: Node, constants: Constants) -> Plan:
    """Rows of both weights, one for each gate of a unit, have a scale for all directions."""
    for position, what in ((1, "weight"), (2, "recurrent weight")):
        if constants.get(node.input(position)) is None:
            return _not_constant(what, node.input(position))
    if constants.get(node.input(0)) is not None:
        return "its inputs are a constant"
    return Operands(Role.RECURRENT, (0,), weight=Weight(1, 1), recurrent_weight=Weight(2, 1))


def _binary(node: Node, constants: Constants) -> Plan:
    fixed = tuple(i for i in (0, 1) if constants.get(node.input(i)) is not None)
    if len(fixed) == 2:
        return "both operands are constants"
    free = tuple(i for i in (0, 1) if i not in fixed)
    return Operands(Role.ELEMENTWISE, free, fixed)


def _concat(node: Node, constants: Constants) -> Plan:
    positions = range(len(node.inputs))
    fixed = tuple(i for i in positions if constants.get(node.input(i)) is not None)
    free = tuple(i for i in positions if i not in fixed)
    if not free:
        return "all operands are constants"
    return Operands(Role.ELEMENTWISE, free, fixed)


def _unary(role: Role) -> Rule:
    def rule(node: Node, constants: Constants) -> Plan:
        if constants.get(node.input(0)) is not None:
            return "its operand is a constant"
        return Operands(role, (0,))

    return rule


def _movement(node: Node, constants: Constants) -> Plan:
    if constants.get(node.input(0)) is not None:
        return "its operand is a constant"
    return Operands(Role.ELEMENTWISE, (0,), shares_parameters=True)


def _clip(node: Node, constants: Constants) -> Plan:
    if clip_bounds(node, constants) is None:
        return "its bounds are not constants"
    return Operands(Role.CLIPPING, (0,))


def _max_pool(node: Node, constants: Constants) -> Plan:
    if node.output(1) is not None:
        return "it also returns indices"
    return Operands(Role.POOLING, (0,), shares_parameters=True)


def _gather(node: Node, constants: Constants) -> Plan:
    if constants.get(node.input(0)) is not None:
        return Operands(Role.ELEMENTWISE, (), constants=(0,), shares_parameters=True)
    return _movement(node, constants)


def _pad(node: Node, constants: Constants) -> Plan:
    if node.get("mode", "constant") == "constant" and node.input(2) is not None:
        fill = constants.get(node.input(2))
        if fill is None or fill.size != 1 or fill.numpy().reshape(()) != 0:
            return "it pads with something else than zero"
    return _movement(node, constants)


def _resize(node: Node, constants: Constants) -> Plan:
    if node.get("mode", "nearest") != "nearest":
        return "ONNX Runtime resizes integers only by the nearest neighbour"
    if node.get("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return "it fills in an extrapolation value"
    return _movement(node, constants)


_elementwise = _unary(Role.ELEMENTWISE)
_pooling = _unary(Role.POOLING)

RULES: dict[str, Rule] = {
    "Add": _binary,
    "AveragePool": _pooling,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _convolution(0),
    "ConvTranspose": _convolution(1),
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _pooling,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "LeakyRelu": _elementwise,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _binary,
    "Pad": _pad,
    "RNN": _recurrent,
    "Relu": _clip,
    "Resize": _resize,
    "Sigmoid": _elementwise,
}
"""By operator, without those that only move elements."""

REASONS: dict[str, str] = {
    "BatchNormalization": "no integer kernel; simplify the model first, which folds it",
    "Softmax": "its input decides by small differences, which 8 bits would round away",
    "LogSoftmax": "its input decides by small differences, which 8 bits would round away",
}
"""Why operators without a rule stay float, where there is more to say."""
