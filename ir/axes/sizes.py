"""Sizes as polynomials over dims, so that what a shape computation says can be compared.

`8 * N` with N known only at run time is the size of the axis `N * heads` while heads has 8
indices. Whether it still is when some are removed, and by which factor it is off, are
questions about polynomials.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence

from .contents import (
    Content,
    Element,
    choose,
    equal,
    greater,
    less,
    multiply_all,
    truncated_divide,
)
from .dims import Axis, Dim, resolve
from .selection import Selection

SizeOf = Callable[[Dim], "int | None"]
"""The size of a dim, None where it stays a symbol."""

Symbols = tuple[Dim, ...]
"""A product of symbols, ordered by identity."""


class Polynomial:
    """A sum of products of dims' sizes with integer coefficients, none of them zero."""

    def __init__(self, terms: Mapping[Symbols, int]) -> None:
        self.terms = {symbols: n for symbols, n in terms.items() if n}

    @classmethod
    def of(cls, value: int) -> Polynomial:
        return cls({(): value})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and self.terms == other.terms

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Polynomial) -> Polynomial:
        terms = dict(self.terms)
        for symbols, n in other.terms.items():
            terms[symbols] = terms.get(symbols, 0) + n
        return Polynomial(terms)

    def __sub__(self, other: Polynomial) -> Polynomial:
        return self + Polynomial({symbols: -n for symbols, n in other.terms.items()})

    def __mul__(self, other: Polynomial) -> Polynomial:
        terms: dict[Symbols, int] = {}
        for a, n in self.terms.items():
            for b, m in other.terms.items():
                symbols = tuple(sorted(a + b, key=id))
                terms[symbols] = terms.get(symbols, 0) + n * m
        return Polynomial(terms)

    def divide(self, other: Polynomial) -> Polynomial | None:
        """The quotient by a single product, None where it isn't whole for every size."""
        if len(other.terms) != 1:
            return None
        ((divisor, m),) = other.terms.items()
        terms = {}
        for symbols, n in self.terms.items():
            rest = _without(symbols, divisor)
            if rest is None or n % m:
                return None
            terms[rest] = n // m
        return Polynomial(terms)

    @property
    def value(self) -> int | None:
        """The number, None where it depends on a symbol."""
        return self.terms.get((), 0) if not self.terms.keys() - {()} else None

    @property
    def monomial(self) -> tuple[int, Symbols] | None:
        """Coefficient and symbols of a single product."""
        if len(self.terms) > 1:
            return None
        return next(((n, symbols) for symbols, n in self.terms.items()), (0, ()))

    @property
    def sign(self) -> int | None:
        """-1, 0 or 1 where it is the same for all sizes (which aren't negative)."""
        if not self.terms:
            return 0
        constant = self.terms.get((), 0)
        for sign in (1, -1):
            if sign * constant > 0 and all(sign * n > 0 for n in self.terms.values()):
                return sign
        return None


def _without(symbols: Symbols, divisor: Symbols) -> Symbols | None:
    rest = list(symbols)
    for dim in divisor:
        if dim not in rest:
            return None
        rest.remove(dim)
    return tuple(rest)


def whole(dim: Dim) -> int | None:
    """Sizes with nothing removed."""
    return dim.size


def prunable(dim: Dim) -> int | None:
    """Sizes that no choice can change; free dims stay symbols."""
    return dim.size if dim.lock is not None else None


def selected(selection: Selection) -> SizeOf:
    """Sizes under a selection."""

    def size_of(dim: Dim) -> int | None:
        return len(selection.kept[dim]) if dim in selection.kept else dim.size

    return size_of


def axis_polynomial(axis: Axis, size_of: SizeOf) -> Polynomial:
    total = Polynomial({})
    for term in resolve(axis):
        product = Polynomial.of(1)
        for dim in term:
            if dim.binding is not None:
                product = product * axis_polynomial(dim.binding, size_of)
            else:
                size = size_of(dim)
                product = product * (
                    Polynomial({(dim,): 1}) if size is None else Polynomial.of(size)
                )
        total = total + product
    return total


def polynomial(element: Element, size_of: SizeOf) -> Polynomial | None:
    """An element of a shape computation, None where it is no polynomial."""
    if element is None:
        return None
    if isinstance(element, int):
        return Polynomial.of(element)
    if element.axis is not None:
        return axis_polynomial(element.axis, size_of)
    assert element.compute is not None
    return _apply(element.compute, [polynomial(a, size_of) for a in element.arguments])


def _apply(
    compute: Callable[..., int], arguments: Sequence[Polynomial | None]
) -> Polynomial | None:
    if compute is choose:
        condition, a, b = arguments
        value = None if condition is None else condition.value
        return None if value is None else a if value else b
    known = [a for a in arguments if a is not None]
    if len(known) != len(arguments):
        return None
    values = [v for v in (a.value for a in known) if v is not None]
    if len(values) == len(known):
        try:
            return Polynomial.of(compute(*values))
        except ZeroDivisionError:
            return None
    rule = _RULES.get(compute)
    return None if rule is None else rule(*known)


def _compare(holds: Callable[[int], bool]) -> Callable[[Polynomial, Polynomial], Polynomial | None]:
    def rule(a: Polynomial, b: Polynomial) -> Polynomial | None:
        sign = (a - b).sign
        return None if sign is None else Polynomial.of(int(holds(sign)))

    return rule


def _same(a: Polynomial, b: Polynomial) -> Polynomial | None:
    return a if a == b else None


_RULES: dict[Callable[..., int], Callable[..., Polynomial | None]] = {
    operator.add: operator.add,
    operator.sub: operator.sub,
    operator.mul: operator.mul,
    operator.neg: lambda a: Polynomial({}) - a,
    int: lambda a: a,
    truncated_divide: Polynomial.divide,
    multiply_all: lambda *factors: math.prod(factors, start=Polynomial.of(1)),
    equal: _compare(lambda sign: sign == 0),
    greater: _compare(lambda sign: sign > 0),
    less: _compare(lambda sign: sign < 0),
    max: _same,
    min: _same,
}
"""What functions of numbers do to polynomials."""


def is_size_of(element: Element, axis: Axis) -> bool:
    """Whether a computed size is that of the axis, whatever it is."""
    return polynomial(element, whole) == axis_polynomial(axis, whole)


def ratio(wanted: Polynomial, actual: Polynomial) -> tuple[int, int] | None:
    """Two numbers p / q with wanted = actual * p / q, in lowest terms."""
    a, b = wanted.monomial, actual.monomial
    if a is None or b is None or a[1] != b[1] or not a[0] or not b[0]:
        return None
    divisor = math.gcd(a[0], b[0])
    return a[0] // divisor, b[0] // divisor


def follows(element: Element, axis: Axis) -> bool:
    """Whether, whatever is removed, an element is the size of an axis times a number.

    It is that size as long as nothing is removed; `ratio` tells the number.
    """
    is_now, general = polynomial(element, whole), polynomial(element, prunable)
    size = axis_polynomial(axis, prunable)
    if is_now is None or general is None or is_now != axis_polynomial(axis, whole):
        return False
    terms = [*general.terms.items(), *size.terms.items()]
    unknown = {tuple(d for d in symbols if d.size is None) for symbols, _ in terms}
    return len(unknown) == 1 and all(n > 0 for _, n in terms)


def settled(content: Content) -> Content:
    """A content in which sizes that no choice and no run can change are numbers."""
    result = content.copy()
    for position, element in enumerate(content.ravel()):
        found = polynomial(element, prunable)
        if found is not None and found.value is not None:
            result.flat[position] = found.value
    return result
