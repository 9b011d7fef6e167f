"""Weights and biases solved for, and the choice among ways to quantize."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, get_type_hints

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.cli.step_options import ACCURACIES as NAMED_ACCURACIES
from secateur.cli.step_options import PROFILES as NAMED_PROFILES
from secateur.cli.step_options import SCHEMES as NAMED_SCHEMES
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.models.zoo import load_tiny, random_inputs
from secateur.passes.base import Context
from secateur.passes.linear.moments import Moments
from secateur.passes.quantize import Quantize, QuantizeStatic
from secateur.passes.quantize.accurate import _STACKS, ACCURACIES, _parted, simplest
from secateur.passes.quantize.rounding import (
    Noise,
    Residuals,
    certain_share,
    descend,
    round_second_order,
)
from secateur.passes.quantize.schemes import PROFILES, SCHEMES, scheme_of
from secateur.pipeline.choices import Accuracy, ProfileName, SchemeName
from secateur.pipeline.recipe import QuantizeSection
from tests.passes.test_equalization import node, sqnr
from tests.passes.test_quantize_integer import build, random

IMAGES = np.maximum(random(0, 256, 3, 8, 8) + 0.7, 0)
NETWORK = [
    node("Conv", "x w b", "a", pads=[1, 1, 1, 1]),
    node("Relu", "a", "r"),
    node("Conv", "r d", "c", group=6, strides=[2, 2]),
    node("Relu", "c", "f"),
    node("Conv", "f g h", "i", group=2),
    node("ConvTranspose", "i t", "j", strides=[2, 2], auto_pad="SAME_UPPER"),
    node("LeakyRelu", "j", "k"),
    node("GlobalAveragePool", "k", "l"),
    node("Flatten", "l", "m"),
    node("MatMul", "m n", "o"),
    node("Add", "o q", "p"),
    node("Relu", "p", "s"),
    node("Gemm", "s u v", "y", transB=1, alpha=0.5, beta=2.0),
]
CONSTANTS = {
    "w": random(1, 6, 3, 3, 3),
    "b": random(2, 6),
    "d": random(3, 6, 1, 3, 3),
    "g": random(4, 8, 3, 1, 1),
    "h": random(5, 8),
    "t": random(6, 8, 5, 2, 2),
    "n": random(7, 5, 9),
    "q": random(8, 9),
    "u": random(9, 4, 9),
    "v": random(10, 4),
}


def network() -> Model:
    return from_proto(build(NETWORK, CONSTANTS, ["N", 3, 8, 8]))


def quality(pass_: Any, feed: Any = IMAGES) -> tuple[float, Any]:
    model = network()
    expected = Session(network()).run({"x": feed})["y"]
    result = pass_.run(model, Context({"x": IMAGES}))
    onnx.checker.check_model(to_proto(model), full_check=True)
    return sqnr(expected, Session(model).run({"x": feed})["y"]), result


@pytest.mark.parametrize("limit", [127, 64, 7])
def test_second_order_rounding_stays_on_the_grid_and_never_loses(limit: int) -> None:
    generator = np.random.default_rng(limit)
    weights = generator.normal(size=(150, 20))
    grid = np.broadcast_to(np.abs(weights).max(axis=0) / limit, weights.shape)
    factor = generator.normal(size=(150, 30))
    moments = factor @ factor.T + 0.01 * np.eye(150)
    found = round_second_order(weights, grid, moments, limit)
    integers = found / grid
    np.testing.assert_allclose(integers, np.rint(integers), atol=1e-9)
    assert np.abs(integers).max() <= limit + 1e-9
    nearest = np.rint(weights / grid) * grid

    def error(rounded: Any) -> Any:
        return np.einsum("io,ij,jo->o", rounded - weights, moments, rounded - weights)

    assert (error(found) <= error(nearest) * (1 + 1e-9)).all()
    assert error(found).sum() < 0.6 * error(nearest).sum()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 150), st.integers(1, 60), st.sampled_from([127, 7, 1]))
def test_descent_never_loses_and_ends_where_no_single_change_gains(
    seed: int, width: int, rank: int, limit: int
) -> None:
    generator = np.random.default_rng(seed)
    wished = generator.normal(size=(width, 5))
    grid = np.broadcast_to(np.abs(wished).max(axis=0) / limit, wished.shape)
    factor = generator.normal(size=(width, rank)) * 10 ** generator.uniform(-2, 2, (width, 1))
    moments = factor @ factor.T + 1e-9 * np.eye(width)
    start = generator.integers(-limit, limit + 1, wished.shape) * grid

    def error(rounded: Any) -> Any:
        return np.einsum("io,ij,jo->o", rounded - wished, moments, rounded - wished)

    found = descend(start, wished, grid, moments, limit)
    integers = found / grid
    np.testing.assert_allclose(integers, np.rint(integers), atol=1e-9)
    assert np.abs(integers).max() <= limit + 1e-9
    assert (error(found) <= error(start) * (1 + 1e-9)).all()
    while not np.array_equal(after := descend(found, wished, grid, moments, limit), found):
        found = after  # one call goes through all weights only so often
    slack = 1e-9 * error(start)
    for place, sign in itertools.product(range(width), (-1, 1)):
        changed = found.copy()
        changed[place] += sign * grid[place]
        possible = np.abs(changed[place] / grid[place]) < limit + 0.5
        assert (error(changed) >= error(found) - slack)[possible].all()


def test_descent_comes_nearer_than_second_order_rounding_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(300, 8))
    grid = np.broadcast_to(np.abs(weights).max(axis=0) / 7, weights.shape)
    factor = np.maximum(generator.normal(size=(300, 200)), -0.5)
    moments = factor @ factor.T / 200 + 0.01 * np.eye(300)
    found = round_second_order(weights, grid, moments, 7)
    monkeypatch.setattr("secateur.passes.quantize.rounding.descend", lambda start, *_: start)
    alone = round_second_order(weights, grid, moments, 7)

    def error(rounded: Any) -> Any:
        return np.einsum("io,ij,jo->o", rounded - weights, moments, rounded - weights)

    assert (error(found) <= error(alone) * (1 + 1e-9)).all()
    assert error(found).sum() < 0.995 * error(alone).sum()


def test_inputs_without_relation_round_to_the_nearest() -> None:
    weights = random(0, 40, 3).astype(np.float64)
    grid = np.full_like(weights, 0.1)
    found = round_second_order(weights, grid, np.diag(np.arange(1.0, 41)), 127)
    np.testing.assert_allclose(found, np.rint(weights / 0.1) * 0.1)


@pytest.mark.parametrize("moments", [np.zeros((40, 40)), np.ones((40, 40)), -np.eye(40)])
def test_inputs_that_tell_nothing_round_to_the_nearest(moments: Any) -> None:
    weights = random(0, 40, 3).astype(np.float64)
    grid = np.full_like(weights, 0.1)
    found = round_second_order(weights, grid, moments, 127)
    np.testing.assert_allclose(found, np.rint(weights / 0.1) * 0.1)


def test_dead_channels_are_no_obstacle() -> None:
    """Behind a convolution whose results are zero nothing can be solved for."""
    constants = {**CONSTANTS, "w": np.zeros_like(CONSTANTS["w"]), "b": -np.ones(6, np.float32)}
    model = from_proto(build(NETWORK, constants, ["N", 3, 8, 8]))
    expected = Session(model).run({"x": IMAGES})["y"]
    Quantize(accuracy="best").run(model, Context({"x": IMAGES}))
    assert sqnr(expected, Session(model).run({"x": IMAGES})["y"]) > 20


def test_solving_for_weights_and_biases_brings_outputs_nearer() -> None:
    other = np.maximum(random(99, 64, 3, 8, 8) + 0.7, 0)
    coarse = {"per_channel": False, "reduce_range": True}
    plain, _ = quality(QuantizeStatic(**coarse), other)
    corrected, result = quality(QuantizeStatic(**coarse, correct_biases=True), other)
    rounded, second = quality(QuantizeStatic(**coarse, second_order=True), other)
    assert corrected > plain - 0.2
    assert rounded > plain
    kinds = sorted(layer["op_type"] for layer in second.statistics["solved"])
    assert kinds == ["Conv", "Conv", "Conv", "ConvTranspose", "Gemm", "MatMul"]
    for layer in (*result.statistics["solved"], *second.statistics["solved"]):
        assert layer["after"] <= layer["before"] * 1.001 + 1e-9


def test_second_order_rounding_keeps_the_reduced_range() -> None:
    model = network()
    QuantizeStatic(second_order=True, reduce_range=True).run(model, Context({"x": IMAGES}))
    weights = [
        v.const.numpy()
        for name, v in model.graph.initializers.items()
        if name.startswith("w") and v.const is not None and name.endswith(".q")
    ]
    assert len(weights) == 6
    assert max(np.abs(w).max() for w in weights) <= 64


@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_ways_state_what_they_do_alone(accuracy: str) -> None:
    """No option as it is without, no two ways alike; ways that go on from rounding by second
    moments do it, since equalization, headroom or ranges alone are what nobody has asked for."""
    (simplest_way,) = Quantize(accuracy="fast")._ways()
    defaults = dataclasses.asdict(simplest_way)
    ways = _STACKS[accuracy]
    for way in ways:
        assert all(defaults[name] != value for name, value in way.items())
        assert len(way) < 2 or way.keys() & {"second_order", "correct_biases"}
    assert len({tuple(sorted(way.items())) for way in ways}) == len(ways)
    assert ways[-1] == {}


def test_the_best_way_is_taken() -> None:
    """Of samples that weren't shown: what was, holding on to it is best for."""
    others = np.maximum(random(99, 64, 3, 8, 8) + 0.7, 0)
    good, result = quality(Quantize(), others)
    best, more = quality(Quantize(accuracy="best"), others)
    plain, _ = quality(QuantizeStatic(), others)
    assert good > plain + 3
    assert best > plain + 3
    for found in (result, more):
        assert 2 <= len(found.statistics["tried"]) <= 8


