"""Architectures that the project writes itself, as ONNX files made on demand.

Tiny versions, exported each way, are kept in `data/` and need no torch:
`load_tiny("resnet50", "kept")`. Full-sized ones are written by
`python -m secateur.models.zoo --scale full -o DIR`, which needs torch.
"""

from __future__ import annotations

from pathlib import Path

from ...ir.errors import SecateurError
from ...ir.model import Model
from ...ir.onnx_io import load
from .inputs import random_inputs
from .registry import ZOO, Input, ZooModel

__all__ = [
    "ZOO",
    "Input",
    "ZooModel",
    "list_models",
    "load_tiny",
    "random_inputs",
    "tiny_path",
]

_DATA = Path(__file__).parent / "data"


def list_models() -> list[tuple[str, str]]:
    """(name, variant) of every tiny model that is there, in the registry's order."""
    found = (path.name.split(".")[:2] for path in _DATA.glob("*.onnx"))
    order = {name: index for index, name in enumerate(ZOO)}
    return sorted(((n, v) for n, v in found), key=lambda nv: (order[nv[0]], nv[1]))


def tiny_path(name: str, variant: str) -> Path:
    """The file of a tiny model. Raises SecateurError where there is none."""
    path = _DATA / f"{name}.{variant}.onnx"
    if not path.exists():
        raise SecateurError(
            f"no tiny model '{name}' exported as '{variant}'; see secateur.models.zoo.list_models()"
        )
    return path


def load_tiny(name: str, variant: str) -> Model:
    """A tiny model, read anew."""
    return load(tiny_path(name, variant))
