"""Functions of one byte as tables, where a target looks up a vector of bytes at once.

After quantization whatever follows up to the next one, say Sigmoid and the product with
its argument, depends on 256 values only, which are computed here once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ....ir.tensor import Array
from ..plan.operations import ElementwiseOp, Fused, Plan
from ..plan.programs import Instruction, Program, integer_range, rebuild
from ..targets import Target
from .definitions import FUNCTIONS, ScalarFunction

_LONG, _LONG_FOR_NEON = 7, 3
"""Steps from which a table is faster than computing them."""

_ANY = -1
"""The root of constants, which are functions of every byte."""


def use_tables(plan: Plan, target: Target) -> None:
    """Let the plan's programs look up what they can, if the target can."""
    if "vbmi" not in target.features and target.machine != "aarch64":
        return
    long = _LONG_FOR_NEON if "neon" in target.features else _LONG
    for op in plan.operations:
        if isinstance(op, (ElementwiseOp, Fused)):
            op.program = tabulate(op.program, long)


def tabulate(program: Program, long: int = _LONG) -> Program:
    """Replace functions of one 8-bit operand or instruction by `table` instructions: costly
    ones, and those of `long` steps and more."""
    count = len(program.operands)
    roots: list[int | None] = [
        i if dtype in ("uint8", "int8") else None for i, dtype in enumerate(program.operands)
    ]
    instructions: dict[int, Instruction] = dict(enumerate(program.instructions, count))
    result = dict(instructions)
    for index, instruction in instructions.items():
        found = {roots[a] for a in instruction.arguments} - {_ANY}
        root = _ANY if not found else found.pop() if len(found) == 1 else None
        roots.append(root)
        if instruction.dtype not in ("uint8", "int8") or root == _ANY:
            continue
        if root is None:
            roots[index] = index
            continue
        cone = _cone(instructions, index, root)
        if not any(s.name in _COSTLY for s in cone.values()) and len(cone) < long:
            continue
        dtype = program.operands[root] if root < count else instructions[root].dtype
        values = _values(cone, root, dtype)
        if values is not None:
            table = tuple(int(v) for v in values)
            result[index] = Instruction("table", (root,), instruction.dtype, (("values", table),))
    return rebuild(program, result, program.result)


def _cone(instructions: dict[int, Instruction], index: int, root: int) -> dict[int, Instruction]:
    """The instructions that lead from a root to a result, in order."""
    needed, pending = set(), [index]
    while pending:
        current = pending.pop()
        if current == root or current in needed:
            continue
        needed.add(current)
        pending.extend(instructions[current].arguments)
    return {i: instructions[i] for i in sorted(needed)}


def _values(cone: dict[int, Instruction], root: int, dtype: str) -> Array | None:
    """The last instruction's results for all bytes; None where an instruction has no rule here."""
    known: dict[int, Array] = {root: np.arange(256, dtype=np.uint8).view(dtype)}
    with np.errstate(all="ignore"):
        for index, instruction in cone.items():
            rule = _RULES.get(instruction.name)
            if rule is None:
                return None
            arguments = [known[a] for a in instruction.arguments]
            known[index] = np.broadcast_to(rule(instruction, arguments), (256,))
    return known[max(known)]


def _float(x: Array) -> Array:
    return np.asarray(x, np.float32)


def _round(x: Array, zero: int, dtype: str) -> Array:
    """Round half to even, then add the zero point and saturate; NaN is the lowest number."""
    low, high = integer_range(dtype)
    value = np.clip(np.rint(_float(x)).astype(np.float64) + zero, low, high)
    return np.where(np.isnan(value), low, value).astype(dtype)


def _dequantize(s: Instruction, a: Sequence[Array]) -> Array:
    offset: Array = a[0].astype(np.int32) - s["zero_point"]
    return offset.astype(np.float32) * np.float32(s["scale"])


def _qlinear_add(s: Instruction, a: Sequence[Array]) -> Array:
    f32 = np.float32
    ratio_a, ratio_b = f32(s["scale_a"]) / f32(s["scale"]), f32(s["scale_b"]) / f32(s["scale"])
    fixed = f32(s["zero_point"]) - (ratio_a * f32(s["zero_a"]) + ratio_b * f32(s["zero_b"]))
    value = _fused(a[1], ratio_b, fixed)
    return _round(_fused(a[0], ratio_a, value), 0, s.dtype)


