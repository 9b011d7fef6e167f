"""Sizes and values of random inputs: what the model can run with is found, or it is said."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import AttributeProto

from secateur.data.npz import DataError
from secateur.data.random_inputs import _numbers, describe_feeds, random_feed, random_feeds
from secateur.ir.graph import Attribute
from secateur.ir.reference import Session
from tests.passes.test_simplify_structure import parse

CASES = {
    "weights": (
        "(%x: float[n, k]) -> (%y: float[*]) { const %w: float[7, 2] = " + str([[1.0] * 2] * 7),
        "%y = MatMul(%x, %w)",
    ),
    "channels and window": (
        "(%x: float[n, c, h, w]) -> (%y: float[*]) { const %w: float[1, 5, 9, 9] = "
        + str([[[[0.5] * 9] * 9] * 5]),
        "%y = Conv(%x, %w)",
    ),
    "patches": (
        "(%x: float[n, t]) -> (%y: float[*]) { const %s: int64[3] = [0, -1, 14]",
        "%y = Reshape(%x, %s)",
    ),
    "hard-coded steps": (
        "(%x: float[n, t, 4]) -> (%y: float[*]) { const %s: int64[2] = [0, 44]",
        "%y = Reshape(%x, %s)",
    ),
    "skip connection": (
        "(%x: float[n, 1, h, w]) -> (%y: float[*]) {",
        """%d = MaxPool(%x) {kernel_shape = [3, 3], strides = [3, 3]}
        %r = Constant() {value = tensor float[4] = [1.0, 1.0, 3.0, 3.0]}
        %u = Resize(%d, _, %r)
        %y = Concat(%x, %u) {axis = 1}""",
    ),
    "batch that is no batch": (
        "(%x: float[n, m]) -> (%y: float[*]) { const %w: float[6] = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]",
        """%a = Add(%x, %w)
        %t = Transpose(%a)
        %y = Add(%t, %w)""",
    ),
    "two inputs of one size": (
        "(%x: float[n, t], %z: float[n, t]) -> (%y: float[*]) {",
        "%y = Add(%x, %z)",
    ),
    "expression": (
        '(%x: float[n, t], %z: float[n, "t + 3"]) -> (%y: float[*]) {',
        """%three = Constant() {value = tensor float[1, 3] = [[0.0, 0.0, 0.0]]}
        %s = Constant() {value = tensor int64[4] = [0, 0, 0, 3]}
        %p = Pad(%x, %s)
        %y = Add(%p, %z)""",
    ),
    "sample rate": (
        "(%x: float[2, 8], %sr: int64[]) -> (%y: float[*]) {",
        """%rate = Constant() {value_int = 48000}
        %e = Equal(%sr, %rate)
        %i = Cast(%e) {to = 7}
        %one = Constant() {value_ints = [1]}
        %j = Sub(%i, %one)
        %zero = Constant() {value_ints = [0]}
        %d = Unsqueeze(%j, %zero)
        %y = If(%e) {then_branch = graph a () -> (%a) {
            %a = Neg(%x)
          }, else_branch = graph b () -> (%b) {
            %two = Constant() {value_ints = [5, 5]}
            %b = Reshape(%x, %two)
          }}""",
    ),
    "unknown rank": (
        "(%x: float[*]) -> (%y: float[*]) {",
        "%y = MaxPool(%x) {kernel_shape = [3, 3]}",
    ),
    "strings": ("(%x: string[n]) -> (%y: string[n]) {", "%y = Identity(%x)"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_inputs_are_found_that_the_model_runs_with(name: str) -> None:
    header, nodes = CASES[name]
    model = parse(f"graph g {header}\n  {nodes}\n}}")
    feeds = random_feeds(model, seed=3)
    session = Session(model, optimize=False)
    for feed in feeds:
        session.run(feed)
    again = random_feeds(model, seed=3)
    assert describe_feeds(feeds) == describe_feeds(again)


def test_batches_and_sizes_differ_between_runs() -> None:
    model = parse("graph g (%x: float[n, 3, h]) -> (%y: float[n, 3, h]) {\n %y = Relu(%x)\n}")
    assert [f["x"].shape for f in random_feeds(model, 0)] == [(1, 3, 8), (3, 3, 8), (1, 3, 16)]
    assert describe_feeds(random_feeds(model, 0)) == "x 1x3x8; x 3x3x8; x 1x3x16"


def test_sizes_that_only_suit_one_run_are_not_changed() -> None:
    model = parse("""
graph g (%x: float[n, k]) -> (%y: float[*]) {
  const %s: int64[2] = [3, 5]
  %y = Reshape(%x, %s)
}""")
    assert [f["x"].shape for f in random_feeds(model, 0)] == [(1, 15)] or all(
        np.prod(f["x"].shape) == 15 for f in random_feeds(model, 0)
    )


def test_it_is_said_that_nothing_was_found() -> None:
    model = parse("""
graph g (%x: float[n, k]) -> (%y: float[*]) {
  const %v: float[7, 1] = [[1.0], [1.0], [1.0], [1.0], [1.0], [1.0], [1.0]]
  const %w: float[5, 1] = [[1.0], [1.0], [1.0], [1.0], [1.0]]
  %a = MatMul(%x, %v)
  %b = MatMul(%x, %w)
  %y = Add(%a, %b)
}""")
    with pytest.raises(DataError, match="no random inputs that the model runs with"):
        random_feed(model, seed=1)


def test_attributes_that_refer_to_a_function_are_no_numbers() -> None:
    """Though the node isn't one of a function, as a damaged file may have it."""
    model = parse("graph g (%x: float[1, 4, n, n]) -> (%y: float[*]) {\n %y = Relu(%x)\n}")
    before = _numbers(model)
    reference = AttributeProto(name="strides", type=AttributeProto.INTS, ref_attr_name="a")
    next(model.all_nodes()).attributes["strides"] = Attribute(reference)
    assert _numbers(model) == before


@pytest.mark.parametrize("kind", ["seq(float[2])", "?optional(float[2])"])
def test_inputs_that_are_no_tensors(kind: str) -> None:
    kind = kind.removeprefix("?")
    model = parse(f"graph g (%x: {kind}) -> (%y: {kind}) {{\n  %y = Identity(%x)\n}}")
    with pytest.raises(DataError, match="'x' is no tensor"):
        random_feed(model, seed=1)


def test_a_size_that_nothing_holds_is_refused() -> None:
    model = parse(f"graph g (%x: float[{2**40}, 4]) -> (%y: float[*]) {{\n  %y = Relu(%x)\n}}")
    with pytest.raises(DataError, match="too many for random data; --input-shape"):
        random_feed(model, seed=1)
