"""Long chains of elementwise operators: compiled in time that grows with them, and right.

TVM spells out what has a name, so that a chain doubles where each result is used twice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .joined import Part, compile_parts
from .test_small_graphs import case

STEPS = {
    "square": "Mul({x}, {x})",
    "silu": "Mul({x}, {s})\n  {s} = Sigmoid({x})",
    "line": "Add({x}, v0)",
    "line of ones": "Sin({x})",
    "both": "Add({x}, {s})\n  {s} = Tanh({x})",
    "choice": "Where({b}, {x}, v0)\n  {b} = Less({x}, v0)",
}


def chain(step: str, length: int, dtype: str) -> Part:
    lines = []
    for i in range(length):
        names = {"x": f"v{i}", "s": f"s{i}", "b": f"b{i}"}
        first, *others = STEPS[step].format(**names).split("\n")
        lines += [*others, f"  v{i + 1} = {first}"]
    body = "\n".join(lines)
    text = f"({dtype}[2, 9] v0) => ({dtype}[2, 9] v{length}) {{\n{body}\n}}"
    given = np.linspace(-1.1, 1, 18).reshape(2, 9)
    numpy_type = {"float": np.float32, "double": np.float64}.get(dtype, dtype)
    return case(text, v0=(given * (1 if "o" in dtype else 9)).astype(numpy_type))


def test_chains(tmp_path: Path) -> None:
    parts = [chain(step, 30, dtype) for dtype in ("float", "double") for step in STEPS]
    parts += [chain(step, 30, "int32") for step in ("square", "line", "choice")]
    parts += [chain(step, 300, "float") for step in ("square", "line")]
    for joined in compile_parts(parts, tmp_path):
        found = joined.run({prefix: part.feeds for prefix, part in joined.parts.items()})
        for prefix, part in joined.parts.items():
            expected = part.reference(part.feeds)
            assert expected is not None, part.name
            for name, array in expected.items():
                np.testing.assert_allclose(found[prefix][name], array, 1e-4, 1e-5)
