"""What simplification knows of sizes, and what it does with that."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.passes.manager import OutputCheck, PassManager
from secateur.passes.simplify import Simplify
from tests.passes.test_simplify_structure import operators, parse, simplified


def test_broadcast_and_expand_of_symbolic_sizes() -> None:
    """PyTorch's expand: -1 keeps a size, by way of Equal and Where."""
    model = parse("""
graph g (%x: float[N, 1, K]) -> (%y: float[N, 1, K]) {
  const %given: int64[3] = [-1, 1, -1]
  const %three: int64[1] = [3]
  const %minus: int64[] = -1
  %ones = ConstantOfShape(%three) {value = tensor int64[1] = [1]}
  %negative = Mul(%ones, %minus)
  %same = Equal(%given, %negative)
  %target = Where(%same, %ones, %given)
  %e = Expand(%x, %target)
  %y = Relu(%e)
}""")
    assert operators(simplified(model)) == ["Relu"]


def test_sizes_multiply_and_divide() -> None:
    model = parse("""
graph g (%x: float[N, S, 12]) -> (%y: float[M, 12]) {
  const %i0: int64[] = 0
  const %i1: int64[] = 1
  const %axis: int64[1] = [0]
  const %twelve: int64[1] = [12]
  %shape = Shape(%x)
  %n = Gather(%shape, %i0)
  %s = Gather(%shape, %i1)
  %product = Mul(%n, %s)
  %rows = Unsqueeze(%product, %axis)
  %target = Concat(%rows, %twelve) {axis = 0}
  %r = Reshape(%x, %target)
  %y = Relu(%r)
}""")
    small = simplified(model)
    assert operators(small) == ["Reshape", "Relu"]
    target = small.constant(small.graph.nodes[0].inputs[1])
    assert target is not None
    assert target.numpy().tolist() == [-1, 12]


def test_two_unknown_sizes_stay_computed() -> None:
    model = parse("""
graph g (%x: float[A, B], %z: float[C, D]) -> (%y: float[P, Q]) {
  %shape = Shape(%z)
  %y = Reshape(%x, %shape)
}""")
    small = simplified(model)
    assert operators(small) == ["Shape", "Reshape"]


def test_a_slice_that_may_cut_stays() -> None:
    model = parse("""
graph g (%x: float[N, 40], %w: float[K, 40]) -> (%y: float[M, 40]) {
  const %zero: int64[1] = [0]
  const %one: int64[1] = [1]
  const %first: int64[] = 0
  %shape = Shape(%w)
  %k = Gather(%shape, %first)
  %end = Unsqueeze(%k, %zero)
  %y = Slice(%x, %zero, %end, %zero, %one)
}""")
    assert "Slice" in operators(simplified(model, N=5, K=3))


def test_names_in_a_loop_mean_another_size_in_each_iteration() -> None:
    """The loop's state grows, though its body declares one name for its size."""
    model = parse("""
graph g (%x: float[1, 2], %count: int64[]) -> (%y: float[M, 2]) {
  const %go: bool[] = true
  %y = Loop(%count, %go, %x) {body = graph body (%i: int64[], %c: bool[], %s: float[N, 2])
      -> (%d: bool[], %t: float[N, 2]) {
      %d = Identity(%c)
      %t = Concat(%s, %s) {axis = 0}
    }}
}""")
    feeds = {"x": np.ones((1, 2), np.float32), "count": np.array(3)}
    PassManager([Simplify()], check=OutputCheck(feeds)).run(model)


UNKNOWN_RANK = """
graph g (%x: float[1, 3, 1, 1]) -> ({outputs}) {{
  const %count: int64[] = 1
  const %rows: int64[2] = [-1, 3]
  const %image: int64[4] = [0, -1, 1, 1]
  const %half: float[] = 0.5
  const %w: float[3, 3] = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
  const %v: float[3, 1] = [[1], [2], [3]]
  const %k: float[1, 3, 1, 1] = [[[[1]], [[2]], [[3]]]]
  %r = Loop(%count, _, %x) {{body = graph body (%i: int64[], %c: bool[], %s: float[*])
      -> (%d: bool[], %t: float[*]) {{
    %d = Identity(%c)
    %t = Add(%s, %s)
  }}}}
  {body}
}}"""
"""What comes behind the loop has a shape only when the Identity of a target has gone."""


@pytest.mark.parametrize(
    ("outputs", "body", "left"),
    [
        (
            "%y: float[?, ?], %z: float[?, ?]",
            """%same = Identity(%rows)
               %a = Reshape(%r, %same)
               %g = Gemm(%a, %w, %half)
               %b = Reshape(%g, %rows)
               %e = Div(%b, %half)
               %y = Reshape(%g, %rows)
               %z = MatMul(%e, %v)""",
            ["Loop", "Reshape", "Gemm", "MatMul"],
        ),
        (
            "%y: float[1, 1, 1, 1]",
            """%same = Identity(%image)
               %a = Reshape(%r, %same)
               %b = Conv(%a, %k)
               %y = Reshape(%b, %image)""",
            ["Loop", "Reshape", "Conv"],
        ),
    ],
    ids=["equal unknown sizes", "a size that an output declares"],
)
def test_sizes_that_rewriting_makes_known_are_used(
    outputs: str, body: str, left: list[str]
) -> None:
    model = parse(UNKNOWN_RANK.format(outputs=outputs, body=body), 8)
    assert operators(simplified(model)) == left
