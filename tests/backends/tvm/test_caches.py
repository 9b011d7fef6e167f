"""Inputs that outputs continue, in one memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import AppendOp, ElementwiseOp, Plan
from secateur.backends.tvm.plan.sizes import size_of
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.reference import Session
from secateur.ir.text import parse_model

from .graphs import Array

TARGET = parse_target("native")


def model_of(ends: str, nodes: str) -> Model:
    text = f'model <ir_version = 8, opset = ["" = 18]>\ngraph g {ends} {{\n{nodes}\n}}\n'
    model = parse_model(text)
    infer_shapes(model)
    return model


def attention(batch: str = "b") -> Model:
    """Heads of a query that share those of keys and values, with a mask for each entry."""
    ends = f"(%q: float[{batch}, 4, s, 8], %k: float[{batch}, 2, past, 8], "
    ends += (
        f"%v: float[{batch}, 2, past, 8], %n: float[{batch}, 2, s, 8], %m: float[{batch}, 1, s, 1])"
    )
    ends += f" -> (%y: float[{batch}, 4, s, 8], %nk: float[{batch}, 2, t, 8], "
    ends += f"%nv: float[{batch}, 2, t, 8])"
    repeated = "\n".join(
        f"%a{x} = Unsqueeze(%{x}, %two)\n%e{x} = Expand(%a{x}, %times)\n%r{x} = Reshape(%e{x}, %to)"
        for x in ("nk", "nv")
    )
    return model_of(
        ends,
        f"""const %two: int64[1] = [2]
        const %times: int64[5] = [1, 1, 2, 1, 1]
        const %to: int64[4] = [0, 4, -1, 8]
        %nk = Concat(%k, %n) {{axis = 2}}
        %nv = Concat(%v, %n) {{axis = -2}}
        {repeated}
        %t = Transpose(%rnk) {{perm = [0, 1, 3, 2]}}
        %w = MatMul(%q, %t)
        %x = Add(%w, %m)
        %p = Softmax(%x) {{axis = -1}}
        %y = MatMul(%p, %rnv)""",
    )


def compiled(model: Model, folder: Path, *sizes: str) -> Runtime:
    path = folder / "m.so"
    compile_model(model, TARGET, path, sizes=read_admitted(sizes))
    return Runtime(path)


def feeds(model: Model, seed: int, **sizes: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    shapes = {v.name: [sizes.get(str(d), d) for d in v.shape or ()] for v in model.graph.inputs}
    return {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def plan_of(model: Model) -> Plan:
    work = model.clone()
    infer_shapes(work)
    return lower(work, TARGET, {})


@pytest.mark.parametrize("sizes", [("b=1..", "past=1.."), ("past=1..",)])
def test_steps_in_one_memory(tmp_path: Path, sizes: tuple[str, ...]) -> None:
    """Of a true batch and of samples one by one; what was there before stays."""
    model = attention()
    runtime, session = compiled(model, tmp_path, *sizes), Session(model)
    given = feeds(model, 0, b=2, s=3, past=5)
    caches = runtime.caches(16)
    caches.fill({name: given.pop(name) for name in ("k", "v")})
    past = {name: caches[name].copy() for name in ("k", "v")}
    for step, new in enumerate((3, 1, 1, 6)):
        given = feeds(model, step, b=2, s=new, past=1)
        given |= past
        wanted = session.run(given)
        memory = caches.held().inputs["k"][0]
        found = runtime.run({n: given[n] for n in "qnm"}, caches)
        assert [*found] == ["y"]
        np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-5, atol=1e-5)
        past = {"k": wanted["nk"], "v": wanted["nv"]}
        for name in "kv":
            np.testing.assert_array_equal(caches[name], past[name])
        assert np.shares_memory(memory, caches["k"])
    assert caches["k"].shape[2] == 16
    before = caches["k"].copy()
    with pytest.raises(SecateurError, match=r"the capacity must be from \(past \+ s\)"):
        runtime.run({n: given[n] for n in "qnm"}, caches)
    np.testing.assert_array_equal(caches["k"], before)


def test_the_same_in_memory_of_their_own(tmp_path: Path) -> None:
    """As every run without caches, whatever rows there are."""
    model = attention()
    runtime, session = compiled(model, tmp_path, "b=1..", "past=1.."), Session(model)
    for seed, (b, s, past) in enumerate([(1, 1, 1), (2, 1, 40), (3, 5, 2), (1, 4, 33), (1, 9, 7)]):
        given = feeds(model, seed, b=b, s=s, past=past)
        found, wanted = runtime.run(given), session.run(given)
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)


def test_nothing_but_new_rows_is_copied() -> None:
    """Products read caches where they are, though heads share them."""
    operations = plan_of(attention()).operations
    appended = [op for op in operations if isinstance(op, AppendOp)]
    assert len(appended) == 2
    caches = {op.output for op in appended}
    assert not any(isinstance(op, ElementwiseOp) and caches & set(op.reads()) for op in operations)


def test_an_axis_between_others(tmp_path: Path) -> None:
    """Integers in columns, read by what isn't a product."""
    model = model_of(
        "(%x: int32[3, n, 2], %z: int32[3, 1, 2]) -> (%y: int32[3, m, 2], %s: int32[3, 2])",
        "%y = Concat(%x, %z) {axis = 1}\n%d = Mul(%y, %y)\nconst %a: int64[1] = [1]\n"
        "%s = ReduceSum(%d, %a) {keepdims = 0}",
    )
    runtime = compiled(model, tmp_path)
    caches = runtime.caches(9)
    rows = np.arange(24, dtype=np.int32).reshape(3, 4, 2)
    caches.fill({"x": rows})
    for step in range(3):
        new = np.full((3, 1, 2), step, np.int32)
        rows = np.concatenate([rows, new], axis=1)
        found = runtime.run({"z": new}, caches)
        np.testing.assert_array_equal(found["s"], (rows * rows).sum(1))
        np.testing.assert_array_equal(caches["x"], rows)
    caches.reset()
    assert caches["x"].shape == (3, 0, 2)


