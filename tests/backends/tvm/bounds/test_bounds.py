"""The proofs that kernels stay within their buffers: what holds, and what must not be believed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("tvm")

import tvm
from tvm import tirx

from secateur.backends.tvm.artifact.objects import _pipeline
from secateur.backends.tvm.bounds import Verdict, prove
from secateur.backends.tvm.faults import Fault
from secateur.backends.tvm.targets import parse_target
from secateur.backends.tvm.tensorir.builder import KernelBuilder, as_int, load

Build = Callable[[KernelBuilder, Any, Any, Any], None]
"""Makes a kernel that reads `table` of 8 floats and `index` of 4 integers and writes `out` of 4."""

KERNELS: dict[str, tuple[bool, str, Build]] = {}
"""By name: whether the kernel stays within its buffers, the type of `index`, how it is made."""


def kernel(safe: bool, dtype: str = "int32") -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        KERNELS[build.__name__] = safe, dtype, build
        return build

    return register


def number(value: int, dtype: str) -> Any:
    return tirx.IntImm(dtype, value)


def inside(value: Any, size: int = 8, dtype: str = "int32") -> Any:
    return tirx.all(value >= number(0, dtype), value < number(size, dtype))


@kernel(True)
def never_reached(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.when(tirx.const(False, "bool")):
        k.store(out, load(table, 8), -1)
    with k.when(tirx.LT(number(3, "int32"), number(2, "int32"))):
        k.store(out, load(table, 8), -1)


@kernel(False)
def reached_behind_what_is_not(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.when(tirx.const(False, "bool")):
        k.store(out, load(table, 0), -1)
    k.store(out, load(table, 8), 0)


@kernel(False)
def always_reached(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.when(tirx.const(True, "bool")):
        k.store(out, load(table, 8), 0)


@kernel(True)
def loop(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(4, "i") as i:
        k.store(out, load(table, i * 2 + 1), i)


@kernel(False)
def loop_too_long(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(9, "i") as i:
        k.store(out, load(table, i), 3)


@kernel(False)
def shifted(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(4, "i") as i:
        k.store(out, load(table, i * 2 + 2), i)


@kernel(False)
def before(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(4, "i") as i:
        k.store(out, load(table, i - 1), i)


@kernel(True)
def vectors(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(2, "i") as i:
        k.store(out, load(table, i * 4, lanes=4), 0, lanes=4)


@kernel(False)
def last_lane(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(2, "i") as i:
        k.store(out, load(table, i * 4 + 1, lanes=4), 0, lanes=4)


@kernel(True)
def quotient_and_remainder(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(8, "i") as i:
        row, column = tirx.floordiv(i, 3), tirx.floormod(i, 3)
        k.store(out, load(table, row * 3 + column), 0)


@kernel(False)
def rows_of_another_length(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(8, "i") as i:
        row, column = tirx.floordiv(i, 3), tirx.floormod(i, 3)
        k.store(out, load(table, row * 4 + column), 0)


@kernel(True)
def guarded_sum(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(2, "row") as row, k.loop(4, "i") as i, k.loop(3, "r") as r:
        at = i + r - 1
        value = tirx.if_then_else(inside(at, 4), load(table, row * 4 + at), tirx.const(0.0))
        k.store(out, value, 0)


@kernel(False)
def guarded_by_one_end(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(4, "i") as i, k.loop(3, "r") as r:
        at = i + r - 1
        k.store(out, tirx.if_then_else(at < 4, load(table, at), tirx.const(0.0)), 0)


@kernel(False)
def guarded_by_select(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    """Both sides of a Select are read."""
    at = load(index, 0)
    k.store(out, tirx.Select(inside(at), load(table, at), tirx.const(0.0)), 0)


@kernel(False)
def other_branch(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    at = load(index, 0)
    k.store(out, tirx.if_then_else(inside(at), tirx.const(0.0), load(table, at)), 0)


@kernel(True)
def index_tested(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(4, "i") as i, k.when(inside(load(index, i))):
        k.store(out, load(table, load(index, i)), i)


@kernel(False)
def untested_index(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(4, "i") as i:
        k.store(out, load(table, load(index, i)), i)


@kernel(False)
def another_index_tested(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(3, "i") as i, k.when(inside(load(index, i))):
        k.store(out, load(table, load(index, i + 1)), i)


@kernel(False)
def written_after_the_test(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    """A load is the same value only until something writes the buffer."""
    with k.loop(4, "i") as i, k.when(inside(load(index, i))):
        k.store(index, load(index, 0), 3)
        k.store(out, load(table, load(index, i)), i)


@kernel(False)
def written_by_other_threads(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(4, "i", parallel=True) as i:
        k.store(index, load(index, i) * 2, i)
        with k.when(inside(load(index, 0))):
            k.store(out, load(table, load(index, 0)), i)


@kernel(False)
def counter(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    """What a loop changes isn't what it was before the loop."""
    cell = k.local(1, "int32")
    k.store(cell, as_int(0), 0)
    with k.loop(4, "i") as i:
        k.store(out, load(table, load(cell, 0)), i)
        k.store(cell, load(cell, 0) + load(index, i), 0)


