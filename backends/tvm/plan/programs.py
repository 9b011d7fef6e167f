"""Elementwise programs: short straight-line computations that fuse into kernels.

A program computes one result from operands of one common (broadcast) shape. It is
data, so that fusion is concatenation and rules can recognise sequences of instructions; how an
instruction becomes TensorIR is in `functions/program_code.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np

_Key = TypeVar("_Key")

Parameter = str | float | bool | tuple[int, ...]
"""What an instruction is told beside its arguments: a factor, a bound, a table's entries."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One operation. `arguments` index the operands, then the results of earlier instructions."""

    name: str
    arguments: tuple[int, ...]
    dtype: str
    parameters: tuple[tuple[str, Parameter], ...] = ()

    def __getitem__(self, key: str) -> Any:
        return dict(self.parameters)[key]

    @property
    def numbers(self) -> dict[str, float]:
        """The parameters of a scalar function, which are numbers."""
        return {name: cast(float, value) for name, value in self.parameters}

    def replace(self, **parameters: Parameter) -> Instruction:
        """The instruction with other values of some parameters."""
        known = {**dict(self.parameters), **parameters}
        return dataclasses.replace(self, parameters=tuple(known.items()))


@dataclasses.dataclass(frozen=True)
class Program:
    """`operands` are the dtypes read; the result is the last instruction, or operand 0 if none."""

    operands: tuple[str, ...]
    instructions: tuple[Instruction, ...] = ()

    @property
    def dtype(self) -> str:
        return self.instructions[-1].dtype if self.instructions else self.operands[0]

    @property
    def result(self) -> int:
        """Index of the result in the numbering that instructions' arguments use."""
        return len(self.operands) + len(self.instructions) - 1 if self.instructions else 0

    def then(self, name: str, dtype: str | None = None, **parameters: Parameter) -> Program:
        """Append an instruction of one argument, the result so far."""
        instruction = Instruction(
            name, (self.result,), dtype or self.dtype, tuple(parameters.items())
        )
        return Program(self.operands, (*self.instructions, instruction))

    @property
    def is_identity(self) -> bool:
        return not self.instructions and len(self.operands) == 1


class ProgramBuilder:
    """Builds a program of several operands; operands are declared first."""

    def __init__(self, operands: Sequence[str]) -> None:
        self.operands = tuple(operands)
        self.instructions: list[Instruction] = []

    def add(self, name: str, arguments: Sequence[int], dtype: str, **parameters: Parameter) -> int:
        self.instructions.append(
            Instruction(name, tuple(arguments), dtype, tuple(parameters.items()))
        )
        return len(self.operands) + len(self.instructions) - 1

    def inline(self, program: Program, arguments: Sequence[int]) -> int:
        """Append another program's instructions, its operands being `arguments`."""
        mapping = list(arguments)
        for instruction in program.instructions:
            mapping.append(
                self.add(
                    instruction.name,
                    [mapping[a] for a in instruction.arguments],
                    instruction.dtype,
                    **dict(instruction.parameters),
                )
            )
        return mapping[program.result]

    def build(self) -> Program:
        return Program(self.operands, tuple(self.instructions))


def compose(outer: Program, inner: Mapping[int, Program]) -> Program:
    """Substitute programs for operands of `outer`.

    The operands of the result are, for each operand of `outer` in order, the operands
    of its substitute, or the operand itself.
    """
    dtypes: list[str] = []
    spans: list[list[int]] = []
    for index, dtype in enumerate(outer.operands):
        own = inner[index].operands if index in inner else (dtype,)
        spans.append(list(range(len(dtypes), len(dtypes) + len(own))))
        dtypes.extend(own)
    builder = ProgramBuilder(dtypes)
    arguments = [
        builder.inline(inner[i], span) if i in inner else span[0] for i, span in enumerate(spans)
    ]
    result = builder.inline(outer, arguments)
    program = builder.build()
    if result != program.result:  # the outer program has no instructions
        assert result < len(dtypes)
        assert not program.instructions
    return program


