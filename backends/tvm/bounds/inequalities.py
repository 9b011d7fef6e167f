"""Linear forms over quantities, and what is known of them: ranges, inequalities, cases.

A quantity is an integer that the analysis doesn't look into: a loop's variable, an element of
memory, a quotient. Everything is integers without limits here, in Python's own arithmetic;
whether machine integers agree is for `values.py` to ask.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence

_DEPTH = 4
"""Inequalities and cases that one proof may combine."""


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

    def key(self) -> tuple[object, ...]:
        """Equal for equal forms."""
        return (self.const, *sorted(self.terms.items()))

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
    integer depends on what memory holds when the kernel runs."""

    low: int
    high: int
    data: bool = False
    cases: tuple[Case, ...] = ()


Direction = tuple[tuple[int, int], ...]


class Inequalities:
    """All quantities, and the inequalities that hold at the place that the analysis looks at."""

    def __init__(self) -> None:
        self.quantities: list[Quantity] = []
        self._ranges: dict[Direction, tuple[float, float]] = {}
        self._directions: dict[int, list[Direction]] = {}  # by the quantities in them
        self._unreachable = False  # where a condition holds that never does

    def quantity(self, quantity: Quantity) -> Linear:
        """A new quantity."""
        self.quantities.append(quantity)
        return Linear(0, {len(self.quantities) - 1: 1})

    def is_data(self, form: Linear) -> bool:
        return any(self.quantities[a].data for a in form.terms)

    @contextlib.contextmanager
    def given(self, forms: Sequence[Linear]) -> Iterator[None]:
        """Within it, each of `forms` is at least 0."""
        before, unreachable = dict(self._ranges), self._unreachable
        for form in forms:
            self.add(form)
        yield
        self._ranges, self._unreachable = before, unreachable

    def add(self, form: Linear) -> None:
        """`form` is at least 0, from here to the end of the innermost `given`."""
        if not form.terms:
            self._unreachable |= form.const < 0
            return
        direction, factor = form.direction()
        found = self._ranges.get(direction)
        if found is None:
            for quantity, _ in direction:
                known = self._directions.setdefault(quantity, [])
                if direction not in known:
                    known.append(direction)
        low, high = found or (-math.inf, math.inf)
        if factor > 0:
            low = max(low, -(form.const // factor))  # the ceiling of -const / factor
        else:
            high = min(high, form.const // -factor)
        self._ranges[direction] = low, high

    def widest(self, form: Linear) -> tuple[int, int]:
        """Bounds of a form that hold everywhere."""
        low = high = form.const
        for quantity, coefficient in form.terms.items():
            ends = [
                coefficient * end
                for end in (self.quantities[quantity].low, self.quantities[quantity].high)
            ]
            low, high = low + min(ends), high + max(ends)
        return low, high

    def narrow(self, form: Linear, low: int, high: int) -> tuple[int, int]:
        """Bounds of a form, made tighter by its quantities' and by what is known of it directly."""
        const, terms = form.const, form.terms
        if not terms:
            return const, const
        least = most = const
        for quantity, coefficient in terms.items():
            bottom, top = self.bounds(quantity)
            if coefficient > 0:
                least += coefficient * bottom
                most += coefficient * top
            else:
                least += coefficient * top
                most += coefficient * bottom
        low, high = max(low, least), min(high, most)
        if self._ranges:
            direction, factor = form.direction()
            found = self._ranges.get(direction)
            if found is not None:
                ends = [const + factor * end for end in found]
                least, most = min(ends), max(ends)  # type: ignore[assignment]
                low = low if least == -math.inf else max(low, int(least))
                high = high if most == math.inf else min(high, int(most))
        return low, high

    def is_at_least_0(self, form: Linear, depth: int = _DEPTH) -> bool:
        """Whether it is proven that a form isn't negative here."""
        if self._unreachable or self._least(form) >= 0:
            return True
        if depth == 0:
            return False
        related = dict.fromkeys(d for a in form.terms for d in self._directions.get(a, ()))
        for direction in related:
            if len(direction) == 1 or direction not in self._ranges:
                continue  # of a quantity by itself `_least` knows
            low, high = self._ranges[direction]
            for scale, factor in _factors(form, direction):
                end = low if factor > 0 else high
                if math.isinf(end):
                    continue
                # an integer is at least 0 if n times it is at least 1 - n
                scaled = form.times(scale).shifted(scale - 1)
                rest = scaled.plus(Linear(-int(end), dict(direction)), -factor)
                if self.is_at_least_0(rest, depth - 1):
                    return True
        for quantity, coefficient in form.terms.items():
            cases = self.quantities[quantity].cases
            if cases and all(self._holds(form, quantity, coefficient, c, depth) for c in cases):
                return True
        return False

    def _holds(self, form: Linear, quantity: int, coefficient: int, case: Case, depth: int) -> bool:
        replaced = form.plus(Linear(0, {quantity: 1}), -coefficient).plus(case.value, coefficient)
        given = [*case.given, _equal(quantity, case.value), _equal(quantity, case.value).times(-1)]
        with self.given(given):
            if any(self._most(g) < 0 for g in case.given):
                return True  # this case doesn't occur
            return self.is_at_least_0(replaced, depth - 1)

    def _least(self, form: Linear) -> float:
        """A lower bound of a form, from what is known of each quantity."""
        least: float = form.const
        for quantity, coefficient in form.terms.items():
            low, high = self.bounds(quantity)
            least += coefficient * (low if coefficient > 0 else high)
        direct = -math.inf
        if form.terms and self._ranges:
            direct = self.narrow(form, *_WIDEST)[0]
        return max(least, direct)

    def _most(self, form: Linear) -> float:
        return -self._least(form.times(-1))

    def bounds(self, quantity: int) -> tuple[int, int]:
        """What is known here of a quantity by itself."""
        known = self.quantities[quantity]
        if not self._ranges:
            return known.low, known.high
        low, high = self._ranges.get(((quantity, 1),), (known.low, known.high))
        return max(known.low, low), min(known.high, high)  # type: ignore[return-value]


_WIDEST = -(1 << 200), 1 << 200


def _equal(quantity: int, value: Linear) -> Linear:
    return Linear(0, {quantity: 1}).plus(value, -1)


def _factors(form: Linear, direction: Direction) -> Iterator[tuple[int, int]]:
    """Scales of a form and multiples of a direction that cancel one of the form's terms."""
    seen = set()
    for quantity, coefficient in direction:
        own = form.terms.get(quantity)
        if own is not None:
            common = math.gcd(own, coefficient)
            scale, factor = abs(coefficient) // common, own // common
            found = (scale, factor if coefficient > 0 else -factor)
            if found not in seen:
                seen.add(found)
                yield found
