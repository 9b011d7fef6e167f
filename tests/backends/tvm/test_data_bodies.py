"""Sizes that data decide in bodies of Loop and Scan, and in branches of If."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import BranchOp, LoopOp
from secateur.backends.tvm.plan.text import print_plan
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.onnx_io import from_proto

from ...onnx_runtime import session_of
from ..c_library import models
from ..c_library.test_open_library import results, run
from .child import Child, RefusedError
from .random_loops import RandomLoops, difference
from .test_open_loops import CONSTANTS

Array = Any
Feeds = dict[str, Any]
TARGET = parse_target("native")

SELECTED = "t = NonZero(row) at = Squeeze(t, zero1) g = Gather(row, at)"
TWICE = "else_branch = twice () => (float[q] v) { v = Concat <axis = 0> (x, x) }"
COUNTED = """then_branch = counted () => (float[p] u)
{ t = NonZero(x) at = Squeeze(t, zero1) u = Gather(x, at) }"""

CASES = {
    "counted in a Scan": (
        "(float[n, 6] x, float[1] h) => (float[1] last, float[n, 1] y)",
        f"""last, y = Scan <num_scan_inputs = 1, body = step
        (float[1] s, float[6] row) => (float[1] s2, float[1] z) {{ {SELECTED}
        u = ReduceSum <keepdims = 1> (g, zero1) s2 = Add(s, u) z = Mul(u, half) }}> (h, x)""",
    ),
    "told in a Loop": (
        "(float[n, 6] x, int64[1] k, float[1] h) => (float[1] last)",
        """s = Shape(x) n = Gather(s, zero) last = Loop <body = step
        (int64 i, bool on, float[1] f) => (bool on2, float[1] f2)
        { on2 = Identity(on) row = Gather(x, i) v, j = TopK(row, k) e = Exp(v)
        u = ReduceSum <keepdims = 1> (e, zero1) f2 = Add(f, u) }> (n, , h)""",
    ),
    "told by a state": (
        "(float[n, 6] x, int64[1] k, float[1] h) => (int64[1] many, float[1] last)",
        """s = Shape(x) n = Gather(s, zero) many, last = Loop <body = step
        (int64 i, bool on, int64[1] c, float[1] f) => (bool on2, int64[1] c2, float[1] f2)
        { on2 = Identity(on) row = Gather(x, i) v, j = TopK(row, c) e = Exp(v)
        u = ReduceSum <keepdims = 1> (e, zero1) f2 = Add(f, u)
        w = ReduceMax <keepdims = 0> (row) b = Less(half, w) d = Cast <to = 7> (b)
        c2 = Mul(c, d) }> (n, , k, h)""",
    ),
    "a slice that data tell": (
        "(float[n, 6] x, int64[n] a, float[1] h) => (float[1] last)",
        """s = Shape(x) n = Gather(s, zero) last = Loop <body = step
        (int64 i, bool on, float[1] f) => (bool on2, float[1] f2)
        { on2 = Identity(on) row = Gather(x, i) b = Gather(a, i) c = Unsqueeze(b, zero1)
        v = Slice(row, zero1, c) e = Exp(v) u = ReduceSum <keepdims = 1> (e, zero1)
        f2 = Add(f, u) }> (n, , h)""",
    ),
    "a loop over what another found": (
        "(float[n, 6] x, float[1] h) => (float[1] last, float[n] y)",
        """last, y = Scan <num_scan_inputs = 1, body = step
        (float[1] s, float[6] row) => (float[1] s2, float z)
        { q = Less(half, row) g = Compress(row, q) o, all = Scan <num_scan_inputs = 1, body = inner
        (float a, float b) => (float a2, float c) { a2 = Add(a, b) c = Tanh(a2) }> (half, row)
        e = Exp(g) z = ReduceSum <keepdims = 0> (e) u = Unsqueeze(o, zero1)
        s2 = Add(s, u) }> (h, x)""",
    ),
    "branches of other lengths": (
        "(float[n] x, bool c) => (float[k] y, float[1] z, int64[1] s)",
        f"""y = If (c) <{COUNTED}, {TWICE}>
        z = ReduceSum <keepdims = 1> (y, zero1) s = Shape(y)""",
    ),
    "branches of known lengths": (
        "(float[4] x, bool c) => (float[k] y, float[m] z)",
        """y, z = If (c) <then_branch = a () => (float[p] u, float[r] w)
        { u = Slice(x, zero1, two1) w = Identity(x) },
        else_branch = b () => (float[q] v, float[t] o)
        { v = Identity(x) o = Slice(x, zero1, one1) }>""",
    ),
    "a branch in a branch": (
        "(float[n] x, bool c, bool d) => (float[k] y)",
        f"""y = If (c)
        <then_branch = outer () => (float[p3] w) {{ w = If (d) <{COUNTED}, {TWICE}> }},
        else_branch = other () => (float[q3] o) {{ o = Neg(x) }}>""",
    ),
    "a branch in a loop": (
        "(float[n, 6] x, float[1] h) => (float[1] last, float[n] y)",
        f"""last, y = Scan <num_scan_inputs = 1, body = step
        (float[1] s, float[6] row) => (float[1] s2, float z)
        {{ m = ReduceMax <keepdims = 0> (row) c = Less(half, m) g2 = If (c) <then_branch = a ()
        => (float[p] g) {{ {SELECTED} }}, else_branch = b () => (float[q] v)
        {{ v = Concat <axis = 0> (row, row) }}>
        e = Exp(g2) z = ReduceSum <keepdims = 0> (e) w = Unsqueeze(z, zero1)
        s2 = Add(s, w) }}> (h, x)""",
    ),
    "a loop in a branch": (
        "(float[n, 6] x, float[6] h, bool c) => (float[k, 6] y)",
        """y = If (c) <then_branch = a () => (float[p, 6] u)
        { last, u = Scan <num_scan_inputs = 1, body = step (float[6] s, float[6] row)
        => (float[6] s2, float[6] z) { s2 = Add(s, row) z = Tanh(s2) }> (h, x) },
        else_branch = b () => (float[q, 6] v)
        { e = Unsqueeze(h, zero1) v = Concat <axis = 0> (x, e, x) }>""",
    ),
    "what only one branch computes": (
        "(float[n, 6] x, bool c) => (float[1] y)",
        """y = If (c) <then_branch = a () => (float[1] u)
        { t = NonZero(x) f = Transpose(t) g = GatherND(x, f)
        u = ReduceSum <keepdims = 1> (g, zero1) },
        else_branch = b () => (float[1] v) { w = ReduceMax <keepdims = 0> (x)
        v = Unsqueeze(w, zero1) }>""",
    ),
}


def rows(*counts: int) -> Array:
    """Rows of 6 elements, the first so many other than 0."""
    x = np.zeros((len(counts), 6), np.float32)
    for index, count in enumerate(counts):
        x[index, :count] = np.random.default_rng(index).standard_normal(6)[:count] + 1
    return x


def feeds_of(name: str, model: onnx.ModelProto) -> Iterator[Feeds]:
    names = [v.name for v in model.graph.input]
    shapes = {v.name: len(v.type.tensor_type.shape.dim) for v in model.graph.input}
    wide = [rows(3, 0, 6, 1), rows(0), rows(6)]
    wide[0][2, 4] = np.nan if "branch" not in name and "told" not in name else 1
    images = wide if shapes["x"] == 2 else [w[0, :size] for w in wide for size in (1, 4, 6)]
    if "known" in name:
        images = [rows(4)[0, :4]]
    for x in images:
        made: Feeds = {
            "x": x,
            "h": np.float32([0.5] * (6 if "float[6] h" in CASES[name][0] else 1)),
        }
        for number in range(4):
            made |= {"c": np.array(number % 2 == 0), "d": np.array(number < 2)}
            made |= {"k": np.asarray([[0, 1, 6, 3][number]])}
            made |= {"a": np.asarray([0, -2, 2**62, 3])[: len(x)]}
            yield {own: made[own] for own in names}


def model_of(name: str) -> onnx.ModelProto:
    signature, body = CASES[name]
    constants = CONSTANTS.replace("int64[1] one1 = {1}", "int64[1] one1 = {1}, int64[1] two1 = {2}")
    return models.text(f"agraph {signature} {constants} {{ {body} }}")


def reference(model: onnx.ModelProto, feeds: Feeds) -> dict[str, Array]:
    session = session_of(model.SerializeToString())
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_bodies(name: str, tmp_path: Path) -> None:
    """In a process of its own, with pages around all memory that nothing may touch."""
    model = model_of(name)
    plan = lower(from_proto(model), TARGET)
    kinds = {type(op) for op in plan.operations}
    assert kinds & {LoopOp, BranchOp}
    assert print_plan(plan, "native").count("readsizes") >= 1
    compile_model(from_proto(model), TARGET, tmp_path / "m.so")
    child = Child()
    for feeds in feeds_of(name, model):
        wanted = reference(model, feeds)
        found = child.run_guarded(tmp_path / "m.so", feeds)
        for value, array in wanted.items():
            assert found[value].shape == array.shape
            np.testing.assert_allclose(found[value], array, rtol=1e-5, atol=1e-6)
    child.close()


def test_only_the_branch_that_is_made_counts(tmp_path: Path) -> None:
    """Numbers that the other one couldn't be made with end no run."""
    model = models.text(
        """agraph (float[n] x, int64[1] k, bool c) => (float[m] y) {
        y = If (c) <then_branch = a () => (float[p] u) { u, j = TopK(x, k) },
        else_branch = b () => (float[q] v) { v = Neg(x) }> }"""
    )
    compile_model(from_proto(model), TARGET, tmp_path / "m.so")
    child = Child()
    for k in (0, 2, 4, 9, -3, 2**40):
        feeds = {"x": rows(4)[0, :4], "k": np.asarray([k])}
        found = child.run_guarded(tmp_path / "m.so", {**feeds, "c": np.array(False)})
        np.testing.assert_array_equal(found["y"], -feeds["x"])
        if k <= 4 and k >= 0:
            found = child.run_guarded(tmp_path / "m.so", {**feeds, "c": np.array(True)})
            assert found["y"].shape == (k,)
            continue
        with pytest.raises(RefusedError, match=r"must be (from 0 to n|a size)"):
            child.run_guarded(tmp_path / "m.so", {**feeds, "c": np.array(True)})
    child.close()


