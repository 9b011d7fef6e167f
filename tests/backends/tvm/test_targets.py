"""Targets: those of files, and room on the device."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import onnx.parser
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.cpu_features import cpu_levels, required_flags
from secateur.backends.tvm.artifact.options import LibraryOptions
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_library, compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.targets import can_run_here, parse_target, targets
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

from .graphs import Net, feeds

BOARD = """
name = "board"
base = "aarch64"
description = "a board"
cpu = "cortex-a75"
extensions = ["dotprod"]
flash_bytes = 500000
ram_bytes = 100000
"""


def written(folder: Path, text: str) -> str:
    (folder / "board.toml").write_text(text, encoding="utf-8")
    return str(folder / "board.toml")


def test_a_file_adds_a_target(tmp_path: Path) -> None:
    board = parse_target(written(tmp_path, BOARD))
    assert (board.name, board.cpu, board.machine) == ("board", "cortex-a75", "aarch64")
    assert board.features == parse_target("aarch64").features | {"dotprod"}
    assert board.cpu_flags == {"asimd", "asimddp"}
    assert board.llvm()["mattr"] == ["+neon", "+dotprod"]
    assert (board.flash_bytes, board.ram_bytes) == (500000, 100000)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name = 3", "'name' is no str"),
        ("name = 'a'", "needs a 'name' and a 'base'"),
        ("name = 'a'\nbase = 'no such'", "unknown target 'no such'"),
        ("name = 'a'\nbase = 'b.toml'", "no file"),
        ("name = 'a b'\nbase = 'aarch64'", "'name' may have"),
        ("name = 'a'\nbase = 'aarch64'\ncpu = '\\u001b'", "'cpu' may have"),
        ("name = 'aarch64'\nbase = 'aarch64'", "name of a known target"),
        ("name = 'a'\nbase = 'aarch64'\nextensions = ['avx']", "no extension of aarch64"),
        ("name = 'a'\nbase = 'aarch64'\nextensions = [1]", "are no names"),
        ("name = 'a'\nbase = 'aarch64'\nram_bytes = 0", "must be above 0"),
        ("name = 'a'\nbase = 'aarch64'\nram_bytes = true", "is no int"),
        ("name = 'a'\nbase = 'aarch64'\nflash = 1", "unknown key 'flash'"),
        ("name =", "no TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(SecateurError, match=reason) as caught:
        parse_target(written(tmp_path, text))
    assert str(caught.value).isprintable()
    with pytest.raises(SecateurError, match="No such file"):
        parse_target(str(tmp_path / "absent.toml"))


def test_a_model_that_is_too_large_is_refused(tmp_path: Path) -> None:
    net = Net(None, 0)
    model = from_proto(net.model({"x": (1, 64)}, [net.node("MatMul", "x", net.weight(64, 512))]))
    native = dataclasses.replace(parse_target("native"), name="board")
    roomy = dataclasses.replace(native, flash_bytes=1 << 20, ram_bytes=1 << 20)
    compile_model(model, roomy, tmp_path / "m.so")
    assert Runtime(tmp_path / "m.so").target == "board"
    small = dataclasses.replace(native, flash_bytes=100_000)
    for folder, make in (
        ("a", lambda path: compile_model(model, small, path / "m.so")),
        ("b", lambda path: compile_library(model, small, path, LibraryOptions("net"))),
    ):
        (tmp_path / folder).mkdir()
        with pytest.raises(SecateurError, match="board has 100,000 bytes of flash"):
            make(tmp_path / folder)
    assert not list((tmp_path / "a").iterdir())


def test_a_run_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    net = Net(None, 0)
    value = net.node("Conv", "x", net.weight(8, 3, 3, 3), pads=[1, 1, 1, 1])
    value = net.node("Conv", value, net.weight(8, 8, 3, 3), pads=[1, 1, 1, 1])
    model = from_proto(net.model({"x": (1, 3, 20, 20)}, [value]))
    board = dataclasses.replace(parse_target("native"), name="board", ram_bytes=10_000)
    with pytest.raises(SecateurError, match="besides inputs and outputs, and board has 10,000"):
        compile_model(model, board, tmp_path / "m.so")
    assert not list(tmp_path.iterdir())


def test_room_for_open_sizes(tmp_path: Path) -> None:
    """By the largest ones that are admitted, and without such bounds none is promised."""
    text = """<ir_version: 9, opset_import: ["": 18]>
    agraph (float[1, n, 8] x) => (float[1, 8, n] y) {
        a = Softmax(x)
        b = Transpose <perm = [0, 2, 1]> (a)
        y = Softmax(b)
    }"""
    model = from_proto(onnx.parser.parse_model(text))
    board = dataclasses.replace(parse_target("native"), name="board", ram_bytes=100_000)
    with pytest.raises(SecateurError, match=r"a run may take any amount: --size n=1\.\.N"):
        compile_model(model, board, tmp_path / "m.so")
    with pytest.raises(SecateurError, match=r"a run takes up to [0-9,]+ bytes besides inputs"):
        compile_model(model, board, tmp_path / "m.so", sizes=read_admitted(["n=1..4000"]))
    assert not list(tmp_path.iterdir())
    compile_model(model, board, tmp_path / "m.so", sizes=read_admitted(["n=1..64"]))
    assert Runtime(tmp_path / "m.so").inputs["x"][1] == (1, "n", 8)


def test_every_target_can_be_checked_for() -> None:
    for target in targets().values():
        assert cpu_levels([target]).endswith("};")
        assert can_run_here(target) in (True, False)


@pytest.mark.parametrize("name", targets())
def test_flags_cover_all_that_llvm_may_use_for_a_cpu(name: str) -> None:
    """A CPU that has the flags runs the code: LLVM knows more of a CPU than kernels choose by."""
    target = parse_target(name)
    assert required_flags(target) == target.cpu_flags


def test_flags_of_a_cpu_that_a_file_names_come_from_llvm(tmp_path: Path) -> None:
    text = "name = 'a'\nbase = 'x86-64-v3'\ncpu = 'sapphirerapids'"
    target = parse_target(written(tmp_path, text))
    assert required_flags(target) > target.cpu_flags | {"gfni", "avx512_fp16", "avx_vnni"}
    row = cpu_levels([target]).splitlines()[-2].strip(" {},").split(", ")
    assert row[3:5] == ["0x800000u", "0x30u"]


def test_artifacts_say_what_they_need(tmp_path: Path) -> None:
    net = Net(None, 0)
    proto = net.model({"x": (2, 8)}, [net.node("Relu", "x")])
    native = parse_target("native")
    absent = dataclasses.replace(native, cpu_flags=native.cpu_flags | {"fpa11"})
    compile_model(from_proto(proto), absent, tmp_path / "m.so")
    with pytest.raises(SecateurError, match="this machine's CPU lacks fpa11"):
        Runtime(tmp_path / "m.so")
    compile_model(from_proto(proto), native, tmp_path / "m.so")
    assert Runtime(tmp_path / "m.so").run(feeds(proto))
