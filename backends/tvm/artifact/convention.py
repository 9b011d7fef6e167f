"""How kernels are called: C functions that keep no state and allocate nothing.

    int kernel(void *argument, ..., [int32_t size, ...] [void *scratch, ...] [int *fault]
               [struct context *])

A kernel returns 0. One that refuses the values that it reads writes a code of `faults.py` to
`fault` and returns another number. Local buffers that would take more of the stack than
`STACK_BYTES` are parameters, after those of the schedule, and sizes are those that only a run
fixes. A kernel with parallel loops takes the
entry's context, too, and calls a function of its own for each such loop:

    int kernel_0(void *argument, ..., [int *fault] [int32_t variable, ...] struct context *)

which is generated C (`entry.py`). It shares the loop out among threads, each of which calls the
loop's body for tasks from 0 to `tasks` - 1 and gives it memory of its own to work in:

    int kernel_0_body(void *argument, ..., [int32_t variable, ...] [void *scratch, ...]
                      [int *fault] int32_t task, int32_t tasks)

TVM's own convention passes tensors and calls a runtime with global state.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence

import tvm
from tvm import tirx
from tvm.tirx.buffer import BufferType

from ..tensorir.builder import fault_of
from ..tensorir.types import BufferVar, Computed, Loop, Node, PrimFunc, Statement

Scope = tuple[Node, ...]
"""Variables, and statements that name values."""

STACK_BYTES = 4096
"""Bytes of a kernel's local buffers that lie on the stack: threads of musl have 128 KB of it,
and microcontrollers less."""


@dataclasses.dataclass(frozen=True)
class ParallelLoop:
    """What the body of a parallel loop takes besides the kernel's arguments: how many integers,
    bytes of its scratch buffers, and whether it may fail."""

    variables: int
    scratch: tuple[int, ...]
    faults: bool


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a kernel takes: `arguments` of the schedule, bytes of its scratch buffers, whether
    it may fail, its parallel loops, and how many open sizes."""

    arguments: int
    scratch: tuple[int, ...]
    faults: bool
    bodies: tuple[ParallelLoop, ...]
    sizes: int

    def to_json(self) -> str:
        """One line of text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Signature:
        """The signature that `to_json` wrote."""
        fields = json.loads(text)
        bodies = tuple(
            ParallelLoop(b["variables"], tuple(b["scratch"]), b["faults"]) for b in fields["bodies"]
        )
        scratch = tuple(fields["scratch"])
        return cls(fields["arguments"], scratch, fields["faults"], bodies, fields["sizes"])


def body_name(kernel: str, index: int) -> str:
    """The function of a parallel loop's body."""
    return f"{loop_name(kernel, index)}_body"


def loop_name(kernel: str, index: int) -> str:
    """The function that shares a parallel loop out."""
    return f"{kernel}_{index}"


def split(name: str, function: PrimFunc) -> tuple[dict[str, PrimFunc], Signature]:
    """A kernel as functions of the convention, by name, before TVM's passes."""
    kernel = _Kernel(name, function)
    return kernel.made, kernel.signature


