"""Artifacts of several parts: what TVM compiles, and what is left to ONNX Runtime.

A container is a ZIP file, without compression, of a manifest, shared objects and ONNX
models. Running it needs the package onnxruntime.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.errors import SecateurError
from ...ir.onnx_io import load

Array = Any

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


class Container:
    """A container ready to run. `metadata` is its manifest.

    `open_compiled` opens the parts that are compiled.
    """

    def __init__(self, path: Path, open_compiled: Callable[[Path], Any], threads: int) -> None:
        with (
            zipfile.ZipFile(path) as archive,
            tempfile.TemporaryDirectory(prefix="secateur-") as folder,
        ):
            names = archive.namelist()
            if any(Path(name).name != name for name in names):
                raise SecateurError(f"{path}: holds files of other folders")
            archive.extractall(folder)
            self.metadata: dict[str, Any] = json.loads(archive.read(MANIFEST))
            self._parts = []
            for entry in self.metadata["parts"]:
                part = PartFile(
                    entry["file"],
                    entry["compiled"],
                    tuple(entry["inputs"]),
                    tuple(entry["outputs"]),
                )
                file = Path(folder) / Path(part.file).name
                opened = open_compiled(file) if part.compiled else _open_foreign(file, threads)
                self._parts.append((part, opened))

    def invoke(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on arrays of the right types and shapes."""
        values = dict(feeds)
        for part, runner in self._parts:
            values.update(runner.run({name: values[name] for name in part.inputs}))
        return {o["name"]: values[o["name"]] for o in self.metadata["outputs"]}


def _open_foreign(path: Path, threads: int) -> Any:
    try:
        from ...passes.reference import Session
    except ImportError:
        raise SecateurError(
            "parts of this artifact are left to ONNX Runtime: install the package 'onnxruntime'"
        ) from None
    return _Foreign(Session(load(path), threads=threads))


class _Foreign:
    """A part that ONNX Runtime runs."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        results: dict[str, Array] = self._session.run(feeds)
        # A compiled part reads scalars as arrays, as ONNX Runtime gives them or not.
        return {k: v if isinstance(v, list) else np.asarray(v) for k, v in results.items()}
