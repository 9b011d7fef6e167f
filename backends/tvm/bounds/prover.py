"""The walk over a kernel that proves each access to lie within its buffer.

The analysis reads TensorIR as it is emitted, before any pass. Loops bound their variables,
conditions hold in what they guard, and after `fail_if(condition)` its opposite does. A
load is an integer of its type, the same one for equal loads with no store to the buffer
in between; parameters of a kernel don't overlap (`plan/memory_check.py` sees to that). Both sides
of Select and of `and` are evaluated, of `if_then_else` one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tvm
from tvm import tirx
from tvm.ir.prim import expr as prim
from tvm.tirx.buffer import BufferType
from tvm_ffi import Object

from ..plan.size_facts import Polynomial, SizeFacts
from ..tensorir.builder import leaves
from ..tensorir.types import BufferVar, Node, PrimFunc
from .forms import Linear
from .inequalities import Inequalities
from .pure import PURE
from .values import LIMITS, Condition, Number, Values

Known = Number | Condition | None
"""What is known of an expression; None of floats, vectors and pointers."""

Ranges = Mapping[int, tuple[int, int]]
"""The least and greatest element of parameters that are constants, by their index."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was proven of a kernel: `accesses`, of which `guarded` use indices that depend on
    what memory holds at run time. `unproven` describes the others.

    `reads` and `writes` are the parameters that the kernel reads and writes, by their index.
    """

    accesses: int
    guarded: int
    unproven: tuple[str, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]


def prove(
    function: PrimFunc, ranges: Ranges | None = None, sizes: SizeFacts | None = None
) -> Verdict:
    """Analyse a kernel whose constant parameters have elements in `ranges`, and of whose open
    sizes `sizes` are known."""
    return _Prover(function, ranges or {}, sizes or SizeFacts()).verdict()


class _Prover:
    """One walk over a kernel: what is known of variables and buffers where it has come to."""

    def __init__(self, function: PrimFunc, ranges: Ranges, sizes: SizeFacts) -> None:
        self.function, self.ranges, self.sizes = function, ranges, sizes
        self.inequalities = Inequalities()
        self.values = Values(self.inequalities)
        self.variables: dict[int, Known] = {}
        self.buffers: dict[int, _Buffer] = {}
        self.loads: dict[tuple[object, ...], Number] = {}
        self.scopes = contextlib.ExitStack()
        self.accesses = self.guarded = 0
        self.unproven: dict[str, None] = {}
        self.touched: dict[str, set[int]] = {"load": set(), "store": set()}
        self.concurrent: frozenset[int] = frozenset()  # buffers that other threads write
        self.stored = _Stored()

    def verdict(self) -> Verdict:
        buffers = [p for p in self.function.params if isinstance(p.ty, BufferType)]
        parameters = self.function.params[len(buffers) :]
        forms = []
        for parameter, (low, high) in zip(parameters, self.sizes.ranges, strict=True):
            number = self.values.unknown("int32", low, high, data=False)
            self.inequalities.sizes |= number.form.terms.keys()
            self.variables[hash(parameter)] = number
            forms.append(number.form)
        for fact in self.sizes.facts:
            self.inequalities.add(self.polynomial(fact, forms))
        for index, buffer in enumerate(buffers):
            self.declare(buffer, index)
        self.block(self.function.body, ())
        return Verdict(
            self.accesses,
            self.guarded,
            tuple(self.unproven),
            tuple(sorted(self.touched["load"])),
            tuple(sorted(self.touched["store"])),
        )

    def polynomial(self, terms: Polynomial, forms: list[Linear]) -> Linear:
        """A sum of products of the forms of parameters."""
        total = Linear(0, {})
        for factor, parameters in terms:
            product = Linear(1, {})
            for parameter in parameters:
                product = self.inequalities.multiply(product, forms[parameter])
            total = total.plus(product, factor)
        return total

    def fail(self, reason: str) -> None:
        self.unproven[reason] = None

    # --- statements ---

    def block(self, statement: Node, given: tuple[Linear, ...]) -> None:
        """A statement where all of `given` are at least 0."""
        outer, self.scopes = self.scopes, contextlib.ExitStack()
        with self.scopes:
            self.scopes.enter_context(self.inequalities.given(given))
            self.statement(statement)
        self.scopes = outer

    def statement(self, s: Node) -> None:
        rule = _STATEMENTS.get(type(s))
        if rule is None:
            self.fail(f"a {type(s).__name__} statement")
        else:
            rule(self, s)

    def sequence(self, s: Node) -> None:
        for part in s.seq:
            self.statement(part)

    def loop(self, s: Node) -> None:
        first, extent = self.expression(s.min), self.expression(s.extent)
        if not isinstance(first, Number) or not isinstance(extent, Number):
            self.fail("a loop whose extent is no integer")
            return
        end = self.values.add(first, extent)
        last = self.values.subtract(end, self.values.literal(1, end.kind))
        if not self.values.holds(last.doubts):
            self.fail(f"a loop that may pass {end.kind}")
        written = self.stored(s.body)
        concurrent = self.concurrent
        if s.kind != tirx.ForKind.SERIAL and s.kind != tirx.ForKind.UNROLLED:
            self.concurrent = concurrent | written
        self.forget(written)
        low, high = first.low, max(first.low, last.high)
        index = self.values.unknown(
            first.kind, low, high, data=self.inequalities.is_data(first.form)
        )
        self.variables[hash(s.loop_var)] = index
        given = (index.form.plus(first.form, -1), last.form.plus(index.form, -1))
        self.block(s.body, given if first.form.terms or last.form.terms else ())
        self.forget(written)
        self.concurrent = concurrent

    def branch(self, s: Node) -> None:
        condition = self.condition(s.condition)
        self.block(s.then_case, condition.true)
        if s.else_case is not None:
            self.block(s.else_case, condition.false)
        self.forget(self.stored(s))
        if leaves(s.then_case):
            self.scopes.enter_context(self.inequalities.given(condition.false))

    def while_(self, s: Node) -> None:
        written = self.stored(s.body)
        self.forget(written)
        self.block(s.body, self.condition(s.condition).true)
        self.forget(written)

    def bind(self, s: Node) -> None:
        self.variables[hash(s.var)] = self.expression(s.value)

    def store(self, s: Node) -> None:
        value = self.expression(s.value)
        at = [self.index(i) for i in s.indices]
        buffer = self.access("store", s.buffer, s.indices, at)
        if buffer is not None:
            buffer.version += 1
            buffer.contents.clear()
            if isinstance(value, Number) and buffer.is_cell and not self.shares(buffer):
                buffer.contents[_key(at)] = value

    def evaluate(self, s: Node) -> None:
        self.expression(s.value)

    def allocate(self, s: Node) -> None:
        self.declare(s.buffer, None)

    def forget(self, written: frozenset[int]) -> None:
        """What buffers hold, where stores to them may come before."""
        for buffer in written:
            if buffer in self.buffers:
                self.buffers[buffer].version += 1
                self.buffers[buffer].contents.clear()

    def declare(self, buffer: BufferVar, parameter: int | None) -> None:
        sizes: list[Linear] = []
        elements = Linear(1, {})
        for size in buffer.shape:
            number = self.expression(size)
            if not isinstance(number, Number) or not self.inequalities.is_size(number.form):
                self.fail(f"buffer {buffer.name} of a size that isn't known before")
                return
            sizes.append(number.form)
            elements = self.inequalities.multiply(elements, number.form)
        if elements.terms:  # a run with more has been refused
            self.inequalities.cap(elements, LIMITS["int32"][1])
            self.inequalities.cap_axes(sizes, LIMITS["int32"][1])
        elif elements.const > LIMITS["int32"][1]:
            self.fail(f"buffer {buffer.name} of more elements than 32 bits count")
            return
        if buffer.strides or int(buffer.elem_offset or 0):
            self.fail(f"buffer {buffer.name} with strides or an offset")
            return
        kind = str(buffer.dtype)
        if hash(buffer) in self.buffers:
            self.buffers[hash(buffer)].version += 1
            return
        self.buffers[hash(buffer)] = _Buffer(
            hash(buffer), buffer.name, tuple(sizes), elements, kind, parameter
        )

    def shares(self, buffer: _Buffer) -> bool:
        return buffer.identity in self.concurrent

    # --- expressions ---

    def expression(self, e: Node) -> Known:
        """What is known of a value; checks the accesses that computing it makes."""
        rule = _EXPRESSIONS.get(type(e))
        if rule is None:
            self.fail(f"a {type(e).__name__} expression")
            return None
        return rule(self, e)

    def condition(self, e: Node) -> Condition:
        """A condition, of which nothing is known where a type may not hold its numbers."""
        found = self.expression(e)
        if not isinstance(found, Condition) or not self.values.holds(found.doubts):
            return Condition()
        return found

    def variable(self, e: Node) -> Known:
        known = self.variables.get(hash(e))
        if isinstance(known, Number):
            low, high = self.inequalities.narrow(known.form, known.low, known.high)
            return Number(known.kind, known.form, low, high, known.doubts)
        return known

    def integer(self, e: Node) -> Known:
        kind = _type(e)
        if kind == "bool":
            return _ALWAYS if int(e.value) else ~_ALWAYS
        return self.values.literal(int(e.value), kind)

    def nothing(self, e: Node) -> Known:
        return None

    def arithmetic(self, e: Node, compute: Callable[[Values, Number, Number], Number]) -> Known:
        a, b = self.expression(e.a), self.expression(e.b)
        if self.sizes.with_empty and compute in _DIVISIONS and "int" in _type(e):
            self.require_positive(b, e)
        if isinstance(a, Number) and isinstance(b, Number):
            return compute(self.values, a, b)
        return None

    def require_positive(self, divisor: Known, e: Node) -> None:
        least = divisor.form.shifted(-1) if isinstance(divisor, Number) else Linear(-1, {})
        if not self.inequalities.is_at_least_0(least):
            self.fail(f"the divisor of {e}")

    def comparison(self, e: Node, name: str) -> Known:
        a, b = self.expression(e.a), self.expression(e.b)
        if isinstance(a, Number) and isinstance(b, Number):
            return self.values.compare(name, a, b)
        return Condition()

    def both(self, e: Node) -> Known:
        a, b = self.expression(e.a), self.expression(e.b)
        return a & b if isinstance(a, Condition) and isinstance(b, Condition) else None

    def either(self, e: Node) -> Known:
        a, b = self.expression(e.a), self.expression(e.b)
        return a | b if isinstance(a, Condition) and isinstance(b, Condition) else None

    def negation(self, e: Node) -> Known:
        a = self.expression(e.a)
        return ~a if isinstance(a, Condition) else None

    def complement(self, e: Node) -> Known:
        a = self.expression(e.a)
        return self.values.opaque(a, a) if isinstance(a, Number) else None

    def select(self, e: Node) -> Known:
        condition = self.expression(e.condition)
        yes, no = self.expression(e.true_value), self.expression(e.false_value)
        if not isinstance(condition, Condition):
            return None
        if isinstance(yes, Number) and isinstance(no, Number):
            return self.values.select(condition, yes, no)
        return Condition() if isinstance(yes, Condition) else None

    def choice(self, e: Node) -> Known:
        """`if_then_else`: each side is evaluated only where it is chosen."""
        condition = self.condition(e.args[0])
        with self.inequalities.given(condition.true):
            yes = self.expression(e.args[1])
        with self.inequalities.given(condition.false):
            no = self.expression(e.args[2])
        if isinstance(yes, Number) and isinstance(no, Number):
            return self.values.select(condition, yes, no)
        return Condition() if isinstance(yes, Condition) else None

    def cast(self, e: Node) -> Known:
        value, kind = self.expression(e.value), _type(e)
        if kind == "bool":
            return Condition()
        if kind not in LIMITS:
            return None
        if isinstance(value, Number):
            return self.values.cast(value, kind)
        if isinstance(value, Condition):
            zero, one = self.values.literal(0, kind), self.values.literal(1, kind)
            return self.values.select(value, one, zero)
        return self.values.of_type(kind)

    def call(self, e: Node) -> Known:
        name = getattr(e.op, "name", str(e.op)).rpartition(".")[2]
        if name == "if_then_else":
            return self.choice(e)
        if name in ("call_extern", "call_pure_extern"):
            name = str(e.args[0].value)
        if name not in PURE:
            self.fail(f"a call of {name}")
            return None
        for argument in e.args:
            self.expression(argument)
        if any(isinstance(a.ty, tvm.ir.PointerType) for a in e.args):
            self.fail(f"a pointer given to {name}")
        kind = _type(e)
        if kind == "bool":
            return Condition()
        return self.values.of_type(kind) if kind in LIMITS else None

    def parts(self, e: Node) -> Known:
        """Vectors: only what computing their elements reads."""
        for name in _PARTS[type(e)]:
            part = getattr(e, name)
            for one in part if name in ("vectors", "indices") else (part,):
                self.expression(one)
        return None

    def load(self, e: Node) -> Known:
        at = [self.index(i) for i in e.indices]
        buffer = self.access("load", e.source, e.indices, at)
        if buffer is None or any(i is None or i.lanes > 1 for i in at):
            return None
        if buffer.kind == "bool":
            return Condition()
        if buffer.kind not in LIMITS:
            return None
        if self.shares(buffer):
            return self.values.of_type(buffer.kind)
        key = _key(at)
        if key in buffer.contents:
            return self.narrowed(buffer.contents[key])
        where = (buffer.identity, buffer.version, *key)
        if where not in self.loads:
            parameter = -1 if buffer.parameter is None else buffer.parameter
            if parameter in self.ranges and buffer.version == 0:
                low, high = self.ranges[parameter]
                self.loads[where] = self.values.unknown(buffer.kind, low, high, data=False)
            else:
                self.loads[where] = self.values.of_type(buffer.kind)
        return self.narrowed(self.loads[where])

    def narrowed(self, n: Number) -> Number:
        low, high = self.inequalities.narrow(n.form, n.low, n.high)
        return Number(n.kind, n.form, low, high, n.doubts)

    # --- accesses ---

    def index(self, e: Node) -> _Index | None:
        """An index; a ramp is its first one with a step."""
        step, lanes = 0, 1
        if isinstance(e, prim.Ramp):
            if not isinstance(e.stride, prim.IntImm) or not isinstance(e.lanes, (int, prim.IntImm)):
                return None
            step, lanes, e = int(e.stride), int(e.lanes), e.base
        value = self.expression(e)
        return _Index(value, step, lanes) if isinstance(value, Number) else None

    def access(
        self, what: str, buffer: BufferVar, indices: Sequence[Node], at: list[_Index | None]
    ) -> _Buffer | None:
        """Count an access as proven, or say what isn't; the buffer, where it is known."""
        known = self.buffers.get(hash(buffer))
        if known is None:
            self.fail(f"{what} {buffer.name}, which isn't declared")
            return None
        if known.parameter is not None:
            self.touched[what].add(known.parameter)
        found = [i for i in at if i is not None]
        if len(found) < len(at) or not self.within(known, found):
            shown = ", ".join(str(i) for i in indices)
            shape = ", ".join(str(size) for size in buffer.shape)
            self.fail(f"{what} {buffer.name}[{shown[:200]}] of [{shape}]")
            return known
        self.accesses += 1
        self.guarded += any(self.inequalities.is_data(i.value.form) for i in found)
        return known

    def within(self, buffer: _Buffer, at: list[_Index]) -> bool:
        """Whether each index lies within its axis, or else all within the flat memory."""
        if not all(self.values.holds(i.value.doubts) for i in at):
            return False
        pairs = list(zip(at, buffer.shape, strict=True))
        if all(self.is_inside(i.value, i.step * (i.lanes - 1), size) for i, size in pairs):
            return True
        if len(pairs) == 1:
            return False
        if any(size.terms for size in buffer.shape):
            return self.within_last_axes(pairs)
        flat = self.values.literal(0, at[0].value.kind)
        reach = 0
        for index, size in pairs:
            scaled = self.values.multiply(flat, self.values.literal(size.const, flat.kind))
            flat = self.values.add(scaled, index.value)
            reach = reach * size.const + index.step * (index.lanes - 1)
        return self.values.holds(flat.doubts) and self.is_inside(flat, reach, buffer.elements)

    def within_last_axes(self, pairs: Sequence[tuple[_Index, Linear]]) -> bool:
        """Whether indices lie within their axes, the last two of which count as one."""
        *leading, (index, size), (last, known) = pairs
        if known.terms or index.lanes > 1:
            return False
        if not all(self.is_inside(i.value, i.step * (i.lanes - 1), s) for i, s in leading):
            return False
        scaled = self.values.multiply(index.value, self.values.literal(known.const, "int32"))
        flat = self.values.add(scaled, last.value)
        reach = last.step * (last.lanes - 1)
        return self.is_inside(flat, reach, size.times(known.const))

    def is_inside(self, value: Number, reach: int, size: Linear) -> bool:
        """Whether 0 <= value and value + reach < size, also the other way round."""
        below, above = min(reach, 0), max(reach, 0)
        if value.low + below >= 0 and not size.terms and value.high + above < size.const:
            return True
        prove = self.inequalities.is_at_least_0
        return prove(value.form.shifted(below)) and prove(
            size.plus(value.form, -1).shifted(-1 - above)
        )


