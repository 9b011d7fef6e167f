"""Operators as they were before opset 13, where attributes said what inputs say since."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.lowering.loops import RULES as LOOPS

from .joined import Part, compile_parts
from .test_every_operator import assert_close

Array = Any

RANDOM = np.random.default_rng(0)
NEWEST = 13


def floats(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


X = floats(2, 3, 4, 5)
POSITIVE = np.abs(floats(3)) + np.float32(0.5)
DISTINCT = RANDOM.permutation(60).reshape(3, 4, 5).astype(np.float32)
TIED = np.float32([[1, 3, 3, 2], [0, 0, 0, 0], [5, 1, 1, 5]])
INDICES = np.int64([[[0, 2], [1, -1]], [[1, 0], [0, -2]]])
BYTES = RANDOM.integers(0, 256, (2, 3, 4)).astype(np.uint8)


def ints(*values: int) -> Array:
    return np.int64(values)


def old(opset: int, op_type: str, *operands: Array, outputs: int = 1, **attributes: Any) -> Part:
    """One node on an input and constants, of which None is one that is left out."""
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(operands)]
    results = [f"y{i}" for i in range(outputs)]
    kind = helper.np_dtype_to_tensor_dtype(operands[0].dtype)
    graph = helper.make_graph(
        [helper.make_node(op_type, names, results, **attributes)],
        "old",
        [helper.make_tensor_value_info("x0", kind, operands[0].shape)],
        [helper.make_empty_tensor_value_info(name) for name in results],
        [numpy_helper.from_array(x, n) for x, n in zip(operands, names, strict=True) if n][1:],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    model = onnx.shape_inference.infer_shapes(model)
    said = " ".join(f"{n}={v}" for n, v in attributes.items())
    return Part(f"{op_type} of {opset} {outputs} {said}", model, {"x0": operands[0]})


BATCH_NORMALIZATION = (POSITIVE, POSITIVE - 1, POSITIVE / 2, POSITIVE)
SCALES = np.float32([1, 1, 2, 1.6])
"""Lengths without a fraction: with one ONNX Runtime isn't ONNX, see test_resize.py."""

