"""What is known of the integers and conditions that a kernel computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from .forms import Case, Linear, Quantity
from .inequalities import Inequalities

_BITS = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
LIMITS = {
    **{kind: (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) for kind, bits in _BITS.items()},
    **{f"u{kind}": (0, (1 << bits) - 1) for kind, bits in _BITS.items()},
}
"""The least and greatest value of each integer type."""


@dataclasses.dataclass(frozen=True)
class Doubt:
    """An integer that must fit its type: where it overflows, nothing computed from it holds."""

    form: Linear
    kind: str


Doubts = tuple[Doubt, ...]


@dataclasses.dataclass(frozen=True)
class Number:
    """A scalar integer: `form`, within the bounds, where none of its `doubts` overflows."""

    kind: str
    form: Linear
    low: int
    high: int
    doubts: Doubts = ()


@dataclasses.dataclass(frozen=True)
class Condition:
    """A scalar truth: forms that are at least 0 where it is true, and where it is false."""

    true: tuple[Linear, ...] = ()
    false: tuple[Linear, ...] = ()
    doubts: Doubts = ()

    def __invert__(self) -> Condition:
        return Condition(self.false, self.true, self.doubts)

    def __and__(self, other: Condition) -> Condition:
        return Condition((*self.true, *other.true), (), self.doubts + other.doubts)

    def __or__(self, other: Condition) -> Condition:
        return Condition((), (*self.false, *other.false), self.doubts + other.doubts)


class Values:
    """Arithmetic on numbers as TensorIR defines it."""

    def __init__(self, inequalities: Inequalities) -> None:
        self.inequalities = inequalities
        self._atoms: dict[tuple[object, ...], Linear] = {}

    def literal(self, value: int, kind: str) -> Number:
        return Number(kind, Linear(value, {}), value, value)

    def unknown(
        self, kind: str, low: int, high: int, *, data: bool, cases: tuple[Case, ...] = ()
    ) -> Number:
        """A number of which its bounds, and perhaps cases, are known."""
        return Number(kind, self.inequalities.quantity(Quantity(low, high, data, cases)), low, high)

    def of_type(self, kind: str) -> Number:
        """Any number of a type, read from memory."""
        return self.unknown(kind, *LIMITS[kind], data=True)

    def number(self, kind: str, form: Linear, low: int, high: int, doubts: Doubts) -> Number:
        """A computed number, which is in doubt unless its type is known to hold it.

        Its bounds stay those of integers without limits: were they cut to the type's, what
        follows from them would prove that the type holds it.
        """
        low, high = self.inequalities.narrow(form, low, high)
        least, most = LIMITS[kind]
        if low < least or high > most:
            doubts = (*doubts, Doubt(form, kind))
        return Number(kind, form, low, high, doubts)

    def holds(self, doubts: Doubts) -> bool:
        """Whether it is proven that types hold all that is in doubt."""
        return all(self.fits(d.form, d.kind) for d in doubts)

    def fits(self, form: Linear, kind: str) -> bool:
        least, most = LIMITS[kind]
        prove = self.inequalities.is_at_least_0
        return prove(form.shifted(-least)) and prove(form.times(-1).shifted(most))

    # --- arithmetic ---

    def add(self, a: Number, b: Number) -> Number:
        return self.number(
            a.kind, a.form.plus(b.form), a.low + b.low, a.high + b.high, a.doubts + b.doubts
        )

    def subtract(self, a: Number, b: Number) -> Number:
        return self.number(
            a.kind, a.form.plus(b.form, -1), a.low - b.high, a.high - b.low, a.doubts + b.doubts
        )

    def multiply(self, a: Number, b: Number) -> Number:
        low, high = _products(_range(a), _range(b))
        if not b.form.terms:
            form = a.form.times(b.form.const)
        elif not a.form.terms:
            form = b.form.times(a.form.const)
        else:
            form = self.inequalities.multiply(a.form, b.form)
            least, most = self.inequalities.widest(form)
            if low > least:
                self.inequalities.add(form.shifted(-low))
            if high < most:
                self.inequalities.add(form.times(-1).shifted(high))
        return self.number(a.kind, form, low, high, a.doubts + b.doubts)

    def floordiv(self, a: Number, b: Number) -> Number:
        if b.low < 1:
            return self.opaque(a, b)
        if self.is_rest(a, b):
            return dataclasses.replace(self.literal(0, a.kind), doubts=a.doubts + b.doubts)
        low, high = _quotients(_range(a), _range(b))
        form = self._derived("divide", (a, b), _quotients) if b.form.terms else self._quotient(a, b)
        return self.number(a.kind, form, low, high, a.doubts + b.doubts)

    def floormod(self, a: Number, b: Number) -> Number:
        if b.low < 1:
            return self.opaque(a, b)
        if self.is_rest(a, b):
            return dataclasses.replace(a, doubts=a.doubts + b.doubts)
        low, high = _remainders(_range(a), _range(b))
        if b.form.terms:
            form = self._derived("modulo", (a, b), _remainders)
        else:
            form = a.form.plus(self._quotient(a, b), -b.form.const)
        return self.number(a.kind, form, low, high, a.doubts + b.doubts)

    def is_rest(self, a: Number, b: Number) -> bool:
        """Whether it is proven that a is from 0 to below b, a divisor that a run fixes."""
        prove = self.inequalities.is_at_least_0
        return bool(b.form.terms) and a.low >= 0 and prove(b.form.plus(a.form, -1).shifted(-1))

    def truncdiv(self, a: Number, b: Number) -> Number:
        return self.floordiv(a, b) if a.low >= 0 else self.opaque(a, b)

    def truncmod(self, a: Number, b: Number) -> Number:
        if a.low >= 0 or b.low < 1:
            return self.floormod(a, b)
        found = self.unknown(a.kind, 1 - b.high, b.high - 1, data=self._is_data(a, b))
        return dataclasses.replace(found, doubts=a.doubts + b.doubts)

    def minimum(self, a: Number, b: Number) -> Number:
        if a.high <= b.low:
            return dataclasses.replace(a, doubts=a.doubts + b.doubts)
        if b.high <= a.low:
            return dataclasses.replace(b, doubts=a.doubts + b.doubts)
        over = a.form.plus(b.form, -1)  # a - b
        cases = (Case((over.times(-1),), a.form), Case((over,), b.form))
        low, high = _least(_range(a), _range(b))
        form = self._derived("minimum", (a, b), _least, cases)
        for n in (a, b):
            self.inequalities.add(n.form.plus(form, -1))
        return self.number(a.kind, form, low, high, a.doubts + b.doubts)

    def maximum(self, a: Number, b: Number) -> Number:
        if a.low >= b.high:
            return dataclasses.replace(a, doubts=a.doubts + b.doubts)
        if b.low >= a.high:
            return dataclasses.replace(b, doubts=a.doubts + b.doubts)
        over = a.form.plus(b.form, -1)
        cases = (Case((over,), a.form), Case((over.times(-1),), b.form))
        low, high = _greatest(_range(a), _range(b))
        form = self._derived("maximum", (a, b), _greatest, cases)
        for n in (a, b):
            self.inequalities.add(form.plus(n.form, -1))
        return self.number(a.kind, form, low, high, a.doubts + b.doubts)

    def select(self, condition: Condition, yes: Number, no: Number) -> Number:
        """One of two numbers; the bounds of each may be those where it is chosen."""
        if yes.form.key() == no.form.key():
            return yes
        cases = (Case(condition.true, yes.form), Case(condition.false, no.form))
        low, high = min(yes.low, no.low), max(yes.high, no.high)
        data = self._is_data(yes, no) or any(
            self.inequalities.is_data(f) for f in (*condition.true, *condition.false)
        )
        found = self.unknown(yes.kind, low, high, data=data, cases=cases)
        return dataclasses.replace(found, doubts=condition.doubts + yes.doubts + no.doubts)

    def cast(self, a: Number, kind: str) -> Number:
        """Another type's number of the same value; any of that type where it may not fit."""
        least, most = LIMITS[kind]
        if not (least <= a.low and a.high <= most) and not self.fits(a.form, kind):
            form = self._derived(f"cast {a.kind} to {kind}", (a,), lambda _: (least, most))
            return Number(kind, form, least, most, a.doubts)
        return Number(kind, a.form, a.low, a.high, a.doubts)

    def shift_right(self, a: Number, b: Number) -> Number:
        if b.form.terms or not 0 <= b.form.const < 63:
            return self.opaque(a, b)
        return self.floordiv(a, self.literal(1 << b.form.const, a.kind))

    def shift_left(self, a: Number, b: Number) -> Number:
        if b.form.terms or not 0 <= b.form.const < 63:
            return self.opaque(a, b)
        return self.multiply(a, self.literal(1 << b.form.const, a.kind))

    def bitwise_and(self, a: Number, b: Number) -> Number:
        if a.low < 0 and b.low < 0:
            return self.opaque(a, b)
        high = min(n.high for n in (a, b) if n.low >= 0)
        found = self.unknown(a.kind, 0, high, data=self._is_data(a, b))
        return dataclasses.replace(found, doubts=a.doubts + b.doubts)

    # --- comparison ---

    def compare(self, name: str, a: Number, b: Number) -> Condition:
        """`name` is that of TensorIR's node: LT, LE, GT, GE, EQ, NE."""
        less, more = b.form.plus(a.form, -1), a.form.plus(b.form, -1)  # b - a, a - b
        doubts = a.doubts + b.doubts
        if name == "LT":
            return Condition((less.shifted(-1),), (more,), doubts)
        if name == "LE":
            return Condition((less,), (more.shifted(-1),), doubts)
        if name == "GT":
            return Condition((more.shifted(-1),), (less,), doubts)
        if name == "GE":
            return Condition((more,), (less.shifted(-1),), doubts)
        if name == "EQ":
            return Condition((less, more), (), doubts)
        return Condition((), (less, more), doubts)

    # --- quantities of expressions ---

    def _is_data(self, *numbers: Number) -> bool:
        return any(self.inequalities.is_data(n.form) for n in numbers)

    def _derived(
        self,
        name: str,
        operands: tuple[Number, ...],
        bounds: Callable[..., Range],
        cases: tuple[Case, ...] = (),
    ) -> Linear:
        """The quantity of a function of operands, of whose bounds `bounds` makes its own.

        It is the same one wherever operands are the same, so its bounds are those that hold
        everywhere; closer ones are known of it here.
        """
        key = (name, *(n.form.key() for n in operands))
        found = self._atoms.get(key)
        if found is None:
            widest = bounds(*(self.inequalities.widest(n.form) for n in operands))
            quantity = Quantity(*widest, self._is_data(*operands), cases)
            found = self._atoms[key] = self.inequalities.quantity(quantity)
        low, high = bounds(*map(_range, operands))
        least, most = self.inequalities.widest(found)
        if low > least:
            self.inequalities.add(found.shifted(-low))
        if high < most:
            self.inequalities.add(found.times(-1).shifted(high))
        return found

    def _quotient(self, a: Number, b: Number) -> Linear:
        """floor(a / b) for a constant b, of which the remainder's bounds are known."""
        form, divisor = a.form, b.form.const
        if form.const % divisor == 0 and all(c % divisor == 0 for c in form.terms.values()):
            terms = {quantity: c // divisor for quantity, c in form.terms.items()}
            return Linear(form.const // divisor, terms)
        quotient = self._derived("divide", (a, b), _quotients)
        rest = form.plus(quotient, -divisor)
        self.inequalities.add(rest)
        self.inequalities.add(rest.times(-1).shifted(divisor - 1))
        return quotient

    def opaque(self, a: Number, b: Number) -> Number:
        """Any number of the type, made of two others."""
        found = self.unknown(a.kind, *LIMITS[a.kind], data=self._is_data(a, b))
        return dataclasses.replace(found, doubts=a.doubts + b.doubts)


Range = tuple[int, int]


def _range(n: Number) -> Range:
    return n.low, n.high


def _products(a: Range, b: Range) -> Range:
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


def _quotients(a: Range, b: Range) -> Range:
    """Of divisors from 1 on."""
    corners = [x // max(y, 1) for x in a for y in b]
    return min(corners), max(corners)


def _remainders(a: Range, b: Range) -> Range:
    """Of divisors from 1 on."""
    return 0, min(b[1] - 1, a[1]) if a[0] >= 0 else b[1] - 1


def _least(a: Range, b: Range) -> Range:
    return min(a[0], b[0]), min(a[1], b[1])


def _greatest(a: Range, b: Range) -> Range:
    return max(a[0], b[0]), max(a[1], b[1])
