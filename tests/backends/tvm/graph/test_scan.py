"""Scan of opset 8, whose operands have a batch, and sequences of parts that only a run sizes."""

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
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import UnsupportedError
from secateur.ir.onnx_io import from_proto

from ..graphs import reference

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def info(name: str, kind: int, *shape: int) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def scan(lengths: bool, **attributes: Any) -> onnx.ModelProto:
    """Sums and products of two sequences' rows, for each of two samples."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "a"], ["sum"]),
            helper.make_node("Mul", ["sum", "b"], ["row"]),
        ],
        "body",
        [info("state", FLOAT, 3), info("a", FLOAT, 3), info("b", FLOAT, 3)],
        [info("sum", FLOAT, 3), info("row", FLOAT, 3)],
    )
    node = helper.make_node(
        "Scan",
        ["lengths" if lengths else "", "s", "x", "y"],
        ["last", "rows"],
        body=body,
        num_scan_inputs=2,
        **attributes,
    )
    inputs = [info("s", FLOAT, 2, 3), info("x", FLOAT, 2, 4, 3), info("y", FLOAT, 2, 4, 3)]
    if lengths:
        inputs.insert(0, info("lengths", INT64, 2))
    outputs = [info("last", FLOAT, 2, 3), info("rows", FLOAT, 2, 4, 3)]
    graph = helper.make_graph([node], "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=3)


def compiled(proto: onnx.ModelProto, folder: Path) -> Runtime:
    compile_model(from_proto(proto), parse_target("native"), folder / "m.so")
    return Runtime(folder / "m.so")


@pytest.mark.parametrize("directions", [[0, 0], [1, 0], [1, 1]])
def test_scans_of_samples(directions: list[int], tmp_path: Path) -> None:
    proto = scan(False, directions=directions)
    random = np.random.default_rng(0)
    shapes = {"s": (2, 3), "x": (2, 4, 3), "y": (2, 4, 3)}
    feeds = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    found = compiled(proto, tmp_path).run(feeds)
    for name, expected in reference(proto, feeds).items():
        np.testing.assert_allclose(found[name], expected, 1e-6, err_msg=name)


def test_lengths_of_sequences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"\(Scan\).*lengths of sequences"):
        compiled(scan(True), tmp_path)


def test_how_many_parts_there_are_is_known_where_their_sizes_are_not(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x", "sizes"], ["parts"]),
        helper.make_node("SequenceLength", ["parts"], ["count"]),
    ]
    inputs = [info("x", FLOAT, 6), info("sizes", INT64, 3)]
    graph = helper.make_graph(nodes, "g", inputs, [info("count", INT64)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": np.zeros(6, np.float32), "sizes": np.int64([1, 2, 3])}
    assert compiled(proto, tmp_path).run(feeds)["count"] == reference(proto, feeds)["count"] == 3
