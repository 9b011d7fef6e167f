"""If whose condition a run decides: both branches are computed, and one of them counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.ir.tensor import Array

HEAD = '<ir_version: 8, opset_import: ["": 17]> g '


def compiled(text: str, path: Path) -> Runtime:
    proto = onnx.parser.parse_model(HEAD + text)
    compile_model(from_proto(proto), parse_target("native"), path / "m.so")
    return Runtime(path / "m.so")


ERRORS = """({kind}[3] x, int64[2] i, bool{shape} c) => ({kind}[2] y) {{
  y = If (c) <then_branch = a () => ({kind}[2] p) {{ {body} }},
    else_branch = b () => ({kind}[2] q) {{ q = Identity (w) }}>
}}"""


@pytest.mark.parametrize("shape", ["", "[1]"])
@pytest.mark.parametrize(
    ("kind", "body", "good", "bad"),
    [
        ("float", "p = Gather (x, i)", [2, 0], [0, 7]),
        ("float", "p = GatherElements (x, i)", [2, -1], [0, -4]),
        ("int64", "s = Gather (x, z) p = Div (s, i)", [1, 2], [3, 0]),
    ],
)
def test_errors_count_in_the_branch_that_is_taken(
    tmp_path: Path, shape: str, kind: str, body: str, good: list[int], bad: list[int]
) -> None:
    text = ERRORS.format(kind=kind, shape=shape, body=body)
    head, rest = text.split(" {\n", 1)
    zero = "int64[2] z = {0, 1}"
    runtime = compiled(f"{head} <{kind}[2] w = {{7, 8}}, {zero}> {{\n{rest}", tmp_path)
    x: Array = np.array([10, 20, 30]).astype("float32" if kind == "float" else kind)

    def run(indices: list[int], taken: bool) -> Array:
        condition = np.array([taken] if shape else taken)
        return runtime.run({"x": x, "i": np.array(indices), "c": condition})["y"]

    at = x[good] if "Gather" in body and "Div" not in body else x[:2] // good
    np.testing.assert_array_equal(run(good, True), at)
    np.testing.assert_array_equal(run(good, False), [7, 8])
    np.testing.assert_array_equal(run(bad, False), [7, 8])
    with pytest.raises(SecateurError, match=r"index is out of range|divided by zero"):
        run(bad, True)


def test_a_branch_that_can_t_run_is_none(tmp_path: Path) -> None:
    """It looks up an element of nothing: a run that takes it fails, as in ONNX Runtime."""
    runtime = compiled(
        """(float[3] x, float[0] e, bool c) => (float y) <int64 zero = {0}> {
          y = If (c) <then_branch = a () => (float p) { p = Gather (e, zero) },
            else_branch = b () => (float q) { q = Gather (x, zero) }>
        }""",
        tmp_path,
    )
    x = np.float32([4, 5, 6])
    given = {"x": x, "e": x[:0]}
    assert runtime.run({**given, "c": np.array(False)})["y"] == 4
    with pytest.raises(SecateurError, match="isn't one that the model was compiled for"):
        runtime.run({**given, "c": np.array(True)})
