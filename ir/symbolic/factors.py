"""Sizes as products: of numbers, atoms and sums that have no factor which is found here."""

from __future__ import annotations

import math
from collections import Counter

from . import expressions as e
from .expressions import Atom, Monomial, Size
from .terms import key_of

_MOST_TERMS = 64
"""Terms up to which factors of a sum are sought."""


def factors(size: Size) -> list[Size]:
    """Sizes that are never negative and whose product a size is; the size alone, where none are
    found."""
    found = _factors(size)
    signed = [e.negative(f) if not e.is_nonnegative(f) else f for f in found]
    flipped = sum(not e.is_nonnegative(f) for f in found)
    if flipped % 2 or not all(map(e.is_nonnegative, signed)):
        return [size]
    return sorted(signed, key=str)


def _factors(size: Size) -> list[Size]:
    if isinstance(size, int):
        return [size]
    number = math.gcd(*size.terms.values())
    first, *others = map(Counter, size.terms)
    for other in others:
        first &= other
    common = sorted(first.elements(), key=key_of)
    rest = e.divide_exactly(size, e.multiply(number, *map(e.single, common)))
    assert rest is not None
    found: list[Size] = [number] if number > 1 else []
    found += map(e.single, common)
    return [*found, *(_split(rest) if rest != 1 else ())]


def _split(whole: Size) -> list[Size]:
    """Factors of a sum whose terms have nothing in common.

    Of a product of which one factor alone has an atom, the derivative by that holds the others;
    of a square the derivative holds the root.
    """
    terms = e.terms_of(whole)
    if 3 <= len(terms) <= _MOST_TERMS:
        for atom in sorted({a for monomial in terms for a in monomial}, key=key_of):
            for part in _factors(_derivative(whole, atom)):
                quotient = quotient_of(whole, part) if len(e.terms_of(part)) > 1 else None
                if quotient is not None and not isinstance(quotient, int):
                    return [*_factors(part), *_factors(quotient)]
    return [whole]


def _derivative(size: Size, atom: Atom) -> Size:
    terms: dict[Monomial, int] = {}
    for monomial, factor in e.terms_of(size).items():
        times = monomial.count(atom)
        if times:
            place = monomial.index(atom)
            terms[monomial[:place] + monomial[place + 1 :]] = factor * times
    return e.of_terms(terms)


def quotient_of(a: Size, b: Size) -> Size | None:
    """a / b where that is a polynomial of integers, else None; b isn't 0."""
    atoms = sorted({x for size in (a, b) for m in e.terms_of(size) for x in m}, key=key_of)
    lead = _lead(b, atoms)
    quotient: list[Size] = []
    while a != 0:
        term = e.divide_exactly(_lead(a, atoms), lead)
        if term is None:
            return None
        quotient.append(term)
        a = e.subtract(a, e.multiply(term, b))
    return e.add(*quotient)


def _lead(size: Size, atoms: list[Atom]) -> Size:
    """The term with most of the first atom, of those with most of the second, and so on."""
    terms = e.terms_of(size)
    found = max(terms, key=lambda monomial: [monomial.count(atom) for atom in atoms])
    return e.of_terms({found: terms[found]})
