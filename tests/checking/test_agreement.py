"""The measure of agreement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.checking.agreement import Agreement, compare
from secateur.checking.rounding import Rounding
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session


class Fixed:
    """A runner that gives the same outputs whatever it is fed."""

    def __init__(self, **outputs: Any) -> None:
        self.outputs = {name: np.asarray(value) for name, value in outputs.items()}

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return self.outputs


def agreement(want: Any, have: Any) -> Agreement:
    return compare(Fixed(y=want), Fixed(y=have), [{}, {}])


def test_equal_outputs() -> None:
    assert agreement([1.0, np.nan, np.inf], [1.0, np.nan, np.inf]) == Agreement(2, 0.0, 0.0, 1.0)


def test_difference_is_relative_to_the_output() -> None:
    found = agreement([100.0, 1.0], [100.0, 2.0])
    assert found.max_difference == 1.0
    assert found.relative_difference == 0.01
    assert found.identical == 0.5
    assert found.within(0.01)
    assert not found.within(0.009)


def test_every_output_counts_by_its_own_magnitude() -> None:
    found = compare(Fixed(a=[1e6], b=[1.0]), Fixed(a=[1e6], b=[1.5]), [{}])
    assert found.relative_difference == 0.5


@pytest.mark.parametrize("have", [np.nan, np.inf, -np.inf])
def test_special_values_never_agree_with_numbers(have: float) -> None:
    assert agreement([1.0], [have]).relative_difference == np.inf
    assert agreement([have], [1.0]).relative_difference == np.inf


def test_any_difference_from_zero_is_infinite() -> None:
    assert agreement([0.0], [1e-9]).relative_difference == np.inf


@pytest.mark.parametrize(("want", "have"), [
    (np.arange(200), np.where(np.arange(200) == 7, 0, np.arange(200))),
    (np.zeros(100_000, bool), np.arange(100_000) == 5),
    (np.array(["a", "b"], object), np.array(["a", "c"], object)),
])  # fmt: skip
def test_no_discrete_element_may_differ(want: Any, have: Any) -> None:
    assert agreement(want, want).within(0.0)
    found = agreement(want, have)
    assert found.max_difference == 0
    assert found.identical_discrete == 1 - 1 / len(want)
    assert not found.within(1e-4)


def test_no_runs_are_no_agreement() -> None:
    assert not compare(Fixed(y=1.0), Fixed(y=1.0), []).within(1e-4)


def rounded(want: Any, have: Any, *draws: Any) -> Agreement:
    """The agreement where rounding makes the draws of the wanted output."""
    moved = [[{"y": np.asarray(draw)}] for draw in draws]
    rounding = Rounding([{"y": np.asarray(want)}], moved)
    return compare(Fixed(y=want), Fixed(y=have), [{}], rounding)


def test_discrete_elements_may_be_what_rounding_makes_of_them() -> None:
    assert rounded([3, 5], [3, 7], [3, 5], [3, 7]).within(0.0)
    assert not rounded([3, 5], [3, 6], [3, 5], [3, 7]).within(0.0)
    assert not rounded([3, 5], [7, 5], [3, 5], [3, 7]).within(0.0)
    assert not rounded([3, 5], [3, 7], [3, 5]).within(0.0)
    assert not rounded([3, 5], [3, 7], [7], [3, 7, 7]).within(0.0)  # of other shapes


def test_rounding_to_infinity_excuses_that_element_alone() -> None:
    """A distance of infinity would let everything pass."""
    inf = np.inf
    assert rounded([1.0, 2.0], [inf, 2.0], [inf, 2.0]).within(1e-6)
    assert not rounded([1.0, 2.0], [inf, 9.0], [inf, 2.0]).within(1e-6)
    assert not rounded([1.0, 2.0], [1.0, np.nan], [np.nan, 2.0]).within(1e-6)


def test_other_shapes_and_names_are_errors() -> None:
    with pytest.raises(SecateurError, match=r"'y'.*shapes"):
        agreement([1.0], [1.0, 2.0])
    with pytest.raises(SecateurError, match="outputs differ"):
        compare(Fixed(y=1.0), Fixed(z=1.0), [{}])


class Sequences:
    """A runner that gives one sequence of tensors."""

    def __init__(self, *tensors: Any) -> None:
        self.tensors = [np.asarray(tensor, np.float32) for tensor in tensors]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": self.tensors}


def test_sequences_are_compared_tensor_by_tensor() -> None:
    """Tensors of one sequence may have different shapes."""
    one = Sequences([0, 0], [1, 1, 1])
    assert compare(one, Sequences([0, 0], [1, 1, 1]), [{}]).identical == 1.0
    assert compare(one, Sequences([0, 0], [1, 1, 1.5]), [{}]).max_difference == 0.5
    with pytest.raises(SecateurError, match="sequences of 2 and 1 tensors"):
        compare(one, Sequences([0, 0]), [{}])


def test_rounding_moves_the_tensors_of_a_sequence() -> None:
    graph = helper.make_graph(
        [helper.make_node("SplitToSequence", ["x", "sizes"], ["y"])],
        "parts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.int64([1, 2]), "sizes")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    feeds = [{"x": np.float32([1, 2, 3])}]
    rounding = Rounding.of(model, feeds)
    assert {name: array.shape for name, array in rounding.exact[0].items()} == {
        "y[0]": (1,),
        "y[1]": (2,),
    }
    assert 0 < rounding.distance("y[1]") < 1e-4
    session = Session(model)
    assert compare(session, session, feeds, rounding).identical == 1.0
