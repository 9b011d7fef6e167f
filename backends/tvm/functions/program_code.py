"""How each instruction of an elementwise program becomes vector code.

Integer instructions follow ONNX Runtime's kernels to the bit; the formulas are those of its
MLAS library (requantization, QLinearAdd, QLinearMul) and of QLinearAveragePool.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import tirx

from ..plan.programs import Instruction, Program, integer_range
from ..targets import Target
from ..tensorir import bfloat
from ..tensorir.builder import KernelBuilder, cast, constant, join, llvm, load, reinterpret
from ..tensorir.types import Computed, Expr
from ..tensorir.vectors import VectorCode
from . import mathematics
from .definitions import FUNCTIONS, ScalarFunction
from .rounding import MAGIC, packs, round_and_pack


class ProgramCode(VectorCode):
    """Evaluates programs on vectors."""

    def __init__(self, builder: KernelBuilder, target: Target, lanes: int) -> None:
        super().__init__(builder, target, lanes)
        self.floats: set[int] = set()
        self.differences: set[int] = set()

    def evaluate(self, program: Program, operands: Sequence[Computed]) -> Computed:
        """The program's result; intermediate results used twice are computed once.

        TVM spells out names, so that what follows a result grows with all that leads to it, and
        doubles where it is used twice: past a size results are kept in memory.
        """
        values = list(operands)
        uses: dict[int, int] = {}
        for instruction in program.instructions:
            for argument in instruction.arguments:
                uses[argument] = uses.get(argument, 0) + 1
        for i, count in uses.items():
            if i < len(values) and count > 1:
                values[i] = self.bind(values[i], program.operands[i])
        self.floats = _only_floats(program)
        self.differences = _differences(program, self.floats)
        types = list(program.operands)
        spelled = [1] * len(values)  # instructions that each value is, once spelled out
        self.deep = False
        for instruction in program.instructions:
            value = self.instruction(
                instruction,
                [values[a] for a in instruction.arguments],
                [types[a] for a in instruction.arguments],
            )
            self.deep = self.deep or instruction.name in _DEEP
            types.append("float32" if id(instruction) in self.floats else instruction.dtype)
            spelled.append(1 + sum(spelled[a] for a in instruction.arguments))
            if spelled[-1] > _LONGEST and types[-1] != "bool":
                spelled[-1] = 1
                value = self.in_memory(value, types[-1])
            multiple = uses.get(len(values), 0) > 1 or instruction.name in _BOUND
            values.append(self.bind(value, types[-1]) if multiple else value)
        return values[program.result]

    def evaluate_each(
        self,
        program: Program,
        vectors: Sequence[Sequence[Computed]],
        use: Callable[[Expr, Computed], None],
    ) -> None:
        """`use(number, result)` of the program on each of several vectors' operands.

        A long program is there once, in a loop over vectors that are kept in memory: TVM takes
        longer than in proportion for what is written out many times.
        """
        if not self.is_looped(program):
            for number, operands in enumerate(vectors):
                use(number, self.evaluate(program, operands))
            return
        columns = zip(zip(*vectors, strict=True), program.operands, strict=True)
        kept = [self.kept(column, dtype) for column, dtype in columns]
        with self.builder.loop(len(vectors), "each") as each:
            use(each, self.evaluate(program, [operand(each) for operand in kept]))

    def kept(self, values: Sequence[Computed], dtype: str) -> Callable[[Expr], Computed]:
        """Vectors as a function of their number: in memory, where they aren't all the same."""
        if all(value is values[0] for value in values):
            same = self.bind(values[0], dtype)
            return lambda _: same
        lanes = self.lanes
        kept = self.builder.local(len(values) * lanes, dtype, "kept")
        for number, value in enumerate(values):
            self.builder.store(kept, value, number * lanes, lanes=lanes)
        return lambda number: load(kept, number * lanes, lanes=lanes)

    @staticmethod
    def is_looped(program: Program) -> bool:
        """Whether a program is so long that it isn't written out for each of several vectors."""
        if "bool" in (*program.operands, program.dtype):
            return False
        names = [instruction.name for instruction in program.instructions]
        return len(names) > _LONG or not _DEEP.isdisjoint(names)

    def evaluate_all(
        self, program: Program, vectors: Sequence[Sequence[Computed]]
    ) -> list[Computed]:
        """The program's results of several vectors' operands, as `evaluate_each`."""
        if not self.is_looped(program):
            return [self.bind(self.evaluate(program, v), program.dtype) for v in vectors]
        lanes = self.lanes
        kept = self.builder.local(len(vectors) * lanes, program.dtype, "results")

        def keep(number: Expr, value: Computed) -> None:
            self.builder.store(kept, value, number * lanes, lanes=lanes)

        self.evaluate_each(program, vectors, keep)
        return [load(kept, number * lanes, lanes=lanes) for number in range(len(vectors))]

    def instruction(
        self, instruction: Instruction, arguments: list[Computed], types: list[str]
    ) -> Computed:
        rule = _RULES.get(instruction.name)
        if rule is None:
            raise KeyError(f"no rule for the instruction '{instruction.name}'")
        return rule(self, instruction, arguments, types)

    def round_to(
        self, value: Computed, instruction: Instruction, zero_point: int, *, bounded: bool = False
    ) -> Computed:
        """Round half to even, add the zero point, saturate: the end of every quantization.

        Adding 1.5 * 2^23 leaves the rounded number in the low bits; from above those bits
        grow with the number whatever its size, so that an integer minimum saturates.
        Steps that are only read as floats (`self.floats`) stay floats, without the zero point
        where what reads them would take it off (`self.differences`). `bounded` promises that
        values are below 2^31.
        """
        low, high = integer_range(instruction.dtype)
        floats = id(instruction) in self.floats
        vectors, rest = divmod(self.lanes, self.target.lanes)
        if not floats and vectors > 1 and rest == 0 and packs(self.target, instruction.dtype):
            return round_and_pack(self, value, instruction.dtype, zero_point, bounded=bounded)
        # NaN becomes the lowest number, as in ONNX Runtime.
        value = tirx.max(value, self.number(float(low - zero_point)))
        if floats:
            value = tirx.min(value, self.number(float(high - zero_point)))
            # Both sums are exact but for the rounding that is wanted.
            added = 0 if id(instruction) in self.differences else zero_point
            return self.fence(value + self.number(MAGIC)) - self.number(MAGIC - added)
        bits = reinterpret(value + self.number(MAGIC), "int32", self.lanes)
        offset = int(np.float32(MAGIC).view(np.int32)) - zero_point
        bits = bits - self.number(offset, "int32")
        if low == 0:
            unsigned = reinterpret(bits, "uint32", self.lanes)
            limited = tirx.min(unsigned, self.number(high, "uint32"))
        else:
            limited = tirx.min(bits, self.number(high, "int32"))
            limited = tirx.max(limited, self.number(low, "int32"))
        return cast(limited, instruction.dtype, self.lanes)


