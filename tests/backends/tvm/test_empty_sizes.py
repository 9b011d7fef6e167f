"""Sizes of inputs of which 0 is admitted: as ONNX Runtime computes, or refused by node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import Plan
from secateur.backends.tvm.plan.sizes import size_of
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import to_proto
from secateur.ir.symbolic.expressions import atoms
from secateur.ir.text import parse_model

from ...onnx_runtime import session_of
from .child import Child, RefusedError
from .graphs import Array

TARGET = parse_target("native")

NODES = {
    "elementwise": "%a = Add(%x, %x)\n%y = Sigmoid(%a)",
    "broadcast": "%y = Mul(%x, %w)",
    "concat": "%y = Concat(%x, %x, %w) {axis = 0}",
    "concat of the last axis": "%y = Concat(%x, %x) {axis = 1}",
    "transpose": "%y = Transpose(%x) {perm = [1, 0]}",
    "matmul of no rows": "%y = MatMul(%x, %m)",
    "gemm of no rows": "%y = Gemm(%x, %m, %w)",
    "matmul of no depth": "%t = Transpose(%x) {perm = [1, 0]}\n%y = MatMul(%t, %x)",
    "matmul of no columns": "%t = Transpose(%x) {perm = [1, 0]}\n%y = MatMul(%m, %t)",
    "product of no rows": "%t = Transpose(%x) {perm = [1, 0]}\n%y = MatMul(%x, %t)",
    "softmax of no rows": "%y = Softmax(%x) {axis = 1}",
    "softmax of nothing": "%y = Softmax(%x) {axis = 0}",
    "sum of nothing": "%y = ReduceSum(%x, %zero) {keepdims = 0}",
    "sum of no rows": "%y = ReduceSum(%x, %one) {keepdims = 0}",
    "sum of all": "%y = ReduceSum(%x) {keepdims = 0}",
    "product of nothing": "%y = ReduceProd(%x, %zero) {keepdims = 0}",
    "mean of nothing": "%y = ReduceMean(%x, %zero) {keepdims = 0}",
    "mean of no rows": "%y = ReduceMean(%x, %one) {keepdims = 1}",
    "largest of nothing": "%y = ReduceMax(%x, %zero) {keepdims = 0}",
    "largest of no rows": "%y = ReduceMax(%x, %one) {keepdims = 0}",
    "norm of nothing": "%y = ReduceL2(%x, %zero) {keepdims = 1}",
    "position of nothing": "%y = ArgMax(%x) {axis = 0}",
    "position in no rows": "%y = ArgMax(%x) {axis = 1}",
    "normalization": "%y = LayerNormalization(%x, %w1)",
    "reshape": "%y = Reshape(%x, %split)",
    "flattened": "%y = Reshape(%x, %flat)",
    "expanded": "%u = Unsqueeze(%x, %one)\n%y = Expand(%u, %three)",
    "slice": "%y = Slice(%x, %one, %two, %one)",
    "slice of the open axis": "%y = Slice(%x, %zero, %two, %zero)",
    "gather": "%y = Gather(%x, %index) {axis = 1}",
    "gather by no index": "%s = Shape(%x) {end = 1}\n%k = Squeeze(%s)\n%c = Range(%l0, %k, %l1)\n"
    "%y = Gather(%m, %c) {axis = 0}",
    "padded": "%y = Pad(%x, %pads)",
    "tiled": "%y = Tile(%x, %times)",
    "comparison": "%c = Greater(%x, %w)\n%y = Where(%c, %x, %w)",
    "cast": "%c = Cast(%x) {to = 7}\n%y = Add(%c, %c)",
    "running sum": "%y = CumSum(%x, %l0)",
    "shape": "%y = Shape(%x)",
    "filled": "%s = Shape(%x)\n%y = ConstantOfShape(%s)",
    "split": "%a, %b = Split(%x) {axis = 1, num_outputs = 2}\n%y = Add(%a, %b)",
    "joined to nothing": "%s = ReduceSum(%x, %zero) {keepdims = 1}\n%y = Concat(%s, %x) {axis = 0}",
    "quantized": "%q, %sc, %z = DynamicQuantizeLinear(%x)\n%y = DequantizeLinear(%q, %sc, %z)",
    "top": "%y, %i = TopK(%x, %one) {axis = 1}",
}

CONSTANTS = """
const %m: float[4, 4] = [[1, 2, 3, 4], [0, 1, 0, 2], [5, 1, 2, 3], [1, 1, 1, 2]]
const %w: float[1, 4] = [[1, -2, 3, 0.5]]
const %w1: float[4] = [1, -2, 3, 0.5]
const %zero: int64[1] = [0]
const %one: int64[1] = [1]
const %two: int64[1] = [2]
const %l0: int64[] = 0
const %l1: int64[] = 1
const %split: int64[3] = [-1, 2, 2]
const %flat: int64[1] = [-1]
const %three: int64[3] = [1, 3, 1]
const %index: int64[2] = [3, 0]
const %axes: int64[1] = [3]
const %pads: int64[4] = [0, 1, 0, 2]
const %times: int64[2] = [2, 3]
"""


def model_of(nodes: str, ends: str) -> Model:
    used = [line for line in CONSTANTS.splitlines() if line and f"{line.split()[1][:-1]}" in nodes]
    lines = "\n".join([*used, nodes])
    model = parse_model(
        f'model <ir_version = 8, opset = ["" = 18]>\ngraph g {ends} {{\n{lines}\n}}\n'
    )
    infer_shapes(model)
    return model


def case(name: str) -> Model:
    return model_of(NODES[name], "(%x: float[n, 4]) -> (%y)")


def compiled(model: Model, folder: Path, *sizes: str) -> Runtime:
    compile_model(model, TARGET, folder / "m.so", sizes=read_admitted(sizes))
    return Runtime(folder / "m.so")


def reference(model: Model, feeds: dict[str, Array]) -> Array | None:
    """ONNX Runtime's first result; None where it has none."""
    try:
        return np.asarray(session_of(to_proto(model).SerializeToString()).run(None, feeds)[0])
    except Exception:  # of many kinds
        return None


