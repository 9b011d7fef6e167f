"""What is no regular file is refused at once, wherever a command takes a file."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from secateur.cli import main

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")

KINDS = ["fifo", "zero", "folder", "socket", "loop", "sparse", "missing"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    os.symlink("/dev/zero", "zero")
    os.mkdir("folder")
    os.symlink("loop", "loop")
    with open("sparse", "wb") as file:
        file.truncate(1 << 40)
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"], "add")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), "m.onnx")
    np.savez("data.npz", x=np.zeros((2, 3), np.float32))
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket")
        signal.alarm(60)  # where a command waits for ever
        yield tmp_path
        signal.alarm(0)


def fails(*arguments: str) -> str:
    before = sorted(Path().iterdir())
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "internal error" not in result.stderr
    assert sorted(Path().iterdir()) == before
    return result.stderr


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", KINDS)
def test_as_model_and_data(kind: str) -> None:
    for command in (
        ["inspect", kind],
        ["print", kind],
        ["verify", kind],
        ["simplify", kind, "-o", "out.onnx"],
        ["prune", kind, "-o", "out.onnx", "--ratio", "0.5"],
        ["quantize", kind, "-o", "out.onnx", "--calibration", "data.npz"],
        ["compare", "m.onnx", kind],
        ["compare", "m.onnx", "m.onnx", "--data", kind],
        ["benchmark", "m.onnx", "--data", kind],
        ["quantize", "m.onnx", "-o", "out.onnx", "--calibration", kind],
    ):
        assert kind in fails(*command)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", ["fifo", "zero", "folder", "socket", "loop"])
def test_as_output(kind: str) -> None:
    for name in (kind, f"{kind}/out.onnx"):
        if name == "folder/out.onnx":
            continue
        assert "can't write here" in fails("simplify", "m.onnx", "-o", name)
    os.rename(kind, "out.onnx.data")
    assert "can't write here" in fails("simplify", "m.onnx", "-o", "out.onnx")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", ["fifo", "zero", "socket", "loop"])
def test_as_output_folder_and_cache(kind: str) -> None:
    pytest.importorskip("tvm")
    target = ["--target", "x86-64-v3"]
    assert "can't write here" in fails("compile", "m.onnx", "-o", kind, *target)
    result = CliRunner().invoke(main, ["compile", "m.onnx", "-o", "o", *target, "--cache", kind])
    assert result.exit_code in (1, 2)  # what is there and no folder is wrong usage
    assert not Path("o").exists()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", ["fifo", "zero", "folder", "socket", "loop", "missing"])
def test_as_external_data(kind: str) -> None:
    model = onnx.load("m.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=kind)
    Path("m.onnx").write_bytes(model.SerializeToString())
    assert kind in fails("inspect", "m.onnx")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", KINDS)
def test_as_artifact(kind: str) -> None:
    pytest.importorskip("tvm")
    from secateur.backends.tvm.artifact.runtime import Runtime
    from secateur.ir.errors import SecateurError

    with pytest.raises(SecateurError, match=kind):
        Runtime(kind)
