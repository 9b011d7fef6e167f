"""Artifacts of models with a batch: any number of samples, and those refused that affect others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.container import is_container
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.passes.base import Context
from secateur.passes.batch import inspect_batch
from secateur.passes.quantize import QuantizeStatic
from secateur.passes.simplify import FixInputShapes
from tests.ir.axes.graphs import network

Array = Any
SIZES = (1, 3, 5)
TARGET = parse_target("native")


def model_of(signature: str, body: str) -> Model:
    text = f'model <ir_version = 8, opset = ["" = 17]>\ngraph g {signature} {{\n{body}\n}}\n'
    model = parse_model(text)
    infer_shapes(model)
    return model


def compiled(model: Model, folder: Path, **options: Any) -> Runtime:
    compile_model(model, TARGET, folder / "m.so", **options)
    return Runtime(folder / "m.so")


def check_sizes(model: Model, runtime: Runtime, feeds: Mapping[str, Array]) -> None:
    """The artifact gives what ONNX Runtime does for batches of several sizes, and empty ones."""
    session = Session(model, optimize=False)
    split = [name for name, (_, shape) in runtime.inputs.items() if shape and shape[0] is None]
    assert split
    for size in SIZES:
        batch = {n: a[:size] if n in split else a for n, a in feeds.items()}
        want, have = session.run(batch), runtime.run(batch)
        assert want.keys() == have.keys()
        for name, array in want.items():
            assert have[name].shape == array.shape
            scale = float(np.abs(array).max(initial=0.0)) if array.dtype.kind == "f" else 0.0
            np.testing.assert_allclose(have[name], array, rtol=1e-4, atol=1e-5 * max(scale, 1.0))
    whole = runtime.run(feeds)
    none = runtime.run({n: a[:0] if n in split else a for n, a in feeds.items()})
    for name, array in none.items():
        _, shape = runtime.outputs[name]
        assert array.dtype == whole[name].dtype
        if shape is not None and shape[0] is None:
            assert array.shape == (0, *whole[name].shape[1:])
        else:
            np.testing.assert_array_equal(array, whole[name])


def random(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


CASES = {
    "rows": ("(%x: float[N, 4]) -> (%y: float[N, 4])", "%y = Softmax(%x)", {"x": (5, 4)}),
    "two inputs": (
        "(%x: float[N, 4], %z: float[M, 1]) -> (%y: float[?, 4])", "%y = Mul(%x, %z)",
        {"x": (5, 4), "z": (5, 1)},
    ),
    "an input without samples": (
        "(%x: float[N, 4], %w: float[4, 3]) -> (%y: float[N, 3])", "%y = MatMul(%x, %w)",
        {"x": (5, 4), "w": (4, 3)},
    ),
    "an ellipsis": (
        "(%x: float[N, 3, 4], %w: float[4, 3]) -> (%y: float[N, 3, 3])",
        '%y = Einsum(%x, %w) {equation = "...ij,jk->...ik"}', {"x": (5, 3, 4), "w": (4, 3)},
    ),
    "an ellipsis in both operands": (
        "(%x: float[N, 3, 4], %w: float[1, 4, 3]) -> (%y: float[N, 3, 3])",
        '%y = Einsum(%x, %w) {equation = "...ij,...jk->...ik"}', {"x": (5, 3, 4), "w": (1, 4, 3)},
    ),
    "an output without samples": (
        "(%x: float[N, 4], %w: float[2, 3]) -> (%y: float[N, 4], %z: float[2, 3])",
        "%y = Relu(%x)\n%z = Exp(%w)", {"x": (5, 4), "w": (2, 3)},
    ),
    "a number for each sample": (
        "(%x: float[N, 4]) -> (%y: float[N])", "%y = ReduceMax(%x) {axes = [1], keepdims = 0}",
        {"x": (5, 4)},
    ),
    "several rows for each sample": (
        "(%x: float[N, 3, 4]) -> (%y: float[?, 4])",
        "const %s: int64[2] = [-1, 4]\n%r = Reshape(%x, %s)\n%y = Relu(%r)", {"x": (5, 3, 4)},
    ),
    "merged, convolved and taken apart": (
        "(%x: float[N, 2, 4, 4]) -> (%y: float[N, 2, 2, 2])",
        "const %s: int64[4] = [-1, 1, 4, 4]\nconst %b: int64[4] = [-1, 2, 2, 2]\n"
        "const %w: float[1, 1, 3, 3] = [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
        "%r = Reshape(%x, %s)\n%c = Conv(%r, %w)\n%y = Reshape(%c, %b)", {"x": (5, 2, 4, 4)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_samples(name: str, tmp_path: Path) -> None:
    signature, body, shapes = CASES[name]
    model = model_of(signature, body)
    feeds = {n: random(*shape) for n, shape in shapes.items()}
    check_sizes(model, compiled(model, tmp_path), feeds)


def test_numbers_of_samples_have_to_agree(tmp_path: Path) -> None:
    signature, body, _ = CASES["two inputs"]
    runtime = compiled(model_of(signature, body), tmp_path)
    with pytest.raises(SecateurError, match="input 'z': 2 samples given, not 3"):
        runtime.run({"x": random(3, 4), "z": random(2, 1)})


SHARES = (
    "(%x: float[N, 4]) -> (%y: float[N, 4])",
    "%e = Exp(%x)\n%y = Softmax @over(%e) {axis = 0}",
)


def test_samples_that_affect_each_other_are_computed_together(tmp_path: Path) -> None:
    """What is no batch of independent samples is an open size."""
    model = model_of(*SHARES)
    runtime, session = compiled(model, tmp_path), Session(model, optimize=False)
    assert runtime.inputs["x"] == ("float32", ("N", 4))
    for size in SIZES:
        feeds = {"x": random(size, 4)}
        np.testing.assert_allclose(runtime.run(feeds)["y"], session.run(feeds)["y"], rtol=1e-5)
    FixInputShapes((("x", (3, 4)),)).run(model)
    x = random(3, 4)
    have = compiled(model, tmp_path).run({"x": x})["y"]
    np.testing.assert_allclose(have, Session(model).run({"x": x})["y"], rtol=1e-5)


@pytest.mark.parametrize("mixes", [False, True])
def test_samples_are_followed_through_functions(tmp_path: Path, mixes: bool) -> None:
    """Functions that call functions, in a domain of their own."""
    mean = helper.make_node("ReduceMean", ["a"], ["m"], axes=[0 if mixes else 1])
    inner = [mean, helper.make_node("Sub", ["a", "m"], ["b"])]
    outer = [helper.make_node("F", [a], [b], domain="own") for a, b in (("a", "t"), ("t", "b"))]
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function("own", name, ["a"], ["b"], nodes, versions)
        for name, nodes in (("F", inner), ("G", outer))
    ]
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 4]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("G", ["x"], ["y"], domain="own")], "g", ends[:1], ends[1:]
    )
    model = from_proto(
        helper.make_model(graph, opset_imports=versions, functions=functions, ir_version=9)
    )
    if mixes:
        runtime = compiled(model, tmp_path)
        assert runtime.inputs["x"] == ("float32", ("N", 4))
        x = random(5, 4)
        want = Session(model).run({"x": x})["y"]
        np.testing.assert_allclose(runtime.run({"x": x})["y"], want, atol=1e-5)
    else:
        check_sizes(model, compiled(model, tmp_path), {"x": random(5, 4)})


def test_a_form_that_no_definition_has_is_named(tmp_path: Path) -> None:
    node = helper.make_node("MultiHeadAttention", ["x", "x", "x"], ["y"], domain="com.microsoft")
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 2, 4]) for n in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = from_proto(helper.make_model(graph, opset_imports=versions, ir_version=9))
    with pytest.raises(UnsupportedError, match=r"'y' \(MultiHeadAttention\): num_heads is missing"):
        compiled(model, tmp_path)


def test_batches_of_containers(tmp_path: Path) -> None:
    body = "%t = Cast(%x) {to = 8}\n%f = Cast(%t) {to = 1}\n%y = Relu(%f)"
    model = model_of("(%x: float[N, 4]) -> (%y: float[N, 4])", body)
    runtime = compiled(model, tmp_path, fallback=True)
    assert is_container(tmp_path / "m.so")
    check_sizes(model, runtime, {"x": random(5, 4)})


def test_batches_of_quantized_models(tmp_path: Path) -> None:
    signature, body, shapes = CASES["merged, convolved and taken apart"]
    model = model_of(signature, body)
    QuantizeStatic().run(model, Context({"x": random(8, *shapes["x"][1:])}))
    infer_shapes(model)
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.nodes)
    check_sizes(model, compiled(model, tmp_path), {"x": random(*shapes["x"])})


def check_networks(seeds: range, least: int, folder: Path) -> None:
    """Random networks with an open batch that can be compiled."""
    done = 0
    for seed in seeds:
        proto, feeds = network(seed, steps=6)
        model = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
        infer_shapes(model)
        if not inspect_batch(model).is_proven:
            continue
        try:
            runtime = compiled(model, folder)
        except UnsupportedError:
            continue
        check_sizes(model, runtime, feeds)
        done += 1
    assert done >= least


def test_random_networks(tmp_path: Path) -> None:
    check_networks(range(10), 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(2))
def test_many_random_networks(chunk: int, tmp_path: Path) -> None:
    check_networks(range(100 + 40 * chunk, 140 + 40 * chunk), 10, tmp_path)
