"""Widths of all groups together: what every scope reaches, and what it may take of shared dims."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from secateur.ir.axes.dims import Dim
from secateur.ir.errors import SecateurError
from secateur.ir.tensor import Tensor
from secateur.passes.prune.allocation import (
    Goal,
    Terms,
    _all_steps,
    _allowed,
    allocate,
    noise_to_signal,
)
from secateur.passes.prune.groups import Group
from secateur.passes.prune.importance import group_scores
from secateur.passes.prune.plan import PruningPlan
from secateur.passes.prune.readers import find_readers
from secateur.passes.sizes import infer_sizes
from tests.passes.test_budgets import mlp, stairs

WIDTHS = (40, 20)
PRICES = (50, 200)


def cost(kept: tuple[int, ...]) -> int:
    """Of vectors of 8 outputs, in two layers."""
    return sum(price * -(-n // 8) for price, n in zip(PRICES, kept, strict=True))


def every_combination(keep: float) -> list[tuple[int, ...]]:
    """Steps that two groups may take at a share of the cost, nine tenths of each at most."""
    found = itertools.product(*(range(round(0.9 * w) + 1) for w in WIDTHS))
    full = cost(WIDTHS)

    def remaining(removed: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(w - n for w, n in zip(WIDTHS, removed, strict=True))

    return [removed for removed in found if cost(remaining(removed)) <= keep * full]


@pytest.mark.parametrize("scope", ["global", "uniform", "knapsack"])
@pytest.mark.parametrize("keep", [0.8, 0.6, 0.5])
def test_a_goal_in_latency_is_met_and_a_table_finds_the_best_way(scope: str, keep: float) -> None:
    plan = PruningPlan(mlp(4, *WIDTHS, 3))
    scores = group_scores(plan.free)
    kernels: Any = stairs(*PRICES, 0)
    terms = Terms(scope=scope, kernels=kernels)
    found = allocate(plan.analysis, plan.groups, scores, Goal("latency", keep), terms)
    assert found.removed in every_combination(keep)
    damages = [noise_to_signal(scores).damage(group) for group in plan.free]

    def damage(removed: tuple[int, ...]) -> float:
        return sum(float(d[:n].sum()) for d, n in zip(damages, removed, strict=True))

    least = min(map(damage, every_combination(keep)))
    if scope == "knapsack":
        assert damage(found.removed) == pytest.approx(least)
    if scope == "uniform" or (scope, keep) == ("global", 0.6):
        assert damage(found.removed) > 1.01 * least


@pytest.mark.parametrize("scope", ["global", "uniform", "knapsack"])
def test_the_least_that_can_be_reached_is_a_goal_and_what_is_below_is_none(scope: str) -> None:
    plan = PruningPlan(mlp(4, *WIDTHS, 3))
    scores = group_scores(plan.free)
    kernels: Any = stairs(*PRICES, 0)
    least, terms = cost((1, 1)), Terms(scope=scope, kernels=kernels)

    def kept(left: int) -> tuple[int, ...]:
        goal = Goal("latency", left / cost(WIDTHS))
        removed = allocate(plan.analysis, plan.groups, scores, goal, terms).removed
        return tuple(w - n for w, n in zip(WIDTHS, removed, strict=True))

    assert cost(kept(least)) == least
    with pytest.raises(SecateurError, match="can't be reached"):
        kept(least - 1)


def test_losses_are_the_last_score_that_goes_and_the_first_that_stays() -> None:
    plan = PruningPlan(mlp(4, *WIDTHS, 3))
    scores = group_scores(plan.free)
    found = allocate(plan.analysis, plan.groups, scores, Goal("macs", 0.5), Terms())
    losses = found.losses()
    assert all(n > 2 for n in found.removed)
    for group, removed in zip(plan.free, found.removed, strict=True):
        ordered = np.sort(scores[group.dims[0]])
        loss = losses[group.name]
        assert (loss.removed, loss.kept) == (ordered[removed - 1], ordered[removed])
        assert loss.share == pytest.approx(ordered[:removed].sum() / ordered.sum())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("order", [1, -1])
def test_groups_that_share_a_dim_leave_an_index_of_it(share: float, order: int) -> None:
    narrow, wide, own = Dim(5), Dim(12), Dim(9)
    moves = [{narrow: 1, wide: 2}, {wide: 1, own: 1}, {narrow: 2}, {own: 3}][::order]
    steps = _all_steps([Group(str(n), move) for n, move in enumerate(moves)], 1, ())
    allowed = _allowed(steps, share)
    gone = {
        dim: sum(n * move.get(dim, 0) for n, move in zip(allowed, moves, strict=True))
        for dim in (narrow, wide, own)
    }
    for dim, n in gone.items():
        assert dim.size is not None
        assert n <= min(dim.size - 1, int(share * dim.size + 0.5))
    spare = {dim: min(dim.size - 1, int(share * dim.size + 0.5)) - n for dim, n in gone.items()}  # type: ignore[operator]
    for n, move, step in zip(allowed, moves, steps, strict=True):
        assert n == step.most or any(spare[dim] < count for dim, count in move.items())


def test_dims_that_no_reader_reads_compare_by_their_weights() -> None:
    """As the others, which have both, do in the middle."""
    model = mlp(4, 24, 16, 8, 3)
    infer_sizes(model)
    plan = PruningPlan(model)
    x = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    dims = [group.dims[0] for group in plan.free]
    readers = find_readers(plan.analysis, dims, [{"x": row[None]} for row in x])
    assert len(readers) == 3
    whole = group_scores(plan.free, "reconstruction", readers)
    weights = group_scores(plan.free, "l2")
    found = group_scores(
        plan.free, "reconstruction", [r for r in readers if dims[0] not in r.labels]
    )
    ratios = [whole[dim].sum() / weights[dim].sum() for dim in dims[1:]]
    assert ratios[0] != pytest.approx(ratios[1], rel=0.1)
    np.testing.assert_allclose(found[dims[0]], weights[dims[0]] * np.mean(ratios))
    for dim in dims[1:]:
        np.testing.assert_array_equal(found[dim], whole[dim])


def test_dims_of_zero_weights_say_nothing_of_the_others() -> None:
    """Nothing divides by the sum of their weights."""
    model = mlp(4, 24, 16, 3)
    for name in ("w1", "w2"):
        value = model.graph.initializers[name]
        assert value.const is not None
        value.const = Tensor.from_array(0 * value.const.numpy(), value.dtype)
    infer_sizes(model)
    plan = PruningPlan(model)
    x = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    dims = [group.dims[0] for group in plan.free]
    readers = find_readers(plan.analysis, dims, [{"x": row[None]} for row in x])
    unread = [r for r in readers if dims[1] in r.labels]
    for dim, scores in group_scores(plan.free, "activation", unread).items():
        assert np.isfinite(scores).all(), dim
