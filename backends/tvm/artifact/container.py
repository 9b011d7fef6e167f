"""Artifacts of several parts: what TVM compiles, and what is left to ONNX Runtime.

A container is a ZIP file, without compression, of a manifest, shared objects and ONNX
models. Running it needs the package onnxruntime.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ....ir.errors import SecateurError
from ....ir.onnx_io import load
from ....ir.scratch import scratch_folder
from ....ir.tensor import Array

if TYPE_CHECKING:
    from ....ir.reference import Session

MANIFEST = "manifest.json"
MAGIC = b"PK\x03\x04"
_NO_DATE = (1980, 1, 1, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class PartFile:
    """One part: its file's name, and what it reads and defines, by value names.

    `compiled` parts are shared objects, the others ONNX models.
    """

    file: str
    compiled: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def is_container(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def write_container(
    path: Path, metadata: Mapping[str, Any], parts: Sequence[PartFile], folder: Path
) -> None:
    """Write the parts, in the order in which they run, and every other file of `folder`.

    Equal files make equal containers.
    """
    manifest = {**metadata, "parts": [dataclasses.asdict(p) for p in parts]}
    with zipfile.ZipFile(path, "w") as archive:
        text = json.dumps(manifest, indent=1)
        archive.writestr(zipfile.ZipInfo(MANIFEST, _NO_DATE), text)
        for source in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(source.name, _NO_DATE)
            with source.open("rb") as file, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(file, target, 1 << 20)


class _Runner(Protocol):
    """A part that is ready to run."""

    def run(self, feeds: Mapping[str, Array], /) -> dict[str, Array]: ...


class Compiled(_Runner, Protocol):
    """A part that is an artifact; `level` is the target whose code is run."""

    @property
    def level(self) -> str: ...


class Container:
    """A container ready to run. `metadata` is its manifest, `level` the target whose code is run.

    `open_compiled` opens the parts that are compiled.
    """

    def __init__(self, path: Path, open_compiled: Callable[[Path], Compiled], threads: int) -> None:
        self._path, self._open_compiled, self._threads = path, open_compiled, threads
        self._stamp = _stamp(path)
        self._open()

    def invoke(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on arrays of the right types and shapes."""
        if self._process != os.getpid():  # ONNX Runtime's threads and locks bear no fork
            if _stamp(self._path) != self._stamp:
                raise SecateurError(
                    f"{self._path}: replaced since it was opened, before this process forked"
                )
            self._open()
        values = dict(feeds)
        for part, runner in self._parts:
            values.update(runner.run({name: values[name] for name in part.inputs}))
        return {o["name"]: values[o["name"]] for o in self.metadata["outputs"]}

    def _open(self) -> None:
        with zipfile.ZipFile(self._path) as archive, scratch_folder() as folder:
            _extract(archive, self._stamp[1], folder)
            self.metadata, parts = _read_manifest(folder)
            self._parts: list[tuple[PartFile, _Runner]] = []
            self.level = ""
            for part in parts:
                file = folder / part.file
                if not file.is_file():
                    raise SecateurError(f"the part '{part.file}' is missing")
                if part.compiled:
                    compiled = self._open_compiled(file)
                    self.level = self.level or compiled.level
                    self._parts.append((part, compiled))
                else:
                    self._parts.append((part, _open_foreign(file, self._threads)))
        self.level = self.level or str(self.metadata["target"])
        self._process = os.getpid()


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _extract(archive: zipfile.ZipFile, size: int, folder: Path) -> None:
    """Write the files of a container into a folder: no more bytes than the container has."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if any(n in ("", ".", "..") or "/" in n or "\\" in n or "\0" in n for n in names):
        raise SecateurError("a container with files of other folders")
    if len(set(names)) < len(names):
        raise SecateurError("a container with two files of one name")
    stored = all(e.compress_type == zipfile.ZIP_STORED and not e.flag_bits & 1 for e in entries)
    if not stored or sum(entry.file_size for entry in entries) > size:
        raise SecateurError("a container that holds more than its size, or is compressed")
    for entry in entries:
        with archive.open(entry) as source, (folder / entry.filename).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)


def _read_manifest(folder: Path) -> tuple[dict[str, Any], list[PartFile]]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        parts = [
            PartFile(str(e["file"]), bool(e["compiled"]), tuple(e["inputs"]), tuple(e["outputs"]))
            for e in manifest["parts"]
        ]
        known = {entry["name"] for entry in manifest["inputs"]}
        for part in parts:
            if not known.issuperset(part.inputs) or Path(part.file).name != part.file:
                raise ValueError
            known.update(part.outputs)
        if not known.issuperset(entry["name"] for entry in manifest["outputs"]):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SecateurError("a container whose manifest is missing or malformed") from None
    return manifest, parts


def _open_foreign(path: Path, threads: int) -> _Runner:
    try:
        from ....ir.reference import Session
    except ImportError:
        raise SecateurError(
            "parts of this artifact are left to ONNX Runtime: install the package 'onnxruntime'"
        ) from None
    return _Foreign(Session(load(path), threads=threads))


class _Foreign:
    """A part that ONNX Runtime runs."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        results: dict[str, Array] = self._session.run(feeds)
        # A compiled part reads scalars as arrays, as ONNX Runtime gives them or not.
        return {k: v if isinstance(v, list) else np.asarray(v) for k, v in results.items()}