@pytest.mark.parametrize("name", NODES)
def test_operators(name: str, tmp_path: Path) -> None:
    model = case(name)
    runtime = compiled(model, tmp_path, "n=0..4")
    for n in (0, 1, 4):
        feeds = {"x": np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)}
        wanted = reference(model, feeds)
        if wanted is None:
            assert n == 0
            with pytest.raises(SecateurError, match="no elements"):
                runtime.run(feeds)
            continue
        found = runtime.run(feeds)["y"]
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_windows_of_nothing(tmp_path: Path) -> None:
    """Convolution and pooling are refused by node, but where there is no image."""
    nodes = "%c = Conv(%x, %w) {pads = [1, 1, 1, 1]}\n%p = MaxPool(%c) {kernel_shape = [1, 1]}\n"
    nodes += "%y = Relu(%p)"
    weights = "const %w: float[1, 1, 1, 1] = [[[[2]]]]\n"
    ends = "(%x: float[b, 1, h, 3]) -> (%y)"
    model = parse_model(
        f'model <ir_version = 8, opset = ["" = 18]>\ngraph g {ends} {{\n{weights}{nodes}\n}}\n'
    )
    infer_shapes(model)
    runtime = compiled(model, tmp_path, "b=0..3", "h=0..")
    for shape in ((1, 1, 2, 3), (3, 1, 1, 3), (0, 1, 2, 3)):
        feeds = {"x": np.ones(shape, np.float32)}
        wanted = reference(model, feeds)
        assert wanted is not None
        np.testing.assert_array_equal(runtime.run(feeds)["y"], wanted)
    with pytest.raises(SecateurError, match="an operand has no elements"):
        runtime.run({"x": np.ones((1, 1, 0, 3), np.float32)})


