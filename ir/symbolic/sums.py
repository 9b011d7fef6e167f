"""Bounds of sums of products of sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .ranges import Range, greatest, least, range_of_product

Terms = Mapping[tuple[Any, ...], int]
"""The factor of each product of atoms (`expressions.py`)."""

_MOST_QUOTIENTS = 3
"""Quotients in a sum up to which each is looked into."""


def range_of_sum(terms: Terms) -> Range:
    """The range of a sum, by the factors of its products."""
    low: int | None = 0
    high: int | None = 0
    for monomial, factor in terms.items():
        bottom, top = range_of_product([atom.range for atom in monomial])
        if factor < 0:
            bottom, top = top, bottom
        low = None if low is None or bottom is None else low + factor * bottom
        high = None if high is None or top is None else high + factor * top
    for found in _without_quotients(terms):
        low, high = greatest(low, found.low), least(high, found.high)
    return _on_grid(Range(low, high), terms)


def _without_quotients(terms: Terms) -> Iterator[Range]:
    """Ranges of a sum, each with a quotient that it holds as the fraction that is rounded down:
    4 * n - 4 * floor(3 * n / 4) is at least n."""
    quotients = [(m, c) for m, c in terms.items() if len(m) == 1 and m[0].op == "floor"]
    if len(terms) < 2 or len(quotients) > _MOST_QUOTIENTS:
        return
    for monomial, factor in quotients:
        for parts, divisor in _fractions(monomial[0], [m[0] for m, _ in quotients]):
            found = {m: c * divisor for m, c in terms.items() if m != monomial}
            for part, own in parts.items():
                found[part] = found.get(part, 0) + own * factor
            low, high = range_of_sum({m: c for m, c in found.items() if c})
            lost = factor * (divisor - 1)  # at most, by rounding
            if low is not None:
                low = -((max(lost, 0) - low) // divisor)
            if high is not None:
                high = (high - min(lost, 0)) // divisor
            yield Range(low, high)


def _fractions(quotient: Any, others: Sequence[Any]) -> Iterator[tuple[Terms, int]]:
    """What a quotient is, rounded down, as a sum and its divisor: n / 8 is n // 4 / 2, too."""
    whole, divisor = quotient.operands
    if not isinstance(divisor, int) or divisor < 1:
        return
    parts = {(): whole} if isinstance(whole, int) else whole.terms
    yield parts, divisor
    for other in others:
        finer, own = other.operands
        if isinstance(own, int) and 1 < own < divisor and divisor % own == 0:
            apart = dict(parts)
            for part, count in ({(): finer} if isinstance(finer, int) else finer.terms).items():
                apart[part] = apart.get(part, 0) - count
            number = apart.pop((), 0)
            if not any(apart.values()) and number % own == 0:
                yield {(other,): 1, (): number // own}, divisor // own


def _on_grid(found: Range, terms: Terms) -> Range:
    """The range of a sum whose factors have a common divisor."""
    step = math.gcd(*(factor for monomial, factor in terms.items() if monomial))
    offset = terms.get((), 0)
    if step < 2:
        return found
    low, high = (None if end is None else end - offset for end in found)
    return Range(
        None if low is None else -(-low // step) * step + offset,
        None if high is None else high // step * step + offset,
    )
