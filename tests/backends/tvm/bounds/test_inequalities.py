"""What is proven of forms holds at all integers that the facts admit, of which few are left."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.backends.tvm.bounds import inequalities
from secateur.backends.tvm.bounds.assignments import find_assignments
from secateur.backends.tvm.bounds.forms import Case, Linear, Quantity
from secateur.backends.tvm.bounds.inequalities import Inequalities

Terms = tuple[int, tuple[tuple[int, tuple[int, ...]], ...]]
"""A number, and coefficients of products of some of `World`'s quantities."""

FORMS: st.SearchStrategy[Terms] = st.tuples(
    st.integers(-12, 12),
    st.lists(
        st.tuples(
            st.integers(-4, 4).filter(bool),
            st.lists(st.integers(0, 4), min_size=1, max_size=2).map(tuple),
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
)

SIZES = st.tuples(st.integers(0, 2), st.integers(0, 3)).map(lambda r: (r[0], r[0] + r[1]))
RANGES = st.tuples(st.integers(-2, 2), st.integers(0, 3)).map(lambda r: (r[0], r[0] + r[1]))


class World:
    """Two sizes, two other integers, the lesser of a size and one of these, and facts on them."""

    def __init__(self, ranges: Sequence[tuple[int, int]], with_sizes: bool, facts: Sequence[Terms]):
        self.known = Inequalities()
        self.ranges, self.facts = ranges, facts
        self.quantities = [self.known.quantity(Quantity(*r)) for r in ranges]
        size, other = self.quantities[0], self.quantities[2]
        lesser = (
            Case((other.plus(size, -1),), size),
            Case((size.plus(other, -1).shifted(-1),), other),
        )
        self.quantities.append(self.known.quantity(Quantity(-2, 5, cases=lesser)))
        if with_sizes:
            self.known.sizes |= {0, 1}
        for fact in facts:
            self.known.add(self.form(fact))

    def form(self, terms: Terms) -> Linear:
        total = Linear(terms[0], {})
        for coefficient, factors in terms[1]:
            product = Linear(1, {})
            for factor in factors:
                product = self.known.multiply(product, self.quantities[factor])
            total = total.plus(product, coefficient)
        return total

    def admitted(self, facts: Sequence[Terms] = ()) -> Iterator[tuple[int, ...]]:
        """All integers that the ranges, the lesser one's definition and the facts admit."""
        for values in itertools.product(*(range(low, high + 1) for low, high in self.ranges)):
            whole = (*values, min(values[0], values[2]))
            if all(value_of(fact, whole) >= 0 for fact in (*self.facts, *facts)):
                yield whole


def value_of(terms: Terms, values: Sequence[int]) -> int:
    return terms[0] + sum(c * math.prod(values[f] for f in factors) for c, factors in terms[1])


WORLDS = st.builds(
    World,
    st.tuples(SIZES, SIZES, RANGES, RANGES),
    st.booleans(),
    st.lists(FORMS, max_size=4),
)


@settings(max_examples=60)
@given(WORLDS, st.lists(FORMS, min_size=1, max_size=4), FORMS, st.integers(0, 3))
def test_what_is_proven_holds(
    world: World, forms: list[Terms], condition: Terms, more: int
) -> None:
    """With assignments from the first form on, too, and where a condition holds, and after it."""
    for long in (inequalities._LONG, 0):
        for scope in ((), (condition,), ()):
            admitted = list(world.admitted(scope))
            with world.known.given([world.form(c) for c in scope]):
                for terms in forms:
                    least = min((value_of(terms, v) for v in admitted), default=0)
                    # with what makes it just true, or not quite
                    for shift in (0, -least, -least - 1, more):
                        form = world.form(terms).shifted(shift)
                        with pytest.MonkeyPatch.context() as patch:
                            patch.setattr(inequalities, "_LONG", long)
                            patch.setattr(inequalities, "_MOST_TRIED", 200)
                            proven = world.known.is_at_least_0(form)
                        assert not proven or all(value_of(terms, v) + shift >= 0 for v in admitted)


@settings(max_examples=80)
@given(WORLDS, st.lists(FORMS, min_size=1, max_size=4))
def test_assignments_lose_no_proof(world: World, forms: list[Terms]) -> None:
    other = World(world.ranges, bool(world.known.sizes), world.facts)
    for terms in forms:
        least = min((value_of(terms, v) for v in world.admitted()), default=0)
        for shift in (-least, 3 - least):
            found = []
            for one, long in ((world, 0), (other, 1 << 30)):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(inequalities, "_LONG", long)
                    found.append(one.known.is_at_least_0(one.form(terms).shifted(shift)))
            assert found[0] >= found[1]


@settings(max_examples=80)
@given(WORLDS)
def test_assignments_are_admitted(world: World) -> None:
    admitted = set(world.admitted())
    for assignment in find_assignments(world.known.quantities, world.known._ranges):
        assert tuple(assignment[q] for q in range(5)) in admitted


def test_assignments_where_sizes_follow_from_each_other() -> None:
    """Quotients and remainders of a size leave one integer for most quantities, which is found."""
    known = Inequalities()
    size = known.quantity(Quantity(5, 1 << 20))
    for divisor in (4, 16, 32):
        quotient = known.quantity(Quantity(0, 1 << 20))
        rest = known.quantity(Quantity(0, divisor - 1))
        remainder = size.plus(quotient, -divisor).plus(rest, -1)
        known.add(remainder)
        known.add(remainder.times(-1))
    square = known.multiply(size, size)
    known.cap(square, (1 << 31) - 1)
    assignments = find_assignments(known.quantities, known._ranges)
    assert len({assignment[0] for assignment in assignments}) > 2
    assert all(assignment.value(square) <= (1 << 31) - 1 for assignment in assignments)