@dataclasses.dataclass(frozen=True)
class _Index:
    """`lanes` indices from a value on, `step` apart."""

    value: Number
    step: int
    lanes: int


@dataclasses.dataclass
class _Buffer:
    """`version` counts the times when its elements may have changed, `contents` are those
    stored last where they are known."""

    identity: int
    name: str
    shape: tuple[Linear, ...]
    elements: Linear
    kind: str
    parameter: int | None
    version: int = 0
    contents: dict[tuple[object, ...], Number] = dataclasses.field(default_factory=dict)

    @property
    def is_cell(self) -> bool:
        """Whether it has one element."""
        return not self.elements.terms and self.elements.const == 1


class _Stored:
    """The buffers that statements store to, by the buffers' identity."""

    def __init__(self) -> None:
        self.known: dict[int, frozenset[int]] = {}

    def __call__(self, s: Node) -> frozenset[int]:
        found = self.known.get(hash(s))
        if found is None:
            found = self.known[hash(s)] = frozenset(self.of(s))
        return found

    def of(self, s: Node) -> Iterator[int]:
        if isinstance(s, tirx.BufferStore):
            yield hash(s.buffer)
        elif isinstance(s, tirx.SeqStmt):
            for part in s.seq:
                yield from self(part)
        elif isinstance(s, tirx.IfThenElse):
            yield from self(s.then_case)
            if s.else_case is not None:
                yield from self(s.else_case)
        elif isinstance(s, (tirx.For, tirx.While)):
            yield from self(s.body)


