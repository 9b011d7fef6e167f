"""Importance estimated anew on the way to a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from secateur.ir.axes.dims import Dim
from secateur.ir.model import Model
from secateur.models import zoo
from secateur.passes.base import Context
from secateur.passes.manager import PassManager
from secateur.passes.prune import PruneChannels
from secateur.passes.prune.importance import Scores, group_scores
from secateur.passes.prune.iterations import estimated_anew
from secateur.passes.prune.plan import Cut, PruningPlan
from secateur.passes.prune.readers import find_readers
from secateur.passes.prune.recovery import calibration_runs
from tests.passes.test_recovery import digits_like

MODELS = {"small": digits_like, "mobilenet_v2": lambda: zoo.load_tiny("mobilenet_v2", "folded")}


def scored(plan: PruningPlan, runs: Sequence[dict[str, np.ndarray]]) -> dict[Dim, Scores]:
    dims = [dim for group in plan.free for dim in group.move]
    return group_scores(plan.free, "reconstruction", find_readers(plan.analysis, dims, runs))


def half(plan: PruningPlan, scores: dict[Dim, Scores]) -> Cut:
    """The better half of every dim that loses one index at a time."""
    return {
        group.name: [np.sort(np.argsort(scores[dim])[(dim.size or 0) // 2 :]) for dim in group.move]
        for group in plan.free
        if set(group.move.values()) == {1}
    }


def samples(model: Model, count: int = 16) -> dict[str, np.ndarray]:
    (name, shape), *_ = [(v.name, v.shape) for v in model.graph.inputs if v.const is None]
    normal = np.random.default_rng(3).standard_normal((count, *shape[1:]))
    return {name: normal.astype(np.float32)}


@pytest.mark.parametrize("name", MODELS)
def test_what_went_is_worth_less_than_what_stayed(name: str) -> None:
    model = MODELS[name]()
    with calibration_runs([model], samples(model), 0) as runs:
        plan = PruningPlan(model, normalized=True)
        scores = scored(plan, runs)
        cut = half(plan, scores)
        assert cut
        before = {dim: array.copy() for dim, array in scores.items()}
        found = estimated_anew(plan, cut, scores, runs, "reconstruction")
        assert all(np.array_equal(before[dim], scores[dim]) for dim in before)
        changed = 0
        for group in plan.free:
            for dim, kept in zip(group.move, cut.get(group.name, ()), strict=False):
                gone = np.setdiff1d(np.arange(dim.size or 0), kept)
                assert found[dim][gone].max() <= found[dim][kept].min()
                np.testing.assert_array_equal(
                    np.argsort(found[dim][gone], kind="stable"),
                    np.argsort(scores[dim][gone], kind="stable"),
                )
                changed += not np.allclose(found[dim][kept], scores[dim][kept], rtol=1e-3)
        assert changed, "nothing was estimated anew"


@pytest.mark.parametrize("name", MODELS)
def test_they_are_those_of_the_cut_model(name: str) -> None:
    """Of a copy that was cut and not recovered since recovery had nothing to make up for: what
    went was worth nothing."""
    model = MODELS[name]()
    with calibration_runs([model], samples(model), 0) as runs:
        plan = PruningPlan(model, normalized=True)
        scores = scored(plan, runs)
        found = estimated_anew(plan, {}, scores, runs, "reconstruction")
        assert found.keys() == scores.keys()
        for dim, array in scores.items():
            np.testing.assert_allclose(found[dim], array, rtol=1e-4)


@pytest.mark.parametrize("kind", ["macs", "params", "ratio"])
def test_they_are_candidates_beside_the_others(kind: str) -> None:
    def candidates(iterations: int | None) -> list[dict]:
        model = digits_like()
        x = np.random.default_rng(0).standard_normal((64, 1, 8, 8)).astype(np.float32)
        goal = 0.4 if kind == "ratio" else 0.5
        pruning = PruneChannels(**{kind: goal}, iterations=iterations, depth=0)
        (record,) = PassManager([pruning]).run(model, Context({"x": x}))
        statistics = record.result.statistics
        if kind == "macs":
            assert statistics["macs_after"] <= 0.5 * statistics["macs_before"]
        return statistics["candidates"]

    once, many, usual = (candidates(count) for count in (1, 2, None))
    assert not any("iterations" in each["name"] for each in once)
    assert any(", in 2 iterations" in each["name"] for each in many)
    assert any(", in 3 iterations" in each["name"] for each in usual)
    assert {each["name"] for each in once} <= {each["name"] for each in many}
    best = [each[0]["divergence"] for each in (once, many)]
    assert best[1] <= best[0]


def test_that_one_sample_allows_none_is_said() -> None:
    x = np.zeros((1, 1, 8, 8), np.float32)
    pruning = PruneChannels(macs=0.5, iterations=2)
    (record,) = PassManager([pruning]).run(digits_like(), Context({"x": x}))
    assert any("importance was estimated once" in note.reason for note in record.result.notes)
