"""Operators that compute each element from those at the same place, for every type."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from tvm import tirx

from ...faults import Fault
from ...functions.definitions import FUNCTIONS, by_operator
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Computed, Expr
from . import mathematics as m
from .base import (
    Array,
    OperatorCall,
    bind,
    cell,
    compute_type,
    dtype_of,
    is_float,
    nest,
    number,
    rule,
    select,
    to,
)
from .generators import fill
from .mathematics import lit

Function = Callable[..., Expr]


def elementwise(
    call: OperatorCall,
    function: Function,
    inputs: Sequence[int] | None = None,
    *,
    key: Hashable = (),
    builder: bool = False,
) -> None:
    """Emit `function` of the inputs' elements, broadcast to the output's shape.

    float16 is computed in float32. With `builder` the function takes the kernel's builder
    first, for statements of its own.
    """
    shapes = [call.shape(i) for i, v in enumerate(call.node.inputs) if v is not None]
    shapes = shapes if inputs is None else [call.shape(i) for i in inputs]
    _check_broadcast(call, shapes)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        y = ys[0]

        def value(elements: list[Expr]) -> Expr:
            wide = [
                bind(k, to(e, compute_type(x.dtype))) for e, x in zip(elements, xs, strict=True)
            ]
            return function(k, *wide) if builder else function(*wide)

        if all(x.shape == y.shape or x.size == 1 for x in xs):
            with k.loop(y.size, "i") as i:
                y.put(value([x.at(0 if x.size == 1 else i) for x in xs]), i)
        else:
            with nest(k, y.shape) as index:
                y.store(value([x.broadcast(index) for x in xs]), index)

    call.loops(body, inputs, key=key)


def _check_broadcast(call: OperatorCall, shapes: Sequence[tuple[int, ...]]) -> None:
    if not call.lowering.broadcasts(shapes, call.output_shape()):
        given = ", ".join(str(list(s)) for s in shapes)
        call.fail(f"shapes {given} don't give {list(call.output_shape())}")


def _unary(function: Function) -> Callable[[OperatorCall], None]:
    return lambda call: elementwise(call, function, [0])


def _libm(name: str) -> Function:
    return lambda x: m.libm(name, x)


_UNARY: dict[str, Function] = {
    "IsNaN": m.is_nan,
    "Not": lambda x: tirx.Not(x),
    "BitwiseNot": lambda x: ~x,
    **{
        name: _libm(name.lower())
        for name in [
            "Sin",
            "Cos",
            "Tan",
            "Asin",
            "Acos",
            "Atan",
            "Sinh",
            "Cosh",
            "Asinh",
            "Acosh",
            "Atanh",
        ]
    },
}

for _name, _function in _UNARY.items():
    rule(_name)(_unary(_function))


def _with(function: Function, **defaults: Expr) -> Callable[[OperatorCall], None]:
    """A unary operator with numbers as attributes."""

    def lower(call: OperatorCall) -> None:
        given = {name: call.node.get(name, value) for name, value in defaults.items()}
        elementwise(call, lambda x: function(x, **given), [0])

    return lower


for _op_type, _definition in by_operator().items():
    rule(_op_type)(_with(functools.partial(m.evaluate, _definition), **_definition.parameters))


@rule("Gelu")
def gelu(call: OperatorCall) -> None:
    name = "gelu_tanh" if call.node.get("approximate", "none") == "tanh" else "gelu"
    elementwise(call, functools.partial(m.evaluate, FUNCTIONS[name]), [0])


def _shrink(x: Expr, lambd: float, bias: float) -> Expr:
    limit, b = float(lambd), float(bias)
    wide = to(x, "float32")
    low, high = wide + number(b, "float32"), wide - number(b, "float32")
    zero = number(0, "float32")
    inner = select(wide > number(limit, "float32"), high, zero)
    return m.convert(select(wide < number(-limit, "float32"), low, inner), dtype_of(x))


def _is_infinite(x: Expr, detect_negative: int, detect_positive: int) -> Expr:
    found = []
    if detect_positive:
        found.append(x >= lit(math.inf, x))
    if detect_negative:
        found.append(x <= lit(-math.inf, x))
    return tirx.any(*found) if found else number(0, "bool")


rule("Shrink")(_with(_shrink, lambd=0.5, bias=0.0))
rule("IsInf")(_with(_is_infinite, detect_negative=1, detect_positive=1))


@rule("Identity")
def identity(call: OperatorCall) -> None:
    call.same(call.value(0))


@rule("Dropout")
def dropout(call: OperatorCall) -> None:
    """Inference only: a copy, and a mask that keeps everything."""
    if call.has(2):
        mode = call.known(2, "training_mode")
        ratio = call.constant(1)
        training = bool(mode.reshape(())) and (ratio is None or float(ratio.reshape(())) != 0)
        if training:
            call.fail("training mode draws random numbers")
    elif call.opset < 7 and not call.node.get("is_test", 0):
        call.fail("training mode draws random numbers")
    call.same(call.value(0))
    if call.wants(1):
        fill(call, 1, 1)


# --- conversions -----------------------------------------------------------------


@rule("Cast", "CastLike")
def cast(call: OperatorCall) -> None:
    target = call.output_dtype(0)
    elementwise(call, lambda x: m.convert(x, target), [0])


# --- two operands ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Divisor:
    """What the divisors of an operator may be: where they are constant, it is known."""

    zero: bool
    minus_one: bool

    @staticmethod
    def of(call: OperatorCall) -> _Divisor:
        """Raises UnsupportedError where integers are divided by a constant zero."""
        if is_float(call.dtype(1)):
            return _Divisor(zero=False, minus_one=False)
        signed = not call.dtype(1).startswith("uint")
        known = call.constant(1)
        if known is None:
            return _Divisor(zero=True, minus_one=signed)
        if not known.all():
            call.fail("an integer is divided by zero")
        return _Divisor(zero=False, minus_one=signed and bool((known == -1).any()))

    def apply(
        self, k: KernelBuilder, function: Function, a: Expr, b: Expr, by_minus_one: Expr
    ) -> Expr:
        """`function(a, b)`, where x86 doesn't stop the process.

        It does so for zero, and where the lowest number is divided by -1. That takes
        statements: an expression that divides is computed whatever condition it is under
        if it occurs twice.
        """
        if self.zero:
            # TVM's analysis of what an unsigned number isn't fails.
            signed = tirx.reinterpret(dtype_of(b).removeprefix("u"), b)
            k.fail_if(tirx.EQ(signed, lit(0, signed)), Fault.DIVISION)
        if not self.minus_one:
            return function(a, b)
        result = cell(k, dtype_of(a), by_minus_one, "quotient")
        with k.when(tirx.NE(b, lit(-1, b))):
            result.set(function(a, b))
        return result.get()


def _divide(call: OperatorCall) -> None:
    """Towards zero; the lowest number divided by -1 is itself."""
    divisor = _Divisor.of(call)

    def function(k: KernelBuilder, a: Expr, b: Expr) -> Expr:
        if is_float(dtype_of(a)):
            return a / b
        return divisor.apply(k, tirx.truncdiv, a, b, lit(0, a) - a)

    _binary(function, key=divisor, builder=True)(call)


rule("Div")(_divide)


def _shift(call: OperatorCall) -> None:
    left = call.node.get("direction") == "LEFT"

    def shift(a: Computed, b: Expr) -> Expr:
        dtype = dtype_of(a)
        bits = int("".join(c for c in dtype if c.isdigit()))
        within = tirx.all(b >= lit(0, b), b < lit(bits, b))
        amount = select(within, b, lit(0, b))
        filled = lit(0, a)
        if not left and not dtype.startswith("uint"):
            filled = select(a < lit(0, a), lit(-1, a), lit(0, a))
        return select(within, a << amount if left else a >> amount, filled)

    elementwise(call, shift)


rule("BitShift")(_shift)


def _binary(
    function: Function, *, key: Hashable = (), builder: bool = False
) -> Callable[[OperatorCall], None]:
    def lower(call: OperatorCall) -> None:
        if call.opset < 7:
            _legacy(call, function, key, builder=builder)
        else:
            elementwise(call, function, key=key, builder=builder)

    return lower


def _legacy(call: OperatorCall, function: Function, key: Hashable, *, builder: bool) -> None:
    """Before opset 7 the second operand's axes align at `axis`, if `broadcast` says so."""
    first, second = call.shape(0), call.shape(1)
    by_channel = call.node.op_type == "PRelu" and len(second) == 1
    if not by_channel and (not call.node.get("broadcast", 0) or len(first) == len(second)):
        elementwise(call, function, key=key, builder=builder)
        return
    axis = min(1, len(first) - 1) if by_channel else len(first) - len(second)
    axis = int(call.node.get("axis", axis)) % len(first)
    from ...plan.operations import ReshapeOp
    from ...plan.tensors import PlanTensor

    source = call.tensor(1)
    shape = (*second, *(1 for _ in range(len(first) - axis - len(second))))
    aligned = PlanTensor(source.name + "/aligned", source.dtype, shape, const=None)
    if source.const is not None:
        aligned.const = source.const.reshape(shape)
    else:
        call.lowering.add(ReshapeOp(call.node.label, [aligned], source))

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with nest(k, ys[0].shape) as index:
            values = [bind(k, xs[0][index]), bind(k, xs[1].broadcast(index))]
            ys[0].store(function(k, *values) if builder else function(*values), index)

    call.loops(body, [call.tensor(0), aligned], key=("legacy", key))


