"""Weights below the smallest normal float32."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.subnormal import flush_subnormal
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto
from secateur.reporting.report import compiler_lines

from ..graphs import Net, feeds, reference


def decayed() -> tuple[onnx.ModelProto, int]:
    """A convolution, whose second half of channels is decayed, and a product, which is in part."""
    net = Net(None, 0)
    value = net.node("Relu", net.node("Conv", "x", net.weight(8, 4, 3, 3)))
    net.constants["w0"][4:] *= np.float32(1e-40)
    value = net.node("MatMul", net.node("GlobalAveragePool", value), net.weight(1, 6))
    net.constants["w1"][:, ::2] = [[1e-39, -1e-42, 1.4e-45]]
    count = int((net.constants["w0"][4:] != 0).sum()) + 3
    return net.model({"x": (2, 4, 9, 9)}, [value]), count


def test_they_count_as_zero_and_the_report_says_so(tmp_path: Path) -> None:
    model, count = decayed()
    path = tmp_path / "model.so"
    report = compile_model(from_proto(model), parse_target("native"), path)
    assert sum(report.subnormal.values()) == count
    assert len(report.subnormal) == 2
    lines = compiler_lines({**dataclasses.asdict(report), "precision": None})
    text = f"{count} weights of 2 nodes are too small for a normal float32 and count as zero."
    assert text in lines
    inputs = feeds(model)
    for name, wanted in reference(model, inputs).items():
        np.testing.assert_allclose(Runtime(path).run(inputs)[name], wanted, rtol=1e-5, atol=1e-30)


def test_normal_weights_stay_to_the_bit() -> None:
    smallest = np.finfo(np.float32).smallest_normal
    model, _ = decayed()
    given = np.float32([smallest, -smallest, 0.0, -0.0, np.inf, np.nan])
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            tensor.CopyFrom(numpy_helper.from_array(given.reshape(1, 6), "w1"))
    loaded = from_proto(model)
    assert "MatMul" not in "".join(flush_subnormal(loaded))
    (value,) = (v for v in loaded.graph.values() if v.name == "w1")
    kept: Any = value.const
    np.testing.assert_array_equal(kept.numpy().view(np.int32), given.view(np.int32).reshape(1, 6))


def test_what_is_more_than_a_weight_stays() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 3] x) => (float[2, 2] y, float[3, 2] z)
    <float[3, 2] w = {1e-40, 1, 1, 1, 1, 1}, float[3, 2] v = {1e-40, 1, 1, 1, 1, 1}> {
        a = MatMul(x, w)
        b = MatMul(x, v)
        y = Add(a, b)
        z = Mul(w, w)
    }"""
    found = flush_subnormal(from_proto(onnx.parser.parse_model(text)))
    assert list(found.values()) == [1]