def merge_operands(program: Program, keys: Sequence[_Key]) -> tuple[Program, list[_Key]]:
    """Let operands with equal keys be one; returns the program and the distinct keys."""
    distinct: list[_Key] = []
    position: list[int] = []
    for key in keys:
        found = next((i for i, k in enumerate(distinct) if k is key), None)
        if found is None:
            found = len(distinct)
            distinct.append(key)
        position.append(found)
    dtypes = [program.operands[position.index(i)] for i in range(len(distinct))]
    builder = ProgramBuilder(dtypes)
    builder.inline(program, position)
    return builder.build(), distinct


# --- quantization rules ----------------------------------------------------------


def quantize(program: Program, scale: float, zero_point: int, dtype: str) -> Program:
    """Append QuantizeLinear."""
    return program.then(
        "quantize", dtype, scale=float(np.float32(scale)), zero_point=int(zero_point)
    )


def dequantize(dtype: str, scale: float, zero_point: int) -> Program:
    """DequantizeLinear of one operand of type `dtype`."""
    instruction = Instruction(
        "dequantize",
        (0,),
        "float32",
        (("scale", float(np.float32(scale))), ("zero_point", int(zero_point))),
    )
    return Program((dtype,), (instruction,))


def integer_range(dtype: str) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def simplify(program: Program) -> Program:
    """Rewrite sequences of instructions into the integer operations that ONNX Runtime runs.

    - a Relu or Clip that the following QuantizeLinear's range implies is dropped
    - DequantizeLinear followed by QuantizeLinear with the same parameters is nothing
    - `scale_accumulator`, QuantizeLinear is `requantize`: one multiplication by
      (input scale * weight scale) / output scale, as in QLinearConv
    - Add and Mul between dequantized operands, QuantizeLinear are `qlinear_add` and
      `qlinear_mul`
    - a 32-bit integer as a float times a scale is `scale_integer`, and that times another scale
      `scale_again`: products that round before anything is added to them
    """
    instructions: dict[int, Instruction] = {
        len(program.operands) + i: s for i, s in enumerate(program.instructions)
    }
    uses: dict[int, int] = {}
    for instruction in program.instructions:
        for a in instruction.arguments:
            uses[a] = uses.get(a, 0) + 1
    alias: dict[int, int] = {}

    def resolve(i: int) -> int:
        while i in alias:
            i = alias[i]
        return i

    for index in list(instructions):
        instruction = instructions[index]
        instruction = instructions[index] = dataclasses.replace(
            instruction, arguments=tuple(resolve(a) for a in instruction.arguments)
        )
        if instruction.name == "mul":
            instructions[index] = _scale_integer(instruction, instructions, program)
        if instruction.name != "quantize":
            continue
        source = instruction.arguments[0]
        while (
            source in instructions
            and uses.get(source) == 1
            and _implied(instructions[source], instruction)
        ):
            source = instructions[source].arguments[0]
        instructions[index] = dataclasses.replace(instruction, arguments=(source,))
        before = instructions.get(source)
        if before is None:
            continue
        if before.name == "dequantize" and _same_quantization(
            before, instruction, program, instructions
        ):
            alias[index] = before.arguments[0]
        elif uses.get(source) == 1:
            instructions[index] = _fuse_quantize(before, instructions[index], instructions, program)
    return rebuild(program, instructions, resolve(program.result))


def _scale_integer(
    product: Instruction, instructions: Mapping[int, Instruction], program: Program
) -> Instruction:
    """`scale_integer` where a factor is an accumulator as a float, `scale_again` where it is that
    product, else the product itself."""
    if product.dtype != "float32":
        return product
    for index, other in (product.arguments, product.arguments[::-1]):
        source = instructions.get(index)
        if source is not None and source.name == "scale_integer":
            return Instruction("scale_again", (index, other), "float32")
        if source is not None and source.name == "cast" and index != other:
            integer = source.arguments[0]
            if _dtype_of(integer, program, instructions) == "int32":
                return Instruction("scale_integer", (integer, other), "float32")
    return product