def _key(at: list[_Index | None]) -> tuple[object, ...]:
    return tuple(None if i is None else (i.value.form.key(), i.step, i.lanes) for i in at)


_TYPES: dict[int, tuple[object, str]] = {}
"""Types and their names by the types' identity, which a type kept here keeps."""


def _type(e: Node) -> str:
    """The name of an expression's type; TVM has one object for all expressions of a type."""
    kind = e.ty
    identity = Object.__hash__(kind)
    found = _TYPES.get(identity)
    if found is None:
        found = _TYPES[identity] = (kind, str(kind))
    return found[1]


_ALWAYS = Condition((), (Linear(-1, {}),))

_ARITHMETIC: dict[type[Node], Callable[[Values, Number, Number], Number]] = {
    prim.Add: Values.add,
    prim.Sub: Values.subtract,
    prim.Mul: Values.multiply,
    prim.Div: Values.truncdiv,
    prim.Mod: Values.truncmod,
    prim.FloorDiv: Values.floordiv,
    prim.FloorMod: Values.floormod,
    prim.Min: Values.minimum,
    prim.Max: Values.maximum,
    prim.LShift: Values.shift_left,
    prim.RShift: Values.shift_right,
    prim.BitwiseAnd: Values.bitwise_and,
    prim.BitwiseOr: Values.opaque,
    prim.BitwiseXor: Values.opaque,
}