_BINARY: dict[str, Function] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "And": lambda a, b: tirx.And(a, b),
    "Or": lambda a, b: tirx.Or(a, b),
    "Xor": lambda a, b: tirx.NE(to(a, "int8"), to(b, "int8")),
    "Equal": lambda a, b: tirx.EQ(_comparable(a), _comparable(b)),
    "Greater": lambda a, b: a > b,
    "Less": lambda a, b: a < b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "LessOrEqual": lambda a, b: a <= b,
    "BitwiseAnd": lambda a, b: a & b,
    "BitwiseOr": lambda a, b: a | b,
    "BitwiseXor": lambda a, b: a ^ b,
    "PRelu": lambda x, slope: select(x < lit(0, x), x * slope, x),
}

for _name, _function in _BINARY.items():
    rule(_name)(_binary(_function))


def _comparable(x: Expr) -> Expr:
    return to(x, "int8") if dtype_of(x) == "bool" else x


@rule("Pow")
def power(call: OperatorCall) -> None:
    """Squares and cubes of integers by one exponent are products, as in ONNX Runtime."""
    whole = not is_float(call.dtype(0)) and math.prod(call.shape(1)) == 1

    def function(x: Expr, y: Expr) -> Expr:
        result = m.power(x, y)
        if not whole:
            return result
        square = x * x
        result = select(tirx.EQ(y, lit(3, y)), square * x, result)
        return select(tirx.EQ(y, lit(2, y)), square, result)

    _binary(function)(call)


