"""Expressions mean what their functions compute, and their ranges hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.ir.symbolic import expressions as e
from secateur.ir.symbolic.expressions import Expression, Size


class Admitted(NamedTuple):
    low: int
    high: int | None
    divisor: int


SYMBOLS = {
    "n": Admitted(0, None, 1),
    "m": Admitted(1, 9, 1),
    "h": Admitted(32, 960, 32),
    "odd name!": Admitted(-5, 5, 1),
}


def symbols() -> dict[str, Size]:
    return {name: e.symbol(name, *admitted) for name, admitted in SYMBOLS.items()}


@st.composite
def environments(draw: Callable[..., int]) -> dict[str, int]:
    """Numbers that the symbols admit."""
    found = {}
    for name, (low, high, divisor) in SYMBOLS.items():
        highest = (high if high is not None else 40) // divisor
        found[name] = divisor * draw(st.integers(-(-low // divisor), highest))
    return found


def truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


FUNCTIONS: dict[str, tuple[Callable[..., Size], Callable[..., int], int]] = {
    "add": (e.add, lambda a, b: a + b, 2),
    "subtract": (e.subtract, lambda a, b: a - b, 2),
    "multiply": (e.multiply, lambda a, b: a * b, 2),
    "negative": (e.negative, lambda a: -a, 1),
    "divide": (e.divide, truncated, 2),
    "floor_divide": (e.floor_divide, lambda a, b: a // b, 2),
    "ceil_divide": (e.ceil_divide, lambda a, b: -(-a // b), 2),
    "modulo": (e.modulo, lambda a, b: a % b, 2),
    "minimum": (e.minimum, min, 2),
    "maximum": (e.maximum, max, 2),
    "equal": (e.equal, lambda a, b: int(a == b), 2),
    "less": (e.less, lambda a, b: int(a < b), 2),
    "choose": (e.choose, lambda c, a, b: a if c else b, 3),
}
"""What makes an expression, what it means, and the number of operands."""

Tree = str | int | tuple[object, ...]

trees = st.recursive(
    st.sampled_from(sorted(SYMBOLS)) | st.integers(-4, 70),
    lambda inner: st.sampled_from(sorted(FUNCTIONS)).flatmap(
        lambda name: st.tuples(st.just(name), *[inner] * FUNCTIONS[name][2])
    ),
    max_leaves=8,
)


def build(tree: Tree, leaves: Mapping[str, Size]) -> Size:
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return leaves[tree]
    name, *operands = tree
    return FUNCTIONS[str(name)][0](*(build(x, leaves) for x in operands))  # type: ignore[arg-type]


def compute(tree: Tree, numbers: Mapping[str, int]) -> int:
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return numbers[tree]
    name, *operands = tree
    return FUNCTIONS[str(name)][1](*(compute(x, numbers) for x in operands))  # type: ignore[arg-type]


def at(size: Size, numbers: Mapping[str, int]) -> Size:
    keys = {name if name.isidentifier() else repr(name): n for name, n in numbers.items()}
    return e.substitute(size, lambda leaf: keys[leaf.key])


@settings(max_examples=250, deadline=None)
@given(trees, environments())
def test_an_expression_means_what_it_was_made_of(tree: Tree, numbers: dict[str, int]) -> None:
    size = build(tree, symbols())
    try:
        expected = compute(tree, numbers)
    except ZeroDivisionError:
        return  # divisors are taken to be other than zero
    if e.is_long(size):
        return
    assert at(size, numbers) == expected
    low, high = e.range_of(size)
    assert low is None or low <= expected
    assert high is None or expected <= high


@settings(max_examples=200, deadline=None)
@given(st.lists(trees, min_size=3, max_size=3))
def test_the_form_is_canonical(parts: list[Tree]) -> None:
    a, b, c = (build(part, symbols()) for part in parts)
    assert e.add(a, e.add(b, c)) == e.add(e.add(c, a), b)
    assert e.multiply(a, b) == e.multiply(b, a)
    assert e.multiply(a, e.add(b, c)) == e.add(e.multiply(a, b), e.multiply(c, a)) or any(
        isinstance(x, Expression) and len(x.terms) > 30 for x in (a, b, c)
    )
    assert e.subtract(e.add(a, b), b) == a
    assert e.maximum(a, b) == e.maximum(b, a)
    for x, y in ((a, b), (b, c)):
        assert (x == y) == (str(x) == str(y))


N, M, H, _ = symbols().values()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (e.divide(e.multiply(8, N, M), e.multiply(M, 4)), "2*n"),
        (e.floor_divide(e.add(e.multiply(2, N), 1), 2), "n"),
        (e.floor_divide(e.floor_divide(N, 2), 3), "floor(n, 6)"),
        (e.divide(H, 32), "h/32"),
        (e.multiply(e.divide(H, 16), 16), "32*h/32"),
        (e.modulo(H, 8), "0"),
        (e.minimum(M, 9), "m"),
        (e.maximum(e.subtract(M, 1), 0), "-1 + m"),
        (e.less(M, H), "1"),
        (e.equal(M, 10), "0"),
        (e.choose(e.equal(N, 3), M, M), "m"),
        (e.broadcast(N, 1), "n"),
        (e.broadcast(7, N), "7"),
        (e.symbol("fixed", 3, 3), "3"),
        (e.symbol("2*n"), "'2*n'"),
    ],
)
def test_forms(size: Size, text: str) -> None:
    assert str(size) == text


def test_sums_and_products_without_end_are_cut_off() -> None:
    """Each step doubles the terms, or the factors: neither time nor memory may follow."""
    size: Size = 1
    for step in range(200):
        size = e.bounded(e.multiply(size, e.add(e.symbol(f"s{step}"), size)), 256)
        assert e.weight(size) <= 256
    assert e.is_long(size)
    again: Size = 1
    for step in range(200):
        again = e.bounded(e.multiply(again, e.add(e.symbol(f"s{step}"), again)), 256)
    assert again == size


def test_ranges_of_quotients_of_the_same_size() -> None:
    """Half of a quarter is less than the quarter: of images that are halved twice rows are left."""
    for offset in (0, -4, 12):
        size = e.add(e.symbol("rows", 4 - min(offset, 0)), offset)
        quarter, eighth = e.floor_divide(size, 4), e.floor_divide(size, 8)
        assert e.range_of(e.subtract(quarter, eighth)).low == (1 if offset <= 0 else 2)
        windows = e.ceil_divide(e.subtract(quarter, eighth), 7)
        assert e.range_of(windows).low == 1