def test_ways_are_judged_by_samples_that_none_has_seen() -> None:
    """Neither ranges nor weights are chosen by them, so that ranges that are too narrow show."""
    arrays = {"x": np.arange(64 * 3 * 8 * 8, dtype=np.float32).reshape(64, 3, 8, 8)}
    everything = set(arrays["x"][:, 0, 0, 0])
    judging: set[float] = set()
    for turn in range(4):
        fitted, held = (part.calibration for part in _parted(network(), Context(arrays), turn))
        assert fitted is not None
        assert held is not None
        firsts = [set(np.asarray(part["x"])[:, 0, 0, 0]) for part in (fitted, held)]
        assert [len(part) for part in firsts] == [48, 16]
        assert firsts[0] | firsts[1] == everything
        judging |= firsts[1]
    assert judging == everything
    few = Context({"x": arrays["x"][:8]})
    assert _parted(network(), few, 0) == (few, few)


def test_a_simpler_way_is_taken_unless_another_is_nearer_beyond_chance() -> None:
    """By the differences between runs: how hard a run is for both ways doesn't count."""
    complicated, simple = QuantizeStatic(second_order=True), QuantizeStatic()
    hard = np.array([1.0, 5.0, 20.0, 100.0])
    for gain, taken in ((0.1 * hard, complicated), (np.array([3.0, -2.5, 3.0, -2.5]), simple)):
        for noise in ([hard], [hard[:2], hard[2:]]):
            parts = np.split(gain, len(noise))
            less = [one - part for one, part in zip(noise, parts, strict=True)]
            assert simplest({complicated: less, simple: noise}) == taken
    assert simplest({complicated: [hard], simple: [hard]}) == simple
    assert simplest({complicated: [hard[:1]], simple: [hard[:1] + 1]}) == complicated


