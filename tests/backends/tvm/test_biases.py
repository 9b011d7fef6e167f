"""Gemm's bias in every shape that broadcasts, and operands whose shape goes with no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

from .graphs import reference

RANDOM = np.random.default_rng(1)
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (5,), (1, 1), (5, 1), (1, 5), (5, 5))


def test_gemm_with_biases_of_every_shape(tmp_path: Path) -> None:
    """As many rows as columns, weights and biases known or not."""
    nodes, inputs, constants = [], {"a": (5, 7), "w": (7, 5)}, {"c": (7, 5)}
    for weights in ("w", "c"):
        for i, shape in enumerate(SHAPES):
            for fixed in (False, True):
                name = f"{weights}{i}{fixed}"
                (constants if fixed else inputs)[f"b{name}"] = shape
                nodes.append(helper.make_node("Gemm", ["a", weights, f"b{name}"], [f"y{name}"]))
    values = {n: RANDOM.standard_normal(s).astype(np.float32) for n, s in constants.items()}
    graph = helper.make_graph(
        nodes,
        "biases",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, None) for n in nodes],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    feeds = {
        n: np.asarray(RANDOM.standard_normal(s), np.float32).reshape(s) for n, s in inputs.items()
    }
    compile_model(from_proto(model), parse_target("native"), tmp_path / "model.so")
    found = Runtime(tmp_path / "model.so").run(feeds)
    for name, array in reference(model, feeds).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("op_type", "shapes", "attributes"),
    [
        ("Conv", [(1, 3, 5, 5), (4, 3, 3, 3), (1,)], {}),
        ("Conv", [(1, 3, 5, 5), (4, 2, 3, 3)], {}),
        ("ConvTranspose", [(1, 3, 5, 5), (3, 4, 3, 3), (3,)], {}),
        ("BatchNormalization", [(1, 3, 4), (1,), (3,), (3,), (3,)], {}),
        ("InstanceNormalization", [(1, 3, 4), (3,), (1,)], {}),
        ("LayerNormalization", [(2, 4), (3,)], {}),
        ("PRelu", [(4,), (3, 4)], {}),
        ("Clip", [(4,), (2,)], {}),
        ("LSTM", [(3, 1, 2), (1, 16, 2), (1, 16, 4), (1, 16)], {"hidden_size": 4}),
        ("GRU", [(3, 1, 2), (1, 12, 2), (1, 12, 3)], {"hidden_size": 4}),
    ],
)
def test_operands_of_other_sizes_are_refused(
    op_type: str, shapes: Any, attributes: dict[str, Any]
) -> None:
    names = [f"x{i}" for i in range(len(shapes))]
    graph = helper.make_graph(
        [helper.make_node(op_type, names, ["y"], "odd", **attributes)],
        "operands",
        [helper.make_tensor_value_info(n, 1, s) for n, s in zip(names, shapes, strict=True)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(SecateurError, match="odd"):
        lower(from_proto(model), parse_target("native"))
