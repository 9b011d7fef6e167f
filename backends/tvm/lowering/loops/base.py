"""What rules of plain operators share: access to the node, and kernels as loop nests."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar, cast, overload

import numpy as np
from tvm import tirx

from .....ir.errors import UnsupportedError
from .....ir.graph import Node, Value, normalize_domain
from .....ir.tensor import Array as NumPyArray
from ...faults import Fault
from ...plan.operations import LoopsOp
from ...plan.sizes import OpenSize, is_open
from ...plan.tensors import PlanTensor
from ...tensorir.builder import KernelBuilder, as_int, llvm, load
from ...tensorir.types import Computed, Expr, PrimFunc
from ..context import Constant, Lowering, Quantized, Stored, quantized

Rule = Callable[["OperatorCall"], None]

RULES: dict[str, Rule] = {}
"""Rules by the operators' `key`."""


def key(op_type: str, domain: str = "") -> str:
    """What rules are found by: the operator, with its domain where that isn't the standard's."""
    return f"{domain}::{op_type}" if normalize_domain(domain) else op_type


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register the rule of some operators of a domain."""

    def register(function: Rule) -> Rule:
        for name in (key(op_type, domain) for op_type in op_types):
            if name in RULES:
                raise ValueError(f"{name} has two rules")
            RULES[name] = function
        return function

    return register


class Array:
    """A row-major tensor inside a kernel, indexed like an array."""

    def __init__(self, builder: KernelBuilder, name: str, shape: Sequence[int], dtype: str) -> None:
        self.builder = builder
        self.shape = tuple(d if is_open(d) else int(d) for d in shape)
        self.dtype = dtype
        self.size = math.prod(self.shape)
        self.buffer = builder.parameter(name, (self.size or 1,), dtype)

    @property
    def rank(self) -> int:
        return len(self.shape)

    def flat(self, index: Sequence[Expr]) -> Expr:
        """The position of an element in memory."""
        assert len(index) == self.rank
        at: Expr = 0
        for i, size in zip(index, self.shape, strict=True):
            at = at * size + i
        return at

    def __getitem__(self, index: Sequence[Expr]) -> Computed:
        return load(self.buffer, self.flat(tuple(index)))

    def at(self, position: Expr) -> Computed:
        """The element at a position in memory."""
        return load(self.buffer, position)

    def broadcast(self, index: Sequence[Expr]) -> Expr:
        """The element that an index into a larger, broadcast shape means."""
        own = list(index)[len(index) - self.rank :]
        return self[[0 if size == 1 else i for i, size in zip(own, self.shape, strict=True)]]

    def store(self, value: Expr, index: Sequence[Expr]) -> None:
        self.put(value, self.flat(tuple(index)))

    def put(self, value: Expr, position: Expr) -> None:
        """Store at a position in memory, converting the value."""
        self.builder.store(self.buffer, to(value, self.dtype), position)


def _stand_in(empty: PlanTensor) -> PlanTensor:
    """An element in memory for a tensor without any: no kernel's parameter is empty."""
    return PlanTensor(empty.name, empty.dtype, (1,), const=np.zeros(1, empty.dtype))


Body = Callable[[KernelBuilder, list[Array], list[Array]], None]
"""Builds a kernel from its inputs and outputs; outputs that nothing names are None."""