def test_biases_are_moved_by_what_runs_agree_on() -> None:
    """Eight runs: an offset that all have, one that is chance, one in between, none at all."""
    chance = np.array([1.0, -1, 1, -1, 1, -1, 1, -1])
    offsets = np.stack([np.full(8, 3.0), chance, 1 + chance, np.zeros(8)], axis=1)
    error = 8 / 7 / 8  # of the mean, squared
    found = certain_share(list(offsets[:, None]))
    np.testing.assert_allclose(found, [[1, 0, 1 - error, 0]])
    np.testing.assert_array_equal(certain_share([offsets[:1]]), np.ones((1, 4)))


def test_biases_alone_need_no_second_moments() -> None:
    """What is left of targets tells the same as all moments do, of groups and parts of rows."""
    weights, bias = random(1, 2, 5, 3).astype(np.float64), random(2, 2, 3).astype(np.float64)
    inputs, targets = random(3, 2, 40, 5), 3 + random(4, 2, 40, 3)
    residuals, moments = Residuals.zeros(weights), Moments.zeros(2, 5, 3)
    for rows in (slice(0, 7), slice(7, 40)):
        residuals.add(inputs[:, rows], targets[:, rows])
        moments.add(inputs[:, rows], targets[:, rows])
    np.testing.assert_allclose(residuals.bias(), moments.bias(weights), rtol=1e-5)
    np.testing.assert_allclose(residuals.error(bias), moments.error(weights, bias), rtol=1e-5)
    np.testing.assert_allclose(residuals.spread(), moments.spread(), rtol=1e-5)
    least = residuals.error(residuals.bias())
    for step in (-0.1, 0.1):
        assert residuals.error(residuals.bias() + step) > least


