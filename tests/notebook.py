"""Notebooks, run without Jupyter: `python -m tests.notebook FILE...` writes what their cells give.

A cell's output is what it prints and its last expression, as HTML where that has `_repr_html_`.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook."""
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def outputs_of(cells: list[dict[str, Any]], folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Outputs of each cell of code, run one after the other in a folder."""
    names: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        for cell in cells:
            if cell["cell_type"] == "code":
                yield _outputs("".join(cell["source"]), names)
    finally:
        os.chdir(before)


def _outputs(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    found: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        found.append({"name": "stdout", "output_type": "stream", "text": text})
    if value is not None:
        data = {"text/plain": [re.sub(r"0x[0-9a-f]+", "0x...", f"{value!r:.400}")]}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = [value._repr_html_()]
        found.append({"data": data, "metadata": {}, "output_type": "execute_result"})
    return found


def write_outputs(path: Path) -> None:
    """Run a notebook in an empty folder, and write it with its outputs."""
    content = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        made = list(outputs_of(content["cells"], Path(folder)))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for number, (cell, found) in enumerate(zip(code, made, strict=True), 1):
        cell["execution_count"] = number
        cell["outputs"] = [
            {**output, "execution_count": number}
            if output["output_type"] == "execute_result"
            else output
            for output in found
        ]
    text = json.dumps(content, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_outputs(Path(name).resolve())
