"""`secateur inspect` of what models become: nothing is loaded, whatever machine it is for."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

pytest.importorskip("tvm")

from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.checking.inspection import inspect_artifact
from secateur.cli import main
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

TEXT = """<ir_version: 9, opset_import: ["": 18]>
agraph (float[n, 4] x) => (float[n, 4] y) <float[4] w = {1, 2, 3, 4}> {
    a = Mul(x, w)
    y = Relu(a)
}"""


def built(folder: Path, target: str, text: str = TEXT, **options: bool) -> Path:
    model = from_proto(onnx.parser.parse_model(text))
    compile_model(model, parse_target(target), folder / "m.so", **options)
    return folder / "m.so"


@pytest.mark.parametrize(
    "target", ["x86-64-v3", "aarch64-cortex-a76", "armv7-a", "riscv64", "aarch64-android"]
)
def test_of_any_machine(tmp_path: Path, target: str) -> None:
    found = inspect_artifact(built(tmp_path, target))
    assert found is not None
    assert found["target"] == target
    (level,) = found["levels"]
    assert (level["target"], level["calls"]) == (target, 1)
    assert set(level["instructions"]) >= parse_target(target).cpu_flags
    assert found["inputs"] == [{"name": "x", "type": "float32", "shape": [1, 4], "batched": True}]


def test_levels_are_listed(tmp_path: Path) -> None:
    path = built(tmp_path, "x86-64-v2,x86-64-v3,icelake-server")
    said = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    levels = [level["target"] for level in json.loads(said.stdout)["levels"]]
    assert levels == ["icelake-server", "x86-64-v3", "x86-64-v2"]
    said = CliRunner().invoke(main, ["inspect", str(path)])
    assert "for icelake-server,x86-64-v3,x86-64-v2" in said.stdout
    assert "input x: float32 [1, 4], a batch" in said.stdout
    refused = CliRunner().invoke(main, ["inspect", str(path), "--details"])
    assert refused.exit_code == 2


def test_parts_are_listed(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 18]>
    agraph (float[2, 3] x) => (float[2, 3] z) {
        a = Tanh(x)
        text = Cast <to = 8> (a)
        z = Cast <to = 1> (text)
    }"""
    found = inspect_artifact(built(tmp_path, "x86-64-v2", text, fallback=True))
    assert found is not None
    assert {part["compiled"] for part in found["parts"]} == {True, False}


def test_other_files(tmp_path: Path) -> None:
    path = built(tmp_path, "x86-64-v2")
    content = path.read_bytes()
    other = tmp_path / "other.so"
    for damaged in (content[:4], content[:100], content[: len(content) // 2], b"PK\x03\x04"):
        other.write_bytes(damaged)
        with pytest.raises(SecateurError, match="damaged"):
            inspect_artifact(other)
    other.write_bytes(content.replace(b"secateur_metadata", b"secateur_metadatb"))
    with pytest.raises(SecateurError, match=r"NAME\.json"):
        inspect_artifact(other)
    other.write_bytes(onnx.parser.parse_model(TEXT).SerializeToString())
    assert inspect_artifact(other) is None
    with pytest.raises(SecateurError, match="No such file"):
        inspect_artifact(tmp_path / "absent")
