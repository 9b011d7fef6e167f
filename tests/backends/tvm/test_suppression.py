"""NonMaxSuppression of boxes that overlap and of scores that are equal, as ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from ...onnx_runtime import session_of


def model_of(boxes: int, classes: int, most: int, overlap: float, least: float) -> onnx.ModelProto:
    limits = {"m": np.int64(most), "o": np.float32(overlap), "l": np.float32(least)}
    constants = [numpy_helper.from_array(np.array([n]), name) for name, n in limits.items()]
    centered = int(boxes % 2)
    node = helper.make_node(
        "NonMaxSuppression", ["b", "s", *limits], ["y"], center_point_box=centered
    )
    ends = {"b": [2, boxes, 4], "s": [2, classes, boxes]}
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ends.items()]
    kept = helper.make_tensor_value_info("y", TensorProto.INT64, None)
    graph = helper.make_graph([node], "g", given, [kept], constants)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


@pytest.mark.parametrize(
    ("boxes", "classes", "most", "overlap", "least"),
    [
        (1, 1, 3, 0.5, 0.25),
        (2, 2, 0, 0.5, 0.25),
        (30, 2, 100, 0.5, 0.25),
        (31, 3, 4, 0.0, -1.0),
        (257, 2, 1000, 0.9, 0.1),
        (256, 1, 20, 0.3, 0.5),
    ],
)
def test_boxes(
    boxes: int, classes: int, most: int, overlap: float, least: float, tmp_path: Path
) -> None:
    model = model_of(boxes, classes, most, overlap, least)
    compile_model(from_proto(model), parse_target("native"), tmp_path / "m.so")
    runtime, session = Runtime(tmp_path / "m.so"), session_of(model.SerializeToString())
    for seed in range(8):
        random = np.random.default_rng(seed)
        middle, half = random.random((2, boxes, 2)), 0.2 * random.random((2, boxes, 2))
        corners = np.concatenate([middle - half, middle + half], -1)
        scores = random.random((2, classes, boxes))
        if seed % 2:  # of which many are equal
            corners, scores = np.round(8 * corners) / 8, np.round(6 * scores) / 6
        if seed == 6:
            scores[:] = -3
        feeds = {"b": corners.astype(np.float32), "s": scores.astype(np.float32)}
        np.testing.assert_array_equal(runtime.run(feeds)["y"], session.run(None, feeds)[0])
