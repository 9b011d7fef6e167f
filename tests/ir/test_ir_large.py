"""Models over 2 GB: inspected, simplified and saved in a fraction of their size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

from secateur.ir.onnx_io import load

LIMIT = 500_000
"""Kilobytes that may be resident at most, clean pages of mapped files included (VmHWM)."""

SIDE = 1024

RUN = """
import sys
from secateur.cli import main
try:
    main(sys.argv[1:])
finally:
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print("peak", status["VmHWM"].split()[0], file=sys.stderr)
"""


class Weight(NamedTuple):
    name: str
    rows: int
    mark: int
    """Equal for equal weights: the first and the last element; all others are 0."""


def write_model(folder: Path, weights: list[Weight], nodes: list[NodeProto], dtype: int) -> Path:
    """A model whose weights, [rows, 1024], lie in one file with holes, which takes no disk."""
    initializers = []
    with open(folder / "weights.bin", "wb") as file:
        for name, rows, mark in weights:
            size, offset = rows * SIDE * 4, file.tell()
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[rows, SIDE])
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": "weights.bin", "offset": str(offset), "length": str(size)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
            initializers.append(tensor)
            end = np.float32(mark).tobytes()
            file.write(end)
            file.seek(offset + size - 4)
            file.write(end)
    shape = ["n", SIDE] if dtype == TensorProto.FLOAT else ["n"]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIDE])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def many(folder: Path) -> Path:
    """600 weights of 4 MB: one that nothing reads, two equal, one that folding transposes."""
    weights = [Weight(f"w{i}", SIDE, 5 if i == 4 else i) for i in range(600)]
    nodes = [helper.make_node("Transpose", ["w300"], ["w300_t"], perm=[1, 0])]
    last = "x"
    for i in range(600):
        if i == 10:
            continue
        name = "w300_t" if i == 300 else f"w{i}"
        nodes.append(helper.make_node("MatMul", [last, name], [f"h{i}"]))
        last = f"h{i}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    return write_model(folder, weights, nodes, TensorProto.FLOAT)


def one(folder: Path) -> Path:
    """A single table of 2.4 GB."""
    weights = [Weight("table", 600_000, 1), Weight("w", SIDE, 2)]
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"]),
        helper.make_node("Transpose", ["w"], ["w_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "w_t"], ["y"]),
    ]
    return write_model(folder, weights, nodes, TensorProto.INT64)


def twins(folder: Path) -> Path:
    """Two equal tables of 1.2 GB, which only reading all of them shows."""
    weights = [Weight("first", 300_000, 1), Weight("second", 300_000, 1)]
    nodes = [
        helper.make_node("Gather", ["first", "x"], ["a"]),
        helper.make_node("Gather", ["second", "x"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    return write_model(folder, weights, nodes, TensorProto.INT64)


def peak_of(*arguments: str) -> int:
    """Runs the command line; kilobytes that were resident at most."""
    process = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True
    )
    return int(process.stderr.rpartition("peak ")[2])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("make", "left"), [(many, {"w4", "w300_t"}), (one, {"table", "w_t"}), (twins, {"first"})]
)
def test_memory(make: object, left: set[str], tmp_path: Path) -> None:
    assert callable(make)
    source, target = make(tmp_path), tmp_path / "out.onnx"
    assert (tmp_path / "weights.bin").stat().st_size > 2.4e9
    assert peak_of("inspect", str(source)) < LIMIT
    assert peak_of("simplify", str(source), "-o", str(target)) < LIMIT
    model = load(target)
    assert left <= set(model.graph.initializers)
    assert not {"w5", "w10", "second"} & set(model.graph.initializers)
    for name in left:
        tensor = model.graph.initializers[name].const
        assert tensor is not None
        array = tensor.numpy()
        marks = {"w4": 5, "w300_t": 300, "table": 1, "w_t": 2, "first": 1}
        assert array[0, 0] == array[-1, -1] == marks[name]
        assert not array[1:-1].any()
    onnx.checker.check_model(str(target))
    (tmp_path / "out.onnx.data").unlink()
