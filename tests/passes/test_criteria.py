"""Importance from samples: every criterion against its definition, on ordinary and odd values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.ir.axes.dims import Dim
from secateur.ir.text import parse_model
from secateur.passes.linear.moments import RIDGE
from secateur.passes.linear.walk import Walk
from secateur.passes.prune import readers as noisy
from secateur.passes.prune.importance import CRITERIA, group_scores
from secateur.passes.prune.plan import PruningPlan
from secateur.passes.prune.readers import Reader, find_readers
from secateur.passes.prune.surgeon import Inverses, surgeon_scores
from secateur.passes.sizes import infer_sizes

Array = Any

INPUTS, HIDDEN = 6, 5
WIDTHS = (3, 4)
"""Outputs of two layers that read the hidden units."""


def shares(values: Array) -> Array:
    return values / values.sum()


BY_DEFINITION: dict[str, Callable[[Array, Array], Array]] = {
    "activation": lambda hidden, _: np.abs(hidden).mean(0),
    "nonzero": lambda hidden, _: (hidden != 0).mean(0),
    "wanda": lambda hidden, w: np.abs(w).sum(1) * np.sqrt((hidden**2).mean(0)),
    "flap": lambda hidden, w: (w**2).sum(1) * hidden.var(0),
}
"""From what is read, [rows, units], and weights, [units, outputs]."""


def test_every_criterion_of_one_reader_has_a_definition_here() -> None:
    assert set(BY_DEFINITION) == {n for n, c in CRITERIA.items() if c.of_reader is not None}


@pytest.mark.parametrize("name", BY_DEFINITION)
def test_scores_are_sums_of_shares_at_each_reader(name: str) -> None:
    random = np.random.default_rng(0)
    w0, w1, w2 = (
        random.standard_normal(s).astype(np.float32)
        for s in ((INPUTS, HIDDEN), *((HIDDEN, width) for width in WIDTHS))
    )
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[n, {INPUTS}]) -> (%y: float[n, {WIDTHS[0]}], %z: float[n, {WIDTHS[1]}]) {{
  const %w0: float{list(w0.shape)} = {w0.tolist()}
  const %w1: float{list(w1.shape)} = {w1.tolist()}
  const %w2: float{list(w2.shape)} = {w2.tolist()}
  %a = MatMul(%x, %w0)
  %h = Relu(%a)
  %y = MatMul(%h, %w1)
  %z = MatMul(%h, %w2)
}}""")
    x = random.standard_normal((200, INPUTS)).astype(np.float32)
    infer_sizes(model)
    plan = PruningPlan(model)
    (group,) = plan.free
    (dim,) = group.dims
    readers = find_readers(plan.analysis, [dim], [{"x": x[:50]}, {"x": x[50:]}])
    assert len(readers) == len(WIDTHS)
    scores = group_scores(plan.free, name, readers)[dim]
    hidden = np.maximum(x @ w0, 0).astype(np.float64)
    define = BY_DEFINITION[name]
    expected = sum(shares(define(hidden, w.astype(np.float64))) for w in (w1, w2))
    np.testing.assert_allclose(scores, expected, rtol=1e-3)


BY_WEIGHTS: dict[str, Callable[[Array], Array]] = {
    "l1": lambda w: np.abs(w).sum(1),
    "l2": lambda w: (w**2).sum(1),
    "fpgm": lambda w: np.array([np.linalg.norm(w - row, axis=1).sum() for row in w]),
    "lamp": lambda w: np.array(
        [n / sum(m for m in (w**2).sum(1) if m >= n) for n in (w**2).sum(1)]
    ),
}
"""From weights, [units, weights of each]."""