def _fused(a: Array, b: npt.ArrayLike, c: npt.ArrayLike) -> Array:
    """a * b + c, rounded once: both are exact in float64 but for the last sum."""
    return _float(a.astype(np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64))


def _qlinear_mul(s: Instruction, a: Sequence[Array]) -> Array:
    f32 = np.float32
    ratio = f32(s["scale_a"]) * f32(s["scale_b"]) / f32(s["scale"])
    product = (_float(a[0]) - f32(s["zero_a"])) * (_float(a[1]) - f32(s["zero_b"])) * ratio
    return _round(product + f32(s["zero_point"]), 0, s.dtype)


def _quantize_average(s: Instruction, a: Sequence[Array]) -> Array:
    return _round(a[0] / np.float32(s["scale"]) + np.float32(s["zero_point"]), 0, s.dtype)


class NumpyArithmetic:
    """Formulas on arrays of one type; functions are computed in float64 and rounded once."""

    def __init__(self, dtype: npt.DTypeLike = np.float32) -> None:
        self.dtype = np.dtype(dtype)

    def number(self, value: float) -> Array:
        return np.asarray(value, self.dtype)

    parameter = number

    def named(self, x: Array) -> Array:
        return x

    kept = named

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        return np.where(condition, x, y)

    def at_least(self, x: Array, bound: Array) -> Array:
        return np.maximum(x, bound)

    def at_most(self, x: Array, bound: Array) -> Array:
        return np.minimum(x, bound)

    def negative(self, x: Array) -> Array:
        return -x

    def magnitude(self, x: Array) -> Array:
        return np.abs(x)

    def floor(self, x: Array) -> Array:
        return np.floor(x)

    def ceil(self, x: Array) -> Array:
        return np.ceil(x)

    def round(self, x: Array) -> Array:
        return np.rint(x)

    def sqrt(self, x: Array) -> Array:
        return self._rounded(np.sqrt(self._exact(x)))

    def exp(self, x: Array) -> Array:
        return self._rounded(np.exp(self._exact(x)))

    def decay(self, x: Array) -> Array:
        return self._rounded(np.expm1(self._exact(x)))

    def log(self, x: Array) -> Array:
        return self._rounded(np.log(self._exact(x)))

    def tanh(self, x: Array) -> Array:
        return self._rounded(np.tanh(self._exact(x)))

    def erf(self, x: Array) -> Array:
        return self._rounded(np.vectorize(math.erf, otypes=[np.float64])(self._exact(x)))

    def sigmoid(self, x: Array) -> Array:
        return self._rounded(1.0 / (1.0 + np.exp(-self._exact(x))))

    def softplus(self, x: Array) -> Array:
        return self._rounded(np.logaddexp(0.0, self._exact(x)))

    def _exact(self, x: Array) -> Array:
        return np.asarray(x, np.float64)

    def _rounded(self, x: Array) -> Array:
        return x.astype(self.dtype)


Rule = Callable[[Instruction, Sequence[Array]], Array]


def _function(function: ScalarFunction) -> Rule:
    def rule(s: Instruction, a: Sequence[Array]) -> Array:
        found: Array = function.formula(NumpyArithmetic(a[0].dtype), a[0], **s.numbers)
        return found

    return rule


_RULES: dict[str, Rule] = {
    **{name: _function(function) for name, function in FUNCTIONS.items()},
    "constant": lambda s, a: np.asarray(s["value"], s.dtype),
    "dequantize": _dequantize,
    "quantize": lambda s, a: _round(a[0] / np.float32(s["scale"]), s["zero_point"], s.dtype),
    "quantize_average": _quantize_average,
    "qlinear_add": _qlinear_add,
    "qlinear_mul": _qlinear_mul,
    "clip": lambda s, a: _float(np.clip(a[0], s["low"], s["high"])),
    "add": lambda s, a: a[0] + a[1],
    "sub": lambda s, a: a[0] - a[1],
    "mul": lambda s, a: a[0] * a[1],
    "div": lambda s, a: a[0] / a[1],
    "max": lambda s, a: np.maximum(a[0], a[1]),
    "min": lambda s, a: np.minimum(a[0], a[1]),
}

_COSTLY = frozenset({"div", *(name for name, f in FUNCTIONS.items() if f.is_costly)})
