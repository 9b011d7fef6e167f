"""What proofs are told of sizes holds in every run that isn't refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from secateur.backends.tvm.plan.size_facts import facts_of
from secateur.backends.tvm.plan.sizes import in_words_of, size_of, stand_in, stand_in_of_axis
from secateur.ir.symbolic import expressions as e
from secateur.ir.symbolic.expressions import Atom, Size, atoms

H, W = e.symbol("h", 1), e.symbol("w", 1)

STEPS = {
    "strided": lambda size, k: e.add(e.floor_divide(e.add(size, -k), k), 1),
    "padded": lambda size, k: e.multiply(e.ceil_divide(size, k), k),
    "parts": e.ceil_divide,
    "cut": lambda size, k: e.subtract(size, k),
    "rolled": lambda size, k: e.minimum(size, k),
    "rest": lambda size, k: e.maximum(e.add(size, -k), 0),
    "repeated": e.multiply,
    "squared": lambda size, k: e.multiply(size, e.add(size, k)),
}

chains = st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(1, 7)), max_size=3)


def sizes_after(steps: list[tuple[str, int]], first: Size) -> list[Size]:
    """The sizes that one operator after the other makes."""
    found = [first]
    for name, number in steps:
        found.append(STEPS[name](found[-1], number))
    return found


def admitted(parameters: list[Atom]) -> list[dict[Atom, int]]:
    """What parts of sizes are in runs of small images, where each is within its bounds."""
    found = []
    for h in range(1, 26):
        for w in (1, 5, 28):
            values = {}
            for atom in parameters:
                number = e.substitute(e.single(atom), lambda x, h=h, w=w: h if x.key == "h" else w)
                assert isinstance(number, int)
                values[atom] = number
            if all((a.range.low or 0) <= n for a, n in values.items()):
                found.append(values)
    return found


@settings(max_examples=30, deadline=None)
@given(chains, chains, st.booleans())
def test_facts_hold_in_every_run(
    rows: list[tuple[str, int]], columns: list[tuple[str, int]], further: bool
) -> None:
    sizes = [*sizes_after(rows, H), *sizes_after(columns, W)]
    whole = e.multiply(sizes[-1], sizes[len(rows)])
    axes = [size_of(stand_in_of_axis(size)) for size in (*sizes, whole)]
    parameters = atoms(axes)
    known = facts_of(parameters, further=further)
    for values in admitted(parameters):
        numbers = [values[atom] for atom in parameters]
        for number, (low, high) in zip(numbers, known.ranges, strict=True):
            assert low <= number <= high
        for fact in known.facts:
            assert sum(c * math.prod(numbers[i] for i in places) for c, places in fact) >= 0


@settings(max_examples=30, deadline=None)
@given(chains, chains, st.integers(-9, 9))
def test_axes_are_the_sizes_that_they_stand_for(
    rows: list[tuple[str, int]], columns: list[tuple[str, int]], number: int
) -> None:
    a, b = sizes_after(rows, H)[-1], sizes_after(columns, W)[-1]
    for size in (a, e.multiply(a, b), e.multiply(7, a, b), e.subtract(e.multiply(a, b), a)):
        axis = stand_in_of_axis(size)
        assert axis == stand_in(size)
        place = stand_in(e.add(size, number))
        assert in_words_of(axis, place) == place
    assert in_words_of(stand_in_of_axis(a), stand_in(e.multiply(2, a, b))) == stand_in(
        e.multiply(2, a, b)
    )


def test_windows_are_rows_of_windows() -> None:
    """Axes that are multiplied keep their names, so that proofs know one of the other."""
    rows, columns = (e.ceil_divide(e.floor_divide(size, 4), 7) for size in (H, W))
    axis = [size_of(stand_in_of_axis(size)) for size in (rows, columns)]
    assert size_of(stand_in_of_axis(e.multiply(rows, columns))) == e.multiply(*axis)
    assert size_of(stand_in_of_axis(e.multiply(rows, 7))) == e.multiply(axis[0], 7)