@pytest.mark.skipif(not models.has("gcc", "readelf"), reason="needs gcc")
@pytest.mark.parametrize("name", ["a branch in a loop", "a branch in a branch"])
def test_programs(name: str, tmp_path: Path) -> None:
    """In C, in memory between guards of just the bytes that the library asks for."""
    model = model_of(name)
    folder = models.build(model, tmp_path, "net", sizes=("n=1..40",))
    path = models.program(folder, "net", source=models.OPEN)
    for feeds in feeds_of(name, model):
        wanted = [*reference(model, feeds).values()]
        done = run(path, [*feeds.values()])
        assert done.returncode == 0, (done.returncode, done.stdout)
        for own, array in zip(results(path, wanted), wanted, strict=True):
            assert own.shape == array.shape
            np.testing.assert_allclose(own, array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["a branch in a loop", "a branch in a branch"])
def test_times_of_single_calls(name: str, tmp_path: Path) -> None:
    """Calls that are made one by one, also those of a branch that no run makes."""
    model = model_of(name)
    compile_model(from_proto(model), TARGET, tmp_path / "m.so")
    runtime = Runtime(tmp_path / "m.so")
    for feeds in feeds_of(name, model):
        seconds = runtime._program.time_calls(feeds)
        assert len(seconds) == len(runtime._program.metadata["calls"])


