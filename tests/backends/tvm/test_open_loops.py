"""Loop and Scan whose number of steps a run fixes: the body is compiled once."""

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
from secateur.backends.tvm.graph import unroll
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import LoopOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.onnx_io import from_proto

from ...onnx_runtime import session_of
from ..c_library import models
from ..c_library.test_open_library import results, run
from .child import Child
from .random_loops import RandomLoops, difference

Arrays = dict[str, Any]
TARGET = parse_target("native")

WEIGHTS = {"w": (5, 8), "r": (8, 8)}

RECURRENT = """a = MatMul(row, w)
c = MatMul(state, r)
d = Add(a, c)
next = Tanh(d)"""

CASES = {
    "a recurrent layer": (
        "(float[b, 8] h, float[n, b, 5] x) => (float[b, 8] last, float[n, b, 8] y)",
        """last, y = Scan <num_scan_inputs = 1, body = step
        (float[b, 8] state, float[b, 5] row) => (float[b, 8] next, float[b, 8] out)
        { RECURRENT out = Identity(next) }> (h, x)""",
    ),
    "axes and directions": (
        "(float[b, 8] h, float[b, n, 5] x) => (float[b, 8] last, float[b, 8, n] y, float[b, n] z)",
        """last, y, z = Scan <num_scan_inputs = 2, scan_input_axes = [1, 1],
        scan_input_directions = [1, 0], scan_output_axes = [-1, 1],
        scan_output_directions = [1, 0], body = step
        (float[b, 8] state, float[b, 5] row, float[b, 5] other)
        => (float[b, 8] next, float[b, 8] out, float[b] sum)
        { RECURRENT out = Neg(next) sum = ReduceSum <keepdims = 0> (other, one1) }> (h, x, x)""",
    ),
    "a counter that is compared": (
        "(float[b, 8] h, float[n, b, 5] x) => (int64 k, float[b, 8] last, float[n, b, 8] y)",
        """s = Shape(x)
        n = Gather(s, zero)
        go = Less(zero, n)
        k, last, y = Loop <body = step
        (int64 i, bool on, int64 j, float[b, 8] state)
        => (bool more, int64 j2, float[b, 8] next, float[b, 8] out)
        { row = Gather(x, j) RECURRENT out = Identity(next)
        j2 = Add(j, one) below = Less(j2, n) within = Less(i, n) more = And(below, within) }>
        (most, go, zero, h)""",
    ),
    "states that change places": (
        "(float[b] p, float[b] q, float[n] t) => (float[b] u, float[b] v, float[b] c, int64[n] z)",
        """s = Size(t)
        u, v, c, z = Loop <body = step (int64 i, bool on, float[b] f, float[b] g, float[b] e)
        => (bool on2, float[b] g2, float[b] f2, float[b] e2, int64 z)
        { on2 = Identity(on) f2 = Identity(f) g2 = Identity(g) e2 = Identity(e)
        z = Mul(i, i) }> (s, , p, q, p)""",
    ),
    "no step at all": (
        "(float[n, 3] x, float[3] h) => (float[3] y)",
        """s = Shape(x)
        n = Gather(s, zero)
        m = Sub(n, one)
        y = Loop <body = step (int64 i, bool on, float[3] f) => (bool on2, float[3] f2)
        { on2 = Identity(on) j = Add(i, one) row = Gather(x, j) g = Mul(f, row) f2 = Add(g, f) }>
        (m, , h)""",
    ),
    "data that end it": (
        "(float[n] x, float a) => (float y, int64 k)",
        """first = Less(a, ten)
        y, k = Loop <body = step (int64 i, bool on, float f, int64 c)
        => (bool more, float f2, int64 c2)
        { s = ReduceSum <keepdims = 0> (x) t = Abs(s) u = Add(t, half) f2 = Add(f, u)
        more = Less(f2, ten) c2 = Add(c, one) }> (, first, a, zero)""",
    ),
    "a number of steps that data give": (
        "(float[n] x, int64 m) => (float[n] y)",
        """k = Mul(m, m)
        y = Loop <body = step (int64 i, bool on, float[n] f) => (bool on2, float[n] f2)
        { on2 = Identity(on) g = Mul(f, half) h = CumSum(g, zero) f2 = Tanh(h) }> (k, , x)""",
    ),
    "branches of sizes that loops tell": (
        "(float[n, 3] x, float[3] h) => (float[3] last, float[k, 3] y)",
        """last, rows = Scan <num_scan_inputs = 1, body = outer
        (float[3] s, float[3] row) => (float[3] s2, float[3] sum)
        { t, more = Scan <num_scan_inputs = 1, body = inner
        (float[3] f, float[3] other) => (float[3] f2, float[3] g)
        { p = Add(f, other) f2 = Tanh(p) g = Add(f2, s) }> (s, x)
        c = ReduceSum <keepdims = 0> (t)
        high = Less(half, c)
        chosen = If (high) <then_branch = yes1 () => (float[i, 3] a) { a = Neg(more) },
        else_branch = no1 () => (float[j, 3] b) { b = Tanh(more) }>
        sum = ReduceSum <keepdims = 0> (chosen, zero1) s2 = Add(t, row) }> (h, x)
        d = ReduceSum <keepdims = 0> (last)
        low = Less(d, half)
        y = If (low) <then_branch = yes2 () => (float[i, 3] a2) { a2 = Abs(rows) },
        else_branch = no2 () => (float[j, 3] b2) { b2 = Neg(rows) }>""",
    ),
    "rows of a number that data give": (
        "(float[n] x, int64 m) => (float[k, n] y, float[n] z, int64[2] shape)",
        """z, y = Loop <body = step (int64 i, bool on, float[n] f)
        => (bool on2, float[n] g, float[n] row)
        { on2 = Identity(on) t = Mul(f, half) g = Add(t, x) row = Tanh(g) }> (m, yes, x)
        shape = Shape(y)""",
    ),
    "rows until data end it": (
        "(float[n] x, float a) => (float[k, n] y, float z, float[n] v)",
        """s = Shape(x)
        n = Gather(s, zero)
        trips = Mul(n, three)
        z, y = Loop <body = step (int64 i, bool on, float f) => (bool more, float g, float[n] row)
        { g = Add(f, half) more = Less(g, ten) row = Mul(x, g) }> (trips, yes, a)
        v = ReduceSum <keepdims = 0> (y, zero1)""",
    ),
    "a loop in a loop": (
        "(float[n, m, 3] x, float[3] h) => (float[3] last, float[n, m, 3] y, float[n, 3] z)",
        """last, y, z = Scan <num_scan_inputs = 1, body = outer
        (float[3] s, float[m, 3] rows) => (float[3] s2, float[m, 3] ys, float[3] z)
        { t, ys = Scan <num_scan_inputs = 1, body = inner
        (float[3] f, float[3] row) => (float[3] f2, float[3] g)
        { p = Add(f, row) f2 = Tanh(p) g = Add(f2, s) }> (s, rows)
        s2 = Mul(t, half)
        z = Sub(t, s) }> (h, x)""",
    ),
    "values of the graph around": (
        "(float[b, 8] h, float[n, b, 8] x) => (float[b, 8] last, float[n, b, 8] y)",
        """e = CumSum(h, one)
        g = Add(h, half)
        last, y = Scan <num_scan_inputs = 1, body = step
        (float[b, 8] state, float[b, 8] row) => (float[b, 8] next, float[b, 8] out)
        { p = MatMul(row, r) q = Mul(p, e) s = CumSum(q, one) t = Softmax(s) u = CumSum(t, zero)
        v = Mul(u, state) next = Tanh(v) out = Add(next, t) }> (g, x)""",
    ),
    "an If in a loop": (
        "(float[n, 3] x, float[3] h) => (float[3] last, float[n, 3] y)",
        """last, y = Scan <num_scan_inputs = 1, body = step
        (float[3] s, float[3] row) => (float[3] s2, float[3] y)
        { t = ReduceSum <keepdims = 0> (row) c = Less(t, half)
        s2 = If (c) <then_branch = yes () => (float[3] a) { a = Add(s, row) },
        else_branch = no () => (float[3] b) { b = Sub(s, row) }>
        y = Mul(s2, half) }> (h, x)""",
    ),
}

