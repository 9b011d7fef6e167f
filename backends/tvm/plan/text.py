"""The text form of a plan: one line per operation, for golden tests and for people.

    plan x86-64-v3
    input %x: float32[1, 3, 8, 8]
    %y: float32[1, 16, 8, 8] = convolution(%x) {weights = float32[16, 3, 3, 3], ...}  ; c (Conv)
        | relu(result): float32
    output y = %y

Tensors keep their names, with a number where two have the same; `%x[sizes by strides from offset]`
is a view. After `;` stands the ONNX node. Programs follow the operation that ends in them, from
`|` on: `$n` is what the operation reads, `result` what it computes, `#n` an earlier instruction.
Elements of constants are left out, but for single numbers. The text is the same for equal plans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from ....ir.tensor import Array
from .operations import (
    BranchOp,
    ElementwiseOp,
    Fused,
    LoopOp,
    Plan,
    PoolingOp,
    ProductOp,
    ResizeOp,
    Row,
)
from .programs import Instruction, Program
from .tensors import Operation, PlanTensor, View

_SHOWN_APART = {
    "label",
    "outputs",
    "operands",
    "program",
    "views",
    "inputs",
    "input",
    "build",
    "key",
}
"""Fields of operations that the text shows otherwise, or not at all."""


def print_plan(plan: Plan, title: str = "") -> str:
    """The text of a plan, which ends with a newline; `title` says what it is for."""
    return _Printer().plan(plan, title)


class _Printer:
    """Gives the tensors of a plan different names, and writes one operation after the other."""

    def __init__(self) -> None:
        self.names: dict[PlanTensor, str] = {}
        self.taken: set[str] = set()

    def plan(self, plan: Plan, title: str) -> str:
        lines = [f"plan {title}".rstrip()]
        lines += [f"input {self.declare(tensor)}" for tensor in plan.inputs]
        for op in plan.operations:
            lines += self.operation(op, plan.operators)
        lines += [f"output {name} = {self.tensor(tensor)}" for name, tensor in plan.outputs]
        return "\n".join(lines) + "\n"

    # --- tensors ---

    def name(self, tensor: PlanTensor) -> str:
        if tensor not in self.names:
            name, number = tensor.name, 1
            while name in self.taken:
                number += 1
                name = f"{tensor.name}#{number}"
            self.taken.add(name)
            self.names[tensor] = name
        return f"%{self.names[tensor]}"

    def declare(self, tensor: PlanTensor) -> str:
        return f"{self.name(tensor)}: {_type(tensor.dtype, tensor.shape)}"

    def tensor(self, tensor: PlanTensor) -> str:
        if tensor.const is None:
            return self.name(tensor)
        return _constant(tensor.const, tensor.dtype)

    def view(self, view: View) -> str:
        text = self.tensor(view.tensor)
        if view.is_whole:
            return text
        strides = ", ".join(map(str, view.strides or ()))
        return f"{text}[{_sizes(view.shape)} by {strides} from {view.offset}]"

    # --- operations ---

    def operation(self, op: Operation, operators: Mapping[str, str]) -> list[str]:
        if isinstance(op, LoopOp):
            return self.loop(op)
        if isinstance(op, BranchOp):
            return self.branches(op)
        kind = type(op).__name__.removesuffix("Op").lower()
        read = ", ".join(self.reads(op))
        results = ", ".join(self.declare(t) for t in op.outputs)
        node = f"  ; {op.label} ({operators[op.label]})" if op.label in operators else ""
        fields = ", ".join(self.fields(op))
        head = f"{results} = {kind}({read})" if results else f"{kind}({read})"
        lines = [head + (f" {{{fields}}}" if fields else "") + node]
        if isinstance(op, (PoolingOp, ResizeOp)) and op.element.instructions:
            lines.append(f"    of each element {self.program(op.element, ['input'])}")
        if isinstance(op, ElementwiseOp) and op.program.instructions:
            operands = [f"${i}" for i in range(len(op.views))]
            lines.append(f"    | {self.program(op.program, operands)}")
        elif isinstance(op, Fused) and op.program.instructions:
            operands = ["result", *(self.tensor(t) for t in op.operands)]
            lines.append(f"    | {self.program(op.program, operands)}")
        return lines

    def loop(self, op: LoopOp) -> list[str]:
        """A loop, its body further in: what states and rows are before it, then the next ones."""
        steps = [] if op.steps is None else [f"{op.steps} steps"]
        steps += [] if op.limit is None else [f"{self.tensor(op.limit)} steps"]
        if op.proceeds is not None:
            first = "true" if op.proceeds[0] is None else self.tensor(op.proceeds[0])
            steps.append(f"while {first}")
        results = ", ".join(self.declare(t) for t in op.outputs)
        lines = [f"{results} = loop {', '.join(steps)}  ; {op.label}"]
        inner = [f"state {self.declare(s.inner)} = {self.tensor(s.initial)}" for s in op.states]
        inner += [f"row {self.declare(r.inner)} of {self._row(r)}" for r in op.read]
        inner += [f"from outside {self.declare(i)} = {self.tensor(o)}" for o, i in op.captured]
        for operation in op.body.operations:
            inner += self.operation(operation, op.body.operators)
        inner += [f"next {self.name(s.inner)} = {self.tensor(s.after)}" for s in op.states]
        inner += [f"row of {self._row(r)} = {self.tensor(r.inner)}" for r in op.made]
        if op.proceeds is not None:
            inner.append(f"while {self.tensor(op.proceeds[1])}")
        return [*lines, *(f"    {line}" for line in inner)]

    def branches(self, op: BranchOp) -> list[str]:
        """Both branches further in, with what they give."""
        results = ", ".join(self.declare(t) for t in op.outputs)
        lines = [f"{results} = if {self.tensor(op.condition)}  ; {op.label}"]
        for word, plan, captured in zip(("then", "else"), op.plans, op.captured, strict=True):
            inner = [f"from outside {self.declare(i)} = {self.tensor(o)}" for o, i in captured]
            for operation in plan.operations:
                inner += self.operation(operation, plan.operators)
            inner.append(f"give {', '.join(self.tensor(t) for _, t in plan.outputs)}")
            lines += [word, *(f"    {line}" for line in inner)]
        return lines

    def _row(self, row: Row) -> str:
        return f"{self.tensor(row.whole)}{' backward' if row.backward else ''}"

    def reads(self, op: Operation) -> Iterable[str]:
        if isinstance(op, ElementwiseOp):
            return [self.view(view) for view in op.views]
        if isinstance(op, ProductOp):
            return [self.view(op.left), self.view(op.right), *map(self.tensor, op.zeros)]
        read = op.reads()
        own = len(op.operands) if isinstance(op, Fused) else 0
        return [self.tensor(t) for t in read[: len(read) - own]]

    def fields(self, op: Operation) -> list[str]:
        found = []
        for field in dataclasses.fields(op):
            value = getattr(op, field.name)
            if field.name in _SHOWN_APART or value is None or isinstance(value, (View, Program)):
                continue
            if isinstance(value, list) and not value:
                continue
            if isinstance(value, PlanTensor) or (
                isinstance(value, list) and any(isinstance(v, PlanTensor) for v in value)
            ):
                continue
            found.append(f"{field.name} = {_value(value)}")
        return found

    def program(self, program: Program, operands: list[str]) -> str:
        count = len(program.operands)

        def argument(index: int) -> str:
            return operands[index] if index < count else f"#{index - count}"

        steps = [_instruction(i, [argument(a) for a in i.arguments]) for i in program.instructions]
        return "; ".join(steps)


def _instruction(instruction: Instruction, arguments: list[str]) -> str:
    parameters = [f"{name} = {_value(value)}" for name, value in instruction.parameters]
    return f"{instruction.name}({', '.join([*arguments, *parameters])}): {instruction.dtype}"


def _constant(array: Array | float, dtype: str) -> str:
    array = np.asarray(array)
    if array.size == 1:
        return f"{dtype} {_value(array.reshape(()).item())}"
    return _type(dtype, array.shape)


def _type(dtype: str, shape: Iterable[int]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"


def _sizes(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def _value(value: object) -> str:
    """A field's value: numbers as they are, arrays by their type, data classes by their fields."""
    if isinstance(value, np.ndarray):
        return _constant(value, str(value.dtype))
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, tuple) and len(value) > 16:
        return f"{len(value)} numbers"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_value(v) for v in value) + ")"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return "{" + ", ".join(f"{f.name} = {_value(getattr(value, f.name))}" for f in fields) + "}"
    return str(value)
