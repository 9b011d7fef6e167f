"""Functions of one number, each defined once as a formula over whatever computes it.

A formula takes an `Arithmetic` and an element. There is one for vectors (`program_code.py`),
one for scalars in plain loops (`lowering/loops/mathematics.py`), one for NumPy (`tables.py`):
which operators, recurrent activations and tables there are follows from `FUNCTIONS`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol, TypeVar, cast

from ..plan.numeric import Number


class Arithmetic(Protocol[Number]):
    """The pieces that formulas are made of, over what they compute with."""

    def number(self, value: float) -> Number:
        """A number of the formula's own."""

    def parameter(self, value: float) -> Number:
        """A number that a model gives, zero perhaps."""

    def named(self, x: Number) -> Number:
        """An element that is used several times, or in a condition."""

    def kept(self, x: Number) -> Number:
        """The result of a function of many operations, that another one takes."""

    def where(self, condition: Number, x: Number, y: Number) -> Number: ...

    def at_least(self, x: Number, bound: Number) -> Number:
        """The larger one; NaN if x is. The bound is no NaN."""

    def at_most(self, x: Number, bound: Number) -> Number:
        """The smaller one; NaN if x is. The bound is no NaN."""

    def negative(self, x: Number) -> Number: ...

    def magnitude(self, x: Number) -> Number: ...

    def floor(self, x: Number) -> Number: ...

    def ceil(self, x: Number) -> Number: ...

    def round(self, x: Number) -> Number:
        """To the nearest whole number, half to even."""

    def sqrt(self, x: Number) -> Number: ...

    def exp(self, x: Number) -> Number: ...

    def decay(self, x: Number) -> Number:
        """e^x - 1 for x up to 0; anything for others."""

    def log(self, x: Number) -> Number: ...

    def tanh(self, x: Number) -> Number: ...

    def erf(self, x: Number) -> Number: ...

    def sigmoid(self, x: Number) -> Number: ...

    def softplus(self, x: Number) -> Number: ...


class Formula(Protocol):
    """From an arithmetic, an element and the parameters by name to the function's value."""

    def __call__(self, o: Arithmetic[Number], x: Number, /, **parameters: float) -> Number: ...


_Function = TypeVar("_Function", bound=Callable[..., object])


@dataclasses.dataclass(frozen=True)
class ScalarFunction:
    """A function of one number.

    `op_type` is the ONNX operator that computes it, if one does, `parameters` its attributes
    with their defaults.
    """

    name: str
    op_type: str
    formula: Formula
    parameters: Mapping[str, float]

    @functools.cached_property
    def pieces(self) -> frozenset[str]:
        """Names of the arithmetic's pieces, and `/`, that the formula is made of."""
        trace = _Trace()
        cast(Callable[..., object], self.formula)(trace, trace, **self.parameters)
        return frozenset(trace.used)

    @property
    def is_deep(self) -> bool:
        """Whether it takes many operations, with conditions on what it is a function of."""
        return bool(self.pieces & _DEEP)

    @property
    def is_costly(self) -> bool:
        """Whether a table of its values is faster."""
        return self.is_deep or "/" in self.pieces


_DEEP = {"decay", "erf", "exp", "log", "sigmoid", "softplus", "tanh"}


