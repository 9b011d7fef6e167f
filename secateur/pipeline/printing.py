"""A file's model as text: whole, around one node, or what passes change in it."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..data.fixed_inputs import FixedInputs
from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.onnx_io import load
from ..ir.text import print_model, print_neighbourhood
from ..passes.dump import Dump
from ..passes.manager import PassManager
from ..passes.pipeline import parse_pipeline


def print_file(path: Path, max_elements: int | None, fixed: FixedInputs | None = None) -> str:
    """The whole model; constants of more elements are left out."""
    return print_model(_read(path, fixed), max_elements)


def print_difference(
    path: Path,
    passes: str,
    max_elements: int | None,
    dump: Path | None = None,
    fixed: FixedInputs | None = None,
) -> str:
    """The difference that a pipeline of passes makes; `dump` is for the text after each."""
    model = _read(path, fixed)
    before = print_model(model, max_elements)
    writer = None if dump is None else Dump(dump)
    PassManager(parse_pipeline(passes), dump=writer).run(model)
    after = print_model(model, max_elements)
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=2
    )
    return "".join(f"{line}\n" for line in lines)


def print_surroundings(path: Path, name: str, radius: int, fixed: FixedInputs | None = None) -> str:
    """What lies around the node, or the value, of a name. Raises SecateurError without one."""
    model = _read(path, fixed)
    for node in model.all_nodes():
        if name == node.name or any(v is not None and v.name == name for v in node.outputs):
            return print_neighbourhood(node, radius)
    raise SecateurError(f"the model has no node '{name}'{_hint(model, name)}")


def _read(path: Path, fixed: FixedInputs | None) -> Model:
    """The model as it is in its file, but for inputs that are fixed and outputs that are named."""
    model = load(path)
    for pass_ in (fixed or FixedInputs()).passes():
        pass_.run(model)
    return model


def _hint(model: Model, name: str) -> str:
    close = difflib.get_close_matches(name, [n.label for n in model.all_nodes()], n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