@dataclasses.dataclass
class OperatorCall:
    """One node being lowered."""

    lowering: Lowering
    node: Node

    # --- inputs ---

    def value(self, index: int) -> Value:
        """An input that the operator requires."""
        found = self.node.input(index)
        if found is None:
            self.fail(f"input {index} is missing")
        return found

    def has(self, index: int) -> bool:
        return self.node.input(index) is not None

    def shape(self, index: int = 0) -> tuple[int, ...]:
        return self.lowering.shape(self.value(index))

    def rank(self, index: int = 0) -> int:
        return len(self.shape(index))

    def dtype(self, index: int = 0) -> str:
        return self.lowering.dtype(self.value(index))

    def constant(self, index: int) -> NumPyArray | None:
        """The elements of a constant input; None where it is omitted or computed."""
        return self.lowering.constant(self.node.input(index))

    def known(self, index: int, what: str) -> NumPyArray:
        """The elements of an input that must be constant."""
        found = self.constant(index)
        if found is None:
            self.fail(f"{what} is computed at run time; make it a constant")
        return found

    def ints(self, name: str, index: int | None = None) -> list[int] | None:
        """Integers from an attribute, or from a constant input; None where neither is given."""
        given = self.node.get(name)
        if given is not None:
            return [int(i) for i in np.atleast_1d(given)]
        if index is None or not self.has(index):
            return None
        return [int(i) for i in self.known(index, name).reshape(-1)]

    def axis(self, rank: int, default: int, name: str = "axis") -> int:
        axis = int(self.node.get(name, default))
        if not -rank <= axis < max(rank, 1):
            self.fail(f"{name} {axis} of a tensor of rank {rank}")
        return axis % max(rank, 1)

    @property
    def opset(self) -> int:
        return self.lowering.model.opset

    # --- outputs ---

    def output_shape(self, index: int = 0) -> tuple[int, ...]:
        found = self.node.output(index)
        if found is None:
            self.fail(f"output {index} is missing")
        return self.lowering.shape(found)

    def output_dtype(self, index: int = 0) -> str:
        found = self.node.output(index)
        if found is None:
            self.fail(f"output {index} is missing")
        return self.lowering.dtype(found)

    def wants(self, index: int) -> bool:
        """Whether something reads an output."""
        found = self.node.output(index)
        return found is not None and bool(found.uses)

    def fail(self, reason: str) -> NoReturn:
        raise UnsupportedError(f"node '{self.node.label}' ({self.node.op_type}): {reason}")

    def same(self, source: Value | PlanTensor) -> None:
        """Let the first output be the same elements in the same order as an input."""
        from ...plan.operations import ReshapeOp

        y = self.node.output(0)
        assert y is not None
        tensor = self.lowering.stored(source) if isinstance(source, Value) else source
        shape = self.lowering.shape(y)
        if is_open(*shape, tensor.elements):
            self.lowering.require_equal(math.prod(shape), tensor.elements)
        elif math.prod(shape) != tensor.elements:
            self.fail(f"{list(tensor.shape)} can't become {list(shape)}")
        if tensor.elements == 0 or (tensor.const is not None and not is_open(*shape)):
            if tensor.const is None or is_open(*shape):
                self.lowering.define_empty(y, PlanTensor(y.name, tensor.dtype, shape))
            else:
                self.lowering.items[y] = Constant(np.asarray(tensor.const).reshape(shape))
            return
        output = PlanTensor(y.name, tensor.dtype, shape)
        self.lowering.add(ReshapeOp(self.node.label, [output], tensor))
        self.lowering.items[y] = Stored(output)

    def define_constant(self, array: NumPyArray, index: int = 0) -> None:
        y = self.node.output(index)
        if y is not None:
            self.lowering.items[y] = Constant(np.asarray(array))

    def moving_loops(self, body: Body) -> None:
        """Emit a kernel whose result has elements of the first input and no others, by the
        operator's attributes and the types alone: what is kept as integers stays so."""
        item = self.lowering.item(self.value(0))
        source = quantized(item, self.value(0).name)
        y = self.node.output(0)
        if source is None or y is None or 0 in self.lowering.shape(y):
            self.loops(body, key=())
            return
        given = [i for i, v in enumerate(self.node.inputs) if i and v is not None]
        self.loops(body, [source.tensor, *given], key=(), dtype=source.tensor.dtype)
        made = self.lowering.item(y)
        assert isinstance(made, Stored)
        self.lowering.items[y] = Quantized(made.tensor, source.scale, source.zero)

    def loops(
        self,
        body: Body,
        inputs: Sequence[int | PlanTensor] | None = None,
        *,
        key: Hashable = None,
        outputs: Sequence[int] | None = None,
        scratch: Sequence[tuple[Sequence[int], str]] = (),
        dtype: str | None = None,
    ) -> None:
        """Emit a kernel that reads inputs and defines outputs, by default all that there are.

        `dtype` is that of the outputs where it isn't the values' own. `scratch` are (shape, dtype)
        of buffers that follow the outputs. With `key`, a
        hashable description of everything that `body` depends on besides the operator,
        its attributes and the types, equal kernels are built once.
        """
        if inputs is None:
            inputs = [i for i, v in enumerate(self.node.inputs) if v is not None]
        tensors = [self.tensor(i) if isinstance(i, int) else i for i in inputs]
        results: list[PlanTensor | None] = []
        every = range(len(self.node.outputs))
        for value in map(self.node.output, every if outputs is None else outputs):
            if value is None:
                results.append(None)
                continue
            tensor = self.lowering.tensor(value, dtype)
            results.append(tensor)
            self.lowering.items[value] = Stored(tensor)
            if tensor.elements == 0:
                self.lowering.define_empty(value, tensor)
        given = [t for t in results if t is not None]
        if not any(t.elements for t in given):
            return
        attributes = tuple(
            a.proto.SerializeToString() for _, a in sorted(self.node.attributes.items())
        )
        operator = self.node.domain, self.node.op_type
        described = None if key is None else (*operator, self.opset, attributes, key)
        presence = [t is not None for t in results]
        scratches = [PlanTensor("scratch", dtype, tuple(shape)) for shape, dtype in scratch]

        def build() -> PrimFunc:
            k = KernelBuilder()
            sources = [Array(k, f"X{i}", t.shape, t.dtype) for i, t in enumerate(tensors)]
            made = [Array(k, f"Y{i}", t.shape, t.dtype) for i, t in enumerate((*given, *scratches))]
            remaining = iter(made)
            targets: list[Any] = [next(remaining) if p else None for p in presence]
            body(k, sources, [*targets, *remaining])
            return k.finish()

        read = [t if t.elements else _stand_in(t) for t in tensors]
        self.lowering.add(LoopsOp(self.node.label, [*given, *scratches], read, build, described))

    def tensor(self, index: int) -> PlanTensor:
        return self.lowering.stored(self.value(index))


