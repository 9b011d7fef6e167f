"""Widths by a table of (width, error, cost) for each group: the least error within a budget.

As in SPDY (Frantar and Alistarh 2022), ZipLM (Kurtic et al. 2023) and HALP (Shen et al. 2022); but
costs of groups don't add up, since a layer's is that of its inputs times its outputs. So a Lagrange
multiplier (Everett, "Generalized Lagrange Multiplier Method", 1963) prices the cost, each group in
turn takes the width that is best at that price while the others are as they are, and the price is
bisected until the budget is met. Steps of a cost that are stairs, as those of latency, are
seen as such, where an order of all steps by damage per saving takes some that save nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .importance import Scores

LEVELS = 12
"""Widths of each group that are in the table."""

PRICES = 14
"""Steps of the bisection, each over a factor that is the root of the one before."""

ROUNDS = 3
"""Times that each group chooses at most at one price."""


def knapsack(
    cost: Callable[[Sequence[int]], float],
    options: Sequence[Sequence[int]],
    damages: Sequence[Scores],
    target: float,
) -> list[int] | None:
    """Steps that each group takes, out of its `options`, so that the cost is at most `target`.

    `damages` are those of each group's steps, whose sum is the error. None where the dearest price
    that is tried doesn't reach the target.
    """
    errors = [np.concatenate([[0.0], np.cumsum(own)]) for own in damages]
    none = [min(own) for own in options]
    all_ = [max(own) for own in options]
    saved = cost(none) - cost(all_)
    worst = float(sum(e[n] for e, n in zip(errors, all_, strict=True)))
    if cost(none) <= target:
        return none
    if saved <= 0 or worst <= 0:
        return None
    low, high = np.log(worst / saved) - 8.0, np.log(worst / saved) + 8.0
    found: list[int] | None = None
    for _ in range(PRICES):
        middle = (low + high) / 2
        trial = _at_price(cost, options, errors, float(np.exp(middle)))
        if cost(trial) <= target:
            found, high = trial, middle
        else:
            low = middle
    return found


def _at_price(
    cost: Callable[[Sequence[int]], float],
    options: Sequence[Sequence[int]],
    errors: Sequence[Scores],
    price: float,
) -> list[int]:
    """Steps of which no single group's choice can be bettered at a price of the cost."""
    chosen = [min(own) for own in options]
    for _ in range(ROUNDS):
        before = list(chosen)
        for group, own in enumerate(options):
            worth = []
            for steps in own:
                trial = [*chosen[:group], steps, *chosen[group + 1 :]]
                worth.append(float(errors[group][steps]) + price * cost(trial))
            chosen[group] = own[int(np.argmin(worth))]
        if chosen == before:
            break
    return chosen


def levels(least: int, most: int, aligned: Callable[[int], int]) -> list[int]:
    """Numbers of steps for a table, evenly spaced, as alignment allows."""
    return sorted({aligned(round(n)) for n in np.linspace(least, max(least, most), LEVELS + 1)})
