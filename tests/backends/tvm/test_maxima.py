"""NaN and infinities in windows and rows: pooling, reductions, the largest of a row."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from ...onnx_runtime import session_of
from .test_networks import TARGETS

Array = Any

POOLING = {
    "padded": "MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)",
    "plain": "MaxPool <kernel_shape = [2, 3], strides = [1, 2]> (x)",
    "dilated": "MaxPool <kernel_shape = [2, 2], dilations = [2, 3]> (x)",
    "ceiled": "MaxPool <kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1],"
    " ceil_mode = 1> (x)",
    "whole": "GlobalMaxPool (x)",
}
SHARED = {
    "max_1": "ReduceMax <keepdims = 0, axes = [1]> (t)",
    "min_1": "ReduceMin <keepdims = 0, axes = [1]> (t)",
    "max_0": "ReduceMax <keepdims = 0, axes = [0]> (t)",
    "min_0": "ReduceMin <keepdims = 0, axes = [0]> (t)",
}
AS_RUNTIME = {
    "average": "AveragePool <kernel_shape = [2, 2]> (x)",
    "mean": "ReduceMean <axes = [1]> (t)",
    "l1": "ReduceL1 <axes = [1]> (t)",
    "l2": "ReduceL2 <axes = [0]> (t)",
    "product": "ReduceProd <axes = [1]> (t)",
    "log_sum_exp": "ReduceLogSumExp <axes = [1]> (t)",
    "arg_max": "ArgMax <axis = 1> (t)",
    "arg_min": "ArgMin <axis = 0> (t)",
    "softmax_1": "Softmax <axis = 1> (t)",
    "softmax_0": "Softmax <axis = 0> (t)",
    "log_softmax": "LogSoftmax <axis = 1> (t)",
}
REDUCE: dict[str, Callable[..., Array]] = {"max": np.max, "min": np.min}

SHAPES = {"x": (2, 19, 9, 10), "t": (5, 37)}


def build(nodes: dict[str, str], dtype: str) -> onnx.ModelProto:
    """A model with an output for each node."""
    used = [n for n in SHAPES if any(f"({n})" in node for node in nodes.values())]
    inputs = ", ".join(f"{dtype}[{','.join(map(str, SHAPES[n]))}] {n}" for n in used)
    kinds = {name: "int64" if name.startswith("arg") else dtype for name in nodes}
    outputs = ", ".join(f"{kind} {name}" for name, kind in kinds.items())
    body = "\n".join(f"{name} = {node}" for name, node in nodes.items())
    text = f'<ir_version: 9, opset_import: ["" : 13]> g ({inputs}) => ({outputs}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


def reference(nodes: dict[str, str], dtype: str, feeds: dict[str, Array]) -> dict[str, Array]:
    session = session_of(build(nodes, dtype), optimize=False)
    given = {i.name: feeds[i.name] for i in session.get_inputs()}
    return dict(zip(nodes, session.run(None, given), strict=True))


def pooled(dtype: str, x: Array) -> dict[str, Array]:
    """Maxima of windows, NaN where a window has any; in ONNX Runtime its position matters."""
    largest = reference(POOLING, dtype, {"x": np.nan_to_num(x, nan=-1e4, posinf=1e4, neginf=-1e3)})
    marked = reference(POOLING, dtype, {"x": np.isnan(x).astype(x.dtype)})
    result = {}
    for name, array in largest.items():
        array = np.where(array == 1e4, np.inf, np.where(array == -1e3, -np.inf, array))
        result[name] = np.where(marked[name] > 0, np.nan, array).astype(x.dtype)
    return result


def holey(seed: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Random numbers with some NaN and infinities in any position."""
    random = np.random.default_rng(seed)
    array = random.standard_normal(shape).astype(dtype)
    flat = array.reshape(-1)
    for value, share in ((np.nan, 40), (np.inf, 60), (-np.inf, 20)):
        flat[random.integers(0, flat.size, flat.size // share + 1)] = value
    return array


def check(folder: Path, target: str, kind: str) -> None:
    dtype = {"float": "float32", "double": "float64", "float16": "float16"}[kind]
    own = AS_RUNTIME if kind == "float" else {}
    nodes = {**POOLING, **SHARED, **own}
    path = folder / "model.so"
    compile_model(from_proto(build(nodes, kind)), parse_target(target), path)
    runtime = Runtime(path, 1)
    for seed in range(12):
        feeds = {name: holey(seed, shape, dtype) for name, shape in SHAPES.items()}
        if seed == 11:
            feeds["x"][:] = -np.inf  # the border must not win
        found = runtime.run(feeds)
        expected = {} if kind == "float16" else pooled(kind, feeds["x"])
        for name in SHARED:
            function, axis = name.split("_")
            expected[name] = REDUCE[function](feeds["t"], axis=int(axis))
        expected |= reference(own, kind, feeds) if own else {}
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_windows_and_rows_with_holes(tmp_path: Path) -> None:
    check(tmp_path, "native", "float")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["float", "float16"])
def test_windows_and_rows_with_holes_everywhere(tmp_path: Path, target: str, kind: str) -> None:
    check(tmp_path, target, kind)


BOUNDS: tuple[tuple[float, ...], ...] = ((), (0.5,), (0.5, -0.25), (-0.25, 0.75, 0.5))


def test_any_number_of_operands_and_of_bounds(tmp_path: Path) -> None:
    """Operands that are one number, in front and behind of others."""
    nodes, constants = [], {}
    for op_type in ("Max", "Min", "Sum"):
        for count in (1, 2, 3):
            for places, numbers in enumerate(BOUNDS):
                name = f"{op_type}{count}{places}"
                names = [f"c{name}{i}" for i in range(len(numbers))]
                constants |= dict(zip(names, numbers, strict=True))
                operands = [*names[:1], *(f"x{i}" for i in range(count)), *names[1:]]
                nodes.append(helper.make_node(op_type, operands, [name]))
    values = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [4, 9]) for i in range(3)]
    results = [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, None) for n in nodes]
    tensors = [numpy_helper.from_array(np.float32([v]), n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "bounds", values, results, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    random = np.random.default_rng(0)
    feeds = {f"x{i}": random.uniform(-1, 1, (4, 9)).astype(np.float32) for i in range(3)}
    compile_model(from_proto(model), parse_target("native"), tmp_path / "m.so")
    found = Runtime(tmp_path / "m.so").run(feeds)
    names = [value.name for value in graph.output]
    wanted = session_of(model).run(names, feeds)
    for name, want in zip(names, wanted, strict=True):
        np.testing.assert_allclose(found[name], want, rtol=1e-6, atol=1e-6, err_msg=name)


def test_last_windows_that_pass_the_edge(tmp_path: Path) -> None:
    """By image kernels, of every rest that a stride leaves, where `ceil_mode` counts it."""
    nodes = []
    x = np.random.default_rng(0).standard_normal((1, 20, 7, 12)).astype(np.float32)
    for kernel, stride, pad in itertools.product((2, 3), (2, 3), (0, 1)):
        for op_type in ("MaxPool", "AveragePool"):
            shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
            nodes.append(helper.make_node(op_type, ["x"], [f"y{len(nodes)}"], ceil_mode=1, **shape))
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    results = [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, None) for n in nodes]
    graph = helper.make_graph(nodes, "windows", values, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    compile_model(from_proto(model), parse_target("native"), tmp_path / "m.so")
    found = Runtime(tmp_path / "m.so").run({"x": x})
    names = [value.name for value in graph.output]
    for node, want in zip(nodes, session_of(model).run(names, {"x": x}), strict=True):
        have = found[node.output[0]]
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6, err_msg=str(node))
