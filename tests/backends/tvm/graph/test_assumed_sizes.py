"""Inputs that give sizes, where declared results say what they must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.onnx_io import to_proto
from tests.backends.tvm.graphs import reference
from tests.passes.test_simplify_structure import parse

GRID = """
graph g (%size: int64[3], %x: float[1]) -> (%y: float[4, 6]) {
  %rows, %steps, %columns = Split(%size) {axis = 0}
  %shape = Concat(%rows, %columns) {axis = 0}
  %ones = ConstantOfShape(%shape)
  %length = Cast(%steps) {to = 1}
  %z = Add(%ones, %length)
  %y = Mul(%z, %x)
}"""
"""Of the three numbers, the declared result tells two; the other is the caller's."""

MIDDLE = """
graph g (%x: float[5, 8], %shape: int64[2]) -> (%y: float[3, 10]) {
  const %two: int64[1] = [2]
  %own = Shape(%x)
  %most = Max(%own, %shape)
  %missing = Sub(%most, %own)
  %left = Div(%missing, %two)
  %right = Sub(%missing, %left)
  %pads = Concat(%left, %right) {axis = 0}
  %padded = Pad(%x, %pads)
  %now = Shape(%padded)
  %more = Sub(%now, %shape)
  %start = Div(%more, %two)
  %end = Add(%start, %shape)
  %y = Slice(%padded, %start, %end)
}"""
"""What ONNX defines CenterCropPad as: no equation tells the sizes, the declared ones do."""

SCALAR = """
graph g (%count: int64[]) -> (%y: int64[5]) {
  const %zero: int64[] = 0
  const %one: int64[] = 1
  const %two: int64[] = 2
  %i = Range(%zero, %count, %one)
  %y = Mul(%i, %two)
}"""


def _compiled(text: str, folder: Path) -> tuple[Runtime, onnx.ModelProto]:
    model = parse(text)
    compile_model(model, parse_target("native"), folder / "m.so", declared_sizes=True)
    return Runtime(folder / "m.so"), to_proto(model)


@pytest.mark.parametrize(
    ("text", "name", "good", "bad"),
    [
        (GRID, "size", [[4, 1, 6], [4, 9, 6], [4, -2, 6]], [[6, 1, 4], [4, 1, 5]]),
        (MIDDLE, "shape", [[3, 10]], [[3, 9], [10, 3], [5, 8]]),
        (SCALAR, "count", [5], [4, 6, 0]),
    ],
)
def test_sizes_that_the_result_tells(
    text: str, name: str, good: list[Any], bad: list[Any], tmp_path: Path
) -> None:
    """Results are ONNX Runtime's for inputs that lead to the declared size; others fail."""
    runtime, proto = _compiled(text, tmp_path)
    x: dict[str, Any] = {}
    for value in proto.graph.input:
        if value.name == "x":
            shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
            x["x"] = np.random.default_rng(0).random(shape).astype(np.float32)
    for numbers in good:
        feeds = {**x, name: np.asarray(numbers, np.int64)}
        found = runtime.run(feeds)["y"]
        np.testing.assert_array_equal(found, reference(proto, feeds)["y"])
    for numbers in bad:
        with pytest.raises(SecateurError, match="compiled for"):
            runtime.run({**x, name: np.asarray(numbers, np.int64)})


def test_sizes_are_assumed_on_request_alone(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="--declared-sizes compiles"):
        compile_model(parse(MIDDLE), parse_target("native"), tmp_path / "m.so")


def test_a_declaration_that_no_input_leads_to_is_refused(tmp_path: Path) -> None:
    text = SCALAR.replace("%y: int64[5]", "%y: int64[5, 1]").replace(
        "%y = Mul(%i, %two)", "%j = Mul(%i, %two)\n  %s = Shape(%x)\n  %y = Reshape(%j, %s)"
    )
    text = text.replace("%count: int64[]", "%count: int64[], %x: float[3, 1]")
    with pytest.raises(SecateurError):
        _compiled(text, tmp_path)


def test_axes_are_the_callers(tmp_path: Path) -> None:
    """Several lead to the declared size: none of them is assumed."""
    text = """
graph g (%x: float[3, 4], %axes: int64[1]) -> (%y: float[3, 1]) {
  %a = Abs(%x)
  %s = ReduceSum(%a, %axes) {keepdims = 1}
  %y = Sqrt(%s)
}"""
    runtime, proto = _compiled(text, tmp_path)
    x = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    for axis in (1, -1):
        feeds = {"x": x, "axes": np.asarray([axis])}
        want = reference(proto, feeds)["y"]
        np.testing.assert_allclose(runtime.run(feeds)["y"], want, rtol=1e-6)