@pytest.mark.parametrize("name", BY_WEIGHTS)
@pytest.mark.parametrize("kind", ["ordinary", "twins", "zero"])
def test_criteria_of_weights(name: str, kind: str) -> None:
    weights = np.random.default_rng(0).standard_normal((HIDDEN, 7))
    weights[1] = {"ordinary": 3 * weights[0], "twins": weights[0], "zero": 0 * weights[0]}[kind]
    measure = CRITERIA[name].of_weights
    assert measure is not None
    found, expected = measure(weights), BY_WEIGHTS[name](weights)
    if name == "lamp" and kind == "twins":  # of equal ones the first is the smaller
        expected[1] = 1 / (1 / expected[1] - 1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


# --- noise at a layer ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "limit", "samples"),
    [
        (1, math.inf, noisy.NOISY_MOST),
        (32, math.inf, 1024 // 32),
        (1000, math.inf, noisy.NOISY_LEAST),
        (2, 24.0, 24),  # a layer's run is one of half the model, over all layers
        (4, 48.0, 24),
        (32, 1e4, 1024 // 32),
        (2, 1.0, noisy.NOISY_LEAST),
    ],
)
def test_deep_and_costly_models_are_given_noise_on_fewer_samples(
    layers: int, limit: float, samples: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`limit`: multiply-accumulates of all runs, in those of a whole run of one sample."""
    random = np.random.default_rng(0)
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[n, 4]) -> (%y: float[n, 3]) {{
  const %w: float[4, 3] = {random.standard_normal((4, 3)).tolist()}
  %y = MatMul(%x, %w)
}}""")
    infer_sizes(model)
    monkeypatch.setattr(noisy, "NOISY_MACS", min(limit * 4 * 3, 1e12))
    runs = [{"x": random.standard_normal((20, 4)).astype(np.float32)} for _ in range(5)]
    noise = noisy._OutputNoise(model, Walk(model, runs, tmp_path), runs, layers, 0)
    assert sum(taken for _, taken, _ in noise._runs) == samples


# --- by reconstruction -------------------------------------------------------------------


def rows_of(kind: str, random: np.random.Generator) -> Array:
    """What a layer reads: some of it tells the rest, or nothing of it moves."""
    rows = random.standard_normal((60, HIDDEN)) @ random.standard_normal((HIDDEN, HIDDEN))
    if kind == "twins":
        rows[:, 1] = rows[:, 0]
    if kind == "dead units":
        rows[:, [0, 3]] = 2.0
    if kind == "nothing moves":
        rows[:] = 1.0
    if kind == "fewer rows than units":
        rows = rows[:3]
    return rows


def least_error(covariance: Array, weights: Array, gone: list[int]) -> float:
    """Squared error of a layer without some inputs, at the weights of the rest that are best."""
    rest = [i for i in range(len(weights)) if i not in gone]
    across = covariance[np.ix_(rest, gone)] @ weights[gone]
    change = np.zeros_like(weights)
    change[gone] = weights[gone]
    change[rest] = -np.linalg.solve(covariance[np.ix_(rest, rest)], across)
    return float(np.einsum("io,ij,jo->", change, covariance, change))


@pytest.mark.parametrize("beside", [0, 3])
@pytest.mark.parametrize(
    "kind", ["ordinary", "twins", "dead units", "nothing moves", "fewer rows than units"]
)
def test_reconstruction_is_what_the_best_other_weights_leave(kind: str, beside: int) -> None:
    """Index by index, the one that costs least at all readers together first; what a reader has
    `beside` the dim's units makes up for them, too."""
    random = np.random.default_rng(1)
    dim, other = Dim(HIDDEN), Dim(3)
    readers, problems = [], []
    for importance in (1.0, 0.3):
        rows = rows_of(kind, random)
        noise = random.standard_normal((len(rows), beside))
        rows = np.concatenate([rows[:, :beside] + noise, rows], axis=1)
        covariance = np.cov(rows.T, bias=True)
        weights = random.standard_normal((len(covariance), 3))
        places = np.arange(len(covariance))
        labels = {dim: np.maximum(places - beside, -1)}
        if beside:
            labels[other] = np.where(places < beside, places, -1)
        unused = np.zeros(len(covariance))
        readers.append(Reader(labels, covariance, unused, unused, unused, weights, importance))
        ridge = RIDGE * covariance.diagonal().mean() or 1.0
        problems.append((covariance + ridge * np.eye(len(covariance)), weights, importance))

    def error(gone: list[int]) -> float:
        places = [beside + index for index in gone]
        return sum(factor * least_error(a, w, places) for a, w, factor in problems)

    expected, gone, floor = np.zeros(HIDDEN), list[int](), 0.0
    while len(gone) < HIDDEN - 1:
        costs = {i: error([*gone, i]) - error(gone) for i in range(HIDDEN) if i not in gone}
        least = min(costs, key=costs.__getitem__)
        floor = expected[least] = max(floor, costs[least])
        gone.append(least)
    expected[[i for i in range(HIDDEN) if i not in gone]] = 2 * floor
    inverses = Inverses([other, dim], readers)
    if beside:
        surgeon_scores(other, readers, inverses)
    np.testing.assert_allclose(surgeon_scores(dim, readers, inverses), expected, rtol=1e-6)
