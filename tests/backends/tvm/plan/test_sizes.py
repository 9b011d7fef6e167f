"""Comparisons of open sizes, by all values that their symbols have."""

from __future__ import annotations

import itertools
import operator

import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.plan.sizes import OpenSizeError, exact_quotient, may_be_equal, stand_in
from secateur.ir.symbolic.expressions import symbol

N, M = (stand_in(symbol(name, *limits)) for name, limits in (("n", (1, 4)), ("m", (3, 6))))
VALUES = list(itertools.product(range(1, 5), range(3, 7)))

SIZES = {
    "7": (7, lambda n, m: 7),
    "0": (0, lambda n, m: 0),
    "n": (N, lambda n, m: n),
    "n + 1": (N + 1, lambda n, m: n + 1),
    "n + 3": (N + 3, lambda n, m: n + 3),
    "2 n": (2 * N, lambda n, m: 2 * n),
    "m": (M, lambda n, m: m),
    "m - 1": (M - 1, lambda n, m: m - 1),
    "m + 4": (M + 4, lambda n, m: m + 4),
    "n m": (N * M, lambda n, m: n * m),
    "6 n m": (6 * N * M, lambda n, m: 6 * n * m),
}


def test_sizes_that_some_run_makes_equal() -> None:
    """At least those; where the difference is a number, or one of symbols alone, no others."""
    for (a, (first, define)), (b, (second, other)) in itertools.product(SIZES.items(), repeat=2):
        differences = {define(*values) - other(*values) for values in VALUES}
        found = may_be_equal(first, second)
        assert found or 0 not in differences, (a, b)
        if len(differences) == 1 or "n m" not in a + b:
            assert found == (min(differences) <= 0 <= max(differences)), (a, b)


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge"])
def test_orders_hold_in_all_runs_or_are_errors(name: str) -> None:
    compare = getattr(operator, name)
    for (a, (first, define)), (b, (second, other)) in itertools.product(SIZES.items(), repeat=2):
        right = {compare(define(*values), other(*values)) for values in VALUES}
        try:
            assert {compare(first, second)} == right, (a, b)
        except OpenSizeError:
            assert a != b


def test_quotients_without_a_rest() -> None:
    for (a, (first, define)), (b, (second, other)) in itertools.product(SIZES.items(), repeat=2):
        if a == "0" or b == "0":
            continue
        right = {define(*values) / other(*values) for values in VALUES}
        whole = len(right) == 1 and min(right).is_integer()
        assert exact_quotient(first, second) == (int(min(right)) if whole else None), (a, b)