NO_CACHES = {
    "read otherwise, too": "%y = Concat(%x, %z) {axis = 1}\n%w = Neg(%x)",
    "before the rest": "%y = Concat(%z, %x) {axis = 1}\n%w = Neg(%z)",
    "twice": "%y = Concat(%x, %x) {axis = 1}\n%w = Neg(%z)",
    "three of them": "%y = Concat(%x, %z, %z) {axis = 1}\n%w = Neg(%z)",
}


@pytest.mark.parametrize("name", NO_CACHES)
def test_what_is_no_cache(name: str, tmp_path: Path) -> None:
    ends = "(%x: float[2, n, 3], %z: float[2, m, 3]) -> (%y: float[2, t, 3], %w: float[2, u, 3])"
    model = model_of(ends, NO_CACHES[name])
    assert not plan_of(model).caches
    runtime = compiled(model, tmp_path)
    given = feeds(model, 0, n=3, m=2)
    for key, array in Session(model).run(given).items():
        np.testing.assert_array_equal(runtime.run(given)[key], array)
    with pytest.raises(SecateurError, match="no output of the model is an input and rows behind"):
        runtime.caches(5)


CACHES = {
    "first axis": ("n, 3, 5", "2, 3, 5", 0),
    "an axis between others": ("4, n, 5", "4, 2, 5", 1),
    "counted from behind": ("4, n, 5", "4, 2, 5", -2),
    "last axis": ("4, 5, n", "4, 5, m", 2),
    "an open batch": ("b, n, 5", "b, m, 5", 1),
    "rows of an open size": ("b, n, h", "b, m, h", 1),
    "rows of two open sizes": ("n, h, d", "2, h, d", 0),
}