def test_noise_of_runs_adds_up() -> None:
    runs = [{"x": IMAGES[:3]}, {"x": 10 * IMAGES[3:4]}, {"x": IMAGES[4:9]}]
    model, other = network(), network()
    QuantizeStatic().run(other, Context({"x": IMAGES}))
    noise = Noise(model, runs)
    parts = noise.by_run(other)
    assert len(parts) == 3
    np.testing.assert_allclose(noise(other), parts.sum(), rtol=1e-12)
    expected, found = (
        np.concatenate([Session(m).run(r)["y"] for r in runs]) for m in (model, other)
    )
    np.testing.assert_allclose(10 * np.log10(1 / noise(other)), sqnr(expected, found), rtol=1e-6)


def test_headroom_goes_no_further_than_an_operator_does() -> None:
    """A Relu stays without negative numbers, a Sigmoid below one, a Clip within its bounds."""
    nodes = [
        node("Conv", "x w", "a"),
        node("Sigmoid", "a", "s"),
        node("Conv", "s w", "b"),
        node("Clip", "b low high", "c"),
        node("Conv", "c w", "d"),
        node("Relu", "d", "r"),
        node("Conv", "r w", "y"),
    ]
    constants = {"w": random(1, 3, 3, 1, 1), "low": np.float32(-0.5), "high": np.float32(0.5)}
    params = []
    for headroom in (0.0, 0.25):
        model = from_proto(build(nodes, constants, ["N", 3, 8, 8]))
        way = QuantizeStatic(headroom=headroom)
        decision = way.run(model, Context({"x": IMAGES})).artifacts["decision"]
        params.append({value.name: p for value, p in decision.params.items()})
    before, after = params
    for name in ("x", "a", "r", "y"):
        if name in before:
            assert after[name].scale == pytest.approx(1.25 * before[name].scale, rel=0.01)
    assert after["r"].zero_point == 0
    assert after["c"] == before["c"]
    assert after["s"].scale <= 1 / 255 + 1e-9
    with pytest.raises(SecateurError, match="headroom -1"):
        QuantizeStatic(headroom=-1.0).run(network(), Context({"x": IMAGES}))


def test_one_sample_is_enough() -> None:
    model = network()
    Quantize(accuracy="best").run(model, Context({"x": IMAGES[:1]}))
    expected = Session(network()).run({"x": IMAGES[:1]})["y"]
    assert sqnr(expected, Session(model).run({"x": IMAGES[:1]})["y"]) > 20


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_near_the_original(scheme: str) -> None:
    options = {"accuracy": "fast"} if SCHEMES[scheme].kind == "static" else {}
    assert quality(Quantize(scheme=scheme, **options))[0] > 20