class _Kernel:
    """Takes one kernel apart."""

    def __init__(self, name: str, function: PrimFunc) -> None:
        self.name = name
        self.attributes = function.attrs
        self.parameters: list[BufferVar] = [
            p for p in function.params if isinstance(p.ty, BufferType)
        ]
        sizes = list(function.params)[len(self.parameters) :]
        self.context = tirx.Var("context", "handle")
        self.made: dict[str, PrimFunc] = {}
        self.bodies: list[ParallelLoop] = []
        own = _Local()
        statement = self.around(function.body, tuple(sizes), own)
        rest = [self.context] if self.bodies else []
        parameters = [*self.parameters, *sizes, *own.parameters(), *rest]
        self.made[name] = self.function(parameters, statement)
        bodies = tuple(self.bodies)
        faults = own.fault is not None
        self.signature = Signature(len(self.parameters), own.sizes(), faults, bodies, len(sizes))

    def function(self, parameters: Sequence[Computed | BufferVar], body: Statement) -> PrimFunc:
        kind = tvm.ir.PrimType("int32")
        return tirx.PrimFunc(list(parameters), body, kind, self.attributes)

    def around(self, statement: Node, scope: Scope, own: _Local) -> Statement:
        """What surrounds parallel loops; `scope` are variables and values defined further out."""
        if not _is_parallel_within(statement):
            return own.rewrite(statement)
        if isinstance(statement, tirx.SeqStmt):
            result = []
            for part in statement.seq:
                result.append(self.around(part, scope, own))
                if isinstance(part, tirx.Bind):
                    scope = (*scope, part)
            return tirx.SeqStmt(result)
        if isinstance(statement, tirx.IfThenElse):
            other = statement.else_case
            return tirx.IfThenElse(
                statement.condition,
                self.around(statement.then_case, scope, own),
                None if other is None else self.around(other, scope, own),
            )
        if statement.kind == tirx.ForKind.PARALLEL:
            return self.share(statement, scope, own)
        inner = self.around(statement.body, (*scope, statement.loop_var), own)
        return _loop(statement, inner)

    def share(self, loop: Loop, scope: Scope, own: _Local) -> Statement:
        """The call that shares a parallel loop out, whose body becomes a function."""
        inside = _Local()
        variables = [v for v in scope if not isinstance(v, tirx.Bind)]
        values = [v for v in scope if isinstance(v, tirx.Bind)]
        body = tirx.SeqStmt([*values, inside.rewrite(loop)]) if values else inside.rewrite(loop)
        index = len(self.bodies)
        ends = [tirx.Var("task", "int32"), tirx.Var("tasks", "int32")]
        self.made[body_name(self.name, index)] = self.function(
            [*self.parameters, *variables, *inside.parameters(), *ends], body
        )
        faults = inside.fault is not None
        self.bodies.append(ParallelLoop(len(variables), inside.sizes(), faults))
        arguments: list[Computed] = [tirx.address_of(_first(p)) for p in self.parameters]
        if faults:
            arguments.append(tirx.address_of(_first(own.needed_fault())))
        call = tirx.call_extern(
            "int32", loop_name(self.name, index), *arguments, *variables, self.context
        )
        if not faults:
            return tirx.Evaluate(call)
        leave = tirx.Evaluate(tirx.tvm_throw_last_error())
        return tirx.IfThenElse(call != tirx.IntImm("int32", 0), leave, None)


class _Local:
    """What one function needs besides the kernel's arguments."""

    def __init__(self) -> None:
        self.scratch: list[BufferVar] = []
        self.on_stack = 0
        self.fault: BufferVar | None = None

    def parameters(self) -> list[BufferVar]:
        return [*self.scratch, *([] if self.fault is None else [self.fault])]

    def sizes(self) -> tuple[int, ...]:
        return tuple(map(_nbytes, self.scratch))

    def needed_fault(self) -> BufferVar:
        if self.fault is None:
            self.fault = tirx.decl_buffer([1], "int32", "fault")
        return self.fault

    def rewrite(self, statement: Statement) -> Statement:
        """A statement whose faults are stored, and whose large buffers are parameters."""
        found = [s for s in _statements(statement) if isinstance(s, tirx.AllocBuffer)]
        self.on_stack += sum(_nbytes(s.buffer) for s in found)
        for allocation in sorted(found, key=lambda s: -_nbytes(s.buffer)):
            if self.on_stack <= STACK_BYTES:
                break
            self.on_stack -= _nbytes(allocation.buffer)
            self.scratch.append(allocation.buffer)
        moved = {hash(buffer) for buffer in self.scratch}

        def replace(s: Statement) -> Statement | None:
            if isinstance(s, tirx.AllocBuffer) and hash(s.buffer) in moved:
                return tirx.Evaluate(tirx.IntImm("int32", 0))
            code = fault_of(s)
            if code is not None:
                zero = tirx.IntImm("int32", 0)
                return tirx.BufferStore(self.needed_fault(), tirx.IntImm("int32", code), [zero])
            return None

        return _replaced(statement, replace)


