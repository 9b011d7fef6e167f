"""Where temporaries lie: the smallest gap that holds each, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from secateur.backends.tvm.plan.memory import _in_order, _in_order_of_use, _Range

RANGES = st.lists(
    st.builds(
        lambda first, length, nbytes: _Range(first, first + length, nbytes),
        st.integers(0, 9),
        st.integers(0, 5),
        st.integers(1, 6),
    ),
    max_size=12,
)


def gaps(taken: set[int], end: int) -> Iterator[tuple[int, int]]:
    """Size and beginning of each run of free bytes below `end`."""
    start = 0
    for byte in sorted({*(b for b in taken if b < end), end}):
        if byte > start:
            yield byte - start, start
        start = byte + 1


def place(taken: set[int], end: int, nbytes: int) -> int | None:
    """The smallest gap that holds so many bytes, the first of several."""
    fitting = [gap for gap in gaps(taken, end) if gap[0] >= nbytes]
    return min(fitting)[1] if fitting else None


def bytes_of(start: int, nbytes: int) -> set[int]:
    return set(range(start, start + nbytes))


@given(RANGES, st.randoms(use_true_random=False))
def test_each_takes_the_smallest_gap_between_those_of_its_time(ranges, random) -> None:
    order = list(range(len(ranges)))
    random.shuffle(order)
    want: dict[int, int] = {}
    for index in order:
        beside = [i for i in want if ranges[i].meets(ranges[index])]
        taken = set().union(*(bytes_of(want[i], ranges[i].nbytes) for i in beside))
        end = max(taken, default=-1) + 1
        found = place(taken, end, ranges[index].nbytes)
        want[index] = end if found is None else found
    offsets, size = _in_order(ranges, order)
    assert dict(enumerate(offsets)) == want
    assert size == largest(ranges, offsets)


@given(RANGES)
def test_in_the_order_of_use_the_arena_grows_where_no_gap_is_large_enough(ranges) -> None:
    ranges = sorted(ranges, key=lambda r: r.first)
    want: list[int] = []
    size = 0
    for r in ranges:
        beside = [i for i in range(len(want)) if ranges[i].last >= r.first]
        taken = set().union(*(bytes_of(want[i], ranges[i].nbytes) for i in beside))
        found = place(taken, size, r.nbytes)
        if found is None:
            found = max(taken, default=-1) + 1
        want.append(found)
        size = max(size, found + r.nbytes)
    assert _in_order_of_use(ranges) == (want, size)


def largest(ranges: Sequence[_Range], offsets: Sequence[int]) -> int:
    return max((o + r.nbytes for r, o in zip(ranges, offsets, strict=True)), default=0)


def test_of_two_gaps_of_one_size_the_first_is_taken() -> None:
    always, once = _Range(0, 5, 2), _Range(0, 0, 2)
    ranges = [always, once, always, once, always, _Range(3, 4, 2)]
    offsets, size = _in_order(ranges, range(len(ranges)))
    assert offsets == [0, 2, 4, 6, 8, 2]
    assert size == 10