CONSTANTS = """<int64 zero = {0}, int64 one = {1}, int64 three = {3}, int64[1] one1 = {1},
int64[1] zero1 = {0}, float half = {0.5},
float ten = {10.0}, int64 most = {9223372036854775807}, bool yes = {1}>"""


def model_of(name: str) -> onnx.ModelProto:
    signature, body = CASES[name]
    body = body.replace("RECURRENT", RECURRENT)
    model = models.text(f"agraph {signature} {CONSTANTS} {{ {body} }}")
    random = np.random.default_rng(0)
    for weight, shape in WEIGHTS.items():
        array = (0.3 * random.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, weight))
    return model


def names_of(model: onnx.ModelProto) -> list[str]:
    dims = (d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim)
    return [*dict.fromkeys(d for d in dims if d)]


def feeds_of(model: onnx.ModelProto, sizes: dict[str, int], seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    found = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or sizes[d.dim_param] for d in kind.shape.dim]
        array = 0.3 * random.standard_normal(shape)
        found[value.name] = np.asarray(array, np.float32)
        if kind.elem_type == onnx.TensorProto.INT64:
            found[value.name] = np.asarray(random.integers(1, 4, shape))
    return found


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.close()


def check(
    found: dict[str, np.ndarray], model: onnx.ModelProto, feeds: dict[str, np.ndarray]
) -> None:
    session = session_of(model.SerializeToString())
    names = [o.name for o in session.get_outputs()]
    for name, right in zip(names, session.run(names, feeds), strict=True):
        assert found[name].shape == right.shape
        assert found[name].dtype == right.dtype
        np.testing.assert_allclose(found[name], right, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_steps(name: str, tmp_path: Path, child: Child) -> None:
    """Equal to ONNX Runtime, within buffers that nothing around may be touched of."""
    model = model_of(name)
    names = names_of(model)
    given = [f"{size}=1.." for size in names]
    given += ["m=0..4"] if name == "rows of a number that data give" else []
    sizes = read_admitted(given)
    compile_model(from_proto(model), TARGET, tmp_path / "m.so", sizes=sizes)
    for number, steps in enumerate((1, 2, 3, 17, 64, 5)):
        feeds = feeds_of(model, {"n": steps, "b": 1 + number % 3, "m": 1 + number * 2}, number)
        check(child.run_guarded(tmp_path / "m.so", feeds), model, feeds)
        if "x" in feeds and number == 3:
            feeds["x"].flat[:4] = [np.nan, np.inf, -np.inf, 3e38]
            check(child.run_guarded(tmp_path / "m.so", feeds), model, feeds)


@pytest.mark.skipif(not models.has("gcc", "readelf"), reason="needs gcc")
def test_in_a_plain_program(tmp_path: Path) -> None:
    """A C library's workspace is as large as it says, whatever the number of steps."""
    model = model_of("axes and directions")
    folder = models.build(model, tmp_path, "net", sizes=("n=1..", "b=1.."))
    path = models.program(folder, "net", source=models.OPEN)
    for steps, batch in ((1, 2), (9, 1), (40, 3)):
        feeds = feeds_of(model, {"n": steps, "b": batch})
        done = run(path, [*feeds.values()])
        assert done.returncode == 0, done.stdout
        session = session_of(model.SerializeToString())
        right = session.run([o.name for o in session.get_outputs()], feeds)
        for own, other in zip(results(path, right), right, strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


def test_the_body_is_there_once() -> None:
    """With its own operations alone: what only the condition needs isn't computed."""
    model = from_proto(model_of("a counter that is compared"))
    plan = lower(model, TARGET, read_admitted(["n=1..", "b=1.."]))
    (loop,) = (op for op in plan.operations if isinstance(op, LoopOp))
    assert str(loop.steps) == "n"
    assert loop.proceeds is None
    made = {tensor.name for op in loop.body.operations for tensor in op.outputs}
    assert made == {"row", "c", "next", "j2"}


@pytest.mark.parametrize("name", ["data that end it", "a number of steps that data give"])
def test_steps_that_data_give_of_static_sizes(name: str, tmp_path: Path, child: Child) -> None:
    model = model_of(name)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 6
    compile_model(from_proto(model), TARGET, tmp_path / "m.so")
    for seed in range(5):
        feeds = feeds_of(model, {}, seed)
        check(child.run_guarded(tmp_path / "m.so", feeds), model, feeds)


LONG = [
    "a recurrent layer",
    "axes and directions",
    "a counter that is compared",
    "states that change places",
    "a loop in a loop",
    "values of the graph around",
]


@pytest.mark.parametrize("name", LONG)
def test_steps_that_would_become_too_many_nodes(
    name: str, tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a number that is known."""
    monkeypatch.setattr(unroll, "NODE_LIMIT", 4)
    model = model_of(name)
    sizes = {"n": 9, "b": 2, "m": 3}
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = sizes.get(dim.dim_param, dim.dim_value)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    plan = lower(from_proto(model), TARGET)
    assert any(isinstance(op, LoopOp) and op.steps == 9 for op in plan.operations)
    compile_model(from_proto(model), TARGET, tmp_path / "m.so")
    feeds = feeds_of(model, {})
    check(child.run_guarded(tmp_path / "m.so", feeds), model, feeds)


REFUSED = {
    "rows of a number without a bound": (
        "(float[n] x, float[n] z) => (float[k, n] y)",
        """t = ReduceSum <keepdims = 0> (z)
        u, y = Loop <body = step (int64 i, bool on, float f) => (bool more, float g, float[n] r)
        { g = Add(f, half) more = Less(g, ten) r = Mul(x, half) }> (, yes, t)""",
        "nothing bounds how many rows",
    ),
    "rows of a declared number": (
        "(float[n] x, int64 m) => (float[4, n] y)",
        """y = Loop <body = step (int64 i, bool on) => (bool on2, float[n] z)
        { on2 = Identity(on) z = Mul(x, half) }> (m, yes)""",
        "input 'm' gives a result its size",
    ),
    "a state that grows": (
        "(float[n, 3] x, float[m, 3] h) => (float[k, 3] y)",
        """s = Size(x)
        y = Loop <body = step (int64 i, bool on, float[j, 3] f) => (bool on2, float[l, 3] g)
        { on2 = Identity(on) g = Concat <axis = 0> (f, x) }> (s, , h)""",
        "states have to keep their shapes",
    ),
    "a loop without end": (
        "(float[n] x) => (float[n] y)",
        """y = Loop <body = step (int64 i, bool on, float[n] f) => (bool on2, float[n] g)
        { on2 = Identity(on) g = Mul(f, half) }> (, , x)""",
        "never ends",
    ),
    "an operator without a lowering": (
        "(float[n, 3] x, float[3] h) => (float[3] y)",
        """y = Scan <num_scan_inputs = 1, body = step (float[3] s, float[3] row) => (float[3] t)
        { w = Cast <to = 8> (row) i = StringConcat(w, w) j = Cast <to = 1> (i) t = Add(s, j) }>
        (h, x)""",
        "in its body: node 'w'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name: str, tmp_path: Path) -> None:
    signature, body, reason = REFUSED[name]
    model = from_proto(models.text(f"agraph {signature} {CONSTANTS} {{ {body} }}"))
    with pytest.raises(UnsupportedError, match=reason):
        compile_model(model, TARGET, tmp_path / "m.so", sizes=read_admitted(["n=1.."]))


def test_rows_of_no_step_are_refused_by_their_size(tmp_path: Path) -> None:
    model = models.text(
        f"""agraph (float[n] x) => (float[k] y) {CONSTANTS} {{
        s = Size(x)
        m = Sub(s, one)
        y = Loop <body = step (int64 i, bool on) => (bool on2, float z)
        {{ on2 = Identity(on) z = Gather(x, i) }}> (m, yes)
        }}"""
    )
    compile_model(from_proto(model), TARGET, tmp_path / "m.so", sizes=read_admitted(["n=1.."]))
    runtime = Runtime(tmp_path / "m.so")
    x = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(runtime.run({"x": x})["y"], x[:4])
    with pytest.raises(SecateurError, match="'n' is from 2 up"):
        runtime.run({"x": x[:1]})


@pytest.mark.slow
def test_random_loops(tmp_path: Path) -> None:
    for seed in range(25):
        assert difference(RandomLoops(seed).model(), tmp_path, seed) is None, seed


def sequences(number: int) -> onnx.ModelProto:
    """A recurrent layer whose Scan says that so many of its inputs are sequences."""
    model = model_of("a recurrent layer")
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "num_scan_inputs":
            attribute.i = number
    return model


@pytest.mark.parametrize("number", [0, 3, -1, 2**40])
def test_other_numbers_of_sequences_than_inputs(number: int, tmp_path: Path) -> None:
    model = from_proto(sequences(number))
    with pytest.raises(UnsupportedError, match=f"{number} sequences of 2 inputs"):
        compile_model(model, TARGET, tmp_path / "m.so", sizes=read_admitted(["n=1..", "b=1.."]))


def test_a_condition_that_is_no_truth_value(tmp_path: Path) -> None:
    model = model_of("data that end it")
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    loop.attribute[0].g.output[0].name = "i"
    with pytest.raises(UnsupportedError, match="condition isn't one truth value"):
        compile_model(from_proto(model), TARGET, tmp_path / "m.so", sizes=read_admitted(["n=1.."]))


def test_a_result_that_nobody_names(tmp_path: Path) -> None:
    """A gap among the node's outputs."""
    model = model_of("a counter that is compared")
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    whole = model_of("a counter that is compared")
    loop.output[1] = ""
    del model.graph.output[1]
    sizes = read_admitted(["n=1..", "b=1.."])
    compile_model(from_proto(model), TARGET, tmp_path / "m.so", sizes=sizes)
    feeds = feeds_of(model, {"n": 7, "b": 2})
    session = session_of(whole.SerializeToString())
    (right,) = session.run(["y"], feeds)
    found = Runtime(tmp_path / "m.so").run(feeds)
    np.testing.assert_allclose(found["y"], right, rtol=1e-4, atol=1e-5)
    assert set(found) == {"k", "y"}