@rule("Sign")
def sign(call: OperatorCall) -> None:
    """Of NaN it is NaN, in float16 zero, as in ONNX Runtime."""
    half = call.dtype(0) == "float16"

    def function(x: Expr) -> Expr:
        return select(m.is_nan(x), lit(0, x), m.sign(x)) if half else m.sign(x)

    elementwise(call, function, [0])


@rule("Mod")
def mod(call: OperatorCall) -> None:
    """The remainder has the divisor's sign, with fmod=1 the dividend's."""
    truncated = bool(call.node.get("fmod", 0))
    divisor = _Divisor.of(call)

    def function(k: KernelBuilder, a: Expr, b: Expr) -> Expr:
        floats = is_float(dtype_of(a))
        if floats:
            rest: Expr = m.libm("fmod", a, b)
        else:
            rest = bind(k, divisor.apply(k, tirx.truncmod, a, b, lit(0, a)))
        if truncated or dtype_of(a).startswith("uint"):
            return rest
        zero = lit(0, a)
        signs_differ = tirx.NE(to(rest < zero, "int8"), to(b < zero, "int8"))
        moved = select(tirx.all(tirx.NE(rest, zero), signs_differ), rest + b, rest)
        if not floats:
            return moved
        return select(tirx.EQ(rest, zero), m.libm("copysign", zero, b), moved)

    elementwise(call, function, key=divisor, builder=True)


@rule("Where")
def where(call: OperatorCall) -> None:
    elementwise(call, select)


# --- any number of operands ------------------------------------------------------


def _variadic(function: Function, *, mean: bool = False) -> Callable[[OperatorCall], None]:
    def lower(call: OperatorCall) -> None:
        count = len(call.node.inputs)

        def total(*values: Expr) -> Expr:
            result = values[0]
            for value in values[1:]:
                result = function(result, value)
            return result / lit(count, result) if mean else result

        elementwise(call, total)

    return lower


rule("Max")(_variadic(m.largest))
rule("Min")(_variadic(m.smallest))
rule("Sum")(_variadic(lambda a, b: a + b))
rule("Mean")(_variadic(lambda a, b: a + b, mean=True))


@rule("Clip")
def clip(call: OperatorCall) -> None:
    """Bounds may be computed at run time; the upper one wins where they cross.

    Omitted ones are the extremes of the type, which infinities exceed.
    """
    dtype = compute_type(call.dtype(0))
    extreme = float(np.finfo(call.dtype(0)).max) if is_float(dtype) else None
    low = call.node.get("min", None if extreme is None else -extreme)
    high = call.node.get("max", extreme)
    inputs = [i for i in range(3) if call.has(i)]

    def function(*values: Expr) -> Expr:
        given = dict(zip(inputs, values, strict=True))
        lower = given.get(1, None if low is None else number(low, dtype))
        upper = given.get(2, None if high is None else number(high, dtype))
        x = given[0]
        if lower is not None:
            x = select(x < lower, lower, x)
        if upper is not None:
            x = select(x > upper, upper, x)
        return x

    elementwise(call, function, key=tuple(inputs))
