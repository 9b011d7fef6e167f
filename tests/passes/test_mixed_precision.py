"""Operators in float for the sake of accuracy, and what rounding does at each operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.passes.base import Context
from secateur.passes.quantize import Quantize, QuantizeStatic, static
from secateur.passes.quantize.calibrate import calibrate
from secateur.passes.quantize.errors import operator_errors
from secateur.passes.quantize.mixed import fewest_left, sensitivities
from secateur.passes.samples import Samples
from tests.passes.test_equalization import node, sqnr
from tests.passes.test_quantize_accurate import IMAGES, network
from tests.passes.test_quantize_integer import build, random


def fragile() -> Model:
    """Three convolutions; the weights of the second have one value that outweighs the rest."""
    weights = random(2, 6, 6, 1, 1)
    weights[:, 0] = 400.0
    nodes = [
        node("Conv", "x a", "f"),
        node("Relu", "f", "g"),
        node("Mul", "g m", "h"),
        node("Conv", "h b", "i"),
        node("Relu", "i", "j"),
        node("Conv", "j c", "k"),
        node("GlobalAveragePool", "k", "l"),
        node("Flatten", "l", "y"),
    ]
    scale = np.ones((1, 6, 1, 1), np.float32)
    scale[0, 0] = 1 / 4000.0
    constants = {"a": random(1, 6, 3, 1, 1), "m": scale, "b": weights, "c": random(3, 5, 6, 1, 1)}
    return from_proto(build(nodes, constants, ["N", 3, 8, 8]))


def drop(model: Model, original: Model, feed: Any = IMAGES) -> float:
    """Share of samples with another highest score."""
    want, have = (Session(m).run({"x": feed})["y"] for m in (original, model))
    return float((want.argmax(1) != have.argmax(1)).mean())


def quantized(pass_: Quantize, model: Model, **context: Any) -> Any:
    return pass_.run(model, Context({"x": IMAGES}, **context))


def test_the_operator_that_costs_most_stays_float() -> None:
    model = fragile()
    plain = fragile()
    quantized(Quantize(accuracy="fast"), plain)
    assert drop(plain, fragile()) > 0.05
    result = quantized(Quantize(accuracy="fast", max_drop=0.05), model)
    found = result.statistics["max_drop"]
    assert drop(model, fragile()) <= 0.05
    assert found["lost"] <= 0.05 < found["without"]
    assert 1 <= found["left"] < found["of"]
    assert [n.node for n in result.notes if "loses too much" in n.reason] == ["i"]
    assert found["sensitivity"][0]["node"] == "i"
    assert result.statistics["quantized"]["Conv"] == 2


def test_nothing_stays_float_where_nothing_is_lost() -> None:
    result = quantized(Quantize(accuracy="fast", max_drop=1.0), fragile())
    assert result.statistics["max_drop"]["left"] == 0
    assert result.statistics["max_drop"]["sensitivity"] == []


def test_the_float_model_is_the_way_out() -> None:
    model = network()
    result = quantized(Quantize(max_drop=0.0), model, judge=judge_by_noise)
    found = result.statistics["max_drop"]
    assert (found["lost"], found["left"]) == (0.0, found["of"])
    assert 0 < found["least"]["lost"] < found["without"] * 1.01
    assert not result.changed
    assert not result.statistics["quantized"]
    expected = Session(network()).run({"x": IMAGES})["y"]
    np.testing.assert_array_equal(Session(model).run({"x": IMAGES})["y"], expected)


def test_the_way_out_is_the_model_as_it_was() -> None:
    """Channels are scaled for rounding; without rounding they stay."""
    equalized = fragile()
    pass_ = Quantize(accuracy="fast", equalize=True)
    assert quantized(pass_, equalized).statistics["equalized"]
    model = fragile()
    pass_ = Quantize(accuracy="fast", equalize=True, max_drop=0.0)
    assert not quantized(pass_, model, judge=judge_by_noise).changed
    assert set(model.graph.initializers) == set(fragile().graph.initializers)
    expected = Session(fragile()).run({"x": IMAGES})["y"]
    np.testing.assert_array_equal(Session(model).run({"x": IMAGES})["y"], expected)


def judge_by_noise(original: Model) -> Any:
    want = Session(original).run({"x": IMAGES})["y"]

    def judge(model: Model) -> float:
        found = Session(model).run({"x": IMAGES})["y"]
        return float(np.square(want - found).sum() / np.square(want).sum())

    return judge


@pytest.mark.parametrize("accuracy", ["fast", pytest.param("good", marks=pytest.mark.slow)])
def test_less_may_be_lost_with_more_operators_in_float(accuracy: str) -> None:
    left, before = [], -1
    start = quantized(Quantize(accuracy=accuracy, max_drop=1.0), network(), judge=judge_by_noise)
    without = start.statistics["max_drop"]["without"]
    for share in (1.0, 0.5, 0.1):
        model = network()
        pass_ = Quantize(accuracy=accuracy, max_drop=without * share)
        result = quantized(pass_, model, judge=judge_by_noise)
        found = result.statistics["max_drop"]
        assert judge_by_noise(network())(model) <= without * share
        assert found["left"] >= before
        before = found["left"]
        left.append(before)
    assert left[0] == 0
    assert left[-1] > 0


def test_ranges_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def counting(model: Model, values: Any, samples: Any, **options: Any) -> Any:
        seen.extend(value.name for value in values)
        return calibrate(model, values, samples, **options)

    monkeypatch.setattr(static, "calibrate", counting)
    result = quantized(Quantize(accuracy="fast", max_drop=0.0), network(), judge=judge_by_noise)
    assert len(result.statistics["max_drop"]["tried"]) > 3
    assert len(seen) == len(set(seen))


def test_ignored_operators_stay_so_within_a_limit() -> None:
    model = fragile()
    result = quantized(Quantize(accuracy="fast", max_drop=0.05, ignore=("k",)), model)
    reasons = {n.node: n.reason for n in result.notes}
    assert reasons["k"] == "kept float as asked"
    assert result.statistics["max_drop"]["of"] == 3


@pytest.mark.parametrize(
    ("bad", "most", "expected"),
    [
        ({3}, 0, {3}),
        ({0}, 0, {0}),
        ({0, 7}, 0, {0, 7}),
        ({0, 1, 2}, 1, {0, 1}),
        (set(range(10)), 0, set(range(10))),
        (set(), 0, set()),
    ],
)
def test_as_few_as_it_takes_are_left(bad: set[int], most: int, expected: set[int]) -> None:
    def judge(left: Any) -> float:
        return float(len(bad - set(left)))

    left, lost = fewest_left(range(10), judge, most, judge(()))
    assert len(left) == len(expected)
    assert len(bad - set(left)) == lost <= most


def test_rounding_of_an_operator_alone_and_of_all_before_it() -> None:
    model = network()
    pass_ = QuantizeStatic()
    result = pass_.run(model, Context({"x": IMAGES}))
    decision = result.artifacts["decision"]
    errors = operator_errors(decision, model, Samples(decision.model, {"x": IMAGES[:8]}))
    by_node = {e.node: e for e in errors}
    assert list(by_node) == [e.node for e in sorted(errors, key=lambda e: e.sqnr_db or 0)]
    assert {"a", "c", "i", "j", "k", "l", "o", "y"} <= set(by_node)
    last = by_node["y"]
    expected = Session(network()).run({"x": IMAGES[:8]})["y"]
    now = Session(model, optimize=False).run({"x": IMAGES[:8]})["y"]
    assert last.accumulated_sqnr_db == pytest.approx(sqnr(expected, now), abs=0.05)
    assert last.sqnr_db is not None
    assert last.sqnr_db > last.accumulated_sqnr_db + 1
    assert (last.step, last.clipped) == (None, None)
    first = by_node["a"]
    assert first.sqnr_db == pytest.approx(first.accumulated_sqnr_db, abs=1e-6)
    assert first.low == 0.0  # behind the Relu that is absorbed
    assert first.step is not None
    assert sum(first.histogram) == 8 * 6 * 64
    assert first.clipped == 0.0


def test_clipped_elements_are_counted() -> None:
    model = network()
    result = QuantizeStatic(calibrator="percentile:90").run(model, Context({"x": IMAGES}))
    decision = result.artifacts["decision"]
    errors = operator_errors(decision, model, Samples(decision.model, {"x": IMAGES[:8]}))
    clipped = {e.node: e.clipped for e in errors}
    assert clipped["a"] == pytest.approx(0.05, abs=0.02)


def test_an_operator_alone_is_ranked_by_what_outputs_lose() -> None:
    model = fragile()
    pass_ = QuantizeStatic()
    context = Context({"x": IMAGES})
    decision = pass_.run(model, context).artifacts["decision"]
    found = sensitivities(decision, context, **pass_.insertion)
    assert found[0].node == "i"
    assert found[0].sqnr_db is not None
    assert found[0].sqnr_db < found[1].sqnr_db - 6


def test_only_some_become_integer() -> None:
    result = quantized(Quantize(accuracy="fast", only=("a", "[ci]")), network())
    assert result.statistics["quantized"] == {"Conv": 3}
    assert {n.reason for n in result.notes if n.node == "y"} == {"is not among those asked for"}
    with pytest.raises(SecateurError, match=r"only: 'z\*' matches no node"):
        quantized(Quantize(only=("z*",)), network())


def test_what_usually_goes_wrong_is_said() -> None:
    weights = random(1, 6, 3, 1, 1)
    weights[3] *= 1e-5
    nodes = [
        node("Conv", "x a", "f"),
        node("Conv", "f b", "g"),
        node("Mul", "f s", "h"),
        node("Concat", "g h", "i", axis=1),
        node("Conv", "i c", "y"),
    ]
    constants = {
        "a": weights,
        "b": random(2, 6, 6, 1, 1),
        "s": np.float32([1e-3]),
        "c": random(3, 2, 12, 1, 1),
    }
    model = from_proto(build(nodes, constants, ["N", 3, 8, 8]))
    result = quantized(Quantize(accuracy="fast"), model)
    text = " ".join(result.statistics["warnings"])
    assert "near dead" in text
    assert "'f' (1 of 6)" in text
    assert "share one step behind a Concat: 'i'" in text


def test_conversions_for_little_are_said() -> None:
    nodes = [node("Conv", "x a", "f", group=3), node("Softmax", "f", "y", axis=1)]
    model = from_proto(build(nodes, {"a": random(1, 3, 1, 1, 1)}, ["N", 3, 8, 8]))
    result = quantized(Quantize(accuracy="fast"), model)
    assert any("compute little" in text for text in result.statistics["warnings"])


def test_a_limit_is_a_share() -> None:
    with pytest.raises(SecateurError, match=r"max-drop 1\.5: a share"):
        Quantize(max_drop=1.5).check()


def test_what_holds_for_single_nodes() -> None:
    model = network()
    nodes = ("[ac]=per-tensor", "i=calibrator:percentile:90", "y=float")
    result = quantized(Quantize(accuracy="fast", nodes=nodes), model)
    plain = network()
    before = quantized(Quantize(accuracy="fast"), plain)
    scales = [
        tuple(n.inputs[1].shape)
        for n in model.graph.nodes
        if n.op_type == "DequantizeLinear" and (n.inputs[0].const is not None)
        if n.inputs[0].name.startswith("w")
    ]
    assert scales == [(), (), (8,), (5,), (9,)]
    assert [n.reason for n in result.notes if n.node == "y"] == ["kept float as asked"]
    cut = {o["node"]: o["clipped"] for o in result.statistics["operators"]}
    whole = {o["node"]: o["clipped"] for o in before.statistics["operators"]}
    assert cut["i"] > 0.05 > whole["i"]
    assert cut["a"] == whole["a"]


def test_what_holds_for_single_nodes_does_so_within_a_limit() -> None:
    model = fragile()
    pass_ = Quantize(accuracy="fast", max_drop=0.1, nodes=("a=per-tensor",))
    assert quantized(pass_, model).statistics["max_drop"]["left"] > 0
    (first,) = [n for n in model.graph.nodes if n.label == "f"]
    assert first.inputs[1].producer.inputs[1].shape == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "give PATTERN=SETTING"),
        ("=float", "give PATTERN=SETTING"),
        ("a=", "give PATTERN=SETTING"),
        ("a=float16", "'float16' is no setting"),
        ("a=calibrator", "'calibrator' is no setting"),
        ("a=calibrator:median", "calibrator 'median' is unknown"),
    ],
)
def test_settings_that_there_are_not(text: str, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        Quantize(nodes=(text,)).check()


def test_settings_for_no_node() -> None:
    with pytest.raises(SecateurError, match="node: 'z' matches no node"):
        quantized(Quantize(nodes=("z=float",)), network())