def _dtype_of(index: int, program: Program, instructions: Mapping[int, Instruction]) -> str:
    return program.operands[index] if index < len(program.operands) else instructions[index].dtype


def _implied(instruction: Instruction, quantize_instruction: Instruction) -> bool:
    """Whether a Relu or Clip can't change what the quantize instruction makes of its input."""
    low, high = integer_range(quantize_instruction.dtype)
    scale, zero = quantize_instruction["scale"], quantize_instruction["zero_point"]
    smallest, largest = (low - zero) * scale, (high - zero) * scale
    if instruction.name == "relu":
        return bool(smallest >= 0.0)
    if instruction.name == "clip":
        return bool(instruction["low"] <= smallest and instruction["high"] >= largest)
    return False


def _same_quantization(
    dequantize_instruction: Instruction,
    quantize_instruction: Instruction,
    program: Program,
    instructions: Mapping[int, Instruction],
) -> bool:
    return (
        dequantize_instruction["scale"] == quantize_instruction["scale"]
        and dequantize_instruction["zero_point"] == quantize_instruction["zero_point"]
        and _dtype_of(dequantize_instruction.arguments[0], program, instructions)
        == quantize_instruction.dtype
    )


def _fuse_quantize(
    before: Instruction,
    quantize_instruction: Instruction,
    instructions: Mapping[int, Instruction],
    program: Program,
) -> Instruction:
    parameters: tuple[tuple[str, Parameter], ...]
    if before.name == "scale_accumulator":
        parameters = (
            ("input_scale", before["input_scale"]),
            ("scale", quantize_instruction["scale"]),
            ("zero_point", quantize_instruction["zero_point"]),
            ("bounded", False),
        )
        return Instruction("requantize", before.arguments, quantize_instruction.dtype, parameters)
    if before.name == "scale_sum":
        f32 = np.float32
        scale = f32(before["input_scale"]) / (
            f32(quantize_instruction["scale"]) * f32(before["count"])
        )
        parameters = (
            ("scale", float(scale)),
            ("bias", -before["zero_point"] * before["count"]),
            ("zero_point", quantize_instruction["zero_point"]),
        )
        return Instruction(
            "requantize_sum", before.arguments, quantize_instruction.dtype, parameters
        )
    if before.name in ("add", "mul"):
        sides = [instructions.get(a) for a in before.arguments]
        if all(s is not None and s.name == "dequantize" for s in sides):
            first, second = sides
            assert first is not None
            assert second is not None
            dtypes = {
                _dtype_of(first.arguments[0], program, instructions),
                _dtype_of(second.arguments[0], program, instructions),
                quantize_instruction.dtype,
            }
            if len(dtypes) == 1 and dtypes <= {"uint8", "int8"}:
                parameters = (
                    ("scale_a", first["scale"]),
                    ("zero_a", first["zero_point"]),
                    ("scale_b", second["scale"]),
                    ("zero_b", second["zero_point"]),
                    ("scale", quantize_instruction["scale"]),
                    ("zero_point", quantize_instruction["zero_point"]),
                )
                arguments = (first.arguments[0], second.arguments[0])
                return Instruction(
                    f"qlinear_{before.name}", arguments, quantize_instruction.dtype, parameters
                )
    if before.name == "pool_average":
        return dataclasses.replace(quantize_instruction, name="quantize_average")
    return quantize_instruction


def rebuild(program: Program, instructions: Mapping[int, Instruction], result: int) -> Program:
    """The program of the instructions that `result` needs."""
    needed: set[int] = set()
    stack = [result]
    while stack:
        index = stack.pop()
        if index in instructions and index not in needed:
            needed.add(index)
            stack.extend(instructions[index].arguments)
    count = len(program.operands)
    builder = ProgramBuilder(program.operands)
    mapping = {i: i for i in range(count)}
    for index in sorted(needed):
        instruction = instructions[index]
        mapping[index] = builder.add(
            instruction.name,
            [mapping[a] for a in instruction.arguments],
            instruction.dtype,
            **dict(instruction.parameters),
        )
    if result < count and result != 0:
        builder.add("identity", (result,), program.operands[result])
    return builder.build()
