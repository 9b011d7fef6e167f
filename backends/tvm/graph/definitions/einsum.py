"""Einsum of two operands as a matrix product, or as an elementwise one where it sums nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .....ir.einsum import read_equation
from .body import Body, Declined, definition

Sizes = dict[str, "int | str | None"]
"""Of letters; text or None where they are open."""


@definition("Einsum", domain="")
def _einsum(b: Body) -> list[str]:
    """Letters in both operands and the result are a batch, in both operands alone they are
    summed, and those of one operand are its rows or columns."""
    if len(b.inputs) != 2 or b.dtype(0).kind != "f":
        raise Declined
    left, right, result = _letters(b)
    sizes = _sizes(b, (left, right))
    x, left = _without_sums(b, b.required(0), left, right + result)
    y, right = _without_sums(b, b.required(1), right, left + result)
    batch = "".join(c for c in result if c in left and c in right)
    summed = "".join(c for c in left if c in right and c not in result)
    rows = "".join(c for c in result if c not in right)
    columns = "".join(c for c in result if c not in left)
    x = _ordered(b, x, left, batch + rows + summed)
    y = _ordered(b, y, right, batch + summed + columns)
    if not summed:
        x = _spread(b, x, len(batch + rows), len(columns))
        y = _spread(b, y, len(batch), len(rows))
        return [_ordered(b, b("Mul", x, y), batch + rows + columns, result)]
    merged = [rows] if batch or not rows else [*rows]  # each axis before the last is one of rows
    operands = [(x, batch + rows + summed), (y, batch + summed + columns)]
    given = [*operands[0][1]], [*operands[1][1]]
    p = _reshaped(b, x, given[0], [*batch, *merged, summed], operands[:1], sizes)
    q = _reshaped(b, y, given[1], [*batch, summed, columns], operands[1:], sizes)
    groups, wanted = [*batch, *merged, columns], [*batch, *rows, *columns]
    product = _reshaped(b, b("MatMul", p, q), groups, wanted, operands, sizes)
    return [_ordered(b, product, batch + rows + columns, result)]


def _letters(b: Body) -> tuple[str, str, str]:
    """The letters of both operands and of the result, those of an ellipsis among them."""
    try:
        equation = read_equation(str(b.node.get("equation")), [b.rank(0), b.rank(1)])
    except ValueError:
        raise Declined from None
    found = (*equation.operands, equation.result)
    if any(len(set(letters)) < len(letters) for letters in found):
        raise Declined
    left, right, result = found
    return left, right, result


def _sizes(b: Body, terms: Sequence[str]) -> Sizes:
    """The size of each letter. Declined where one operand is repeated along a letter, which
    products don't do, or nothing is computed."""
    sizes: Sizes = {}
    for index, letters in enumerate(terms):
        for letter, size in zip(letters, b.shape(index), strict=True):
            known = sizes.setdefault(letter, size)
            is_number = isinstance(size, int)
            if isinstance(known, int) != is_number or (is_number and size != known) or size == 0:
                raise Declined
    return sizes


def _without_sums(b: Body, x: str, letters: str, others: str) -> tuple[str, str]:
    """An operand summed along the letters that nothing else has."""
    alone = [i for i, c in enumerate(letters) if c not in others]
    if alone:
        x = b.reduced("ReduceSum", x, *alone, keepdims=0)
    return x, "".join(c for c in letters if c in others)


def _ordered(b: Body, x: str, letters: str, wanted: str) -> str:
    order = [letters.index(c) for c in wanted]
    return x if order == sorted(order) else b("Transpose", x, perm=order)


def _spread(b: Body, x: str, place: int, count: int) -> str:
    """An operand with so many axes of one element at a place."""
    return b.unsqueezed(x, *range(place, place + count)) if count else x


def _reshaped(
    b: Body,
    x: str,
    given: list[str],
    wanted: list[str],
    operands: Sequence[tuple[str, str]],
    sizes: Sizes,
) -> str:
    """A tensor with axes for groups of letters, whose open sizes `operands` have."""
    if given == wanted:
        return x
    places: list[int | None] = []
    for place, group in enumerate(wanted):
        numbers = [size for c in group if isinstance(size := sizes[c], int)]
        if place < len(given) and given[place] == group:
            places.append(0)  # stays as it is
        else:
            places.append(math.prod(numbers) if len(numbers) == len(group) else None)
    if places.count(None) < 2:
        return b.reshaped(x, *(-1 if place is None else place for place in places))
    parts = [
        _product(b, group, operands, sizes) if place is None else b.integers(place)
        for place, group in zip(places, wanted, strict=True)
    ]
    return b("Reshape", x, b("Concat", *parts, axis=0))


def _product(b: Body, group: str, operands: Sequence[tuple[str, str]], sizes: Sizes) -> str:
    """How many elements a group of letters has, as a vector of one."""
    found = []
    for letter in group:
        size = sizes[letter]
        if isinstance(size, int):
            found.append(b.integers(size))
            continue
        x, letters = next(each for each in operands if letter in each[1])
        found.append(b("Gather", b("Shape", x), b.value([letters.index(letter)], np.int64)))
    if len(found) == 1:
        return found[0]
    return b.reduced("ReduceProd", b("Concat", *found, axis=0), 0)