def take_pointers(function: PrimFunc) -> PrimFunc:
    """A function of its buffers' addresses, after the passes that know of buffers.

    Addresses are those of elements: nothing more is said of their alignment.
    """
    parameters: list[Computed] = []
    body: list[Statement] = []
    for parameter in function.params:
        if not isinstance(parameter.ty, BufferType):
            parameters.append(parameter)
            continue
        scope = parameter.scope() or "global"
        kind = tvm.ir.PointerType(tvm.ir.PrimType(str(parameter.dtype)), scope)
        parameters.append(tirx.Var(f"{parameter.name}_pointer", kind))
        body.append(tirx.DeclBuffer(parameter, data=parameters[-1]))
    body += [function.body, tirx.stmt.Return(tirx.IntImm("int32", 0))]
    kind = tvm.ir.PrimType("int32")
    return tirx.PrimFunc(parameters, tirx.SeqStmt(body), kind, function.attrs)


def take_task(function: PrimFunc) -> PrimFunc:
    """A parallel loop's body that runs its task's part of the loop, after all other passes."""
    if not _is_parallel_within(function.body):
        return function
    task, tasks = function.params[-2:]

    def replace(s: Statement) -> Statement | None:
        if not isinstance(s, tirx.For) or s.kind != tirx.ForKind.PARALLEL:
            return None
        step = tirx.truncdiv(s.extent + tasks - 1, tasks)  # `plan.sizes.MOST` leaves room
        first = tirx.min(task * step, s.extent)
        extent = tirx.min(step, s.extent - first)
        return tirx.For(s.loop_var, first, extent, tirx.ForKind.SERIAL, s.body)

    return function.with_body(_replaced(function.body, replace))


def _is_parallel_within(statement: Statement) -> bool:
    return any(
        isinstance(s, tirx.For) and s.kind == tirx.ForKind.PARALLEL for s in _statements(statement)
    )


def _statements(statement: Statement) -> list[Statement]:
    """A statement and all within."""
    found, todo = [], [statement]
    while todo:
        s = todo.pop()
        found.append(s)
        todo += _inner(s)
    return found


def _inner(s: Statement) -> list[Statement]:
    if isinstance(s, tirx.SeqStmt):
        return list(s.seq)
    if isinstance(s, tirx.IfThenElse):
        return [s.then_case, *([] if s.else_case is None else [s.else_case])]
    if isinstance(s, (tirx.For, tirx.While, tirx.AttrStmt)):
        return [s.body]
    return []


def _replaced(statement: Statement, replace: Callable[[Statement], Statement | None]) -> Statement:
    """A statement with those within replaced for which `replace` gives another."""
    new = replace(statement)
    if new is not None:
        return new
    if isinstance(statement, tirx.SeqStmt):
        return tirx.SeqStmt([_replaced(s, replace) for s in statement.seq])
    if isinstance(statement, tirx.IfThenElse):
        then, other = statement.then_case, statement.else_case
        return tirx.IfThenElse(
            statement.condition,
            _replaced(then, replace),
            None if other is None else _replaced(other, replace),
        )
    if isinstance(statement, tirx.For):
        return _loop(statement, _replaced(statement.body, replace))
    if isinstance(statement, tirx.While):
        return tirx.While(statement.condition, _replaced(statement.body, replace))
    if isinstance(statement, tirx.AttrStmt):
        body = _replaced(statement.body, replace)
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, body)
    return statement


def _loop(loop: Loop, body: Statement) -> Statement:
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, None, loop.annotations)


def _first(buffer: BufferVar) -> Computed:
    return tirx.BufferLoad(buffer, [tirx.IntImm("int32", 0)] * len(buffer.shape))


def _nbytes(buffer: BufferVar) -> int:
    size = math.prod(int(d) for d in buffer.shape)
    kind = tvm.DataType(str(buffer.dtype))
    return -(-size * kind.bits * kind.lanes // 8)