def test_single_calls_of_a_branch_that_is_not_made(tmp_path: Path) -> None:
    """They are left out: what nothing has computed there divides no number."""
    model = models.text(
        """agraph (float[n] x, int64[n] k, bool c) => (float[m] y) {
        y = If (c) <then_branch = a () => (float[p] u)
        { e = Exp(x) i = Cast <to = 7> (e) r = Div(k, i) u = Cast <to = 1> (r) },
        else_branch = b () => (float[q] v) { v = Concat <axis = 0> (x, x) }> }"""
    )
    compile_model(from_proto(model), TARGET, tmp_path / "m.so")
    runtime = Runtime(tmp_path / "m.so")
    feeds = {"x": np.zeros(4, np.float32), "k": np.asarray([4, 3, 2, 1])}
    for taken in (False, True):
        assert len(runtime._program.time_calls({**feeds, "c": np.array(taken)})) > 2
    with pytest.raises(SecateurError, match=r"'r' \(Div\): an integer is divided by zero"):
        runtime._program.time_calls({**feeds, "x": feeds["x"] - 9, "c": np.array(True)})


def test_bounds_of_what_bodies_decide(tmp_path: Path) -> None:
    """By the names in them, where nothing else says how large a size may be."""
    model = models.text(
        """agraph (float[n] x, int64 k, bool c) => (float[m] y)
        <int64 zero = {0}, int64 one = {1}> { y = If (c) <then_branch = a () => (float[p] u)
        { r = Range(zero, k, one) u = Cast <to = 1> (r) },
        else_branch = b () => (float[q] v) { v = Neg(x) }> }"""
    )
    with pytest.raises(UnsupportedError, match=r"node 'y' \(If\): in a branch: .*--size k=0\.\.N"):
        compile_model(from_proto(model), TARGET, tmp_path / "m.so")
    compile_model(from_proto(model), TARGET, tmp_path / "m.so", sizes=read_admitted(["k=0..9"]))
    runtime = Runtime(tmp_path / "m.so")
    feeds = {"x": rows(4)[0], "c": np.array(True)}
    assert runtime.run({**feeds, "k": np.asarray(9)})["y"].tolist() == [*range(9)]
    with pytest.raises(SecateurError, match="must be from 0 to 9"):
        runtime.run({**feeds, "k": np.asarray(10)})


