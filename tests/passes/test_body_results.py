"""Values of bodies as results of the nodes around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import parser

from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.passes.quantize.bodies import surface

LOOP = """<ir_version: 10, opset_import: ["" : 21]>
net (float[2] x, int64 k) => (float[2] y) {
  y%s = Loop <body = step (int64 i, bool go, float[2] a) => (bool on, float[2] c, float[2] d) {
    on = Identity (go)
    c = Add (a, x)
    inside = Mul (c, c)
    d = Neg (inside)
  }> (k, , x)
}
"""

SCAN = """<ir_version: 10, opset_import: ["" : 21]>
net (float[2] x, float[3, 2] rows) => (float[2] y) {
  y%s = Scan <num_scan_inputs = 1%s,
    body = step (float[2] a, float[2] row) => (float[2] c, float[2] d) {
    c = Add (a, row)
    inside = Mul (c, c)
    d = Neg (inside)
  }> (x, rows)
}
"""

IF = """<ir_version: 10, opset_import: ["" : 21]>
net (float[2] x, bool k) => (float[2] y) {
  y = If <then_branch = one () => (float[2] c) {
    inside = Mul (x, x)
    c = Neg (inside)
  }, else_branch = other () => (float[2] d) {
    d = Add (x, x)
  }> (k)
}
"""

X, ROWS = np.array([1, -2], np.float32), np.float32([[1, 2], [3, -4], [5, 7]])


def ran(text: str, feeds: dict[str, Any]) -> dict[str, Any]:
    """What the model gives, and its value `inside` under that name."""
    model: Model = from_proto(parser.parse_model(text))
    value = surface(model, ["inside"])["inside"]
    assert value.name == "inside"
    for node in model.graph.nodes:
        for index, result in enumerate(node.outputs):
            assert result is not None
            assert (result.producer, result.output_index) == (node, index)
    model.graph.replace_outputs([*model.graph.outputs, value])
    return Session(model).run(feeds)


@pytest.mark.parametrize("results", ["", ", all"])
def test_results_that_a_loop_leaves_out_are_not_taken_for_others(results: str) -> None:
    found = ran(LOOP % results, {"x": X, "k": np.array(3)})
    np.testing.assert_array_equal(found["inside"], [[4, 16], [9, 36], [16, 64]])
    np.testing.assert_array_equal(found["y"], 4 * X)


@pytest.mark.parametrize("results", ["", ", all"])
@pytest.mark.parametrize(
    "settings", ["", "scan_output_axes = [1]", "scan_output_directions = [1]", "both"]
)
def test_rows_of_a_scan_lie_in_the_order_of_its_turns(results: str, settings: str) -> None:
    """However its own results lie."""
    if settings == "both":
        settings = "scan_output_axes = [1], scan_output_directions = [1]"
    text = SCAN % (results, f", {settings}" if settings else "")
    found = ran(text, {"x": X, "rows": ROWS})
    sums = X + np.cumsum(ROWS, axis=0)
    np.testing.assert_array_equal(found["inside"], sums * sums)
    np.testing.assert_array_equal(found["y"], sums[-1])


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_that_is_not_taken_gives_nothing(taken: bool) -> None:
    found = ran(IF, {"x": X, "k": np.array(taken)})
    np.testing.assert_array_equal(found["inside"], X * X if taken else [])
    np.testing.assert_array_equal(found["y"], -X * X if taken else X + X)