_LONGEST = 128
"""Instructions that a value may be, names spelled out."""

_LONG = 12
"""Instructions that a program may have to be written out for each of several vectors."""


Rule = Callable[[ProgramCode, Instruction, list[Computed], list[str]], Computed]


def _dequantize(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    if id(s) in e.differences:
        value = a[0]
    elif types[0] == "float32":
        value = a[0] - e.number(float(s["zero_point"]))
    else:
        value = cast(a[0], "int32", e.lanes)
        if s["zero_point"]:
            value = value - e.number(s["zero_point"], "int32")
        value = e.to_float(value)
    return e.fence(value * e.number(s["scale"]))


def _quantize(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    return e.round_to(a[0] / e.number(s["scale"]), s, s["zero_point"])


def _quantize_average(
    e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]
) -> Computed:
    """QLinearAveragePool adds the zero point before it rounds."""
    value = a[0] / e.number(s["scale"]) + e.number(float(s["zero_point"]))
    return e.round_to(value, s, 0)


def _scale_accumulator(
    e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]
) -> Computed:
    """Integer accumulator to float: a[1] holds input scale * weight scale, per channel."""
    return e.fence(e.to_float(a[0]) * (a[1]))


def _scale_integer(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    """A 32-bit integer as a float, times a scale: rounded twice."""
    return e.fence(e.to_float(a[0]) * a[1])


def _scale_again(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    """A product that rounds, whatever is added to it."""
    return e.fence(a[0] * a[1])


def _quantize_by(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    """QuantizeLinear by a scale and a zero point that a run computes; NaN becomes the lowest."""
    low, high = integer_range(s.dtype)
    zero = e.to_float(cast(a[2], "int32", e.lanes))
    value = tirx.max(a[0] / a[1], e.number(float(low)) - zero)
    value = tirx.min(value, e.number(float(high)) - zero)
    bits = reinterpret(value + e.number(MAGIC), "int32", e.lanes)
    rounded = bits - e.number(int(np.float32(MAGIC).view(np.int32)), "int32")
    return cast(rounded + cast(a[2], "int32", e.lanes), s.dtype, e.lanes)


def _requantize(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    """MlasRequantizeOutput; a[1] holds (input scale * weight scale) / output scale."""
    return e.round_to(e.to_float(a[0]) * a[1], s, s["zero_point"], bounded=s["bounded"])


def _table(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    """A function of a byte, looked up."""
    values = [int(np.uint8(v & 255).view(np.int8)) for v in s["values"]]
    index = a[0] if types[0] == "int8" else reinterpret(a[0], "int8", e.lanes)
    look_up = _by_table_lookups if "neon" in e.target.features else _by_permutations
    found = look_up(e, values, index)
    return found if s.dtype == "int8" else reinterpret(found, "uint8", e.lanes)


def _vector(values: Sequence[int]) -> Computed:
    return tirx.Shuffle([tirx.const(v, "int8") for v in values], list(range(len(values))))


def _by_table_lookups(e: ProgramCode, values: Sequence[int], index: Computed) -> Computed:
    """By NEON, 16 bytes at a time: four lookups in 64 values each, which leave others alone."""
    count = -(-e.lanes // 16)
    if e.lanes == 1:
        index = tirx.Broadcast(index, 16)
    elif e.lanes % 16:
        repeated = [e.bind(index, "int8")] * -(-16 * count // e.lanes)
        index = tirx.Shuffle(repeated, list(range(16 * count)))
    wide = ProgramCode(e.builder, e.target, 16 * count)
    index = wide.bind(index, "int8")
    one = ProgramCode(e.builder, e.target, 16)
    indices = [tirx.Shuffle([index], list(range(16 * i, 16 * i + 16))) for i in range(count)]
    results: list[Computed] = []
    for start in range(0, 256, 64):
        parts = [_vector(values[at : at + 16]) for at in range(start, start + 64, 16)]
        if start == 0:
            found = [llvm("llvm.aarch64.neon.tbl4.v16i8", "int8x16", *parts, at) for at in indices]
        else:
            high = constant(int(np.uint8(start).view(np.int8)), "int8", 16)
            found = [
                llvm("llvm.aarch64.neon.tbx4.v16i8", "int8x16", known, *parts, at ^ high)
                for known, at in zip(results, indices, strict=True)
            ]
        results = [one.bind(value, "int8") for value in found]
    whole = join(results, 16)
    return whole if e.lanes == 16 * count else tirx.Shuffle([whole], list(range(e.lanes)))


def _by_permutations(e: ProgramCode, values: Sequence[int], index: Computed) -> Computed:
    """By AVX-512 VBMI: two lookups by the low seven bits, one of which is chosen."""
    lanes, parts = e.lanes, []
    for start in range(0, 256, 64):
        numbers = values[start : start + 64]
        vector = functools.partial(_vector, numbers)
        parts.append(e.builder.shared(("table", tuple(numbers)), vector, "int8x64"))
    if lanes > 1:
        index = tirx.Shuffle([e.bind(index, "int8")] * -(-64 // lanes), list(range(64)))
    else:
        index = tirx.Broadcast(index, 64)
    wide = ProgramCode(e.builder, e.target, 64)
    index = wide.bind(index, "int8")
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    low, high = (llvm(name, "int8x64", parts[i], index, parts[i + 1]) for i in (0, 2))
    found = wide.bind(tirx.Select(index < constant(0, "int8", 64), high, low), "int8")
    return tirx.Shuffle([found], list(range(lanes)))


def _scale_sum(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    """The mean of dequantized values from the sum of the integers."""
    value = a[0] - e.number(s["zero_point"] * s["count"], "int32")
    return e.fence(e.to_float(value) * e.number(s["input_scale"])) / e.number(float(s["count"]))


def _requantize_sum(
    e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]
) -> Computed:
    """MlasQLinearGlobalAveragePool."""
    value = e.to_float(a[0] + e.number(s["bias"], "int32")) * e.number(s["scale"])
    return e.round_to(value, s, s["zero_point"])


def _qlinear_add(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    """MlasQLinearAdd (AVX2): a * ra + (b * rb + fixed), each instruction rounded once."""
    f32 = np.float32
    ratio_a, ratio_b = f32(s["scale_a"]) / f32(s["scale"]), f32(s["scale_b"]) / f32(s["scale"])
    fixed = f32(s["zero_point"]) - (ratio_a * f32(s["zero_a"]) + ratio_b * f32(s["zero_b"]))
    first, second = (e.integer_as_float(x, t) for x, t in zip(a, types, strict=True))
    value = e.fused_multiply_add(second, e.number(float(ratio_b)), e.number(float(fixed)))
    value = e.fused_multiply_add(first, e.number(float(ratio_a)), value)
    return e.round_to(value, s, 0, bounded=bool(_largest(ratio_a, ratio_b, fixed) < 2**31))


def _largest(*factors: np.float32) -> float:
    """A bound for the sum of bytes times factors."""
    return 256.0 * sum(abs(float(f)) for f in factors)


def _qlinear_mul(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    """MlasQLinearMul: (a - za) * (b - zb) * ratio + zero point, rounded after each instruction."""
    f32 = np.float32
    ratio = f32(s["scale_a"]) * f32(s["scale_b"]) / f32(s["scale"])
    first = e.integer_as_float(a[0], types[0]) - e.number(float(s["zero_a"]))
    second = e.integer_as_float(a[1], types[1]) - e.number(float(s["zero_b"]))
    product = e.fence(e.fence(first * second) * e.number(float(ratio)))
    return e.round_to(product + e.number(float(s["zero_point"])), s, 0)


def _constant(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    return e.literal(s["value"]) if s.dtype == "float32" else e.number(s["value"], s.dtype)


def _cast_rule(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    return cast(a[0], s.dtype, e.lanes)


def _clip(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    value = a[0]
    if s["low"] > -math.inf:
        value = e.at_least(value, e.number(s["low"], s.dtype), s.dtype)
    if s["high"] < math.inf:
        value = e.at_most(value, e.number(s["high"], s.dtype), s.dtype)
    return value


def _prelu(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
    x = e.opaque(a[0])
    return tirx.Select(x < e.number(0.0), x * a[1], x)


class VectorArithmetic:
    """Formulas on vectors of one type."""

    def __init__(self, code: VectorCode, dtype: str = "float32") -> None:
        self.code = code
        self.dtype = dtype

    def number(self, value: float) -> Computed:
        return self.code.number(value, self.dtype)

    def parameter(self, value: float) -> Computed:
        return self.code.literal(value)

    def named(self, x: Computed) -> Computed:
        return self.code.opaque(x)

    def kept(self, x: Computed) -> Computed:
        return self.code.in_memory(x)

    def where(self, condition: Computed, x: Computed, y: Computed) -> Computed:
        return tirx.Select(condition, x, y)

    def at_least(self, x: Computed, bound: Computed) -> Computed:
        return self.code.at_least(x, bound, self.dtype)

    def at_most(self, x: Computed, bound: Computed) -> Computed:
        return self.code.at_most(x, bound, self.dtype)

    def negative(self, x: Computed) -> Computed:
        return -x

    def magnitude(self, x: Computed) -> Computed:
        return self.code.magnitude(x)

    def floor(self, x: Computed) -> Computed:
        return tirx.floor(x)

    def ceil(self, x: Computed) -> Computed:
        return tirx.ceil(x)

    def round(self, x: Computed) -> Computed:
        return tirx.nearbyint(x)

    def sqrt(self, x: Computed) -> Computed:
        return tirx.sqrt(x)

    def exp(self, x: Computed) -> Computed:
        return mathematics.exp(self.code, x)

    def decay(self, x: Computed) -> Computed:
        return mathematics.exp(self.code, self.at_most(x, self.number(0))) - self.number(1)

    def log(self, x: Computed) -> Computed:
        return mathematics.log(self.code, x)

    def tanh(self, x: Computed) -> Computed:
        return mathematics.tanh(self.code, x)

    def erf(self, x: Computed) -> Computed:
        return mathematics.erf(self.code, x)

    def sigmoid(self, x: Computed) -> Computed:
        return mathematics.sigmoid(self.code, x)

    def softplus(self, x: Computed) -> Computed:
        return mathematics.softplus(self.code, x)


def _function(function: ScalarFunction) -> Rule:
    def rule(e: ProgramCode, s: Instruction, a: list[Computed], types: list[str]) -> Computed:
        return function.formula(VectorArithmetic(e, s.dtype), a[0], **s.numbers)

    return rule


_RULES: dict[str, Rule] = {
    **{name: _function(function) for name, function in FUNCTIONS.items()},
    "rounded": lambda e, s, a, types: e.fence(a[0]),
    "pool_average": lambda e, s, a, types: a[0],
    "constant": _constant,
    "add": lambda e, s, a, types: a[0] + a[1],
    "sub": lambda e, s, a, types: e.difference(a[0], a[1], s.dtype),
    "mul": lambda e, s, a, types: a[0] * a[1],
    "div": lambda e, s, a, types: a[0] / a[1],
    "max": lambda e, s, a, types: e.larger(a[0], a[1], s.dtype),
    "min": lambda e, s, a, types: e.smaller(a[0], a[1], s.dtype),
    "cast": _cast_rule,
    "to_bfloat": lambda e, s, a, types: bfloat.to_bits(a[0], e.target, e.lanes),
    "from_bfloat": lambda e, s, a, types: bfloat.from_bits(a[0], e.lanes),
    "clip": _clip,
    "prelu": _prelu,
    "dequantize": _dequantize,
    "quantize": _quantize,
    "quantize_average": _quantize_average,
    "quantize_by": _quantize_by,
    "scale_accumulator": _scale_accumulator,
    "scale_integer": _scale_integer,
    "scale_again": _scale_again,
    "requantize": _requantize,
    "scale_sum": _scale_sum,
    "requantize_sum": _requantize_sum,
    "qlinear_add": _qlinear_add,
    "qlinear_mul": _qlinear_mul,
    "table": _table,
}

_QUANTIZING = frozenset(
    {"quantize", "quantize_average", "requantize", "requantize_sum", "qlinear_add", "qlinear_mul"}
)
_FLOAT_READERS = frozenset({"dequantize", "qlinear_add", "qlinear_mul"})


def _only_floats(program: Program) -> set[int]:
    """Steps with integer results that later instructions turn into floats at once."""
    count = len(program.operands)
    readers: dict[int, list[str]] = {}
    for instruction in program.instructions:
        for argument in instruction.arguments:
            readers.setdefault(argument, []).append(instruction.name)
    return {
        id(instruction)
        for index, instruction in enumerate(program.instructions)
        if instruction.name in _QUANTIZING
        and count + index != program.result
        and all(name in _FLOAT_READERS for name in readers.get(count + index, []))
    }


def _differences(program: Program, floats: set[int]) -> set[int]:
    """Steps that stay floats and, with them, what alone reads them: from the same zero point."""
    found: set[int] = set()
    for index, instruction in enumerate(program.instructions, len(program.operands)):
        if id(instruction) not in floats or instruction.name not in ("quantize", "requantize"):
            continue
        readers = [s for s in program.instructions if index in s.arguments]
        zero = instruction["zero_point"]
        if all(s.name == "dequantize" and s["zero_point"] == zero for s in readers):
            found.update(map(id, (instruction, *readers)))
    return found


_DEEP = frozenset(name for name, function in FUNCTIONS.items() if function.is_deep)

_BOUND = frozenset({"requantize", "qlinear_add", "qlinear_mul", "to_bfloat"})
"""Steps whose result is named even if used once: it keeps expressions shallow."""
