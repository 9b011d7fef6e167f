"""Reshapes and transposes that cancel across pointwise operators."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.onnx_io import from_proto
from secateur.ir.verify import verify
from tests.passes.test_simplify_structure import operators, parse, simplified

SHUFFLE = """
graph g (%x: float[2, 12, 4, 4]) -> (%y: float[2, 12, 4, 4]) {{
  const %apart: int64[5] = [2, 3, 4, 4, 4]
  const %swapped: int64[5] = [2, 4, 3, 4, 4]
  const %whole: int64[4] = [2, 12, 4, 4]
  {constants}
  %a = Reshape(%x, %apart)
  %b = Transpose(%a) {{perm = [0, 2, 1, 3, 4]}}
  %c = Reshape(%b, %whole)
  {middle}
  %e = Reshape(%d, %swapped)
  %f = Transpose(%e) {{perm = [0, 2, 1, 3, 4]}}
  %y = Reshape(%f, %whole)
}}"""


@pytest.mark.parametrize(
    ("middle", "left"),
    [
        ("%d = Relu(%c)", ["Relu"]),
        ("%m = Neg(%c)\n  %d = Sigmoid(%m)", ["Neg", "Sigmoid"]),
        ("%d = Mul(%c, %scalar)", ["Mul"]),
        ("%d = Sub(%channels, %c)", ["Sub"]),
        ("%m = Div(%c, %full)\n  %d = Exp(%m)", ["Div", "Exp"]),
        ("%d = Pow(%c, %columns)", ["Pow"]),
        ("%m = Cast(%c) {to = 10}\n  %d = Cast(%m) {to = 1}", ["Cast", "Cast"]),
    ],
)
def test_a_shuffle_and_its_inverse_cancel(middle: str, left: list[str]) -> None:
    channels = [[[float(i)]] for i in range(12)]
    constants = f"""const %scalar: float[] = 3.0
  const %channels: float[12, 1, 1] = {channels}
  const %columns: float[4] = [1.0, 2.0, 3.0, 4.0]
  const %full: float[2, 12, 4, 4] = {(np.arange(384).reshape(2, 12, 4, 4) + 1.0).tolist()}"""
    model = simplified(parse(SHUFFLE.format(middle=middle, constants=constants)))
    assert operators(model) == left


def test_a_constant_that_spans_a_part_of_what_is_joined_stays() -> None:
    model = simplified(
        parse("""
graph g (%x: float[6, 4]) -> (%y: float[6, 4]) {
  const %apart: int64[3] = [2, 3, 4]
  const %whole: int64[2] = [6, 4]
  const %w: float[3, 1] = [[1.0], [2.0], [3.0]]
  %a = Reshape(%x, %apart)
  %b = Mul(%a, %w)
  %y = Reshape(%b, %whole)
}""")
    )
    assert operators(model) == ["Reshape", "Mul", "Reshape"]


def test_operands_reshaped_alike_are_joined_first() -> None:
    model = simplified(
        parse("""
graph g (%x: float[n, 6, 4], %z: float[n, 6, 4]) -> (%y: float[n, 24]) {
  const %s: int64[2] = [0, 24]
  %a = Reshape(%x, %s)
  %b = Reshape(%z, %s)
  %y = Add(%a, %b)
}""")
    )
    assert operators(model) == ["Add", "Reshape"]


def test_what_others_read_stays() -> None:
    model = simplified(
        parse("""
graph g (%x: float[6, 4]) -> (%y: float[6, 4], %c: float[24]) {
  const %flat: int64[1] = [24]
  const %whole: int64[2] = [6, 4]
  %a = Reshape(%x, %flat)
  %c = Relu(%a)
  %d = Neg(%c)
  %y = Reshape(%d, %whole)
}""")
    )
    assert operators(model).count("Reshape") == 2


SHAPES = [(2, 12, 4), (24, 4), (2, 3, 4, 4), (96,), (1, 8, 12), (4, 24, 1), (2, 1, 48), (6, 16)]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_chain_of_moves_and_pointwise_operators(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    nodes, constants = [], []
    shape: tuple[int, ...] = data.draw(st.sampled_from(SHAPES))
    first, name = shape, "x"
    for index in range(data.draw(st.integers(3, 10))):
        new = f"v{index}"
        kind = data.draw(st.sampled_from(["Reshape", "Reshape", "Transpose", "unary", "binary"]))
        if kind == "Reshape":
            shape = data.draw(st.sampled_from(SHAPES))
            constants.append(numpy_helper.from_array(np.array(shape, np.int64), f"s{index}"))
            nodes.append(helper.make_node("Reshape", [name, f"s{index}"], [new]))
        elif kind == "Transpose":
            order = data.draw(st.permutations(range(len(shape))))
            shape = tuple(shape[axis] for axis in order)
            nodes.append(helper.make_node("Transpose", [name], [new], perm=list(order)))
        elif kind == "unary":
            operator = data.draw(st.sampled_from(["Relu", "Neg", "Sigmoid", "Abs"]))
            nodes.append(helper.make_node(operator, [name], [new]))
        else:
            spans = [data.draw(st.booleans()) for _ in shape]
            sizes = [n if span else 1 for n, span in zip(shape, spans, strict=True)]
            sizes = sizes[data.draw(st.integers(0, len(sizes))) :]
            array = rng.standard_normal(sizes).astype(np.float32)
            constants.append(numpy_helper.from_array(array, f"c{index}"))
            operands = [name, f"c{index}"]
            if data.draw(st.booleans()):
                operands.reverse()
            nodes.append(
                helper.make_node(data.draw(st.sampled_from(["Add", "Mul", "Sub"])), operands, [new])
            )
        name = new
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, first)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        constants,
    )
    opsets = [helper.make_opsetid("", 17)]
    model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    verify(model)
    assert len(simplified(model).graph.nodes) <= len(model.graph.nodes)
