"""What is known of quantities together: ranges, inequalities, cases; and what follows from it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from .assignments import Assignment, find_assignments
from .forms import Case, Direction, Linear, Quantity

_DEPTH = 4
"""Inequalities and cases that one proof may combine."""

_MOST_TRIED = 40_000
"""Forms that one proof may look at: what takes more is given up."""

_LONG = 60
"""Forms of a proof after which it seeks assignments, which refute others."""

_OPEN_DEPTH = 3
"""As many after products with open sizes are gone, of which each goes by a step of its own."""


class Inequalities:
    """All quantities, and the inequalities that hold at the place that the analysis looks at."""

    def __init__(self) -> None:
        self.quantities: list[Quantity] = []
        self._ranges: dict[Direction, tuple[float, float]] = {}
        self._directions: dict[int, list[Direction]] = {}  # by the quantities in them
        self._related: set[int] = set()  # quantities in those of more than one
        self.sizes: set[int] = set()  # quantities that every run fixes before
        self._caps: list[tuple[Counter[int], int]] = []  # products and what they don't pass
        self._products: dict[tuple[int, ...], int] = {}  # by their factors
        self._pairs: dict[
            tuple[int | None, int | None], int
        ] = {}  # products of two, as `_products`
        self._weights: dict[int, tuple[int, int]] = {}  # of quantities, once a proof asks
        self._tried = 0
        # by the variable part of forms: what isn't proven from what is known now, to which depth
        # it was tried with which constant; and the constants that are, by the `given` around them
        self._failed: dict[Direction, tuple[int, int]] = {}
        self._proven: list[dict[Direction, int]] = [{}]
        self._unreachable = False  # where a condition holds that never does
        self._assignments: list[Assignment] | None = None  # once sought

    def quantity(self, quantity: Quantity) -> Linear:
        """A new quantity."""
        self.quantities.append(quantity)
        return Linear(0, {len(self.quantities) - 1: 1})

    def multiply(self, a: Linear, b: Linear) -> Linear:
        """a * b, whose quantities are products."""
        terms: dict[int, int] = {}
        for p, x in ((None, a.const), *a.terms.items()):
            for q, y in ((None, b.const), *b.terms.items()):
                if x * y and (p is not None or q is not None):
                    quantity = self._product(p, q)
                    terms[quantity] = terms.get(quantity, 0) + x * y
        return Linear(a.const * b.const, {q: c for q, c in terms.items() if c})

    def _product(self, p: int | None, q: int | None) -> int:
        """The quantity that is the product of two; of one where the other is None."""
        known = self._pairs.get((p, q))
        if known is None:
            known = self._pairs[p, q] = self._product_of(p, q)
        return known

    def _product_of(self, p: int | None, q: int | None) -> int:
        factors = tuple(sorted((*self.factors(p), *self.factors(q))))
        if len(factors) == 1:
            return factors[0]
        found = self._products.get(factors)
        if found is None:
            low = high = 1
            for factor in factors:
                known = self.quantities[factor]
                ends = [x * y for x in (low, high) for y in (known.low, known.high)]
                low, high = min(ends), max(ends)
            high = min([high, *(self._capped(factors, whole, most) for whole, most in self._caps)])
            data = any(self.quantities[f].data for f in factors)
            self.quantities.append(Quantity(low, high, data, factors=factors))
            found = self._products[factors] = len(self.quantities) - 1
        return found

    def factors(self, quantity: int | None) -> tuple[int, ...]:
        """What a quantity is a product of: mostly itself."""
        if quantity is None:
            return ()
        return self.quantities[quantity].factors or (quantity,)

    def is_size(self, form: Linear) -> bool:
        """Whether every run fixes a form before it begins."""
        return all(self.sizes.issuperset(self.factors(q)) for q in form.terms)

    def cap(self, form: Linear, most: int) -> None:
        """A sum of products of sizes, which are 1 or more, is at most `most` in every run: so is
        each part of one of its products."""
        self.add(form.times(-1).shifted(most))
        if any(c < 0 for c in form.terms.values()) or form.const < 0:
            return
        for quantity, coefficient in form.terms.items():
            whole = Counter(self.factors(quantity))
            if any(self.quantities[f].low < 1 for f in whole):
                continue
            self._caps.append((whole, most // coefficient))
            for index, known in enumerate(self.quantities):
                high = self._capped(self.factors(index), whole, most // coefficient)
                if known.high > high:
                    self.quantities[index] = dataclasses.replace(known, high=high)

    def _capped(self, factors: Sequence[int], whole: Counter[int], most: int) -> int:
        """What a part of a product of sizes is at most, where the whole is at most so much."""
        own = Counter(factors)
        if own - whole:
            return _WIDEST[1]
        return most // math.prod(self.quantities[f].low for f in (whole - own).elements())

    def cap_axes(self, sizes: Sequence[Linear], most: int) -> None:
        """No axis has more elements than its buffer, whose other axes have one or more."""
        least = [self.widest(size)[0] for size in sizes]
        if min(least, default=0) < 1:
            return
        for axis, size in enumerate(sizes):
            if size.terms:
                self.cap(size, most // math.prod(least[:axis] + least[axis + 1 :]))

    def is_data(self, form: Linear) -> bool:
        return any(self.quantities[a].data for a in form.terms)

    @contextlib.contextmanager
    def given(self, forms: Sequence[Linear]) -> Iterator[None]:
        """Within it, each of `forms` is at least 0."""
        before, unreachable, failed = dict(self._ranges), self._unreachable, self._failed
        assignments = self._assignments
        self._failed = {}
        self._proven.append({})
        for form in forms:
            self.add(form)
        yield
        self._ranges, self._unreachable, self._failed = before, unreachable, failed
        self._assignments = assignments
        self._proven.pop()

    def add(self, form: Linear) -> None:
        """`form` is at least 0, from here to the end of the innermost `given`."""
        self._failed = {}
        if self._assignments is not None:
            self._assignments = [a for a in self._assignments if a.admits(form)] or None
        if not form.terms:
            self._unreachable |= form.const < 0
            return
        direction, factor = form.direction()
        found = self._ranges.get(direction)
        if found is None:
            if len(direction) > 1:
                self._related.update(quantity for quantity, _ in direction)
            for quantity, _ in direction:
                known = self._directions.setdefault(quantity, [])
                if direction not in known:
                    known.append(direction)
        low, high = found or _NOTHING
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

    def is_at_least_0(self, form: Linear) -> bool:
        """Whether it is proven that a form isn't negative here.

        What is known only grows until the innermost `given` ends, so that a proof holds as long.
        """
        self._tried = 0
        if not self.sizes:
            return self._proves(form, _DEPTH)
        # most proofs are short, and one that is sought can be long
        return any(self._proves(form, depth) for depth in range(_DEPTH + 1))

    def _proves(self, form: Linear, depth: int) -> bool:
        """As `is_at_least_0`, by so many further inequalities and cases."""
        self._tried += 1
        if self._unreachable or self._least(form) >= 0:
            return True
        if depth == 0 or self._tried > _MOST_TRIED:
            return False
        if self._tried > _LONG and self._is_refuted(form):
            return False
        if not self.sizes:
            return self._combines(form, depth)
        form = self._without_free(form).reduced()
        key = form.variable_key()  # with products the same forms are met by many ways
        if any(proven.get(key, form.const + 1) <= form.const for proven in self._proven):
            return True
        tried, const = self._failed.get(key, (0, form.const))
        if tried >= depth and const >= form.const:
            return False
        if self._combines(form, depth):
            self._proven[-1][key] = form.const
            return True
        if self._tried <= _MOST_TRIED:
            self._failed[key] = depth, form.const
        return False

    def _is_refuted(self, form: Linear) -> bool:
        """Whether a form is negative by an assignment of which all that is known here holds."""
        if self._assignments is None:
            self._assignments = find_assignments(self.quantities, self._ranges)
        return any(assignment.refutes(form) for assignment in self._assignments)

    def _without_free(self, form: Linear) -> Linear:
        """A form with the bounds of quantities that nothing relates to others in their place."""
        const, terms = form.const, dict(form.terms)
        for quantity, coefficient in form.terms.items():
            known = self.quantities[quantity]
            if known.cases or known.factors or quantity in self._related:
                continue
            low, high = self.bounds(quantity)
            if high - low < _FAR:
                const += coefficient * (low if coefficient > 0 else high)
                del terms[quantity]
        return Linear(const, terms) if len(terms) < len(form.terms) else form

    def _combines(self, form: Linear, depth: int) -> bool:
        """Whether a form isn't negative by what is known of its quantities together."""
        mixed = self._mixed_product(form)
        if mixed is not None:  # it has to go first, whatever comes of it
            depth = min(depth, _OPEN_DEPTH)
            return self._by_bounds(form, [mixed], depth) or self._by_cases(form, mixed, depth)
        products = [q for q in form.terms if len(self.factors(q)) > 1]
        if self._by_bounds(form, products, depth):
            return True
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
                if self._proves(rest, depth - 1):
                    return True
        return any(self._by_cases(form, quantity, depth) for quantity in form.terms)

    def _mixed_product(self, form: Linear) -> int | None:
        """A product of sizes and of what a run doesn't fix, with most of the latter."""
        if not self.sizes:
            return None
        products = [q for q in form.terms if len(self.factors(q)) > 1 and self._weight(q)[0]]
        return max(products, key=self._weight, default=None)

    def _by_cases(self, form: Linear, quantity: int, depth: int) -> bool:
        """Whether a form isn't negative in each case of a factor of one of its products."""
        factors = self.factors(quantity)
        product = Linear(0, {quantity: form.terms[quantity]})
        for position, factor in enumerate(factors):
            cases = self.quantities[factor].cases
            rest = self._multiply_all(factors[:position] + factors[position + 1 :])
            if cases and all(self._holds(form, product, factor, rest, c, depth) for c in cases):
                return True
        return False

    def _multiply_all(self, factors: Sequence[int]) -> Linear:
        product = Linear(1, {})
        for factor in factors:
            product = self.multiply(product, Linear(0, {factor: 1}))
        return product

    def _by_bounds(self, form: Linear, products: Sequence[int], depth: int) -> bool:
        """Whether a form isn't negative since a factor of one of some products is within bounds.

        From i <= n - 1 and 0 <= m follows i * m <= n * m - m: where the form compares an index
        with the size of a tensor, such a step for each axis leaves what is known of sizes.
        """
        steps = [step for quantity in products for step in self._bounded(form, quantity)]
        steps.sort(key=lambda step: step[:2])  # what cancels most is mostly right
        return any(self._proves(left, depth) for _, _, left in steps)

    def _bounded(
        self, form: Linear, quantity: int
    ) -> Iterator[tuple[int, tuple[int, int, int], Linear]]:
        """What is left of a form with a factor of a product replaced by a bound: how many terms,
        how complex they are, and the form."""
        coefficient, factors = form.terms[quantity], self.factors(quantity)
        before, is_mixed = self._complexity(form), self._weight(quantity)[0] > 0
        for position, factor in enumerate(factors):
            if is_mixed and factor in self.sizes:
                continue  # variables go first
            others = factors[:position] + factors[position + 1 :]
            if factor in factors[:position] or any(self.bounds(f)[0] < 0 for f in others):
                continue
            rest = self._multiply_all(others)
            for bound in self._bounds_of(factor, upper=coefficient < 0):
                own = abs(bound.terms[factor])
                common = math.gcd(own, coefficient)
                looser = [bound.shifted(-bound.const)] if bound.const < 0 < len(rest.terms) else []
                for known in (bound, *looser):  # i < n leaves a product more than i <= n
                    product = self.multiply(known, rest)
                    left = form.times(own // common).plus(product, -(abs(coefficient) // common))
                    after = self._complexity(left)
                    if after < before:
                        yield len(left.terms), after, left
                        break

    def _weight(self, quantity: int) -> tuple[int, int]:
        """How many loops' variables, or others that a run doesn't fix, are in a product, and how
        many factors."""
        found = self._weights.get(quantity)
        if found is None:
            factors = self.factors(quantity)
            found = sum(f not in self.sizes for f in factors), len(factors)
            self._weights[quantity] = found
        return found

    def _complexity(self, form: Linear) -> tuple[int, int, int]:
        """How far a form is from one of which bounds of its quantities tell the sign: variables
        in products, then factors of products, then how small the form may be."""
        variables = factors = 0
        least = form.const
        for quantity, coefficient in form.terms.items():
            own = self._weight(quantity)
            variables += own[0]
            factors += own[1] if own[1] > 1 else 0
            known = self.quantities[quantity]
            least += coefficient * (known.low if coefficient > 0 else known.high)
        return variables, factors, -least

    def _bounds_of(self, quantity: int, *, upper: bool) -> Iterator[Linear]:
        """Forms at least 0 in which the quantity has a negative coefficient, if `upper`, or a
        positive one."""
        sign = -1 if upper else 1
        for direction in self._directions.get(quantity, ()):
            if len(direction) == 1 or direction not in self._ranges:
                continue
            low, high = self._ranges[direction]
            own = dict(direction)[quantity]
            form = Linear(0, dict(direction))
            if own * sign > 0 and not math.isinf(low):
                yield form.shifted(-int(low))
            if own * sign < 0 and not math.isinf(high):
                yield form.times(-1).shifted(int(high))
        low, high = self.bounds(quantity)
        end = high if upper else -low
        if abs(end) < _FAR and not (upper and quantity in self.sizes):
            yield Linear(end, {quantity: sign})

    def _holds(
        self, form: Linear, term: Linear, quantity: int, rest: Linear, case: Case, depth: int
    ) -> bool:
        """Whether a form isn't negative in a case of a quantity, which with `rest` makes up one
        of the form's terms."""
        ((_, coefficient),) = term.terms.items()
        value = case.value if not rest.terms else self.multiply(case.value, rest)
        replaced = form.plus(term, -1).plus(value, coefficient)
        given = [*case.given, _equal(quantity, case.value), _equal(quantity, case.value).times(-1)]
        with self.given(given):
            self._assignments = self._assignments or []  # none are sought for a case
            never = any(self._most(g) < 0 for g in case.given)  # the case doesn't occur
            return never or self._proves(replaced, depth - 1)

    def _least(self, form: Linear) -> float:
        """A lower bound of a form, from what is known of each quantity."""
        const, terms = form.const, form.terms
        least: float = const
        quantity = 0
        for quantity, coefficient in terms.items():
            low, high = self.bounds(quantity)
            least += coefficient * (low if coefficient > 0 else high)
        count = len(terms)
        if count < 2 or all(len(d) != count for d in self._directions.get(quantity, ())):
            return least  # nothing is known of these quantities together
        direction, factor = form.direction()
        known = self._ranges.get(direction, _NOTHING)
        return max(least, const + factor * known[0 if factor > 0 else 1])

    def _most(self, form: Linear) -> float:
        return -self._least(form.times(-1))

    def bounds(self, quantity: int) -> tuple[int, int]:
        """What is known here of a quantity by itself."""
        known = self.quantities[quantity]
        if not self._ranges:
            return known.low, known.high
        low, high = self._ranges.get(((quantity, 1),), (known.low, known.high))
        return max(known.low, low), min(known.high, high)  # type: ignore[return-value]


_FAR = 1 << 24
"""Bounds from which on a product of a quantity is as good as unbounded."""

_WIDEST = -(1 << 200), 1 << 200

_NOTHING = -math.inf, math.inf
"""The range of what nothing is known of."""


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
