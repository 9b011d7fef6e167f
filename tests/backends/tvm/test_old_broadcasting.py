"""Operators of the sets before 7, whose second operand says where it lies in the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

Array = Any

FUNCTIONS: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
}
PLACES: list[tuple[tuple[int, ...], dict[str, int]]] = [
    ((3,), {"axis": 1}),
    ((3, 4), {"axis": 1}),
    ((4, 5), {}),
    ((2, 3), {"axis": 0}),
    ((3,), {"axis": -3}),
    ((1,), {}),
]
"""Shapes that lie in (2, 3, 4, 5), and where."""


@pytest.mark.parametrize("op_type", FUNCTIONS)
def test_an_operand_lies_at_its_axis(tmp_path: Path, op_type: str) -> None:
    """ONNX Runtime has none of these: NumPy says what they are."""
    random = np.random.default_rng(0)
    shape = (2, 3, 4, 5)
    x = random.uniform(0.5, 2, shape).astype(np.float32)
    feeds, nodes = {"x": x}, []
    for i, (inner, attributes) in enumerate(PLACES):
        feeds[f"b{i}"] = random.uniform(0.5, 2, inner).astype(np.float32)
        nodes.append(
            helper.make_node(op_type, ["x", f"b{i}"], [f"y{i}"], broadcast=1, **attributes)
        )
    graph = helper.make_graph(
        nodes,
        "old",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in feeds.items()],
        [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, shape) for n in nodes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=4)
    compile_model(from_proto(model), parse_target("native"), tmp_path / "model.so")
    found = Runtime(tmp_path / "model.so").run(feeds)
    for i, (inner, attributes) in enumerate(PLACES):
        axis = attributes.get("axis", len(shape) - len(inner)) % len(shape)
        second = feeds[f"b{i}"].reshape(*inner, *[1] * (len(shape) - axis - len(inner)))
        wanted = FUNCTIONS[op_type](x, second)
        np.testing.assert_allclose(found[f"y{i}"], wanted, rtol=1e-5, err_msg=str(inner))


def test_slopes_of_one_axis_are_those_of_channels(tmp_path: Path) -> None:
    """PRelu, of which channels are the second axis, or the only one there is."""
    random = np.random.default_rng(0)
    slopes = np.float32([0.1, 0.5, -2])
    feeds = {
        f"x{rank}": random.standard_normal(shape).astype(np.float32)
        for rank, shape in enumerate([(3,), (3, 3), (3, 3, 3), (2, 3, 4, 5)], 1)
    }
    nodes = [helper.make_node("PRelu", [name, "s"], [f"y{name}"]) for name in feeds]
    graph = helper.make_graph(
        nodes,
        "old",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in feeds.items()],
        [
            helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, a.shape)
            for n, a in feeds.items()
        ],
        [numpy_helper.from_array(slopes, "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=4)
    compile_model(from_proto(model), parse_target("native"), tmp_path / "model.so")
    found = Runtime(tmp_path / "model.so").run(feeds)
    for name, x in feeds.items():
        by_channel = slopes if x.ndim == 1 else slopes.reshape(-1, *[1] * (x.ndim - 2))
        np.testing.assert_allclose(found[f"y{name}"], np.where(x < 0, x * by_channel, x), rtol=1e-6)
