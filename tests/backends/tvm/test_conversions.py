"""Cast of every type to every other: artifact, constant folding and ONNX Runtime agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto
from secateur.passes.simplify.kernels import compute

from ...onnx_runtime import session_of

Array = Any

FLOATS = ["float16", "float32", "float64"]
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
TYPES = ["bool", *INTEGERS, *FLOATS]

NUMBERS = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 0.5, -0.5, 1.5, 2.5, 3.7, -3.7, 127.5, 128.0]
NUMBERS += [-129.0, 200.0, 255.9, 256.0, 300.0, 65504.0, 65520.0, -40000.0, 2147483520.0, 2.0**31]
NUMBERS += [-(2.0**31), -2147484000.0, 4294967040.0, 2.0**32, 5e9, -5e9, 9.2e18, 2.0**63, -9.3e18]
NUMBERS += [1.8e19, 2.0**64, 3.4e38, -1e300, 1.0 + 2.0**-11 + 2.0**-40]


def values(dtype: str) -> Array:
    if dtype == "bool":
        return np.array([True, False])
    if dtype in FLOATS:
        with np.errstate(over="ignore"):
            return np.array(NUMBERS).astype(dtype)
    limits = np.iinfo(dtype)
    powers = [2**p + d for p in (7, 8, 11, 15, 16, 24, 31, 32, 53, 63) for d in (-1, 0, 1)]
    numbers = [limits.min, limits.max, -1, 0, 1, *powers, *(-n for n in powers), 65520]
    return np.array([n for n in numbers if limits.min <= n <= limits.max], dtype)


def build(sources: list[str], targets: list[str]) -> onnx.ModelProto:
    nodes, inputs, outputs = [], [], []
    for source in sources:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(source))
        inputs.append(helper.make_tensor_value_info(source, kind, values(source).shape))
        for target in targets:
            to = helper.np_dtype_to_tensor_dtype(np.dtype(target))
            name = f"{source}_{target}"
            nodes.append(helper.make_node("Cast", [source], [name], name, to=to))
            outputs.append(helper.make_tensor_value_info(name, to, values(source).shape))
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def runtime_result(source: str, target: str) -> Array:
    """ONNX Runtime's result in whole vectors, from which those of single elements may differ."""
    array = np.repeat(values(source), 64)
    kind, to = (helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in (source, target))
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=to)],
        "g",
        [helper.make_tensor_value_info("x", kind, array.shape)],
        [helper.make_tensor_value_info("y", to, array.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = session_of(model)
    return session.run(None, {"x": array})[0][::64]


def check(folder: Path, sources: list[str], targets: list[str]) -> None:
    model = build(sources, targets)
    compile_model(from_proto(model), parse_target("native"), folder / "model.so")
    found = Runtime(folder / "model.so").run({source: values(source) for source in sources})
    nodes = {n.name: n for n in from_proto(model).graph.nodes}
    for source in sources:
        for target in targets:
            name = f"{source}_{target}"
            folded = compute(nodes[name], [values(source)])
            np.testing.assert_array_equal(found[name], folded, err_msg=name)
            if (source, target) == ("float16", "uint32"):
                continue  # ONNX Runtime converts this pair through another instruction
            np.testing.assert_array_equal(found[name], runtime_result(source, target), name)


@pytest.mark.parametrize("source", ["float32", "int64"])
def test_conversions(tmp_path: Path, source: str) -> None:
    check(tmp_path, [source], TYPES)


def test_everything_becomes_a_boolean(tmp_path: Path) -> None:
    check(tmp_path, TYPES, ["bool"])


@pytest.mark.slow
def test_every_conversion(tmp_path: Path) -> None:
    check(tmp_path, TYPES, TYPES)
