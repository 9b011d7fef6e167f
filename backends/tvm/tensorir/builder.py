"""Building TensorIR functions: loops as context managers, scalar and vector access.

Kernels are written against this small layer and construct TensorIR directly, which
is an order of magnitude faster than parsing TVMScript.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
from tvm import tirx

from ....ir.symbolic.expressions import Expression
from ..faults import Fault
from ..plan.sizes import OpenSize, is_open, size_of
from .sizes import as_size, is_size, render, size_parameters
from .types import BufferVar, Computed, Expr, Index, Node, PrimFunc, Statement

SHARES = 16
"""Iterations that a parallel loop should have: enough for threads to share evenly."""


_FAIL = "secateur_fail"
"""What notes a fault; no such function is left when the kernel is compiled."""


class KernelBuilder:
    """Collects parameters and statements of one function."""

    def __init__(self) -> None:
        self._parameters: list[BufferVar] = []
        self._sizes: list[Expression] = []
        self._blocks: list[list[Statement]] = [[]]
        self._shared: list[dict[Hashable, Computed]] = [{}]

    def parameter(self, name: str, shape: Sequence[int], dtype: str) -> BufferVar:
        """A buffer argument; arguments keep the order of these calls."""
        buffer = tirx.decl_buffer([_extent(d) for d in shape], dtype, name)
        self._sizes += [s for d in shape if isinstance(s := size_of(d), Expression)]
        self._parameters.append(buffer)
        return buffer

    def local(self, size: int, dtype: str, name: str = "acc") -> BufferVar:
        """A buffer private to the innermost loop body; lives in registers where it fits."""
        buffer = tirx.decl_buffer([size], dtype, name, scope="local")
        self.statement(tirx.AllocBuffer(buffer))
        return buffer

    def statement(self, statement: Statement) -> None:
        self._blocks[-1].append(statement)

    def _open(self) -> None:
        self._blocks.append([])
        self._shared.append({})

    def _close(self) -> Statement:
        self._shared.pop()
        return _sequence(self._blocks.pop())

    def shared(self, key: Hashable, value: Callable[[], Computed], dtype: str) -> Computed:
        """A variable with a value that doesn't change, one for each loop body that needs it."""
        for known in self._shared:
            if key in known:
                return known[key]
        variable = tirx.Var("c", dtype)
        self.statement(tirx.Bind(variable, value()))
        self._shared[-1][key] = variable
        return variable

    @contextlib.contextmanager
    def loop(self, extent: Expr, name: str, *, parallel: bool = False) -> Iterator[Expr]:
        """`for name in range(extent)`. A loop of one iteration becomes no loop, and one of
        none is left out, with accesses that nothing could prove."""
        if isinstance(extent, int) and extent == 1:
            yield 0
            return
        variable = tirx.Var(name, "int32")
        self._open()
        yield variable
        body = self._close()
        if isinstance(extent, int) and extent == 0:
            return
        kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
        self.statement(tirx.For(variable, tirx.IntImm("int32", 0), as_int(extent), kind, body))

    @contextlib.contextmanager
    def outer(self, batch: int, extent: int, *, parallel: bool) -> Iterator[tuple[Expr, Expr]]:
        """Two loops as one, `for n in range(batch): for i in range(extent)`."""
        if is_open(extent) and batch != 1:
            with (
                self.loop(batch, "outer", parallel=parallel and batch != 1) as n,
                self.loop(extent, "inner", parallel=parallel and batch == 1) as i,
            ):
                yield n, i
            return
        with self.loop(batch * extent, "outer", parallel=parallel) as index:
            if batch == 1:
                yield 0, index
            elif extent == 1:
                yield index, 0
            else:
                yield tirx.floordiv(index, extent), tirx.floormod(index, extent)

    @contextlib.contextmanager
    def nest(self, extents: Sequence[int], *, parallel: bool) -> Iterator[list[Expr]]:
        """Nested loops over batch, channels, rows and columns; gives their indices.

        In parallel, batch and channels are shared out. Where that makes few shares, it
        is the batch and pieces of the image: of its rows, or columns where it has but
        one row.
        """
        batch, channels, rows, columns = extents
        if is_open(*extents):
            with self.open_nest((batch, channels, rows, columns), parallel=parallel) as indices:
                yield indices
            return
        image = max((2, 3), key=lambda axis: (extents[axis] > 1, -axis))
        pieces = _pieces(batch, channels, extents[image]) if parallel else 1
        if pieces == 1:
            with (
                self.outer(batch, channels, parallel=parallel) as (n, c),
                self.loop(rows, "row") as i,
                self.loop(columns, "column") as j,
            ):
                yield [n, c, i, j]
            return
        size = extents[image] // pieces
        with (
            self.outer(batch, pieces, parallel=True) as (n, piece),
            self.loop(channels, "channel") as c,
            self.loop(size if image == 2 else rows, "row") as i,
            self.loop(size if image == 3 else columns, "column") as j,
        ):
            first = piece * size
            yield [n, c, first + i, j] if image == 2 else [n, c, i, first + j]

    @contextlib.contextmanager
    def open_nest(
        self, extents: tuple[int, int, int, Expr], *, parallel: bool
    ) -> Iterator[list[Expr]]:
        """As `nest`, of extents that only a run fixes."""
        batch, channels, rows, columns = extents
        with (
            self.shares(batch, channels, parallel=parallel) as (n, c, piece, pieces),
            self.piece(rows, piece, 1 if rows == 1 else pieces, "row") as row,
            self.piece(columns, piece, pieces if rows == 1 else 1, "column") as column,
        ):
            yield [n, c, row, column]

    @contextlib.contextmanager
    def shares(
        self, batch: int, channels: int, *, parallel: bool
    ) -> Iterator[tuple[Expr, Expr, Expr, int]]:
        """Loops over images and channels of open size, in parallel over them or, where these are
        few, over pieces of each image: image, channel, piece, and how many pieces there are."""
        images = 1 if is_open(batch) else batch
        if not parallel or images * channels >= SHARES:
            with self.outer(batch, channels, parallel=parallel) as (n, c):
                yield n, c, 0, 1
            return
        with (
            self.loop(batch, "outer") as n,
            self.loop(SHARES, "piece", parallel=True) as piece,
            self.loop(channels, "channel") as c,
        ):
            yield n, c, piece, SHARES

    @contextlib.contextmanager
    def piece(self, extent: Expr, index: Expr, pieces: int, name: str) -> Iterator[Expr]:
        """The iterations of one of so many pieces of a loop, the last of which may be short."""
        if pieces == 1:
            with self.loop(extent, name) as i:
                yield i
            return
        size = tirx.floordiv(as_int(extent) + (pieces - 1), pieces)
        first = index * size
        with self.loop(tirx.min(size, as_int(extent) - first), name) as i:
            # bounded by itself, so that proofs needn't follow where the piece lies
            yield self.named(tirx.min(first + i, as_int(extent) - 1), name)

    def named(self, value: Computed, name: str) -> Computed:
        """A variable of an integer that doesn't change."""
        variable = tirx.Var(name, "int32")
        self.statement(tirx.Bind(variable, value))
        return variable

    @contextlib.contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """`if condition:`"""
        self._open()
        yield
        self.statement(tirx.IfThenElse(condition, self._close(), None))

    def fail_if(self, condition: Expr, fault: Fault) -> None:
        """Leave the kernel with a fault where `condition`, a scalar, holds.

        This is the only way to leave early, for which the entry answers with the fault's code:
        what follows runs only where the condition doesn't hold.
        """
        note = tirx.call_extern("int32", _FAIL, tirx.IntImm("int32", int(fault)))
        leave = tirx.SeqStmt([tirx.Evaluate(note), tirx.Evaluate(tirx.tvm_throw_last_error())])
        if isinstance(condition, bool):  # known while building
            if condition:
                self.statement(leave)
            return
        self.statement(tirx.IfThenElse(condition, leave, None))

    def store(self, buffer: BufferVar, value: Expr, *indices: Index, lanes: int = 1) -> None:
        """Store `value`; with `lanes` > 1 a vector along the last axis from the last index."""
        self.statement(tirx.BufferStore(buffer, value, _indices(indices, lanes)))

    def finish(self) -> PrimFunc:
        """The function, with the open sizes that it needs as parameters after its buffers, which
        are taken not to overlap."""
        body = _sequence(self._blocks[0])
        free = tirx.analysis.undefined_vars(body, self._parameters)
        sizes = size_parameters([*self._sizes, *(as_size(v) for v in free if is_size(v))])
        return tirx.PrimFunc([*self._parameters, *sizes], body).with_attr(
            {"tirx.noalias": True, "s_tir": True}
        )