REFUSED = {
    "other ranks": (
        "(float[n] x, bool c) => (y)",
        """y = If (c) <then_branch = a () => (float[p] u) { u = Neg(x) },
        else_branch = b () => (float v) { v = ReduceSum <keepdims = 0> (x) }>""",
        r"\(If\): a run decides it, and its branches give tensors of 1 and 0 axes",
    ),
    "a state that grows": (
        "(float[n, 6] x, float[1] h) => (float[k] last)",
        f"""last = Scan <num_scan_inputs = 1, body = step (float[m] s, float[6] row)
        => (float[p] s2) {{ {SELECTED} s2 = Concat <axis = 0> (s, g) }}> (h, x)""",
        "states have to keep their shapes",
    ),
    "rows of other sizes": (
        "(float[n, 6] x, float[1] h) => (float[1] last, float[n, k] y)",
        f"""last, y = Scan <num_scan_inputs = 1, body = step (float[1] s, float[6] row)
        => (float[1] s2, float[p] z) {{ {SELECTED} s2 = Neg(s) z = Neg(g) }}> (h, x)""",
        "data of each step decide the size of a row",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    signature, body, reason = REFUSED[name]
    model = from_proto(models.text(f"agraph {signature} {CONSTANTS} {{ {body} }}"))
    with pytest.raises(UnsupportedError, match=reason):
        compile_model(model, TARGET, tmp_path / "m.so")


@pytest.mark.parametrize("first", [9100, pytest.param(9200, marks=pytest.mark.slow)])
def test_random_loops(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + (3 if first == 9100 else 30)):
        assert difference(RandomLoops(seed).model(), tmp_path, seed) is None
