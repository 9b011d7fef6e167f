"""What artifacts say of themselves, read without loading them: they may be for another machine."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....ir.errors import SecateurError
from ....ir.files import open_regular
from .container import MAGIC, MANIFEST
from .symbols import text_at

_ELF = b"\x7fELF"
_MOST_BYTES = 64 << 20
"""Of a manifest."""


def describe_artifact(path: Path) -> dict[str, Any] | None:
    """Target, levels, inputs and outputs of an artifact; None for files that are none.

    Raises SecateurError for damaged ones, and for shared objects that aren't artifacts.
    """
    try:
        with open_regular(path) as file:
            start = file.read(4)
    except OSError as error:
        raise SecateurError(f"{path}: {error.strerror or error}") from None
    if start not in (_ELF, MAGIC):
        return None
    try:
        text = _manifest(path) if start == MAGIC else text_at(path, "secateur_metadata")
        if text is None:
            raise SecateurError(
                f"{path}: no artifact; of a C library NAME.json beside it says what it is"
            )
        return _facts(path, json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, RecursionError):
        raise SecateurError(f"{path}: no artifact, or a damaged one") from None


def _manifest(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo(MANIFEST).file_size > _MOST_BYTES:
            raise ValueError
        return archive.read(MANIFEST)


def _facts(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    levels = metadata.get("levels", [metadata])
    return {
        "file": str(path),
        "file_bytes": path.stat().st_size,
        "target": str(metadata["target"]),
        "small": bool(metadata["small"]),
        "levels": [_level(level) for level in levels],
        "inputs": [_tensor(entry) for entry in metadata["inputs"]],
        "outputs": [_tensor(entry) for entry in metadata["outputs"]],
        "parts": [
            {"file": str(part["file"]), "compiled": bool(part["compiled"])}
            for part in metadata.get("parts", [])
        ],
    }


def _level(level: Mapping[str, Any]) -> dict[str, Any]:
    arena = level.get("arena_bytes")
    return {
        "target": str(level["target"]),
        "instructions": sorted(map(str, level["cpu_flags"])),
        "calls": len(level.get("calls", ())),
        "arena_bytes": None if arena is None else int(arena),
    }


def _tensor(entry: Mapping[str, Any]) -> dict[str, Any]:
    shape = entry["shape"]
    sizes = None if shape is None else [s if isinstance(s, (int, str)) else None for s in shape]
    return {
        "name": str(entry["name"]),
        "type": None if entry["dtype"] is None else str(entry["dtype"]),
        "shape": sizes,
        "batched": bool(entry["batched"]),
    }