_DIVISIONS = (Values.truncdiv, Values.truncmod, Values.floordiv, Values.floormod)

_PARTS = {
    prim.Broadcast: ("value",),
    prim.Ramp: ("base", "stride"),
    prim.Shuffle: ("vectors", "indices"),
}

_STATEMENTS: dict[type[Node], Callable[[_Prover, Any], None]] = {
    tirx.SeqStmt: _Prover.sequence,
    tirx.For: _Prover.loop,
    tirx.IfThenElse: _Prover.branch,
    tirx.While: _Prover.while_,
    tirx.Bind: _Prover.bind,
    tirx.BufferStore: _Prover.store,
    tirx.Evaluate: _Prover.evaluate,
    tirx.AllocBuffer: _Prover.allocate,
}

_EXPRESSIONS: dict[type[Node], Callable[[_Prover, Any], Known]] = {
    prim.Var: _Prover.variable,
    prim.IntImm: _Prover.integer,
    prim.FloatImm: _Prover.nothing,
    tvm.ir.StringImm: _Prover.nothing,
    prim.And: _Prover.both,
    prim.Or: _Prover.either,
    prim.Not: _Prover.negation,
    prim.BitwiseNot: _Prover.complement,
    prim.Select: _Prover.select,
    prim.Cast: _Prover.cast,
    tvm.ir.Call: _Prover.call,
    tvm.ir.TensorLoad: _Prover.load,
    **{
        node: functools.partial(lambda p, e, compute: p.arithmetic(e, compute), compute=compute)
        for node, compute in _ARITHMETIC.items()
    },
    **{
        getattr(prim, name): functools.partial(lambda p, e, name: p.comparison(e, name), name=name)
        for name in ("LT", "LE", "GT", "GE", "EQ", "NE")
    },
    **dict.fromkeys(_PARTS, _Prover.parts),
}