def test_rows_of_open_sizes(tmp_path: Path) -> None:
    """Heads, and how large each is, lie behind the rows: attention reads them where they are."""
    heads = "b, {}, h, d"
    model = model_of(
        f"(%q: float[b, h, s, d], %k: float[{heads.format('past')}], "
        f"%n: float[{heads.format('s')}]) -> (%y: float[*], %nk: float[*])",
        """%nk = Concat(%k, %n) {axis = 1}
        %t = Transpose(%nk) {perm = [0, 2, 3, 1]}
        %w = MatMul(%q, %t)
        %p = Softmax(%w) {axis = -1}
        %v = Transpose(%nk) {perm = [0, 2, 1, 3]}
        %y = MatMul(%p, %v)""",
    )
    runtime, session = compiled(model, tmp_path, "b=1..", "past=0.."), Session(model)
    cases = [(1, 1, 1, 0), (2, 3, 5, 4), (3, 2, 40, 7), (1, 4, 17, 0), (2, 5, 16, 9)]
    for seed, (b, h, d, past) in enumerate(cases):
        caches = runtime.caches(past + 6)
        for new in (3, 1, 2):
            given = feeds(model, seed, b=b, h=h, d=d, s=new, past=past)
            if past:
                caches.fill({"k": given["k"]})
            wanted = session.run(given)
            alone = runtime.run(given)
            found = runtime.run({n: given[n] for n in "qn"}, caches)
            np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(alone["y"], wanted["y"], rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(caches["k"], wanted["nk"])
            np.testing.assert_array_equal(alone["nk"], wanted["nk"])
            caches.reset()


@pytest.mark.parametrize("name", CACHES)
def test_what_a_cache_is(name: str) -> None:
    past, new, axis = CACHES[name]
    model = model_of(
        f"(%x: float[{past}], %z: float[{new}]) -> (%y: float[*])",
        f"%y = Concat(%x, %z) {{axis = {axis}}}",
    )
    plan = plan_of(model)
    (cache,) = plan.caches
    place = axis % len(past.split(","))
    rows = dict(plan.outputs)["y"]
    assert rows is cache.tensor
    assert (cache.axis, cache.past.name) == (place, "x")
    (append,) = (op for op in plan.operations if isinstance(op, AppendOp))
    assert (append.past, append.output, append.axis) == (cache.past, cache.tensor, place)
    assert append.new.name == "z"
    grown = cache.past.shape[place] + append.new.shape[place]
    assert size_of(cache.rows - grown) == 0
    assert cache.shape[place] is cache.rows
    around = [shape[:place] + shape[place + 1 :] for shape in (cache.past.shape, cache.shape)]
    assert around[0] == around[1]
    assert size_of(cache.tensor.shape[place] - cache.rows) != 0


NONE_EITHER = {
    "known rows": ("2, 4, 3", "2, m, 3", "%y = Concat(%x, %z) {axis = 1}"),
    "what is computed of an input": (
        "2, n, 3",
        "2, m, 3",
        "%a = Relu(%x)\n%y = Concat(%a, %z) {axis = 1}",
    ),
    "what no caller gets": (
        "2, n, 3",
        "2, m, 3",
        "%a = Concat(%x, %z) {axis = 1}\nconst %k: int64[1] = [1]\n"
        "%y = ReduceSum(%a, %k) {keepdims = 1}",
    ),
}


@pytest.mark.parametrize("name", NONE_EITHER)
def test_what_else_is_no_cache(name: str) -> None:
    past, new, nodes = NONE_EITHER[name]
    model = model_of(f"(%x: float[{past}], %z: float[{new}]) -> (%y: float[*])", nodes)
    assert not plan_of(model).caches


def test_wrong_caches(tmp_path: Path) -> None:
    runtime = compiled(attention(), tmp_path, "b=1..", "past=1..")
    with pytest.raises(SecateurError, match="capacity: 0 is no number of rows"):
        runtime.caches(0)
    caches = runtime.caches(4)
    with pytest.raises(SecateurError, match="no output continues 'q'"):
        caches.fill({"q": np.zeros((1, 4, 1, 8), np.float32)})
    with pytest.raises(SecateurError, match="5 rows; there is room for 4"):
        caches.fill({"k": np.zeros((1, 2, 5, 8), np.float32)})
    with pytest.raises(SecateurError, match="float64"):
        caches.fill({"k": np.zeros((1, 2, 3, 8))})
    given = feeds(attention(), 0, b=1, s=1, past=1)
    with pytest.raises(SecateurError, match="'past' is from 1 up"):
        runtime.run({n: given[n] for n in "qnm"}, caches)
    caches.fill({"k": np.zeros((1, 2, 3, 8), np.float32), "v": np.zeros((1, 2, 2, 8), np.float32)})
    with pytest.raises(SecateurError, match="must be past"):
        runtime.run({n: given[n] for n in "qnm"}, caches)
