"""Sizes of pooled images are those that ONNX Runtime computes, whatever ONNX's inference says."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from secateur.ir.declarations import check_declarations
from secateur.ir.errors import ModelError
from secateur.ir.infer import infer_node, infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.passes.simplify import simplify_pipeline

from ..onnx_runtime import session_of

OPERATORS = [
    ("MaxPool", 10),
    ("MaxPool", 12),
    ("MaxPool", 22),
    ("AveragePool", 10),
    ("AveragePool", 11),
    ("AveragePool", 19),
    ("AveragePool", 22),
    ("LpPool", 11),
    ("LpPool", 18),
    ("LpPool", 22),
]

Window = tuple[int, dict[str, Any]]
"""The length of a row, and the attributes of the node that pools it."""


def windows(op_type: str, opset: int, *, seed: int, count: int) -> Iterator[Window]:
    """Random windows of those that the operator has, and that ONNX Runtime accepts."""
    known = onnx.defs.get_schema(op_type, opset).attributes
    sizes, kernels, strides = (5, 6, 7, 8), (1, 2, 3), (1, 2, 3, 4)
    pads = ((0, 0), (1, 1), (0, 1), (1, 0), (1, 2))
    modes = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
    every = list(itertools.product(sizes, kernels, strides, (1, 2), pads, (0, 1), modes, (0, 1)))
    random.Random(seed).shuffle(every)
    for size, kernel, stride, dilation, padding, ceil, mode, included in every:
        attributes: dict[str, Any] = {"kernel_shape": [kernel], "strides": [stride]}
        if mode != "NOTSET":
            attributes["auto_pad"] = mode
        elif any(padding):
            attributes["pads"] = list(padding)
        optional = {"dilations": [dilation], "ceil_mode": ceil, "count_include_pad": included}
        attributes |= {name: value for name, value in optional.items() if name in known}
        if max(padding) >= kernel or not accepted(op_type, opset, (size, attributes)):
            continue
        yield size, attributes
        count -= 1
        if not count:
            return
    raise AssertionError(f"{count} windows too few: ONNX Runtime refuses the others")


def model(op_type: str, opset: int, window: Window, declared: Any = None) -> onnx.ModelProto:
    size, attributes = window
    node = helper.make_node(op_type, ["x"], ["y"], name="pool", **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, declared)
    graph = helper.make_graph([node], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def unoptimized(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session that folds no constants, since it folds shapes that ONNX's inference found."""
    return session_of(proto, optimize=False)


def runtime_shape(op_type: str, opset: int, window: Window) -> tuple[int, ...]:
    session = unoptimized(model(op_type, opset, window))
    found: tuple[int, ...] = session.run(None, {"x": np.zeros((2, 3, window[0]), np.float32)})[
        0
    ].shape
    return found


def accepted(op_type: str, opset: int, window: Window) -> bool:
    try:
        return 0 not in runtime_shape(op_type, opset, window)
    except Exception:  # ONNX Runtime's errors have no common type
        return False


@pytest.mark.parametrize(("op_type", "opset"), OPERATORS)
def test_sizes_are_those_of_onnx_runtime(op_type: str, opset: int) -> None:
    for window in windows(op_type, opset, seed=opset, count=50):
        right = runtime_shape(op_type, opset, window)
        read = from_proto(model(op_type, opset, window))
        node = read.graph.nodes[0]
        (alone,) = infer_node(read, node)
        assert alone is not None
        assert tuple(d.dim_value for d in alone.tensor_type.shape.dim) == right, window
        infer_shapes(read)
        assert read.graph.outputs[0].shape == right, window


WRONG: Window = (5, {"kernel_shape": [2], "strides": [2], "pads": [1, 1], "ceil_mode": 1})
"""A window of which ONNX's inference finds one more row than there is, below opset 22."""


def test_shape_of_pooled_image_folds_to_what_runs() -> None:
    """Also behind pooling of pooled images."""
    text = """<ir_version: 9, opset_import: ["" : 12]>
    g (float[2, 3, 5] x) => (int64[s] y) {
        a = MaxPool <kernel_shape = [2], strides = [2], pads = [1, 1], ceil_mode = 1> (x)
        b = AveragePool <kernel_shape = [2], strides = [2], pads = [1, 1], ceil_mode = 1> (a)
        y = Shape (b)
    }"""
    proto = onnx.parser.parse_model(text)
    expected = unoptimized(proto).run(None, {"x": np.zeros((2, 3, 5), np.float32)})[0]
    read = from_proto(proto)
    for step in simplify_pipeline():
        step.run(read)
    constant = read.constant(read.graph.outputs[0])
    assert constant is not None
    np.testing.assert_array_equal(constant.numpy(), expected)


def test_declaration_that_repeats_the_mistake_is_corrected() -> None:
    right = runtime_shape("MaxPool", 12, WRONG)
    inferred = onnx.shape_inference.infer_shapes(model("MaxPool", 12, WRONG))
    wrong = [d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim]
    assert wrong == [2, 3, right[2] + 1]
    read = from_proto(model("MaxPool", 12, WRONG, wrong))
    check_declarations(read)
    assert read.graph.outputs[0].shape == right


ODD: dict[str, list[Any]] = {
    "kernel_shape": [[], [3, 3], [0], [-1], [2**62], 2, "x"],
    "strides": [[], [1, 1], [0], [-1], [2**62]],
    "dilations": [[], [2] * 4, [0], [-1], [2**62], 2.5],
    "pads": [[], [1], [0] * 4, ["x", "y"], [-9, -9], [2**62, 2**62]],
    "auto_pad": ["SAME_UPPER", "SAMEUPPER", b"\xff", [1]],
    "ceil_mode": [1, -1, 2**62, "x"],
}


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "LpPool"])
def test_attributes_that_do_not_fit_are_the_models_mistake(op_type: str) -> None:
    """Whatever they are, inference ends with an error of the model or finds no shape."""
    usual = {"kernel_shape": [2], "strides": [2], "dilations": [2]}
    pairs = [(name, value) for name, values in ODD.items() for value in values]
    for changes in random.Random(op_type).sample(list(itertools.combinations(pairs, 2)), 60):
        for declared in (None, [2, 3, 2]):
            proto = model(op_type, 18, (5, usual), declared)
            node = proto.graph.node[0]
            for name, value in changes:
                kept = [a for a in node.attribute if a.name != name]
                del node.attribute[:]
                node.attribute.extend(kept)
                kind = None if value else onnx.AttributeProto.INTS
                node.attribute.append(helper.make_attribute(name, value, attr_type=kind))
            with contextlib.suppress(ModelError):
                read = from_proto(proto)
                infer_shapes(read)
                infer_node(read, read.graph.nodes[0])