class _Trace:
    """Notes what a formula uses; every element is the trace itself."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., _Trace]:
        def piece(*arguments: object) -> _Trace:
            self.used.add(name)
            return self

        return piece

    def _operation(self, other: object) -> _Trace:
        return self

    __add__ = __sub__ = __mul__ = __lt__ = __gt__ = _operation

    def __truediv__(self, other: object) -> _Trace:
        self.used.add("/")
        return self


FUNCTIONS: dict[str, ScalarFunction] = {}
"""All functions by name."""


def define(name: str, op_type: str = "", **parameters: float) -> Callable[[_Function], _Function]:
    """Define a function by its formula."""

    def register(function: _Function) -> _Function:
        formula = cast(Formula, function)  # its own parameters have names
        FUNCTIONS[name] = ScalarFunction(name, op_type, formula, MappingProxyType(parameters))
        return function

    return register


@functools.cache
def by_operator() -> dict[str, ScalarFunction]:
    """The functions that operators compute, by operator."""
    return {f.op_type: f for f in FUNCTIONS.values() if f.op_type}


# --- pieces that are functions themselves ------------------------------------------------

define("identity")(lambda o, x: x)
define("neg", "Neg")(lambda o, x: o.negative(x))
define("abs", "Abs")(lambda o, x: o.magnitude(x))
define("floor", "Floor")(lambda o, x: o.floor(x))
define("ceil", "Ceil")(lambda o, x: o.ceil(x))
define("round", "Round")(lambda o, x: o.round(x))
define("sqrt", "Sqrt")(lambda o, x: o.sqrt(x))
define("exp", "Exp")(lambda o, x: o.exp(x))
define("log", "Log")(lambda o, x: o.log(x))
define("tanh", "Tanh")(lambda o, x: o.tanh(x))
define("erf", "Erf")(lambda o, x: o.erf(x))
define("sigmoid", "Sigmoid")(lambda o, x: o.sigmoid(x))
define("softplus", "Softplus")(lambda o, x: o.softplus(x))

# --- made of pieces ----------------------------------------------------------------------

define("relu", "Relu")(lambda o, x: o.at_least(x, o.number(0)))
define("reciprocal", "Reciprocal")(lambda o, x: o.number(1) / x)
define("softsign", "Softsign")(lambda o, x: x / (o.number(1) + o.magnitude(x)))
define("silu")(lambda o, x: x * o.sigmoid(x))
define("affine", alpha=1.0, beta=0.0)(
    lambda o, x, alpha, beta: x * o.parameter(alpha) + o.parameter(beta)
)
define("scaled_tanh", alpha=1.0, beta=1.0)(
    lambda o, x, alpha, beta: o.parameter(alpha) * o.tanh(x * o.parameter(beta))
)
define("swish", "Swish", alpha=1.0)(
    lambda o, x, alpha: x * o.sigmoid(x if alpha == 1 else x * o.parameter(alpha))
)


@define("root")
def _root(o: Arithmetic[Number], x: Number) -> Number:
    """x to the power of 1/2: infinity of -infinity, 0 of -0, where the square root is NaN, -0."""
    x = o.named(x)
    return o.where(x > o.number(-math.inf), o.magnitude(o.sqrt(x)), x * x)


@define("hard_sigmoid", "HardSigmoid", alpha=0.2, beta=0.5)
def _hard_sigmoid(o: Arithmetic[Number], x: Number, alpha: float, beta: float) -> Number:
    value = x * o.parameter(alpha) + o.parameter(beta)
    return o.at_most(o.at_least(value, o.number(0)), o.number(1))


@define("hard_swish", "HardSwish")
def _hard_swish(o: Arithmetic[Number], x: Number) -> Number:
    gate = x * o.number(1 / 6) + o.number(0.5)
    return x * o.at_most(o.at_least(gate, o.number(0)), o.number(1))


@define("mish", "Mish")
def _mish(o: Arithmetic[Number], x: Number) -> Number:
    x = o.named(x)
    return x * o.tanh(o.kept(o.softplus(x)))


@define("leaky_relu", "LeakyRelu", alpha=0.01)
def _leaky_relu(o: Arithmetic[Number], x: Number, alpha: float) -> Number:
    x = o.named(x)
    return o.where(x < o.number(0), x * o.parameter(alpha), x)


@define("thresholded_relu", "ThresholdedRelu", alpha=1.0)
def _thresholded_relu(o: Arithmetic[Number], x: Number, alpha: float) -> Number:
    x = o.named(x)
    return o.where(x > o.parameter(alpha), x, o.number(0))


@define("elu", "Elu", alpha=1.0)
def _elu(o: Arithmetic[Number], x: Number, alpha: float) -> Number:
    x = o.named(x)
    return o.where(x < o.number(0), o.decay(x) * o.parameter(alpha), x)


@define("selu", "Selu", alpha=1.6732632423543772, gamma=1.0507009873554805)
def _selu(o: Arithmetic[Number], x: Number, alpha: float, gamma: float) -> Number:
    x = o.named(x)
    low = o.decay(x) * o.parameter(alpha)
    return o.parameter(gamma) * o.where(x > o.number(0), x, low)


@define("celu", "Celu", alpha=1.0)
def _celu(o: Arithmetic[Number], x: Number, alpha: float) -> Number:
    x = o.named(x)
    low = o.parameter(alpha) * (o.exp(x / o.number(alpha)) - o.number(1))
    return o.at_least(x, o.number(0)) + o.at_most(low, o.number(0))


@define("gelu")
def _gelu(o: Arithmetic[Number], x: Number) -> Number:
    inner = o.erf(x * o.number(1 / math.sqrt(2)))
    return x * o.number(0.5) * (inner + o.number(1))


@define("gelu_tanh")
def _gelu_tanh(o: Arithmetic[Number], x: Number) -> Number:
    inner = o.number(0.7978845608028654) * (x + o.number(0.044715) * x * x * x)
    return x * o.number(0.5) * (o.tanh(inner) + o.number(1))
