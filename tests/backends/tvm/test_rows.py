"""Softmax, normalizations and reductions against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.emission import work
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from .graphs import Net, feeds, reference
from .test_networks import SETTINGS, TARGETS, run

_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")


@st.composite
def rows(draw: Any) -> onnx.ModelProto:
    shape = [
        draw(st.sampled_from((1, 2, 3, 7, 16, 19, 40))) for _ in range(draw(st.integers(1, 4)))
    ]
    rank = len(shape)
    net = Net(draw, draw(st.integers(0, 9)))
    kinds = ["Softmax", "LogSoftmax", "LayerNormalization", *_REDUCTIONS]
    kinds += ["InstanceNormalization"] * 2 if rank >= 3 else []
    kind = draw(st.sampled_from(kinds))
    axis = draw(st.integers(0, rank - 1))
    if kind in ("Softmax", "LogSoftmax"):
        value = net.node(kind, "x", axis=axis)
    elif kind == "LayerNormalization":
        inputs = [net.weight(*shape[axis:]) for _ in range(draw(st.integers(1, 2)))]
        value = net.node(kind, "x", *inputs, axis=axis)
    elif kind == "InstanceNormalization":
        value = net.node(kind, "x", net.weight(shape[1]), net.weight(shape[1]))
    else:
        last = draw(st.integers(axis, rank - 1))
        value = net.node(kind, "x", axes=list(range(axis, last + 1)), keepdims=1)
    if draw(st.booleans()):
        value = net.node("Relu", value)
    return net.model({"x": tuple(shape)}, [value])


def test_scales_are_read_in_each_of_few_rows(tmp_path: Path) -> None:
    """One row has as many elements as its scale, two and three have more."""
    net = Net(None, 0)
    shapes = {f"x{count}": (count, 5) for count in (1, 2, 3)}
    made = [
        net.node("LayerNormalization", name, net.weight(5), net.weight(5), axis=1)
        for name in shapes
    ]
    model = net.model(shapes, made)
    inputs = feeds(model, 1)
    found = run(model, TARGETS[-1], tmp_path, inputs)
    for name, array in reference(model, inputs).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=2e-5)


def test_what_is_fused_with_rows_is_read_where_each_element_lies(tmp_path: Path) -> None:
    """An operand of the results' shape, along each axis."""
    net = Net(None, 0)
    made = [net.node("Mul", net.node("Softmax", "x", axis=axis), "z") for axis in range(3)]
    model = net.model({"x": (2, 3, 5), "z": (2, 3, 5)}, made)
    plan = tmp_path / "plan.txt"
    compile_model(from_proto(model), parse_target(TARGETS[-1]), tmp_path / "m.so", dump_plan=plan)
    assert "= elementwise" not in plan.read_text()
    inputs = feeds(model, 1)
    found = Runtime(tmp_path / "m.so").run(inputs)
    for name, array in reference(model, inputs).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=5e-6)


@settings(SETTINGS, max_examples=12)
@given(rows(), st.sampled_from(TARGETS))
def test_rows_match(tmp_path: Path, model: onnx.ModelProto, target: str) -> None:
    inputs = feeds(model, 1)
    expected = reference(model, inputs)
    found = run(model, target, tmp_path, inputs)
    for name, array in expected.items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=5e-6 * scale)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_of_long_rows_in_parallel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, axis: int
) -> None:
    """More exponentials than are kept; what is masked with -infinity has no share."""
    monkeypatch.setattr(work, "PARALLEL_OPERATIONS", 0)
    net = Net(None, 0)
    shape = (2, 5003, 9) if axis == 1 else (2, 9, 5003)
    model = net.model({"x": shape}, [net.node("Softmax", "x", axis=axis)])
    inputs = feeds(model)
    inputs["x"][:, 1, 2] = -np.inf
    expected = next(iter(reference(model, inputs).values()))
    found = next(iter(run(model, target, tmp_path, inputs, 2).values()))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_rows_compile_for_arm(tmp_path: Path) -> None:
    net = Net(None, 1)
    value = net.node("LayerNormalization", "x", net.weight(37), net.weight(37))
    model = net.model({"x": (3, 37)}, [net.node("Softmax", value, axis=-1)])
    for target in ("aarch64", "armv7-a"):
        compile_model(from_proto(model), parse_target(target), tmp_path / "model.so")
