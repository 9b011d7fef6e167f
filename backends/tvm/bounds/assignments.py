"""Integers for quantities of which all that is known holds: what is negative there isn't proven.

A search for a proof meets many forms that are false, of which it finds only by trying all ways.
One assignment for which such a form is negative says so at once. Assignments only save work:
what none refutes is searched as before.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from .forms import Case, Direction, Linear, Quantity

_ATTEMPTS = 8
"""Assignments that are sought: one of least integers, one of greatest, others between."""

_MOST_STEPS = 600
"""Bounds that one attempt may look at, as chains of bounds can grow tighter for very long."""


class Assignment(dict[int, int]):
    """Integers by quantity; a product's is that of its factors."""

    def __init__(self, values: Mapping[int, int], quantities: Sequence[Quantity]) -> None:
        super().__init__(values)
        self._quantities = quantities

    def __missing__(self, quantity: int) -> int:
        factors = self._quantities[quantity].factors
        if not factors:
            raise KeyError(quantity)  # one that is newer than the assignment
        value = 1
        for factor in factors:
            value *= self[factor]
        self[quantity] = value
        return value

    def value(self, form: Linear) -> int | None:
        """What a form is here; None where it has quantities that the assignment doesn't know."""
        try:
            return form.const + sum(c * self[q] for q, c in form.terms.items())
        except KeyError:
            return None

    def admits(self, form: Linear) -> bool:
        """Whether a form is at least 0 here."""
        value = self.value(form)
        return value is not None and value >= 0

    def refutes(self, form: Linear) -> bool:
        """Whether a form is negative here."""
        value = self.value(form)
        return value is not None and value < 0


def find_assignments(
    quantities: Sequence[Quantity], ranges: Mapping[Direction, tuple[float, float]]
) -> list[Assignment]:
    """Some assignments by which quantities are within their bounds, and directions in `ranges`."""
    search = _Assigning(quantities, ranges)
    found = [search.assignment(attempt) for attempt in range(_ATTEMPTS)]
    return [assignment for assignment in found if assignment is not None]


class _ConflictError(Exception):
    """No integer is left for a quantity."""