PARTS = [
    *(
        old(11, op, x, keepdims=keep, axis=axis)
        for op in ("ArgMax", "ArgMin")
        for x, axis, keep in ((TIED, 1, 0), (TIED, -1, 1), (X, 0, 1))
    ),
    *(
        old(opset, "AveragePool", X, kernel_shape=[3, 2], strides=[2, 1], **more)
        for opset in (8, 10)
        for more in ({}, {"pads": [1, 0, 1, 1]}, {"pads": [1, 0, 1, 1], "count_include_pad": 1})
    ),
    old(10, "AveragePool", X, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    old(8, "BatchNormalization", X, *BATCH_NORMALIZATION, epsilon=0.1),
    old(8, "BatchNormalization", X, *BATCH_NORMALIZATION, spatial=1, momentum=0.5),
    old(12, "BatchNormalization", X, *BATCH_NORMALIZATION, epsilon=0.1),
    old(10, "Clip", X, min=-0.5, max=0.25),
    old(10, "Clip", X, min=-0.5),
    old(8, "Clip", X, max=0.25),
    old(10, "Clip", X),
    old(10, "DepthToSpace", floats(1, 8, 2, 3), blocksize=2),
    old(10, "DequantizeLinear", BYTES, np.float32(0.25), np.uint8(7)),
    old(12, "DequantizeLinear", BYTES, np.float32(0.25)),
    old(10, "Dropout", X, ratio=0.75),
    old(7, "Dropout", X, ratio=0.75),
    old(11, "GatherND", X, INDICES),
    old(10, "Gemm", floats(4, 3), floats(3, 5), floats(5), alpha=0.5, beta=2.0),
    old(10, "Gemm", floats(3, 4), floats(5, 3), floats(4, 1), transA=1, transB=1),
    *(
        old(opset, op, X, **more)
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for opset, more in ((12, {}), (12, {"axis": 2}), (12, {"axis": -1}), (8, {"axis": 0}))
    ),
    old(7, "MaxPool", X, kernel_shape=[2, 3], pads=[1, 1, 0, 1]),
    old(8, "MaxPool", X, kernel_shape=[2, 2], strides=[2, 2], outputs=2),
    old(8, "MaxPool", X, kernel_shape=[2, 2], outputs=2, storage_order=1),
    old(10, "MaxPool", X, kernel_shape=[2, 2], dilations=[2, 3], ceil_mode=1),
    old(10, "Pad", X, pads=[0, 1, 2, 0, 1, 0, 0, 3], value=0.5),
    old(8, "Pad", X, pads=[0, 0, 2, 1, 0, 0, 1, 3], mode="reflect"),
    old(10, "Pad", X, pads=[0, -1, 0, 1, 0, 0, -2, 0], mode="constant"),
    old(10, "QuantizeLinear", X, np.float32(0.05), np.uint8(128)),
    old(12, "QuantizeLinear", X, np.float32(0.05)),
    *(
        old(opset, "ReduceSum", X, keepdims=keep, **more)
        for opset, keep, more in ((12, 1, {}), (12, 0, {"axes": [1, -1]}), (8, 1, {"axes": [2]}))
    ),
    *(
        old(opset, op, X, keepdims=keep, axes=[1, 3])
        for op in ("ReduceMax", "ReduceMean", "ReduceL2", "ReduceProd", "ReduceLogSumExp")
        for opset, keep in ((12, 0), (8, 1))
    ),
    old(10, "Resize", X, SCALES, mode="nearest"),
    old(10, "Resize", X, SCALES, mode="linear"),
    *(
        old(12, "Resize", X, np.float32([]), SCALES, mode=mode, **more)
        for mode, more in (
            ("nearest", {"nearest_mode": "ceil"}),
            ("linear", {"coordinate_transformation_mode": "align_corners"}),
            ("cubic", {"cubic_coeff_a": -0.5}),
            ("nearest", {"coordinate_transformation_mode": "tf_half_pixel_for_nn"}),
        )
    ),
    old(8, "Slice", X, starts=[1, -3], ends=[3, 100], axes=[1, 3]),
    old(8, "Slice", X, starts=[0, 1], ends=[-1, 2]),
    old(12, "Split", X, outputs=2, axis=2),
    old(12, "Split", X, outputs=3, axis=-1, split=[1, 3, 1]),
    old(8, "Split", X, outputs=2),
    old(12, "Squeeze", floats(1, 3, 1, 2), axes=[0, -2]),
    old(8, "Squeeze", floats(1, 3, 1, 2)),
    old(8, "TopK", DISTINCT, k=2, outputs=2),
    old(8, "TopK", DISTINCT, k=3, axis=1, outputs=2),
    old(10, "TopK", DISTINCT, ints(2), outputs=2),
    old(10, "TopK", DISTINCT, ints(3), axis=0, outputs=2),
    old(12, "Unsqueeze", X, axes=[0, -1]),
    old(8, "Unsqueeze", X, axes=[2, 4]),
    old(8, "Upsample", X, scales=SCALES, mode="nearest"),
    old(8, "Upsample", X, scales=SCALES, mode="linear"),
    old(8, "PRelu", X, floats(3, 1, 1)),
    old(8, "PRelu", X, floats(5)),
    old(7, "Add", X, floats(4, 5)),
    old(7, "Pow", np.abs(X), floats(5)),
    old(8, "Sum", X, X[:1], floats(5)),
    old(8, "Max", X, X[:1], floats(4, 1)),
    old(7, "Cast", X, to=7),
    old(8, "Expand", X[:, :1], ints(2, 3, 4, 5)),
    old(10, "ConvInteger", BYTES[None], RANDOM.integers(0, 9, (2, 2, 2, 2)).astype(np.uint8)),
    old(10, "MatMulInteger", BYTES, RANDOM.integers(0, 9, (4, 3)).astype(np.uint8), np.uint8(3)),
]


def forms(schema: onnx.defs.OpSchema) -> tuple[Any, ...]:
    """What a node of an operator's version may have."""
    attributes = {n: (a.required, str(a.default_value)) for n, a in schema.attributes.items()}
    return [(i.name, i.option) for i in schema.inputs], attributes


def test_every_old_form_is_here() -> None:
    """Of what opset 7 or a later one has, up to where it changed."""
    versions: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.name in LOOPS:
            versions.setdefault(schema.name, []).append(schema)
    seen = {(p.model.graph.node[0].op_type, p.model.opset_import[0].version) for p in PARTS}
    missing = []
    for name, schemas in versions.items():
        schemas.sort(key=lambda schema: schema.since_version)
        for before, new in itertools.pairwise(schemas):
            range_ = range(before.since_version, new.since_version)
            known = 7 < new.since_version <= NEWEST and forms(before) != forms(new)
            if known and not any((name, opset) in seen for opset in range_):
                missing.append(f"{name} of {before.since_version}")
    assert not missing


def test_old_versions_compute_what_they_did(tmp_path: Path) -> None:
    refused: dict[str, str] = {}
    done = []
    for joined in compile_parts(PARTS, tmp_path, len(PARTS), refused):
        found = joined.run({prefix: part.feeds for prefix, part in joined.parts.items()})
        for prefix, part in joined.parts.items():
            expected = part.reference(part.feeds)
            assert expected is not None, part.name
            for name, value in expected.items():
                assert_close(found[prefix][name], value, part.name, part.operators)
            done.append(part.name)
    assert not refused
    assert len(done) == len(PARTS)