# --- building blocks -------------------------------------------------------------


@contextlib.contextmanager
def nest(k: KernelBuilder, shape: Sequence[Expr], name: str = "i") -> Iterator[list[Expr]]:
    """Loops over every index of a shape."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(k.loop(size, f"{name}{axis}")) for axis, size in enumerate(shape)
        ]


def cell(k: KernelBuilder, dtype: str, value: Expr, name: str = "acc") -> Cell:
    """A variable of the kernel."""
    return Cell(k, dtype, value, name)


class Cell:
    """A variable that loops update."""

    def __init__(self, k: KernelBuilder, dtype: str, value: Expr, name: str = "acc") -> None:
        self.k, self.dtype = k, dtype
        self.buffer = k.local(1, dtype, name)
        self.set(value)

    def get(self) -> Computed:
        return load(self.buffer, 0)

    def set(self, value: Expr) -> None:
        self.k.store(self.buffer, to(value, self.dtype), 0)

    def add(self, value: Expr) -> None:
        self.set(self.get() + to(value, self.dtype))


_Value = TypeVar("_Value", Computed, Expr)


def bind(k: KernelBuilder, value: _Value) -> _Value:
    """Name a value, so that it is computed once.

    Floats get a variable in memory: TVM's analysis of named ones fails on divisions.
    """
    if isinstance(value, (int, float, bool, tirx.Var, OpenSize)):
        return value
    dtype = dtype_of(value)
    if is_float(dtype):
        return held(k, value)
    variable = tirx.Var("t", dtype)
    k.statement(tirx.Bind(variable, value))
    return cast(Computed, variable)


def held(k: KernelBuilder, value: _Value) -> _Value:
    """A value kept in memory: of chains of named ones TVM's analysis takes exponential time."""
    if isinstance(value, (int, float, bool, OpenSize)):
        return value
    return Cell(k, dtype_of(value), value, "t").get()


def dtype_of(value: Expr) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, OpenSize)):
        return "int32"
    if isinstance(value, float):
        return "float32"
    return str(value.ty.dtype)


