"""Steps of all layers together: how many there are, and what one does, by their definitions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from secateur.ir.model import Model
from secateur.ir.text import parse_model
from secateur.passes.prune import features, refinement
from secateur.passes.prune.plan import PruningPlan
from secateur.passes.prune.recovery import calibration_runs
from secateur.passes.prune.refinement import refine
from secateur.passes.sizes import infer_sizes
from tests.passes.nets import Net

Array = Any

INPUTS, OUTPUTS = 5, 3


def layer(random: np.random.Generator, *, transposed: bool, factors: tuple[float, float]) -> Model:
    """One Gemm, alpha * x @ w + beta * c."""
    shape = (OUTPUTS, INPUTS) if transposed else (INPUTS, OUTPUTS)
    weights, bias = random.standard_normal(shape).tolist(), random.standard_normal(OUTPUTS).tolist()
    attributes = f"alpha = {factors[0]}, beta = {factors[1]}, transB = {int(transposed)}"
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[n, {INPUTS}]) -> (%y: float[n, {OUTPUTS}]) {{
  const %w: float[{shape[0]}, {shape[1]}] = {weights}
  const %c: float[{OUTPUTS}] = {bias}
  %y = Gemm(%x, %w, %c) {{{attributes}}}
}}""")
    infer_sizes(model)
    return model


def weights_of(model: Model, name: str) -> Array:
    value = next(v for v in model.graph.values() if v.name == name)
    tensor = model.constant(value)
    assert tensor is not None
    return tensor.numpy().astype(np.float64)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.5, 2.0)])
def test_steps_are_those_of_adam_where_inputs_are_white(
    transposed: bool, factors: tuple[float, float]
) -> None:
    random = np.random.default_rng(1)
    model = layer(random, transposed=transposed, factors=factors)
    mixed = random.standard_normal((INPUTS, INPUTS))
    xs = [random.standard_normal((7, INPUTS)) @ mixed + [1, 0, -3, 0, 0.5] for _ in range(4)]
    runs = [{"x": x.astype(np.float32)} for x in xs]
    state = refinement._Learners(model, runs, 0)
    (name,) = state.names()[:1]
    assert name == "w"
    assert len(state.names()) == 2

    rows = np.concatenate(xs)
    mean, covariance = rows.mean(0), np.cov(rows.T, bias=True)
    covariance += refinement.DAMPING * np.trace(covariance) / INPUTS * np.eye(INPUTS)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values) @ vectors.T
    alpha, beta = factors
    w = alpha * (weights_of(model, "w").T if transposed else weights_of(model, "w"))
    shift = beta * weights_of(model, "c") + mean @ w
    white = root @ w
    size = np.sqrt((white**2).mean())
    averages = [[np.zeros_like(a), np.zeros_like(a)] for a in (white, shift)]
    for step in range(1, 4):
        by_w, by_c = random.standard_normal((INPUTS, OUTPUTS)), random.standard_normal(OUTPUTS)
        given = {"w": by_w.T if transposed else by_w, "c": by_c}
        state.step({n: a.astype(np.float32) for n, a in given.items()}, 0.1)
        slope = by_c / beta
        slopes = np.linalg.inv(root) @ (by_w / alpha - np.outer(mean, slope)), slope
        for values_, slope_, pair in zip((white, shift), slopes, averages, strict=True):
            pair[0] = 0.9 * pair[0] + 0.1 * slope_
            pair[1] = 0.99 * pair[1] + 0.01 * slope_**2
            first, second = pair[0] / (1 - 0.9**step), pair[1] / (1 - 0.99**step)
            values_ -= 0.1 * size * first / np.sqrt(second)
        written = state.write()
        found = written["w"].T if transposed else written["w"]
        expected = np.linalg.inv(root) @ white
        np.testing.assert_allclose(alpha * found, expected, rtol=1e-4, atol=1e-4)
        bias = shift - mean @ expected
        np.testing.assert_allclose(beta * written["c"], bias, rtol=1e-4, atol=1e-4)


def test_the_rate_rises_over_a_tenth_and_falls_to_nothing() -> None:
    course = [refinement._course(step, 100) for step in range(100)]
    assert np.argmax(course) in (9, 10)
    assert course[0] == pytest.approx(0.1)
    assert course[9] == pytest.approx(1, abs=0.03)
    assert all(a > b for a, b in itertools.pairwise(course[10:]))
    assert course[50] == pytest.approx(0.5)
    assert 0 < course[99] < 0.001


PER_SAMPLE = INPUTS * OUTPUTS * 4
"""Multiply-accumulates of the original, and three times those of the other."""


