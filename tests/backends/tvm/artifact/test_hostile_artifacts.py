"""Artifacts that are damaged, or made to harm: one clear error."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.container import MANIFEST
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

from ..graphs import Net

GOOD = {
    "version": 1,
    "target": "native",
    "batched": False,
    "inputs": [{"name": "x", "dtype": "float32", "shape": [1]}],
    "outputs": [{"name": "x", "dtype": "float32", "shape": [1]}],
    "parts": [],
}


def container(path: Path, members: dict[str, bytes], compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def manifest(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


PART = {"file": "0.so", "compiled": True, "inputs": ["x"], "outputs": ["y"]}


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"../m.so": b"", MANIFEST: manifest()}, "other folders"),
        ({"/m.so": b"", MANIFEST: manifest()}, "other folders"),
        ({"a/m.so": b"", MANIFEST: manifest()}, "other folders"),
        ({"..": b"", MANIFEST: manifest()}, "other folders"),
        ({"0.so": b""}, "manifest"),
        ({MANIFEST: b"{"}, "manifest"),
        ({MANIFEST: b"[" * 100_000}, "manifest"),
        ({MANIFEST: b"[]"}, "manifest"),
        ({MANIFEST: b"{}"}, "manifest"),
        ({MANIFEST: manifest(parts=[{}])}, "manifest"),
        ({MANIFEST: manifest(parts=[PART | {"file": "../0.so"}])}, "manifest"),
        ({MANIFEST: manifest(parts=[PART | {"inputs": ["z"]}])}, "manifest"),
        ({MANIFEST: manifest(outputs=[{"name": "z"}])}, "manifest"),
        ({MANIFEST: manifest(parts=[PART])}, "missing"),
        ({MANIFEST: manifest(parts=[PART]), "0.so": b"no object"}, "not a model compiled"),
        ({MANIFEST: manifest(parts=[PART | {"compiled": False}]), "0.so": b"x"}, "not an ONNX"),
    ],
)
def test_containers(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    path = container(tmp_path / "m.so", members)
    with pytest.raises(SecateurError, match=rf"m\.so: .*{said}"):
        Runtime(path)


def test_containers_do_not_unfold(tmp_path: Path) -> None:
    members = {MANIFEST: manifest(), "0.so": bytes(10**7)}
    with pytest.raises(SecateurError, match="compressed"):
        Runtime(container(tmp_path / "m.so", members, zipfile.ZIP_DEFLATED))


def test_damaged_objects(tmp_path: Path) -> None:
    net = Net(None, 0)
    proto = net.model({"x": (1, 8)}, [net.node("Relu", "x")])
    compile_model(from_proto(proto), parse_target("native"), tmp_path / "whole.so")
    whole = (tmp_path / "whole.so").read_bytes()
    path = tmp_path / "m.so"
    for content in (b"", b"\x7fELF", b"junk" * 100, whole[:64], whole[:100], b"\0" * len(whole)):
        path.write_bytes(content)
        with pytest.raises(SecateurError, match=r"m\.so: not a model compiled"):
            Runtime(path)