def to(value: Expr, dtype: str) -> Computed:
    """Convert; anything but zero is true.

    Integers wrap. Floats that an integer type doesn't hold become its nearest number, NaN
    zero; `convert` is as ONNX Runtime instead. All types reach float16 by way of float32.
    """
    if isinstance(value, (bool, int, float, np.generic)):
        return number(value, dtype)
    own = dtype_of(value)
    if own == dtype:
        return value
    if dtype == "bool":
        differs = tirx.NE(value, number(0, own))  # of floats it is false for NaN
        return tirx.any(differs, tirx.isnan(value)) if is_float(own) else differs
    if own == "bool":
        return tirx.Select(value, number(1, dtype), number(0, dtype))
    if dtype == "float16" and own != "float32":
        return tirx.Cast(dtype, to(value, "float32"))
    if is_float(own) and not is_float(dtype):
        value = to(value, compute_type(own))
        bits = "".join(c for c in dtype if c.isdigit())
        name = "fptoui" if dtype.startswith("uint") else "fptosi"
        suffix = "f64" if own == "float64" else "f32"
        return llvm(f"llvm.{name}.sat.i{bits}.{suffix}", dtype, value)
    return tirx.Cast(dtype, value)


def number(value: float, dtype: str) -> Computed:
    """A literal; infinities and NaN included. An open size, too."""
    if isinstance(value, OpenSize):
        return to(as_int(value), dtype)
    if dtype == "bool":
        return tirx.const(bool(value), "bool")
    if dtype.startswith(("int", "uint")):
        if dtype == "uint64" and int(value) >= 2**63:
            return tirx.reinterpret("uint64", tirx.const(int(value) - 2**64, "int64"))
        return tirx.const(int(value), dtype)
    number_ = float(value)
    if math.isinf(number_) or math.isnan(number_):
        bits = np.asarray(number_, "float32").view("int32").item()
        return to(tirx.reinterpret("float32", tirx.const(bits, "int32")), dtype)
    if dtype == "float16":
        return tirx.Cast("float16", tirx.const(number_, "float32"))
    return tirx.const(number_, dtype)


def index_of(value: Expr) -> Expr:
    """A number read from a tensor, as an index."""
    return to(value, "int32")


def within(k: KernelBuilder, value: Expr, low: int, high: int, fault: Fault = Fault.INDEX) -> Expr:
    """A number that was read, as an int32 of which low <= number < high; else the kernel fails.

    `value` is read once. It is compared in its own type, or in 64 bits where that is narrower,
    before it is cut to 32 bits, so that 2**32 + 1 is not 1. Floats lose their fraction; NaN fails.
    """
    return bind(k, to(_require(k, value, low, high, fault), "int32"))


def checked(k: KernelBuilder, value: Expr, size: int) -> Expr:
    """An index that was read, from 0 on; the kernel fails where it lies outside of the axis.

    Negative ones count from the end.
    """
    number_ = _require(k, value, -size, size, Fault.INDEX)
    if dtype_of(number_).startswith(("uint", "bool")):
        return bind(k, to(number_, "int32"))
    return bind(k, to(wrap(number_, size), "int32"))


def _require(k: KernelBuilder, value: Expr, low: int, high: int, fault: Fault) -> Expr:
    """A number that was read, once, as an integer of which low <= number < high."""
    if isinstance(value, (int, np.integer)):
        k.fail_if(not low <= value < high, fault)
        return min(max(int(value), low), high - 1)
    number_ = bind(k, value)
    if is_float(dtype_of(number_)):
        real = held(k, to(number_, "float64"))
        # TVM takes `not x < y` for `x >= y`, which NaN isn't either.
        below, above = real <= number(low - 1, "float64"), real >= number(high, "float64")
        k.fail_if(tirx.any(tirx.isnan(real), below, above), fault)
        number_ = bind(k, to(real, "int64"))
    wide = number_ if dtype_of(number_) in ("int64", "uint64") else to(number_, "int64")
    dtype = dtype_of(wide)
    outside = wide >= number(high, dtype)
    if dtype == "int64" or low > 0:
        outside = tirx.any(wide < number(low, dtype), outside)
    k.fail_if(outside, fault)
    return number_


def clamped(k: KernelBuilder, value: Expr, low: int, high: int) -> Expr:
    """The int32 of low <= number < high that is nearest to a number that was read.

    Floats lose their fraction; NaN becomes the lowest.
    """
    dtype = dtype_of(value)
    if not is_float(dtype) and dtype != "uint64":
        dtype = "int64"
    value = held(k, to(value, compute_type(dtype)))
    first, last = (number(i, dtype_of(value)) for i in (low, high - 1))
    if not dtype.startswith("uint") or low > 0:
        value = held(k, select(value > first, value, first))
    value = held(k, to(select(value < last, value, last), "int32"))
    return bind(k, minimum(maximum(value, low), high - 1))