@pytest.mark.parametrize(
    ("samples", "batch", "macs", "steps"),
    [
        (48, 8, 1e9, 36),
        (48, 1, 1e9, 36),
        (64, 64, 1e9, 48),
        (64, 8, 30 * 32 * PER_SAMPLE, 30),
        (64, 8, 20 * 32 * PER_SAMPLE, 20),
        (47, 1, 1e9, "47 samples are too few, 48 are needed"),
        (64, 8, 20 * 32 * PER_SAMPLE - 1, "time for 19 steps only"),
    ],
)
def test_steps_are_as_many_as_samples_and_time_allow(
    samples: int, batch: int, macs: float, steps: int | str
) -> None:
    random = np.random.default_rng(0)
    original = layer(random, transposed=False, factors=(1.0, 1.0))
    pruned = layer(random, transposed=False, factors=(1.0, 1.0))
    x = random.standard_normal((samples, INPUTS)).astype(np.float32)
    runs = [{"x": x[k : k + batch]} for k in range(0, samples, batch)]
    found = refine(original, pruned, {}, runs, runs[:2], macs=macs)
    if isinstance(steps, str):
        assert steps in found.reason
        assert found.steps == 0
    else:
        assert found.steps == steps
        assert found.layers == 1
        assert found.after < found.before


def test_models_of_one_sample_at_a_time_take_as_many_runs() -> None:
    """A step then is 32 runs, of which there are 2,000 at most."""
    random = np.random.default_rng(0)
    models = []
    for _ in range(2):
        model = layer(random, transposed=False, factors=(1.0, 1.0))
        for value in (*model.graph.inputs[:1], *model.graph.outputs):
            value.set_tensor_type(value.dtype, [1, *(value.shape or ())[1:]])
        models.append(model)
    runs = [{"x": random.standard_normal((1, INPUTS)).astype(np.float32)} for _ in range(90)]
    found = refine(*models, {}, runs, runs[:4], macs=1e9)
    assert found.steps == 2000 // 32
    assert found.after < found.before


def test_nothing_is_tried_without_samples_held_out() -> None:
    random = np.random.default_rng(0)
    model = layer(random, transposed=False, factors=(1.0, 1.0))
    runs = [{"x": random.standard_normal((96, INPUTS)).astype(np.float32)}]
    assert "too few" in refine(model, model.clone(), {}, runs, []).reason


def test_what_is_left_of_values_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every second hidden unit gone, layers learn what the kept ones put out."""
    net = Net(0)
    random = net.random
    weights = [random.standard_normal(shape) for shape in ((8, 16), (16, 16), (16, 4))]
    hidden = net.add("Relu", net.add("Gemm", "x", net.constant(weights[0])))
    hidden = net.add("Relu", net.add("Gemm", hidden, net.constant(weights[1])))
    model = net.model(["n", 8], net.add("Gemm", hidden, net.constant(weights[2])))
    x = random.standard_normal((256, 8)).astype(np.float32)
    compared: list[float] = []
    squared_error = features.squared_error

    def recorded(weight: float) -> Any:
        compared.append(weight)
        return squared_error(weight)

    monkeypatch.setattr(features, "squared_error", recorded)
    monkeypatch.setattr(refinement, "STEPS", 25)
    plan = PruningPlan(model.clone())
    group = max(plan.free, key=lambda group: group.size)
    kept = [np.arange(0, dim.size, 2) for dim in group.dims]
    record = plan.apply(plan.selection({group.name: kept}))
    infer_sizes(plan.model)
    with calibration_runs([model, plan.model], {"x": x}, 0) as runs:
        assert refine(model, plan.model, record.values, runs[:-2], runs[-2:]).layers
        with_masks = len(compared)
        compared.clear()
        refine(model, plan.model, {}, runs[:-2], runs[-2:])
        assert with_masks > len(compared)  # without masks shapes differ: those don't count
        compared.clear()
        monkeypatch.setattr(features, "LARGEST", 4 * 32 * (16 + 4))
        refine(model, plan.model, record.values, runs[:-2], runs[-2:])
    assert (with_masks, len(compared)) == (3, 2)  # 4 units and one of two layers of 16


def test_only_real_numbers_inside_the_model_are_compared() -> None:
    """No integers, no numbers without an axis, and no outputs, which are compared as such."""
    model = parse_model("""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[n, 3]) -> (%y: float[n, 2]) {
  const %w: float[3, 2] = [[1, 2], [3, 4], [5, 6]]
  %h = Relu(%x)
  %i = Cast(%h) {to = 7}
  %f = Cast(%i) {to = 1}
  %s = ReduceSum(%h) {keepdims = 0}
  %p = MatMul(%f, %w)
  %y = Add(%p, %s)
}""")
    infer_sizes(model)
    runs = [{"x": np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32) * 9}]
    found = features.Features(model, model.clone(), {}, ["h", "i", "f", "s", "p", "y"], runs)
    assert sorted(found.losses()) == ["f", "h", "p"]
