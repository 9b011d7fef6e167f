"""Widths by a table: against the best of all combinations, on costs that don't add up."""

import itertools

import numpy as np
import pytest

from secateur.passes.prune.knapsack import knapsack, levels


def chain(widths, step):
    """The cost of layers between widths, in whole vectors of `step`."""

    def cost(removed):
        kept = [-(-(w - n) // step) for w, n in zip(widths, removed, strict=True)]
        sizes = [1, *kept, 1]
        return sum(a * b for a, b in itertools.pairwise(sizes))

    return cost


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.8, 0.5, 0.25])
def test_near_the_best_of_all_combinations(seed, share):
    random = np.random.default_rng(seed)
    widths, step = (12, 8, 16), int(random.integers(1, 5))
    damages = [np.sort(random.exponential(size=w - 1)) for w in widths]
    options = [list(range(w)) for w in widths]
    cost = chain(widths, step)
    target = share * cost((0, 0, 0))

    def error(removed):
        return sum(float(d[:n].sum()) for d, n in zip(damages, removed, strict=True))

    found = knapsack(cost, options, damages, target)
    assert found is not None
    assert cost(found) <= target
    every = [r for r in itertools.product(*options) if cost(r) <= target]
    best = min(error(removed) for removed in every)
    assert error(found) <= 1.6 * best + 0.5
    assert error(found) <= np.median([error(removed) for removed in every])


def test_nothing_is_taken_for_nothing():
    damages = [np.ones(7), np.ones(7)]
    assert knapsack(chain((8, 8), 8), [range(8), range(8)], damages, 3) == [0, 0]


def test_budgets_out_of_reach_are_told():
    damages = [np.ones(7), np.ones(7)]
    assert knapsack(chain((8, 8), 1), [range(8), range(8)], damages, 1) is None
    assert knapsack(lambda removed: 5, [range(8), range(8)], damages, 1) is None


def test_options_follow_alignment_and_limits():
    assert levels(0, 7, lambda n: n // 4 * 4) == [0, 4]
    assert levels(2, 2, lambda n: n) == [2]
    assert len(levels(0, 999, lambda n: n)) == 13