def limited(k: KernelBuilder, value: Expr, low: int, high: int) -> Expr:
    """An int32 that the kernel itself computed and kept in memory: low <= number < high.

    It changes nothing, but shows the analysis of bounds what is read back.
    """
    return bind(k, maximum(minimum(value, high - 1), low))


@overload
def select(condition: Expr, yes: Computed, no: Computed) -> Computed: ...
@overload
def select(condition: Expr, yes: Expr, no: Expr) -> Expr: ...
def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """One of two values, both evaluated."""
    if isinstance(condition, (bool, np.bool_)):
        return yes if condition else no
    dtype = dtype_of(no) if isinstance(yes, (int, float)) else dtype_of(yes)
    return tirx.Select(condition, to(yes, dtype), to(no, dtype))


def guarded(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """One of two values, only that one evaluated: for reads that may be out of bounds."""
    if isinstance(condition, (bool, np.bool_)):
        return yes if condition else no
    dtype = dtype_of(no) if isinstance(yes, (int, float)) else dtype_of(yes)
    return tirx.if_then_else(condition, to(yes, dtype), to(no, dtype))


def all_of(*conditions: Expr) -> Expr:
    """Conjunction that knows Python's booleans."""
    left: list[Expr] = []
    for condition in conditions:
        if isinstance(condition, (bool, np.bool_)):
            if not condition:
                return False
            continue
        left.append(condition)
    if not left:
        return True
    return left[0] if len(left) == 1 else tirx.all(*left)


def any_of(*conditions: Expr) -> Expr:
    left: list[Expr] = []
    for condition in conditions:
        if isinstance(condition, (bool, np.bool_)):
            if condition:
                return True
            continue
        left.append(condition)
    if not left:
        return False
    return left[0] if len(left) == 1 else tirx.any(*left)


@contextlib.contextmanager
def when(k: KernelBuilder, condition: Expr) -> Iterator[None]:
    """`if condition:`, also for conditions known while building."""
    if isinstance(condition, (bool, np.bool_)):
        if condition:
            yield
            return
        k._blocks.append([])
        yield
        k._blocks.pop()
        return
    with k.when(condition):
        yield


def equal(a: Expr, b: Expr) -> Expr:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if isinstance(a, int):
        a, b = b, a
    return tirx.EQ(a, to(b, dtype_of(a)))


def differ(a: Expr, b: Expr) -> Expr:
    same = equal(a, b)
    return not same if isinstance(same, bool) else tirx.Not(same)


def divide(a: Expr, b: Expr) -> Expr:
    return a // b if isinstance(a, int) and isinstance(b, int) else tirx.floordiv(a, b)


def modulo(a: Expr, b: Expr) -> Expr:
    return a % b if isinstance(a, int) and isinstance(b, int) else tirx.floormod(a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(a, b)


def maximum(a: Expr, b: Expr) -> Expr:
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.max(a, b)


def within_axis(index: Expr, size: int) -> Expr:
    """The nearest index within an axis; of an open one in a form whose bounds proofs know."""
    if is_open(size):
        return minimum(maximum(index, 0), size - 1)
    return maximum(minimum(index, size - 1), 0)


def wrap(index: Expr, size: int) -> Expr:
    """An index that may count from the end."""
    if isinstance(index, int):
        return index % size
    return select(index < 0, index + number(size, dtype_of(index)), index)


def is_float(dtype: str) -> bool:
    return dtype.startswith("float")


def compute_type(dtype: str) -> str:
    """The type that sums of a type are kept in."""
    return "float32" if dtype == "float16" else dtype


def unravel(position: Expr, shape: Sequence[int]) -> list[Expr]:
    """The index of a position in memory."""
    index: list[Expr] = []
    for size in reversed(shape):
        index.append(modulo(position, size) if size != 1 else 0)
        position = divide(position, size)
    return index[::-1]


def without(index: Sequence[Expr], axis: int) -> list[Expr]:
    return [*index[:axis], *index[axis + 1 :]]


def replaced(index: Sequence[Expr], axis: int, value: Expr) -> list[Expr]:
    return [*index[:axis], value, *index[axis + 1 :]]


def inserted(index: Sequence[Expr], axis: int, value: Expr) -> list[Expr]:
    return [*index[:axis], value, *index[axis:]]
