"""The algebra of axes against an index-level model of the same ties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.ir.axes.dims import (
    ONE,
    Lock,
    axis_size,
    concat,
    dims_of,
    fresh,
    is_locked,
    literal,
    lock,
    product,
    resolve,
    split,
    unify,
)
from secateur.ir.axes.selection import Selection

WHY = Lock("node", "Op", "test")


@st.composite
def axes_of_size(draw, size, pool, depth=2):
    """A random axis of `size` elements over new and already used dims."""
    same = [d for d in pool if d.size == size]
    if same and draw(st.booleans()):
        return ((draw(st.sampled_from(same)),),)
    kind = draw(st.integers(0, 5)) if depth and size > 1 else 0
    if kind in (1, 2):
        at = draw(st.integers(1, size - 1))
        return concat(
            [
                draw(axes_of_size(at, pool, depth - 1)),
                draw(axes_of_size(size - at, pool, depth - 1)),
            ]
        )
    divisors = [d for d in range(2, size) if size % d == 0]
    if kind in (3, 4) and divisors:
        outer = draw(st.sampled_from(divisors))
        return product(
            [
                draw(axes_of_size(outer, pool, depth - 1)),
                draw(axes_of_size(size // outer, pool, depth - 1)),
            ]
        )
    if kind == 5 and draw(st.booleans()):
        return literal(size, WHY)
    axis = fresh(size, f"d{len(pool)}")
    pool.extend(d for term in axis for d in term)
    return axis


@st.composite
def systems(draw):
    """Pairs of axes of equal sizes to be unified, over shared dims."""
    pool = []
    sizes = draw(st.lists(st.sampled_from([2, 3, 4, 6, 8, 12, 18, 20, 60]), min_size=1, max_size=3))
    pairs = []
    for _ in range(draw(st.integers(1, 5))):
        size = draw(st.sampled_from(sizes))
        pairs.append((draw(axes_of_size(size, pool)), draw(axes_of_size(size, pool))))
    return pairs


def choose(draw, axes):
    free = {d for axis in axes for d in dims_of(axis) if d.lock is None and d.size > 1}
    kept = {}
    for dim in sorted(free, key=lambda d: (d.origin, d.size)):
        mask = draw(st.lists(st.booleans(), min_size=dim.size, max_size=dim.size))
        if any(mask):
            kept[dim] = np.flatnonzero(mask)
    return Selection(kept)


@settings(max_examples=120, deadline=None)
@given(st.data(), systems())
def test_unified_axes_keep_the_same_indices(data, pairs):
    before = [(axis_size(a), axis_size(b)) for a, b in pairs]
    for a, b in pairs:
        assert unify(a, b, WHY)
    assert before == [(axis_size(a), axis_size(b)) for a, b in pairs]
    selection = choose(data.draw, [a for pair in pairs for a in pair])
    for a, b in pairs:
        left, right = selection.indices(a), selection.indices(b)
        assert (left is None) == (right is None)
        if left is not None:
            np.testing.assert_array_equal(left, right)


@settings(max_examples=100, deadline=None)
@given(st.data(), systems())
def test_split_cuts_exactly(data, pairs):
    for a, b in pairs:
        unify(a, b, WHY)
    axis = pairs[0][0]
    size = axis_size(axis)
    at = data.draw(st.integers(0, size))
    head, tail = split(axis, at)
    assert (axis_size(head), axis_size(tail)) == (at, size - at)
    selection = choose(data.draw, [axis, head, tail])
    whole, left, right = (selection.indices(x) for x in (axis, head, tail))
    expected = np.arange(size) if whole is None else whole
    left = np.arange(at) if left is None else left
    right = np.arange(size - at) if right is None else right
    np.testing.assert_array_equal(expected, np.concatenate([left, right + at]))


def free_size(axis):
    return sum(d.size for d in set(dims_of(axis)) if d.lock is None)


def test_residual_ties_one_dim():
    a, b = fresh(8, "a"), fresh(8, "b")
    unify(a, b, WHY)
    assert resolve(a) == resolve(b)
    assert free_size(a) == 8


def test_concat_refines_the_other_side():
    a, b, c = fresh(3, "a"), fresh(5, "b"), fresh(8, "c")
    unify(concat([a, b]), c, WHY)
    assert [axis_size((t,)) for t in resolve(c)] == [3, 5]


def test_heads_factor_a_channel_axis():
    channels, heads, size = fresh(768, "c"), fresh(12, "h"), fresh(64, "d")
    unify(channels, product([heads, size]), WHY)
    assert [d.size for d in resolve(channels)[0]] == [12, 64]
    assert not is_locked(heads)


def test_grouped_query_heads_split_into_groups_and_repeats():
    query, groups, repeats = fresh(8, "q"), fresh(2, "kv"), fresh(4, "r")
    unify(query, product([groups, repeats]), WHY)
    assert {d.size for d in dims_of(query)} == {2, 4}


def test_shuffle_of_two_halves_stays_free():
    a, b, groups, rank = fresh(58, "a"), fresh(58, "b"), fresh(2, "g"), fresh(58, "n")
    unify(concat([a, b]), product([groups, rank]), WHY)
    shuffled = product([rank, groups])
    head, _ = split(shuffled, 58)
    assert resolve(a) == resolve(b)
    assert axis_size(head) == 58
    assert free_size(shuffled) == 58


def test_a_cut_through_a_block_keeps_only_that_index():
    rank, groups = fresh(20, "n"), literal(3, WHY)
    split(product([rank, groups]), 20)
    assert sorted(d.size for d in dims_of(rank)) == [6, 13]


def test_coprime_orders_are_locked_with_the_reason():
    a = product([fresh(4, "a"), fresh(9, "b")])
    b = product([fresh(9, "c"), fresh(4, "d")])
    unify(a, b, WHY)
    assert is_locked(a)
    assert all(d.lock == WHY for d in dims_of(b))


def test_common_divisors_stay_free_around_a_conflict():
    a = product([fresh(6, "a"), fresh(4, "b")])
    b = product([fresh(4, "c"), fresh(6, "d")])
    unify(a, b, WHY)
    assert free_size(a) > 0


def test_unequal_sizes_lock_both_sides():
    a, b = fresh(4, "a"), fresh(5, "b")
    assert not unify(a, b, WHY)
    assert is_locked(a)
    assert is_locked(b)


def test_a_known_size_tells_the_unknown_factor():
    channels, image = fresh(4, "c"), literal(None, WHY)
    flat, weight = product([channels, image]), fresh(36, "w")
    assert unify(flat, weight, WHY)
    assert [d.size for d in resolve(weight)[0]] == [4, 9]
    assert resolve(weight)[0][0] is resolve(channels)[0][0]
    assert not is_locked(channels)


def test_merged_axes_of_unknown_size_tie_their_factors():
    batch = literal(None, WHY)
    a, b = fresh(3, "a"), fresh(3, "b")
    assert unify(product([batch, a]), product([batch, b]), WHY)
    assert resolve(a) == resolve(b)
    assert not is_locked(a)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("first", [True, False])
def test_factors_of_unknown_size_in_common_leave_the_rest_free(first, count):
    """At either end, one or several."""
    common = [fresh(None, f"n{k}") for k in range(count)]
    a, b = fresh(6, "a"), fresh(6, "b")
    x, y = (product([*common, own] if first else [own, *common]) for own in (a, b))
    assert unify(x, y, WHY)
    assert resolve(a) == resolve(b)
    assert not is_locked(a)
    assert not any(is_locked(axis) for axis in common)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_product_with_nothing_is_nothing(place):
    axes = [fresh(2, "a"), fresh(3, "b")]
    axes.insert(place, ())
    assert product(axes) == ()


def test_unknown_sizes_in_other_places_lock_what_is_mixed_with_them():
    a, b = fresh(3, "a"), fresh(4, "b")
    unify(product([literal(None, WHY), a]), product([literal(None, WHY), b]), WHY)
    assert is_locked(a)
    assert is_locked(b)


def test_locks_spread_through_unification():
    a, b = fresh(4, "a"), literal(4, WHY)
    unify(a, b, WHY)
    assert is_locked(a)


def test_size_one_is_the_empty_product():
    assert fresh(1, "x") == ONE
    assert literal(1, WHY) == ONE


@pytest.mark.parametrize("size", [10_000, 100_000])
def test_long_concatenations_unify_in_linear_steps(size):
    parts = [fresh(2, "p") for _ in range(size // 100)]
    whole = fresh(math.prod([2, size // 100]), "w")
    unify(concat(parts), whole, WHY)
    assert len(resolve(whole)) == size // 100
    lock(whole, WHY)
    assert all(is_locked(p) for p in parts)