@kernel(True)
def counter_tested(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    cell = k.local(1, "int32")
    k.store(cell, as_int(0), 0)
    with k.loop(4, "i") as i:
        with k.when(inside(load(cell, 0))):
            k.store(out, load(table, load(cell, 0)), i)
        k.store(cell, load(cell, 0) + load(index, i), 0)


@kernel(True)
def left_before(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(4, "i") as i:
        k.fail_if(tirx.Not(inside(load(index, i))), Fault.INDEX)
        k.store(out, load(table, load(index, i)), i)


@kernel(False)
def left_after(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(4, "i") as i:
        k.store(out, load(table, load(index, i)), i)
        k.fail_if(tirx.Not(inside(load(index, i))), Fault.INDEX)


@kernel(False)
def left_in_another_loop(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    with k.loop(3, "i") as i:
        k.fail_if(tirx.Not(inside(load(index, i))), Fault.INDEX)
    k.store(out, load(table, load(index, 3)), 0)


@kernel(True)
def limited(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    at = tirx.max(tirx.min(load(index, 0), as_int(7)), as_int(0))
    k.store(out, load(table, at), 0)


@kernel(False)
def limited_on_one_side(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    k.store(out, load(table, tirx.min(load(index, 0), as_int(7))), 0)


@kernel(True)
def from_the_end(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    at = load(index, 0)
    with k.when(tirx.all(at >= -8, at < 8)):
        k.store(out, load(table, at + tirx.Select(at < 0, as_int(8), as_int(0))), 0)


@kernel(False)
def from_the_end_by_one_more(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    at = load(index, 0)
    with k.when(tirx.all(at >= -9, at < 8)):
        k.store(out, load(table, at + tirx.Select(at < 0, as_int(8), as_int(0))), 0)


@kernel(False)
def square(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    """Squares of 32 bits may be negative."""
    at = load(index, 0)
    with k.when(at * at < 8):
        k.store(out, load(table, at * at), 0)


@kernel(False)
def sum_that_overflows(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    at = load(index, 0)
    with k.when(tirx.all(at >= 0, at + 1 < 8)):
        k.store(out, load(table, tirx.floormod(at + 2147483647, 8)), 0)


@kernel(False, "int64")
def cut_before_the_test_of_the_whole(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    """2**32 + 9 is 9 in 32 bits; a test of one says nothing of the other."""
    at = load(index, 0)
    with k.when(tirx.all(at < number(1 << 33, "int64"), at >= number(0, "int64"))):
        k.store(out, load(table, tirx.min(tirx.Cast("int32", at), as_int(7))), 0)


@kernel(True, "int64")
def cut_after_the_test(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    at = load(index, 0)
    with k.when(inside(at, dtype="int64")):
        k.store(out, load(table, tirx.Cast("int32", at)), 0)


@kernel(True, "int64")
def limits_tested_after_the_cut(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    at = tirx.Cast("int32", load(index, 0))
    with k.when(inside(at)):
        k.store(out, load(table, at), 0)


@kernel(True, "uint8")
def bytes_of_a_small_type(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    k.store(out, load(table, tirx.floordiv(tirx.Cast("int32", load(index, 0)), 32)), 0)


@kernel(False, "int8")
def bytes_with_a_sign(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    k.store(out, load(table, tirx.floordiv(tirx.Cast("int32", load(index, 0)), 16)), 0)


@kernel(False, "float32")
def from_a_float(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    k.store(out, load(table, tirx.Cast("int32", load(index, 0))), 0)


@kernel(False)
def name_of_another(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    """Variables of equal names are different ones."""
    first, second = tirx.Var("t", "int32"), tirx.Var("t", "int32")
    k.statement(tirx.Bind(first, load(index, 0)))
    k.statement(tirx.Bind(second, load(index, 1)))
    with k.when(inside(first)):
        k.store(out, load(table, second), 0)


@kernel(False)
def address(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    """What gets an address may touch anything."""
    k.statement(tirx.Evaluate(tirx.call_extern("int32", "memset", tirx.address_of(table[0]))))


@kernel(False)
def foreign_function(k: KernelBuilder, table: Any, index: Any, out: Any) -> None:
    k.statement(tirx.Evaluate(tirx.call_extern("int32", "puts", as_int(0))))


def verdict(name: str) -> Verdict:
    _, dtype, build = KERNELS[name]
    k = KernelBuilder()
    table = k.parameter("table", (8,), "float32")
    index = k.parameter("index", (4,), dtype)
    out = k.parameter("out", (4,), "float32")
    build(k, table, index, out)
    return prove(k.finish())


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str) -> None:
    found = verdict(name)
    assert (not found.unproven) is KERNELS[name][0], found.unproven


def test_counts() -> None:
    """Accesses are counted, and those whose index is read at run time."""
    found = verdict("index_tested")
    assert (found.accesses, found.guarded) == (5, 1)
    assert (found.reads, found.writes) == ((0, 1), (2,))
    assert verdict("loop").guarded == 0


def test_ranges_of_constants() -> None:
    """Positions from a table count as what the table holds."""
    k = KernelBuilder()
    table, index = k.parameter("table", (8,), "float32"), k.parameter("index", (4,), "int32")
    with k.loop(4, "i") as i:
        k.store(table, tirx.const(0.0), load(index, i))
    function = k.finish()
    assert prove(function).unproven
    assert not prove(function, {1: (0, 7)}).unproven
    assert prove(function, {1: (0, 8)}).unproven
    assert prove(function, {1: (-1, 7)}).unproven
    assert prove(function, {0: (0, 7)}).unproven


@pytest.mark.parametrize("shape", [(2**31,), (2**16, 2**15)])
def test_too_many_elements(shape: tuple[int, ...]) -> None:
    """Indices have 32 bits."""
    k = KernelBuilder()
    k.store(k.parameter("table", shape, "float32"), tirx.const(0.0), *[0] * len(shape))
    assert "more elements" in prove(k.finish()).unproven[0]


def test_local_buffers() -> None:
    """A kernel's own memory has an end, too."""
    k = KernelBuilder()
    out = k.parameter("out", (4,), "float32")
    own = k.local(4, "float32")
    with k.loop(4, "i") as i:
        k.store(own, tirx.const(0.0), i + 1)
        k.store(out, load(own, i), i)
    assert prove(k.finish()).unproven == ("store acc[i + 1] of [4]",)


def test_passes_leave_guarded_loads_where_they_are() -> None:
    """TVM's elimination of common subexpressions hoists what occurs twice, but no loads."""
    k = KernelBuilder()
    table, numbers = k.parameter("t", [8], "float32"), k.parameter("n", [8], "int32")
    result = k.parameter("y", [8], "float32")
    with k.loop(8, "i") as i:
        index = load(numbers, i)
        inside = tirx.all(index >= 0, index < 8)
        squared = load(table, index) * load(table, index)
        k.store(result, tirx.if_then_else(inside, squared, tirx.const(0.0, "float32")), i)
        with k.when(inside):
            k.store(result, load(result, i) + load(table, index) + load(table, index), i)
    machine = tvm.target.Target(parse_target("native").llvm())
    module = tvm.IRModule({"k": k.finish().with_attr("global_symbol", "k")})
    for step in _pipeline(machine).passes:
        module = step(module)
        if step.info.name == "tirx.CommonSubexprElim":
            break
    lines = [line for line in str(module["k"]).splitlines() if "t_1[" in line]
    assert [line.count("t_1[") for line in lines] == [2, 2]