def test_admitted_from_nothing(tmp_path: Path) -> None:
    """What isn't admitted is refused, of a multiple, too."""
    model = model_of("%y = Concat(%w, %x) {axis = 0}", "(%x: float[n, 4]) -> (%y)")
    runtime = compiled(model, tmp_path, "n=0..8:2")
    for n in (0, 4, 8):
        x = np.arange(4.0 * n, dtype=np.float32).reshape(n, 4)
        np.testing.assert_array_equal(runtime.run({"x": x})["y"][1:], x)
    for n, text in ((10, "'n' is from 0 to 8"), (3, "multiple of 2")):
        with pytest.raises(SecateurError, match=text):
            runtime.run({"x": np.zeros((n, 4), np.float32)})


# --- without a word of the user --------------------------------------------------------------

FROM_1 = {
    "matmul of no depth", "sum of nothing", "sum of all", "product of nothing", "mean of nothing",
    "largest of nothing", "norm of nothing", "position of nothing", "joined to nothing",
    "quantized",
}  # fmt: skip
"""Where an operator reads elements along the open axis and makes a result without it."""


def least(plan: Plan) -> dict[str, int | None]:
    """The least that each open size of a plan's inputs may be."""
    found = atoms([size_of(size) for tensor in plan.inputs for size in tensor.shape])
    return {atom.key: atom.range.low for atom in found if not atom.op}


@pytest.mark.parametrize("name", NODES)
def test_what_is_admitted_by_default(name: str) -> None:
    """0, where every operator on the way makes nothing of nothing, by the same operations."""
    plan = lower(case(name), TARGET)
    assert least(plan) == {"n": int(name in FROM_1)}
    from_1 = lower(case(name), TARGET, read_admitted(["n=1.."]))
    assert [type(op) for op in plan.operations] == [type(op) for op in from_1.operations]


BEGINS = {
    "a size that divides": (
        "(%x: float[n, 4], %z: float[m]) -> (%y)",
        "%s = Shape(%x) {end = 1}\n%t = Shape(%z)\n%d = Div(%t, %s)\n%y = Expand(%l1, %d)",
        {"n": 1, "m": 0},
    ),
    "what is known from 1 on only": (
        "(%x: float[n, 4]) -> (%y)",
        "%e = Shape(%x) {end = 1}\n%y = Slice(%x, %one, %e, %zero)",
        {"n": 2},
    ),
    "a size that another one has": (
        "(%x: float[n, 4], %z: float[m, 4]) -> (%y)", "%y = Add(%x, %z)", {"m": 0},
    ),
    "an axis that is taken away": (
        "(%x: float[n, 4]) -> (%y)", "%y = Squeeze(%x, %zero)", {"n": 1},
    ),
    "top": ("(%x: float[n, 4]) -> (%y)", "%y, %i = TopK(%x, %one) {axis = 0}", {"n": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", BEGINS)
def test_where_sizes_begin(name: str) -> None:
    ends, nodes, wanted = BEGINS[name]
    assert least(lower(model_of(nodes, ends), TARGET)) == wanted


def test_runs_of_nothing_by_default(tmp_path: Path) -> None:
    """An empty batch and an empty sequence, each in a process of its own; the axis that a mean is
    taken of is refused by name, before anything is computed."""
    nodes = "%h = MatMul(%x, %m)\n%r = Relu(%h)\n%y = Softmax(%r)\n%z = ReduceMean(%r, %axes)"
    model = model_of(nodes, "(%x: float[2, t, b, k, 4]) -> (%y, %z)")
    compile_model(model, TARGET, tmp_path / "m.so")
    child = Child()
    for t, b in ((0, 3), (3, 0), (0, 0), (2, 3)):
        x = np.random.default_rng(0).standard_normal((2, t, b, 5, 4)).astype(np.float32)
        found = child.run_guarded(tmp_path / "m.so", {"x": x})
        wanted = child.refer(to_proto(model).SerializeToString(), {"x": x})
        for value, array in wanted.items():
            assert found[value].shape == array.shape
            np.testing.assert_allclose(found[value], array, rtol=1e-5, atol=1e-5)
    with pytest.raises(RefusedError, match="'k' is from 1 up"):
        child.run_guarded(tmp_path / "m.so", {"x": np.ones((2, 2, 3, 0, 4), np.float32)})
    child.close()
