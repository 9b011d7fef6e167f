"""Products of two run-time matrices against ONNX Runtime, in float32 and in 8 bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

pytest.importorskip("tvm")

from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.emission import work
from secateur.backends.tvm.lowering import lower as lowering
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import ElementwiseOp, ProductOp
from secateur.backends.tvm.plan.strides import compose, row_major
from secateur.backends.tvm.targets import parse_target
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto

from .graphs import Net, feeds, quantize, reference
from .test_networks import SETTINGS, TARGETS, run


@st.composite
def products(draw: Any, *, quantized: bool) -> onnx.ModelProto:
    """left @ right with broadcast batches, operands transposed or sliced, a program after."""
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    rows, depth, columns = (draw(st.integers(1, 40)) for _ in range(3))
    net = Net(draw, draw(st.integers(0, 9)))
    shapes = {"x": [rows, depth], "z": [depth, columns]}
    inputs = {}
    values = {}
    for name, matrix in shapes.items():
        own = [1 if draw(st.booleans()) else b for b in batch] if batch else []
        own = own[draw(st.integers(0, len(own))) :] if name == "z" else own
        shape = [*own, *matrix]
        value = name
        if draw(st.booleans()):
            shape[-1], shape[-2] = shape[-2], shape[-1]
            order = [*range(len(own)), len(own) + 1, len(own)]
            value = net.node("Transpose", value, perm=order)
        inputs[name] = tuple(shape)
        values[name] = value
    value = net.node("MatMul", values["x"], values["z"])
    if not quantized:
        if draw(st.booleans()):
            value = net.node("Mul", value, net.weight(1))
        if draw(st.booleans()):
            value = net.node("Add", value, net.weight(1, columns))
        if draw(st.booleans()):
            value = net.node("Relu", value)
    if batch and draw(st.booleans()):
        order = draw(st.permutations(range(len(batch) + 1)))
        value = net.node("Transpose", value, perm=[*order, len(batch) + 1])
    return net.model(inputs, [value])


@settings(SETTINGS, max_examples=10)
@given(products(quantized=False), st.sampled_from(TARGETS))
def test_float_products_match(tmp_path: Path, model: onnx.ModelProto, target: str) -> None:
    inputs = feeds(model, 1)
    expected = reference(model, inputs)
    found = run(model, target, tmp_path, inputs)
    for name, array in expected.items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=2e-6 * scale)


@settings(SETTINGS, max_examples=10)
@given(products(quantized=True), st.sampled_from(TARGETS), st.sampled_from(("uint8", "int8")))
def test_quantized_products_are_bit_identical(
    tmp_path: Path, model: onnx.ModelProto, target: str, activation: str
) -> None:
    model = quantize(model, activation)
    inputs = feeds(model, 1)
    expected = reference(model, inputs)
    found = run(model, target, tmp_path, inputs)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("zero", [None, 0, 7])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_of_quantized_constants(tmp_path: Path, zero: int | None, side: str) -> None:
    """A constant for each matrix of a batch, with and without a zero point."""
    net = Net(None, 0)
    random = np.random.default_rng(0)
    net.constants["scale"] = np.float32(0.02)
    net.constants["other"] = np.float32(0.05)
    net.constants["centre"] = np.uint8(100)
    net.constants["w"] = random.integers(0, 256, (3, 9, 9), np.uint8)
    points = []
    if zero is not None:
        net.constants["zero"] = np.uint8(zero)
        points.append("zero")
    weights = net.node("DequantizeLinear", "w", "scale", *points)
    x = net.node("QuantizeLinear", "x", "other", "centre")
    x = net.node("DequantizeLinear", x, "other", "centre")
    value = net.node("MatMul", *((weights, x) if side == "left" else (x, weights)))
    value = net.node("QuantizeLinear", value, "other", "centre")
    model = net.model({"x": (3, 9, 9)}, [net.node("DequantizeLinear", value, "other", "centre")])
    inputs = feeds(model, 1)
    found = run(model, TARGETS[-1], tmp_path, inputs)
    for name, array in reference(model, inputs).items():
        np.testing.assert_array_equal(found[name], array)
    graph = from_proto(model)
    infer_shapes(graph)
    operations = lower(graph, parse_target(TARGETS[-1])).operations
    assert [type(op) for op in operations].count(ProductOp) == 1


def attention(net: Net, heads: int, width: int, length: int) -> onnx.ModelProto:
    """Heads split from one projection, as in exported transformers."""
    size = heads * width
    net.constants["split"] = np.asarray([1, length, 3, heads, width], np.int64)
    net.constants["merge"] = np.asarray([1, length, size], np.int64)
    net.constants["first"] = np.asarray([0], np.int64)
    projected = net.node("MatMul", "x", net.weight(size, 3 * size))
    split = net.node("Reshape", net.node("Add", projected, net.weight(3 * size)), "split")
    moved = net.node("Transpose", split, perm=[2, 0, 3, 1, 4])
    parts = []
    for i in range(3):
        net.constants[f"i{i}"] = np.asarray([i], np.int64)
        net.constants[f"j{i}"] = np.asarray([i + 1], np.int64)
        part = net.node("Slice", moved, f"i{i}", f"j{i}", "first")
        parts.append(net.node("Squeeze", part, "first"))
    keys = net.node("Transpose", parts[1], perm=[0, 1, 3, 2])
    scores = net.node("Softmax", net.node("MatMul", parts[0], keys), axis=-1)
    mixed = net.node("MatMul", scores, parts[2])
    merged = net.node("Reshape", net.node("Transpose", mixed, perm=[0, 2, 1, 3]), "merge")
    return net.model({"x": (1, length, size)}, [merged])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 2])
def test_heads_are_read_and_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, threads: int
) -> None:
    monkeypatch.setattr(work, "PARALLEL_OPERATIONS", 0)
    model = attention(Net(None, 1), 3, 20, 37)
    inputs = feeds(model)
    expected = next(iter(reference(model, inputs).values()))
    found = next(iter(run(model, target, tmp_path, inputs, threads).values()))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    graph = from_proto(model)
    infer_shapes(graph)
    plan = lower(graph, parse_target(target))
    products_ = [op for op in plan.operations if isinstance(op, ProductOp)]
    assert len(products_) == 2
    assert products_[1].strides is not None
    assert not any(isinstance(op, ElementwiseOp) for op in plan.operations)


def test_products_compile_for_arm(tmp_path: Path) -> None:
    net = Net(None, 3)
    model = net.model({"x": (2, 9, 20), "z": (2, 20, 17)}, [net.node("MatMul", "x", "z")])
    for source in (model, quantize(model)):
        for target in ("aarch64", "aarch64-cortex-a76"):
            compile_model(from_proto(source), parse_target(target), tmp_path / "model.so")


@given(st.data())
def test_composed_views_read_the_same_elements(data: st.DataObject) -> None:
    """A transposition and slice of a transposition and slice, as strides or not at all."""

    def view(array: Any) -> Any:
        order = data.draw(st.permutations(range(array.ndim)))
        array = array.transpose(order)
        slices = tuple(
            slice(data.draw(st.integers(0, n - 1)), None, data.draw(st.integers(1, 2)))
            for n in array.shape
        )
        return array[slices]

    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    source = np.arange(int(np.prod(shape))).reshape(shape)
    inner = view(source)
    copy = np.ascontiguousarray(inner)
    factors = data.draw(st.sampled_from([copy.shape, (copy.size,), (*copy.shape, 1)]))
    outer = view(np.arange(copy.size).reshape(factors))
    found = compose(
        outer.shape,
        [s // 8 for s in outer.strides],
        int(outer.flat[0]),
        inner.shape,
        [s // 8 for s in inner.strides],
        int(inner.flat[0]),
    )
    if found is None:
        return
    strides, offset = found
    at = np.full(outer.shape, offset)
    for axis, stride in enumerate(strides):
        own = [1] * outer.ndim
        own[axis] = -1
        at = at + np.arange(outer.shape[axis]).reshape(own) * stride
    np.testing.assert_array_equal(source.reshape(-1)[at], copy.reshape(-1)[outer])


def test_row_major_strides() -> None:
    assert row_major((2, 3, 4)) == (12, 4, 1)


LEFT = ((5,), (3, 5), (2, 3, 5), (1, 2, 3, 5))
RIGHT = ((5,), (5, 4), (2, 5, 4), (3, 1, 5, 4))


@pytest.mark.parametrize("rules", ["all", "plain"])
def test_operands_of_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str
) -> None:
    """Vectors on either side, matrices, and batches that broadcast both ways."""
    if rules == "plain":
        monkeypatch.setattr(lowering, "RULES", {})
    nodes, inputs = [], {}
    for i, left in enumerate(LEFT):
        for j, right in enumerate(RIGHT):
            nodes.append(helper.make_node("MatMul", [f"l{i}", f"r{j}"], [f"y{i}{j}"]))
            inputs |= {f"l{i}": left, f"r{j}": right}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    results = [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, None) for n in nodes]
    opset = [helper.make_opsetid("", 17)]
    graph = helper.make_graph(nodes, "ranks", values, results)
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    given = feeds(model)
    found = run(model, TARGETS[-1], tmp_path, given)
    for name, want in reference(model, given).items():
        np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=1e-5, err_msg=name)