def leaves(statement: Statement) -> bool:
    """Whether a statement leaves the kernel, as what `fail_if` puts under its condition does."""
    last = statement.seq[-1] if isinstance(statement, tirx.SeqStmt) else statement
    value = last.value if isinstance(last, tirx.Evaluate) else None
    return getattr(getattr(value, "op", None), "name", "") == "tirx.tvm_throw_last_error"


def fault_of(statement: Statement) -> int | None:
    """The code of the fault that a statement notes, as `fail_if` has it do before it leaves."""
    if not isinstance(statement, tirx.Evaluate):
        return None
    value: Node = statement.value
    if getattr(getattr(value, "op", None), "name", "") != "tirx.call_extern":
        return None
    name, *arguments = value.args
    return int(arguments[0]) if name.value == _FAIL else None


def load(buffer: BufferVar, *indices: Index, lanes: int = 1) -> Computed:
    """Read a scalar, or `lanes` consecutive elements of the last axis."""
    return tirx.BufferLoad(buffer, _indices(indices, lanes))


def splat(value: Computed, lanes: int) -> Computed:
    """A vector of `lanes` copies of a scalar."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def join(vectors: Sequence[Computed], lanes: int) -> Computed:
    """One vector of all the elements of vectors of `lanes`, in turn."""
    if len(vectors) == 1:
        return vectors[0]
    return tirx.Shuffle(list(vectors), list(range(len(vectors) * lanes)))


def constant(value: float, dtype: str, lanes: int = 1) -> Computed:
    """An immediate, splat over `lanes`; infinities and NaN by their bits."""
    if dtype == "float32" and not math.isfinite(value):
        bits = int(np.float32(value).view(np.int32))
        return splat(tirx.reinterpret(dtype, tirx.const(bits, "int32")), lanes)
    return splat(tirx.const(value, dtype), lanes)


def cast(value: Computed, dtype: str, lanes: int) -> Computed:
    return tirx.Cast(vector_type(dtype, lanes), value)


def reinterpret(value: Computed, dtype: str, lanes: int) -> Computed:
    """The same bits as another type."""
    return tirx.reinterpret(vector_type(dtype, lanes), value)


def vector_type(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def llvm(name: str, dtype: str, *arguments: Expr) -> Computed:
    """Call a pure LLVM intrinsic by its mangled name."""
    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)


def _pieces(batch: int, channels: int, extent: int) -> int:
    """Pieces of equal size to cut an image's axis in; 1 where it need not or can't be cut."""
    if batch * channels >= SHARES:
        return 1
    sizes = [d for d in range(1, extent + 1) if extent % d == 0]
    pieces = next((d for d in sizes if batch * d >= SHARES), extent)
    return pieces if pieces > channels else 1


def tiles_of(extent: Expr, width: int) -> Computed:
    """How many tiles of a width an extent takes."""
    return tirx.floordiv(as_int(extent) + (width - 1), width)


def smaller(index: Expr, limit: int) -> Expr:
    """The smaller one of an index and a limit."""
    if isinstance(index, int):
        return min(index, limit)
    return tirx.min(index, tirx.IntImm("int32", limit))


def _extent(size: int) -> Expr:
    return render(size.expression) if isinstance(size, OpenSize) else int(size)


def as_int(value: Expr) -> Computed:
    """An index as an expression."""
    if isinstance(value, OpenSize):
        return render(value.expression)
    return value if not isinstance(value, (int, float)) else tirx.IntImm("int32", value)


def _indices(indices: Sequence[Index], lanes: int) -> list[Computed]:
    result = [as_int(i) for index in indices for i in _parts(index)]
    if lanes > 1:
        result[-1] = tirx.Ramp(result[-1], tirx.IntImm("int32", 1), lanes)
    return result


def _parts(index: Index) -> Sequence[Expr]:
    """Indices that are given as one, of a row and its column."""
    return index if isinstance(index, tuple) else (index,)


def _sequence(statements: list[Statement]) -> Statement:
    if not statements:
        return tirx.Evaluate(tirx.IntImm("int32", 0))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)
