"""Weights that several nodes read are in an artifact once for each layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session

FLOAT, INT64, BOOL = 1, 7, 9
WIDTH = 128
WEIGHTS = WIDTH * WIDTH * 4


def info(name: str, kind: int, *shape: int) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def matrix() -> Any:
    values = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)) / WIDTH**0.5
    return numpy_helper.from_array(values.astype(np.float32), "w")


def chain() -> Any:
    """One matrix, read by ten nodes of the graph."""
    nodes = []
    for i in range(10):
        nodes.append(helper.make_node("Gemm", [f"x{i}", "w"], [f"h{i}"]))
        nodes.append(helper.make_node("Tanh", [f"h{i}"], [f"x{i + 1}"]))
    ends = [info("x0", FLOAT, 1, WIDTH)], [info("x10", FLOAT, 1, WIDTH)]
    return helper.make_graph(nodes, "g", *ends, [matrix()])


def loop(inside: bool) -> Any:
    """A matrix, of the graph or of the body, read in ten steps."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Tanh", ["h"], ["y"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [info("step", INT64), info("go", BOOL), info("x", FLOAT, 1, WIDTH)],
        [info("on", BOOL), info("y", FLOAT, 1, WIDTH)],
        [matrix()] if inside else [],
    )
    steps = numpy_helper.from_array(np.int64(10), "steps")
    node = helper.make_node("Loop", ["steps", "", "x0"], ["x10"], body=body)
    ends = [info("x0", FLOAT, 1, WIDTH)], [info("x10", FLOAT, 1, WIDTH)]
    return helper.make_graph([node], "g", *ends, [steps] + ([] if inside else [matrix()]))


@pytest.mark.parametrize("graph", [chain(), loop(True), loop(False)], ids=["chain", "in", "out"])
def test_a_matrix_is_packed_once(tmp_path: Path, graph: Any) -> None:
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = from_proto(proto)
    report = compile_model(model, parse_target("native"), tmp_path / "m.so")
    assert report.bytes < 1.3 * WEIGHTS + 60_000
    assert report.kernels == 1  # Tanh is its epilogue, in every step
    x = np.random.default_rng(1).standard_normal((1, WIDTH)).astype(np.float32)
    expected = Session(model, optimize=False).run({"x0": x})["x10"]
    found = Runtime(tmp_path / "m.so").run({"x0": x})["x10"]
    np.testing.assert_allclose(found, expected, 1e-4, 1e-5)


@pytest.mark.parametrize("channels", [1, 5, 17, 20])
def test_channels_that_a_block_lacks_have_no_weights(tmp_path: Path, channels: int) -> None:
    """Blocks of activations have 8 or 16 channels; the weights only those that there are."""
    shape = (64, channels, 15, 11)
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [info("x", FLOAT, 1, channels, 16, 14)],
        [info("y", FLOAT, 1, 64, 2, 4)],
        [numpy_helper.from_array(values, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = from_proto(proto)
    report = compile_model(model, parse_target("native"), tmp_path / "m.so")
    assert report.bytes < 1.02 * values.nbytes + 30_000
    x = np.random.default_rng(1).standard_normal((1, channels, 16, 14)).astype(np.float32)
    expected = Session(model).run({"x": x})["y"]
    found = Runtime(tmp_path / "m.so").run({"x": x})["y"]
    np.testing.assert_allclose(found, expected, 1e-4, 1e-3)
