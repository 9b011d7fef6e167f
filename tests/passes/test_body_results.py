"""Values of bodies as results of the nodes around them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

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


@pytest.mark.parametrize("results", ["", ", all"])
def test_results_that_a_loop_leaves_out_are_not_taken_for_others(results):
    model = from_proto(parser.parse_model(LOOP % results))
    value = surface(model, ["inside"])["inside"]
    model.graph.replace_outputs([value])
    feeds = {"x": np.array([1, -2], np.float32), "k": np.array(3)}
    (found,) = Session(model).run(feeds).values()
    np.testing.assert_array_equal(found, [[4, 16], [9, 36], [16, 64]])