def test_activations_of_16_bits_leave_the_noise_of_weights() -> None:
    plain, _ = quality(Quantize(accuracy="fast"))
    fine, result = quality(Quantize(scheme="int16", accuracy="fast"))
    assert fine > plain + 3
    assert "slower than without" in result.statistics["warnings"][0]
    model = network()
    Quantize(scheme="int16", accuracy="fast").run(model, Context({"x": IMAGES}))
    points = [v for n, v in model.graph.initializers.items() if n.startswith("zp")]
    assert {v.const.numpy().dtype.name for v in points if v.const} <= {"uint16", "int8"}
    assert model.opset == 21


def test_symmetric_ranges_have_no_zero_points() -> None:
    model = network()
    Quantize(scheme="int8-symmetric", accuracy="fast").run(model, Context({"x": IMAGES}))
    points = [v for v in model.graph.initializers if v.startswith("zp")]
    assert points
    for name in points:
        assert not model.graph.initializers[name].const.numpy().any()


def test_names_of_the_command_are_those_of_the_pass() -> None:
    assert tuple(SCHEMES) == NAMED_SCHEMES
    assert tuple(PROFILES) == NAMED_PROFILES
    assert tuple(ACCURACIES) == NAMED_ACCURACIES
    assert {scheme_of(None, profile) for profile in PROFILES} <= set(SCHEMES)
    hints = get_type_hints(QuantizeSection)
    assert hints["scheme"] == SchemeName | None
    assert hints["profile"] == ProfileName | None
    assert hints["accuracy"] == Accuracy | None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "int4"}, "scheme 'int4' is unknown; there are: int8"),
        ({"accuracy": "great"}, "accuracy 'great' is unknown"),
        ({"calibrator": "median"}, "calibrator 'median' is unknown"),
        ({"ignore": ("nothing*",)}, "nothing"),
    ],
)
def test_unknown_options(options: Any, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        Quantize(**options).run(network(), Context({"x": IMAGES}))


def test_patterns_name_nodes_that_stay_float() -> None:
    model = network()
    result = Quantize(accuracy="fast", ignore=("[ac]",)).run(model, Context({"x": IMAGES}))
    assert [n.node for n in result.notes if "as asked" in n.reason] == ["a", "c"]


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax", "Sigmoid", "Relu"])
def test_noise_is_that_of_scores_before_they_are_squashed(end: str) -> None:
    """A tenth more of every score is a hundredth of their power, whatever becomes of it."""

    def model(scale: float) -> Model:
        return parse_model(f"""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[2, 3]) -> (%y: float[2, 3], %z: float[2, 3]) {{
  const %w: float[3, 3] = [[{scale}, 0, 0], [0, {scale}, 0], [0, 0, {scale}]]
  %a = MatMul(%x, %w)
  %y = {end}(%a)
  %z = Softmax(%x)
}}""")

    runs = [{"x": np.random.default_rng(n).standard_normal((2, 3)).astype("f4")} for n in range(3)]
    noise = Noise(model(1.0), runs)
    assert noise(model(1.0)) == 0
    assert noise(model(1.1)) == pytest.approx(0.01 / 2, rel=1e-4)  # the other output has none


@pytest.mark.parametrize("scheme", ["int8-signed", "int8-symmetric"])
def test_what_onnx_runtime_fails_to_optimize_runs_as_written(scheme: str) -> None:
    """Constant integers of tables of rotations, which both layers read."""
    model = load_tiny("gqa_decoder", "folded")
    feeds = [random_inputs(model, seed=seed) for seed in range(4)]
    samples = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    result = Quantize(scheme, accuracy="fast").run(model, Context(samples))
    assert len(result.statistics["operators"]) > 50
    want, found = (Session(model, optimize=o).run(feeds[0])["output"] for o in (False, True))
    np.testing.assert_array_equal(found, want)
