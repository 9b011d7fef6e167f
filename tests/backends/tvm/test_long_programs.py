"""Long chains of elementwise operators: compiled in time that grows with them, and right.

TVM spells out what has a name, so that a chain doubles where each result is used twice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secateur.backends.tvm.emission.choices import Choices
from secateur.backends.tvm.emission.emit import emit
from secateur.backends.tvm.functions import mathematics
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.targets import parse_target
from secateur.ir.infer import infer_shapes
from tests.passes.test_simplify_structure import parse

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
    parts = [chain(step, 30, "float") for step in STEPS]
    parts += [chain(step, 16, "double") for step in STEPS]
    parts += [chain(step, 16, "int32") for step in ("square", "line", "choice")]
    parts += [chain(step, 300, "float") for step in ("square", "line")]
    for joined in compile_parts(parts, tmp_path):
        found = joined.run({prefix: part.feeds for prefix, part in joined.parts.items()})
        for prefix, part in joined.parts.items():
            expected = part.reference(part.feeds)
            assert expected is not None, part.name
            for name, array in expected.items():
                np.testing.assert_allclose(found[prefix][name], array, 1e-4, 1e-5)


WRITTEN_ONCE = {
    "transposition": """
graph g (%x: float[19, 23]) -> (%y: float[23, 19]) {
  %z = Transpose(%x) {perm = [1, 0]}
  %y = Log(%z)
}""",
    "image to blocks and back": """
graph g (%x: float[1, 16, 5, 24]) -> (%y: float[1, 16, 5, 24]) {
  %a = Log(%x)
  %b = MaxPool(%a) {kernel_shape = [1, 1]}
  %y = Log(%b)
}""",
    "convolution": """
graph g (%x: float[1, 16, 6, 24]) -> (%y: float[1, 16, 6, 24]) {
  const %w: float[16, 16, 1, 1] = WEIGHTS
  %a = Conv(%x, %w)
  %y = Log(%a)
}""",
}


@pytest.mark.parametrize("name", WRITTEN_ONCE)
def test_long_programs_are_written_once(name: str) -> None:
    """Not for every vector of a square or pixel of a tile: compilers take too long for that."""
    weights = str([[[[0.5]]] * 16] * 16)
    model = parse(WRITTEN_ONCE[name].replace("WEIGHTS", weights))
    infer_shapes(model)
    target = parse_target("x86-64-v4")
    emission = emit(lower(model, target), target, Choices(target))
    constant = f"{np.float32(mathematics._LOG[0]):.17g}"[:12]
    for kernel, function in emission.functions.items():
        assert function.script().count(constant) <= 4, kernel
