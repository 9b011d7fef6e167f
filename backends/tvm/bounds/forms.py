"""Linear forms over quantities, and what is known of a quantity by itself.

A quantity is an integer that the analysis doesn't look into: a loop's variable, an element of
memory, a quotient. Everything is integers without limits here, in Python's own arithmetic;
whether machine integers agree is for `values.py` to ask.
"""

from __future__ import annotations

import dataclasses
import math


class Linear:
    """`const` + the sum of coefficient * quantity; coefficients aren't zero."""

    __slots__ = ("const", "terms")

    def __init__(self, const: int, terms: dict[int, int]) -> None:
        self.const = const
        self.terms = terms

    def plus(self, other: Linear, factor: int = 1) -> Linear:
        """self + factor * other."""
        if not other.terms:
            return Linear(self.const + factor * other.const, self.terms)
        terms = dict(self.terms)
        for quantity, coefficient in other.terms.items():
            total = terms.get(quantity, 0) + factor * coefficient
            if total:
                terms[quantity] = total
            else:
                del terms[quantity]
        return Linear(self.const + factor * other.const, terms)

    def times(self, factor: int) -> Linear:
        if factor == 0:
            return Linear(0, {})
        return Linear(self.const * factor, {a: c * factor for a, c in self.terms.items()})

    def shifted(self, offset: int) -> Linear:
        return Linear(self.const + offset, self.terms)

    def reduced(self) -> Linear:
        """A form without a common factor that, of integers, is at least 0 where this one is."""
        common = math.gcd(*self.terms.values())
        if common <= 1:
            return self
        terms = {quantity: c // common for quantity, c in self.terms.items()}
        return Linear(self.const // common, terms)

    def key(self) -> tuple[object, ...]:
        """Equal for equal forms."""
        return (self.const, *sorted(self.terms.items()))

    def variable_key(self) -> tuple[tuple[int, int], ...]:
        """Equal for forms that differ by a number."""
        return tuple(sorted(self.terms.items()))

    def direction(self) -> tuple[tuple[tuple[int, int], ...], int]:
        """The terms divided by the returned factor, so that multiples have the same ones."""
        items = sorted(self.terms.items())
        factor = math.gcd(*(c for _, c in items))
        if items[0][1] < 0:
            factor = -factor
        return tuple((a, c // factor) for a, c in items), factor


@dataclasses.dataclass(frozen=True)
class Case:
    """Where all of `given` are at least 0, the quantity is `value`."""

    given: tuple[Linear, ...]
    value: Linear


@dataclasses.dataclass(frozen=True)
class Quantity:
    """`low` and `high` hold everywhere; one of `cases`, if any, does. `data` says that the
    integer depends on what memory holds when the kernel runs. A product has the quantities
    that it is made of as `factors`."""

    low: int
    high: int
    data: bool = False
    cases: tuple[Case, ...] = ()
    factors: tuple[int, ...] = ()


Direction = tuple[tuple[int, int], ...]
