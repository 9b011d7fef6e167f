"""Equations of Einsum, against NumPy's reading of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from secateur.ir.einsum import is_letter, read_equation
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.ir.symbolic.analysis import SizeAnalysis


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[tuple[int, ...]]]:
    """An equation and the shapes of its operands; axes of an ellipsis may be 1 in some."""
    sizes = draw(st.fixed_dictionaries({c: st.integers(1, 4) for c in "aBcd"}))
    spread = draw(st.lists(st.integers(2, 3), max_size=2))
    dotted = draw(st.booleans())
    terms, shapes = [], []
    for _ in range(draw(st.integers(1, 3))):
        letters = draw(
            st.lists(st.sampled_from("aBcd"), min_size=1, max_size=4, unique=draw(st.booleans()))
        )
        shape = [sizes[c] for c in letters]
        if dotted and draw(st.booleans()):
            own = spread[draw(st.integers(0, len(spread))) :]
            own = [1 if draw(st.booleans()) else size for size in own]
            place = draw(st.integers(0, len(letters)))
            shape[place:place] = own
            letters.insert(place, "...")
        terms.append("".join(letters))
        shapes.append(tuple(shape))
    text = ",".join(terms)
    if draw(st.booleans()):
        given_ = sorted(set(text) - set(".,"))
        result = draw(st.lists(st.sampled_from(given_), unique=True)) if given_ else []
        text += "->" + "..." * ("..." in text) + "".join(result)
    return text, shapes


@settings(max_examples=200, deadline=None)
@given(equations())
def test_shapes_are_those_of_numpy(case: tuple[str, list[tuple[int, ...]]]) -> None:
    text, shapes = case
    right = np.einsum(text, *(np.zeros(shape) for shape in shapes)).shape
    names = [f"x{i}" for i in range(len(shapes))]
    graph = helper.make_graph(
        [helper.make_node("Einsum", names, ["y"], equation=text)],
        "g",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip(names, shapes, strict=True)
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    infer_shapes(model)
    SizeAnalysis(model).run()
    assert model.graph.outputs[0].shape == right


def test_axes_of_an_ellipsis_are_counted_from_the_last_one() -> None:
    equation = read_equation(" a ... , ... b -> ... b a", [3, 2])
    first, second = equation.operands
    assert first[2] == second[0]
    assert not is_letter(first[2])
    assert equation.result == first[1:] + "ba"


@pytest.mark.parametrize(
    ("text", "ranks", "said"),
    [
        ("ab,bc->ac", [2], "for 1 inputs"),
        ("ab,bc->ac", [2, 3], "input 1 has rank 3"),
        ("a...b,b->a", [1, 1], "input 0 has rank 1"),
        ("ab->abc", [2], "makes no result"),
        ("ab->aa", [2], "makes no result"),
        ("a1->a", [2], "makes no result"),
        ("a..b->a", [4], "makes no result"),
    ],
)
def test_equations_that_do_not_fit(text: str, ranks: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_equation(text, ranks)