class _Assigning:
    """Chooses one integer after another, each time with the bounds of the others made tighter."""

    def __init__(
        self, quantities: Sequence[Quantity], ranges: Mapping[Direction, tuple[float, float]]
    ) -> None:
        self.quantities, self.ranges = quantities, ranges
        self.low = [q.low for q in quantities]
        self.high = [q.high for q in quantities]
        self.rows = [(d, *ends) for d, ends in ranges.items() if len(d) > 1]
        self.rows_of: dict[int, list[int]] = {}
        for number, (direction, _, _) in enumerate(self.rows):
            for quantity, _ in direction:
                self.rows_of.setdefault(quantity, []).append(number)
        self.products_of: dict[int, list[int]] = {}
        for index, known in enumerate(quantities):
            if index in self.rows_of or (known.factors and self.is_capped(known)):
                for factor in dict.fromkeys(known.factors):
                    self.products_of.setdefault(factor, []).append(index)
        self.steps = 0
        self.possible = True
        try:
            for direction, (low, high) in ranges.items():
                if len(direction) == 1:
                    self.narrow(direction[0][0], low, high, [])
            self.tighten(list(range(len(quantities))))
        except _ConflictError:
            self.possible = False
        self.start = self.low, self.high
        plain = [i for i, q in enumerate(quantities) if not q.factors]
        # what most follows from comes first
        rows = {i: -len(self.rows_of.get(i, ())) for i in plain}
        self.order = sorted(
            (i for i in plain if not quantities[i].cases),
            key=lambda i: (rows[i], self.high[i] - self.low[i]),
        )
        self.by_cases = [i for i in plain if quantities[i].cases]

    def is_capped(self, product: Quantity) -> bool:
        """Whether a product is at most less than its factors would let it be."""
        most = math.prod(self.quantities[f].high for f in product.factors)
        return product.high < most

    def assignment(self, attempt: int) -> Assignment | None:
        """An assignment, or None where a choice leaves none for another quantity."""
        if not self.possible:
            return None
        self.low, self.high = list(self.start[0]), list(self.start[1])
        self.steps = 0
        draw = random.Random(attempt)
        try:
            for quantity in self.order:
                self.choose(quantity, self.chosen(quantity, attempt, draw))
            for quantity in self.by_cases:
                self.choose(quantity, self.of_cases(quantity))
        except _ConflictError:
            return None
        assignment = Assignment(
            {q: self.low[q] for q in (*self.order, *self.by_cases)}, self.quantities
        )
        return assignment if self.holds(assignment) else None

    def chosen(self, quantity: int, attempt: int, draw: random.Random) -> int:
        low, high = self.low[quantity], self.high[quantity]
        if attempt < 2:
            return high if attempt else low
        way = draw.random()
        if way < 0.3 or low == high:
            return low
        if way < 0.6:
            return high
        return low + int((high - low) ** draw.random())

    def of_cases(self, quantity: int) -> int:
        """The value of the case that holds where other quantities are chosen."""
        fixed = {q: self.low[q] for q in range(len(self.low)) if self.low[q] == self.high[q]}
        assignment = Assignment(fixed, self.quantities)
        for case in self.quantities[quantity].cases:
            value = _value_in(case, assignment)
            if value is not None:
                return value
        raise _ConflictError

    def choose(self, quantity: int, value: int) -> None:
        changed: list[int] = []
        self.narrow(quantity, value, value, changed)
        self.tighten(changed)

    def narrow(self, quantity: int, low: float, high: float, changed: list[int]) -> None:
        """Bounds of a quantity, which is listed as changed if they are tighter than before."""
        if low > self.low[quantity]:
            self.low[quantity] = int(low)
            changed.append(quantity)
        if high < self.high[quantity]:
            self.high[quantity] = int(high)
            changed.append(quantity)
        if self.low[quantity] > self.high[quantity]:
            raise _ConflictError

    def tighten(self, changed: list[int]) -> None:
        """Follow what tighter bounds of some quantities say of others."""
        while changed:
            quantity = changed.pop()
            for number in self.rows_of.get(quantity, ()):
                self.by_row(*self.rows[number], changed)
            for product in self.products_of.get(quantity, ()):
                self.by_product(product, changed)
            if self.quantities[quantity].factors:
                self.by_product(quantity, changed)

    def by_row(self, direction: Direction, low: float, high: float, changed: list[int]) -> None:
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise _ConflictError
        least = most = 0
        for q, c in direction:
            least += c * (self.low[q] if c > 0 else self.high[q])
            most += c * (self.high[q] if c > 0 else self.low[q])
        if least >= low and most <= high:
            return
        for q, c in direction:
            bottom, top = self.low[q], self.high[q]
            own_least, own_most = (c * bottom, c * top) if c > 0 else (c * top, c * bottom)
            # c * q is at most `end`, and at least `start`
            end, start = high - (least - own_least), low - (most - own_most)
            if c < 0:
                end, start, c = -start, -end, -c
            self.narrow(
                q,
                bottom if start <= c * bottom else -(-int(start) // c),
                top if end >= c * top else int(end) // c,
                changed,
            )

    def by_product(self, product: int, changed: list[int]) -> None:
        """A product's bounds by its factors', and the other way round where none is negative."""
        factors = self.quantities[product].factors
        least = most = 1
        for factor in factors:
            ends = [x * y for x in (least, most) for y in (self.low[factor], self.high[factor])]
            least, most = min(ends), max(ends)
        self.narrow(product, least, most, changed)
        if most <= self.high[product] or any(self.low[f] < 1 for f in factors):
            return
        for factor, times in Counter(factors).items():
            end = self.high[product] // (least // self.low[factor] ** times)
            root = end if times == 1 else int(end ** (1 / times))
            self.narrow(factor, self.low[factor], root, changed)

    def holds(self, assignment: Assignment) -> bool:
        """Whether all that is known is so by an assignment."""
        return (
            all(q.low <= assignment[i] <= q.high for i, q in enumerate(self.quantities))
            and all(
                low <= sum(c * assignment[q] for q, c in direction) <= high
                for direction, (low, high) in self.ranges.items()
            )
            and all(
                any(
                    _value_in(case, assignment) == assignment[i]
                    for case in self.quantities[i].cases
                )
                for i in self.by_cases
            )
        )


def _value_in(case: Case, assignment: Assignment) -> int | None:
    """What a quantity is in a case; None where it isn't the case, or something isn't known."""
    return assignment.value(case.value) if all(map(assignment.admits, case.given)) else None
