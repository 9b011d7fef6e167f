"""Factors of sizes have the size as their product, and none of them is ever negative."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.ir.symbolic import expressions as e
from secateur.ir.symbolic.expressions import Size
from secateur.ir.symbolic.factors import factors, quotient_of

H, W, B = (e.symbol(name, 1, 6) for name in ("h", "w", "b"))
ROWS = e.ceil_divide(H, 4)
COLUMNS = e.ceil_divide(e.floor_divide(e.add(W, 8), 4), 7)

sums = st.lists(
    st.tuples(st.integers(-3, 3), st.lists(st.sampled_from([H, W, B, ROWS]), max_size=2)),
    min_size=1,
    max_size=3,
).map(lambda terms: e.add(*(e.multiply(number, *parts) for number, parts in terms)))


def numbers(size: Size) -> list[int]:
    """What a size is for each h, w and b."""
    keys = ("h", "w", "b")
    found = []
    for given_ in itertools.product(range(1, 7), repeat=3):
        values = dict(zip(keys, given_, strict=True))
        number = e.substitute(size, lambda leaf, values=values: values[leaf.key])
        assert isinstance(number, int)
        found.append(number)
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(sums, min_size=1, max_size=3))
def test_the_product_of_factors_is_the_size(parts: list[Size]) -> None:
    whole = e.multiply(*parts)
    found = factors(whole)
    assert e.multiply(*found) == whole
    if len(found) > 1:
        assert all(min(numbers(factor)) >= 0 for factor in found)
        assert all(factor != 1 for factor in found)


@settings(max_examples=150, deadline=None)
@given(sums, sums, sums)
def test_quotients_are_exact(a: Size, b: Size, rest: Size) -> None:
    if b == 0:
        return
    assert quotient_of(e.multiply(a, b), b) == a
    found = quotient_of(e.add(e.multiply(a, b), rest), b)
    assert found is None or e.multiply(found, b) == e.add(e.multiply(a, b), rest)


@pytest.mark.parametrize(
    "parts",
    [
        (B, ROWS, COLUMNS),
        (7, e.add(H, 3), e.add(W, H)),
        (e.add(H, W, -1), e.add(H, W, -1)),
        (4, B, e.add(H, -1), e.add(W, 2), e.add(B, 1)),
    ],
)
def test_sums_that_are_multiplied_are_found(parts: tuple[Size, ...]) -> None:
    """Windows of images, each axis rounded up; a square; a number and a symbol before sums."""
    assert factors(e.multiply(*parts)) == sorted(parts, key=str)


@pytest.mark.parametrize("size", [e.add(H, W), e.add(e.multiply(H, W), B), 5, H])
def test_others_stay_as_they_are(size: Size) -> None:
    assert factors(size) == [size]


def test_sums_that_may_be_negative_are_left_together() -> None:
    """(h - 3) * (w - 3) is 1 of 2 by 2, of which neither part is the size of an axis."""
    whole = e.multiply(e.add(H, -3), e.add(W, -3))
    assert factors(whole) == [whole]
