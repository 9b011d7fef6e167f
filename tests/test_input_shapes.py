"""Fixing the shapes of inputs."""

from __future__ import annotations

import pytest

from secateur.ir.errors import SecateurError
from secateur.models.zoo import load_tiny, random_inputs
from secateur.passes.manager import Check, PassManager
from secateur.passes.simplify import FixInputShapes, Simplify
from tests.test_simplify_structure import parse


def test_fixed_input_shapes_make_chains_constant() -> None:
    model = load_tiny("yolo", "kept")
    feeds = random_inputs(model)
    shapes = tuple((name, array.shape) for name, array in feeds.items())
    PassManager([FixInputShapes(shapes), Simplify()], check=Check(feeds, 1e-5)).run(model)
    assert "Shape" not in {n.op_type for n in model.all_nodes()}
    assert all(isinstance(s, int) for v in model.graph.outputs for s in v.shape or ())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((("z", (1,)),), "no input 'z'; its inputs are w, x"),
        ((("x", (1,)),), "'x' has 2 axes, the shape given has 1"),
        ((("x", (2, 5)),), "size 5 given for axis 1, which is 4"),
        ((("x", (2, 4)), ("w", (3,))), "3 given for axis 0, which is 'N', which is 2 elsewhere"),
        ((("x", (-1, 4)),), "can't be negative"),
    ],
)  # fmt: skip
def test_input_shapes_that_do_not_fit(shapes: tuple, message: str) -> None:
    model = parse("""
graph g (%x: float[N, 4], %w: float[N]) -> (%y: float[N, 4]) {
  %y = Relu(%x)
}""")
    with pytest.raises(SecateurError, match=message):
        FixInputShapes(shapes).run(model)
