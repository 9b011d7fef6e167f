"""Activations recognised from the arithmetic that exporters write them out in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from onnx import TensorProto, helper

from ...ir.graph import Node, Value
from .rewriter import FURTHEST, Rewriter, RuleSet, only_reader, producer

RULES = RuleSet()

_CLOSE = 1e-6
"""Relative deviation up to which a constant counts as the one of the definition."""

_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)
"""Element types for which ONNX Runtime has all of these operators."""

_UNTIL = {"Swish": 24}
"""Last opset in which ONNX Runtime (1.32) runs an operator that it expands as a function."""


def is_close(a: float | None, b: float) -> bool:
    return a is not None and math.isclose(a, b, rel_tol=_CLOSE)


def scalar_operand(node: Node, rewriter: Rewriter) -> tuple[Value, float] | None:
    """(other operand, number) of a commutative operator with a scalar constant operand.

    None, too, where the constant would enlarge the other operand.
    """
    for index in (0, 1):
        value, other = node.input(index), node.input(1 - index)
        number, tensor = rewriter.scalar(other), rewriter.tensor(other)
        if value is None or number is None or tensor is None:
            continue
        if not tensor.shape or (value.rank is not None and len(tensor.shape) <= value.rank):
            return value, number
    return None


def scaled_by(value: Value | None, rewriter: Rewriter) -> tuple[Value, float] | None:
    """(source, factor) of a value that is a scalar multiple of another."""
    node = producer(value, "Mul", "Div")
    if node is None:
        return None
    if node.op_type == "Mul":
        return scalar_operand(node, rewriter)
    source, number = node.input(0), rewriter.scalar(node.input(1))
    if source is None or not number:
        return None
    return source, 1.0 / number


def factors(value: Value, rewriter: Rewriter) -> tuple[list[Value], float]:
    """A value as a product: factors that are no scalar constants, and the number they have.

    Looks through a few products that nothing else reads.
    """
    found: list[Value] = []
    number = 1.0
    pending = [(value, True)]
    for _ in range(FURTHEST):
        if not pending:
            break
        item, is_root = pending.pop()
        node = producer(item, "Mul", "Div")
        scalar = None if node is None else scaled_by(item, rewriter)
        own = is_root or only_reader(item) is not None
        if scalar is not None and own:
            number *= scalar[1]
            pending.append((scalar[0], False))
        elif node is not None and node.op_type == "Mul" and own and len(found) < 4:
            pending.extend((v, False) for v in node.inputs if v is not None)
        else:
            found.append(item)
    return found + [item for item, _ in pending], number


@RULES.on("Mul", "Div")
def recognise_product(node: Node, rewriter: Rewriter) -> bool:
    """HardSwish, Gelu, Mish and Swish: `x` times a function of `x`."""
    output = node.output(0)
    if output is None or rewriter.opset < 7 or output.dtype not in _TYPES:
        return False
    parts, number = factors(output, rewriter)
    if len(parts) != 2 or parts[0] is parts[1]:
        return False
    for x, gate in (parts, parts[::-1]):
        if only_reader(gate) is None:  # it would be computed twice
            continue
        if x.shape is None or x.shape != output.shape:
            continue
        for op_type, since, attributes in _gates(x, gate, number, rewriter):
            if since <= rewriter.opset <= _UNTIL.get(op_type, 99):
                return _write_activation(node, op_type, "", x, attributes, rewriter)
            contrib = _CONTRIB.get(op_type) if rewriter.allow_contrib else None
            if contrib is not None and output.dtype == TensorProto.FLOAT:
                name, attributes = contrib(attributes)
                return _write_activation(node, name, "com.microsoft", x, attributes, rewriter)
    return False


_Attributes = dict[str, object]

_CONTRIB: dict[str, Callable[[_Attributes], tuple[str, _Attributes]]] = {
    "Gelu": lambda attributes: ("FastGelu" if attributes else "Gelu", {}),
    "Swish": lambda attributes: ("QuickGelu", {"alpha": 1.0}),
}
"""ONNX Runtime's own operators for activations that the model's opset lacks."""


def _write_activation(
    node: Node, op_type: str, domain: str, x: Value, attributes: _Attributes, rewriter: Rewriter
) -> bool:
    output = node.outputs[0]
    assert output is not None
    new = rewriter.add(
        node, op_type, [x], attributes, type=output.type, hint=node.name, domain=domain
    )
    return rewriter.replace(output, new)


def _gates(
    x: Value, gate: Value, number: float, rewriter: Rewriter
) -> Iterator[tuple[str, int, dict[str, object]]]:
    """Activations that are `number * x * gate`: operator, first opset, attributes."""
    if is_close(number, 1.0):
        sigmoid = producer(gate, "Sigmoid")
        if sigmoid is not None and sigmoid.input(0) is x:
            yield "Swish", 24, {}
        if _is_hard_sigmoid(gate, x):
            yield "HardSwish", 14, {}
        tanh = producer(gate, "Tanh")
        softplus = None if tanh is None else producer(tanh.input(0), "Softplus")
        if softplus is not None and softplus.input(0) is x:
            yield "Mish", 18, {}
    if is_close(number, 1 / 6) and _is_relu6_of_shifted(gate, x, rewriter):
        yield "HardSwish", 14, {}
    inner = _one_plus(gate, rewriter) if is_close(number, 0.5) else None
    if is_close(number, 1.0):
        inner = _half_of_one_plus(gate, rewriter)
    if inner is not None:
        erf = producer(inner, "Erf")
        if erf is not None and _is_multiple(erf.input(0), x, math.sqrt(0.5), rewriter):
            yield "Gelu", 20, {}
        tanh = producer(inner, "Tanh")
        if tanh is not None and _is_tanh_argument(tanh.input(0), x, rewriter):
            yield "Gelu", 20, {"approximate": "tanh"}


def _one_plus(value: Value, rewriter: Rewriter) -> Value | None:
    node = producer(value, "Add")
    found = None if node is None else scalar_operand(node, rewriter)
    return found[0] if found is not None and is_close(found[1], 1.0) else None


def _half_of_one_plus(value: Value, rewriter: Rewriter) -> Value | None:
    """The value `z` where `value` computes 0.5 * z + 0.5, else None."""
    node = producer(value, "Add")
    found = None if node is None else scalar_operand(node, rewriter)
    scaled = None if found is None else scaled_by(found[0], rewriter)
    if found is None or scaled is None or not is_close(found[1], 0.5):
        return None
    return scaled[0] if is_close(scaled[1], 0.5) else None


def _is_multiple(value: Value | None, x: Value, factor: float, rewriter: Rewriter) -> bool:
    found = scaled_by(value, rewriter)
    return found is not None and found[0] is x and is_close(found[1], factor)


def _is_hard_sigmoid(value: Value, x: Value) -> bool:
    node = producer(value, "HardSigmoid")
    if node is None or node.input(0) is not x:
        return False
    return is_close(node.get("alpha", 0.2), 1 / 6) and is_close(node.get("beta", 0.5), 0.5)


def _is_relu6_of_shifted(value: Value, x: Value, rewriter: Rewriter) -> bool:
    """clip(x + 3, 0, 6)"""
    clip = producer(value, "Clip")
    if clip is None or clip_bounds(clip, rewriter) != (0.0, 6.0):
        return False
    shifted = producer(clip.input(0), "Add")
    found = None if shifted is None else scalar_operand(shifted, rewriter)
    return found is not None and found[0] is x and found[1] == 3.0


def clip_bounds(node: Node, rewriter: Rewriter) -> tuple[float, float] | None:
    """Lower and upper bound of a Clip, infinite where absent; None where not constant."""
    bounds = []
    for index, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        if rewriter.opset < 11:
            bounds.append(float(node.get(name, default)))
        elif node.input(index) is None:
            bounds.append(default)
        else:
            number = rewriter.scalar(node.input(index))
            if number is None:
                return None
            bounds.append(number)
    return bounds[0], bounds[1]


def _is_tanh_argument(value: Value | None, x: Value, rewriter: Rewriter) -> bool:
    """sqrt(2 / pi) * (x + 0.044715 * x**3), or with x as a factor of its own"""
    if value is None:
        return False
    parts, number = factors(value, rewriter)
    if len(parts) == 2 and x in parts:
        inner = _one_plus(parts[1 if parts[0] is x else 0], rewriter)
        square = scaled_by(inner, rewriter)
        return (
            is_close(number, math.sqrt(2 / math.pi))
            and square is not None
            and is_close(square[1], 0.044715)
            and _is_power(square[0], x, 2, rewriter)
        )
    found = scaled_by(value, rewriter)
    node = None if found is None else producer(found[0], "Add")
    if found is None or node is None or not is_close(found[1], math.sqrt(2 / math.pi)):
        return False
    for plain, cubic in (node.inputs, reversed(node.inputs)):
        scaled = scaled_by(cubic, rewriter)
        if plain is x and scaled is not None and is_close(scaled[1], 0.044715):
            return _is_power(scaled[0], x, 3, rewriter)
    return False


def _is_power(value: Value, x: Value, exponent: int, rewriter: Rewriter) -> bool:
    power = producer(value, "Pow")
    if power is not None and power.input(0) is x:
        return rewriter.scalar(power.input(1)) == exponent
    return factors(value, rewriter) == ([x] * exponent, 1.0)


@RULES.on("Mul", "Div")
def recognise_hard_sigmoid(node: Node, rewriter: Rewriter) -> bool:
    """clip(x + 3, 0, 6) / 6 is HardSigmoid with slope 1/6."""
    output = node.output(0)
    found = scaled_by(output, rewriter)
    clip = None if found is None else producer(found[0], "Clip")
    if clip is None or found is None or output is None or not is_close(found[1], 1 / 6):
        return False
    shifted = producer(clip.input(0), "Add")
    inner = None if shifted is None else scalar_operand(shifted, rewriter)
    if inner is None or inner[1] != 3.0 or clip_bounds(clip, rewriter) != (0.0, 6.0):
        return False
    if only_reader(found[0]) is not node or inner[0].dtype not in _TYPES:
        return False
    attributes = {"alpha": float(np.float32(1 / 6)), "beta": 0.5}
    new = rewriter.add(node, "HardSigmoid", [inner[0]], attributes, type=output.type)
    return rewriter.replace(output, new)


_BOUNDING = ("Clip", "Max", "Min", "Relu")


@RULES.on(*_BOUNDING)
def merge_bounds(node: Node, rewriter: Rewriter) -> bool:
    """Clip, Relu, and Max and Min with a number, one after the other: one of them."""
    outer = _bounded(node, rewriter)
    between = None if outer is None else outer[0]
    before = producer(between, *_BOUNDING)
    inner = None if before is None else _bounded(before, rewriter)
    output = node.output(0)
    if outer is None or inner is None or between is None or output is None:
        return False
    source, low, high = inner
    if low > high or outer[1] > outer[2]:  # crossed bounds give the upper one
        return False
    if outer[1] <= low and outer[2] >= high:
        return rewriter.replace(output, between)
    if node.op_type in ("Clip", "Relu") and outer[1] >= low and outer[2] <= high:
        rewriter.set_input(node, 0, source)
        return True
    if only_reader(between) is not node:
        return False
    low, high = (min(max(bound, outer[1]), outer[2]) for bound in (low, high))
    return _write_clip(node, source, low, high, rewriter)


def _bounded(node: Node, rewriter: Rewriter) -> tuple[Value, float, float] | None:
    """(operand, lower, upper bound) of a node that does nothing but bound its operand."""
    if node.op_type in ("Max", "Min"):
        if len(node.inputs) != 2 or rewriter.opset < 8:
            return None
        found = scalar_operand(node, rewriter)
        if found is None or found[0].dtype not in _TYPES or math.isnan(found[1]):
            return None
        return (*found, math.inf) if node.op_type == "Max" else (found[0], -math.inf, found[1])
    source = node.input(0)
    bounds = (0.0, math.inf) if node.op_type == "Relu" else clip_bounds(node, rewriter)
    if source is None or bounds is None or any(math.isnan(bound) for bound in bounds):
        return None
    return (source, *bounds)


def _write_clip(node: Node, source: Value, low: float, high: float, rewriter: Rewriter) -> bool:
    output = node.output(0)
    if output is None or source.dtype not in _TYPES:
        return False
    if (low, high) == (0.0, math.inf):
        new = rewriter.add(node, "Relu", [source], type=output.type, hint=node.name)
        return rewriter.replace(output, new)
    if rewriter.opset < 11:
        return False
    dtype = helper.tensor_dtype_to_np_dtype(source.dtype)
    bounds = [
        None if math.isinf(bound) else rewriter.constant(node, np.array(bound, dtype))
        for bound in (low, high)
    ]
    new = rewriter.add(node, "Clip", [source, *bounds], type=output.type, hint=node.name)
    return rewriter.replace(output, new)


@RULES.on("Mul")
def divide_instead_of_reciprocal(node: Node, rewriter: Rewriter) -> bool:
    """x * (1 / y) is x / y."""
    output = node.output(0)
    for x, inverse in (node.inputs, reversed(node.inputs)):
        divisor = _inverted(inverse, rewriter)
        if divisor is None or x is None or inverse is None or only_reader(inverse) is not node:
            continue
        if output is None or rewriter.opset < 7:
            return False
        new = rewriter.add(node, "Div", [x, divisor], type=output.type, hint=node.name)
        return rewriter.replace(output, new)
    return False


def _inverted(value: Value | None, rewriter: Rewriter) -> Value | None:
    """The value `y` where `value` computes 1 / y, else None."""
    node = producer(value, "Reciprocal", "Div")
    if node is None:
        return None
    if node.op_type == "Reciprocal":
        return node.input(0)
    one, divisor = rewriter.tensor(node.input(0)), node.input(1)
    if one is None or one.size != 1 or divisor is None or rewriter.scalar(node.input(0)) != 1.0:
        return None
    return divisor if not one.shape or len(one.shape) <= (divisor.rank or 0) else None
