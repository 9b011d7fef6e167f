"""Operators of ONNX Runtime's own domain: compiled, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.definitions import DEFINITIONS
from secateur.backends.tvm.lowering.loops import RULES as LOOPS
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import UnsupportedError
from secateur.ir.onnx_io import from_proto

from .graphs import feeds, reference
from .test_definitions import GROUPS

X, V, IMAGE = (2, 3, 8), (8,), (1, 3, 8, 8)
CASES: list[tuple[str, list[Any], list[int], dict[str, Any]]] = [
    ("Gelu", [X], [0], {}),
    ("BiasGelu", [X, V], [0], {}),
    ("FastGelu", [X], [0], {}),
    ("FastGelu", [X, V], [0], {}),
    ("QuickGelu", [X], [0], {}),
    ("QuickGelu", [X], [0], {"alpha": 0.5}),
    ("FusedMatMul", [X, (2, 8, 4)], [0], {"alpha": 0.25}),
    ("FusedMatMul", [(2, 8, 3), (2, 4, 8)], [0], {"transA": 1, "transB": 1}),
    ("FusedConv", [IMAGE, (4, 3, 3, 3)], [0], {}),
    ("FusedConv", [IMAGE, (4, 3, 3, 3), (4,)], [0], {"pads": [1] * 4, "activation": "Relu"}),
    (
        "FusedConv",
        [IMAGE, (3, 1, 3, 3), (3,), (1, 3, 3, 3)],
        [0],
        {"strides": [2, 2], "group": 3, "activation": "LeakyRelu", "activation_params": [0.3]},
    ),
    (
        "FusedConv",
        [IMAGE, (4, 3, 1, 1)],
        [0],
        {"activation": "Clip", "activation_params": [-0.1, 0.2]},
    ),
    (
        "FusedConv",
        [IMAGE, (4, 3, 1, 1)],
        [0],
        {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
    ),
    ("FusedGemm", [(2, 8), (8, 4), (4,)], [0], {"alpha": 0.5, "activation": "Tanh"}),
    ("FusedGemm", [(8, 2), (4, 8)], [0], {"transA": 1, "transB": 1, "activation": "Sigmoid"}),
    (
        "FusedGemm",
        [(2, 8), (8, 4), (4,)],
        [0],
        {"beta": 2.0, "activation": "LeakyRelu", "activation_alpha": 0.2},
    ),
    ("SkipLayerNormalization", [X, X, V], [0], {}),
    ("SkipLayerNormalization", [X, X, V, V, V], [0, 3], {"epsilon": 0.1}),
    ("SkipSimplifiedLayerNormalization", [X, X, V], [0], {"epsilon": 1e-5}),
    ("SkipSimplifiedLayerNormalization", [X, X, V, V], [0, 3], {}),
    ("SimplifiedLayerNormalization", [X, V], [0], {"epsilon": 0.1}),
    ("Inverse", [(3, 3)], [0], {}),
    ("Inverse", [(2, 5, 7, 7)], [0], {}),
    ("Inverse", [(4, 1, 1)], [0], {}),
    ("SimplifiedLayerNormalization", [X, (3, 8)], [0], {"axis": 1}),
]

STANDARD_DOMAIN = {"SimplifiedLayerNormalization"}
"""Operators of ONNX Runtime's that it has put into the standard's domain."""


def model(
    op_type: str, shapes: list[Any], outputs: list[int], attributes: dict[str, Any], opset: int = 17
) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(len(shapes))]
    results = [f"y{i}" if i in outputs else "" for i in range(max(outputs) + 1)]
    domain = "" if op_type in STANDARD_DOMAIN else "com.microsoft"
    node = helper.make_node(op_type, names, results, domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "contrib",
        [helper.make_tensor_value_info(n, 1, s) for n, s in zip(names, shapes, strict=True)],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in outputs],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize(("op_type", "shapes", "outputs", "attributes"), CASES)
def test_definitions(
    tmp_path: Path, op_type: str, shapes: list[Any], outputs: list[int], attributes: dict[str, Any]
) -> None:
    proto = model(op_type, shapes, outputs, attributes)
    compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")
    inputs = feeds(proto)
    found = Runtime(tmp_path / "m.so").run(inputs)
    for name, expected in reference(proto, inputs).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=2e-5, err_msg=name)


def test_every_definition_has_a_case() -> None:
    own = {name.removeprefix("com.microsoft::") for name in LOOPS if "::" in name}
    others = {case.op_type for group in GROUPS.values() for case in group()}
    defined = {name for _, name in DEFINITIONS} - {
        "Einsum",
        "MatMul",
        "TfIdfVectorizer",
        "TreeEnsemble",
        "ZipMap",
    }  # tests of their own, ONNX's cases
    internal = {name for name in own if name.startswith("secateur.internal")}
    assert {case[0] for case in CASES} | others == {*defined, *STANDARD_DOMAIN, *own} - internal


def test_an_activation_that_is_unknown_is_refused_by_name(tmp_path: Path) -> None:
    attributes = {"activation": "Softplus"}
    proto = model("FusedGemm", [(2, 8), (8, 4), (4,)], [0], attributes)
    with pytest.raises(UnsupportedError, match="activation 'Softplus'"):
        compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")


def test_the_rest_is_refused_by_name(tmp_path: Path) -> None:
    proto = model("Snpe", [(3, 3)], [0], {})
    with pytest.raises(UnsupportedError, match="Snpe"):
        compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")
