"""Sizes as expressions: integer polynomials over symbols and opaque functions of sizes.

Equal sizes have equal expressions in the cases that models show: sums, products, exact
divisions. What has no polynomial form (a truncated division, a minimum) is an opaque
atom of its operands, so that computing it twice gives the same atom.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

Size: TypeAlias = "int | Expression"


_LONGEST = 256
"""Characters of an expression above which it is an atom: sizes in models are short."""


class Atom(NamedTuple):
    """A symbol (`op` is "", `name` its name) or a function of sizes that is no polynomial."""

    name: str
    op: str = ""
    operands: tuple[Size, ...] = ()


Monomial = tuple[Atom, ...]


class Expression:
    """A polynomial that is not a plain integer: `terms` leads from monomials to factors."""

    __slots__ = ("_hash", "terms", "text")

    def __init__(self, terms: dict[Monomial, int]) -> None:
        self.terms = terms
        self.text = _text(terms)
        self._hash = hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self.text == other.text

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text

    @property
    def atom(self) -> Atom | None:
        """The only atom, where the expression is nothing else."""
        if len(self.terms) != 1:
            return None
        ((monomial, factor),) = self.terms.items()
        return monomial[0] if factor == 1 and len(monomial) == 1 else None

    def symbols(self) -> Iterator[str]:
        """The names that it is made of; unknown and shortened sizes have names of their own."""
        for monomial in self.terms:
            for atom in monomial:
                if not atom.operands or atom.op == "unknown":
                    yield atom.name
                else:
                    for operand in atom.operands:
                        if isinstance(operand, Expression):
                            yield from operand.symbols()


def symbol(name: str) -> Expression:
    """The size called `name`."""
    return Expression({(Atom(name),): 1})


def add(*sizes: Size) -> Size:
    if all(isinstance(size, int) for size in sizes):
        return sum(size for size in sizes if isinstance(size, int))
    total: dict[Monomial, int] = {}
    for size in sizes:
        for monomial, factor in _terms(size).items():
            total[monomial] = total.get(monomial, 0) + factor
    return _normal(total)


def negative(size: Size) -> Size:
    return multiply(size, -1)


def multiply(*sizes: Size) -> Size:
    product: Size = 1
    for size in sizes:
        product = _multiply(product, size)
    return product


def _multiply(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if 0 in (a, b):
        return 0
    if a == 1:
        return b
    if b == 1:
        return a
    total: dict[Monomial, int] = {}
    for left, x in _terms(a).items():
        for right, y in _terms(b).items():
            monomial = tuple(sorted(left + right, key=_atom_key))
            total[monomial] = total.get(monomial, 0) + x * y
    return _normal(total)


def divide(a: Size, b: Size) -> Size:
    """Integer division as ONNX defines it (towards zero); exact where it divides evenly.

    The divisor is taken to be other than zero.
    """
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            return opaque("div", a, b)
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    if b == 1 or a == 0:
        return a
    exact = divide_exactly(a, b)
    return exact if exact is not None else opaque("div", a, b)


def divide_exactly(a: Size, b: Size) -> Size | None:
    """The quotient where `b` has one term that divides every term of `a`, else None."""
    if b == 0:
        return None
    terms = _terms(b)
    if a == b:
        return 1
    if len(terms) != 1:
        return None
    ((divisor, number),) = terms.items()
    quotient: dict[Monomial, int] = {}
    for monomial, factor in _terms(a).items():
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if factor % number:
            return None
        quotient[tuple(rest)] = factor // number
    return _normal(quotient)


def minimum(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    if a == b:
        return a
    difference = add(a, negative(b))
    if is_nonnegative(difference):
        return b
    if is_nonnegative(negative(difference)):
        return a
    return opaque("min", *sorted((a, b), key=str))


def maximum(a: Size, b: Size) -> Size:
    smaller = minimum(a, b)
    if smaller == a:
        return b
    if smaller == b:
        return a
    return opaque("max", *sorted((a, b), key=str))


def broadcast(a: Size, b: Size) -> Size:
    """The size that two sizes broadcast to, given that they can be broadcast at all."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    for first, second in ((a, b), (b, a)):
        if isinstance(first, int):
            return first  # the other one is this or 1
        atom = second.atom if isinstance(second, Expression) else None
        if atom is not None and atom.op == "min" and first in atom.operands:
            return first  # cut off at `first`: equal, or broadcast from 1
        if atom is not None and atom.op == "broadcast" and first in atom.operands:
            return second
    return opaque("broadcast", *sorted((a, b), key=str))


def opaque(op: str, *operands: Size) -> Expression:
    """A function of sizes that is equal to itself only."""
    name = f"{op}({', '.join(map(str, operands))})"
    if len(name) > _LONGEST:
        return _shortened(name)
    return Expression({(Atom(name, op, operands),): 1})


def is_nonnegative(size: Size) -> bool:
    """Whether a size is certainly not negative, every symbol being a size itself."""
    if isinstance(size, int):
        return size >= 0
    return all(
        factor >= 0 and all(_atom_is_nonnegative(atom) for atom in monomial)
        for monomial, factor in size.terms.items()
    )


def _atom_is_nonnegative(atom: Atom) -> bool:
    if atom.op in ("", "broadcast"):
        return True
    if atom.op == "max":
        return any(is_nonnegative(x) for x in atom.operands)
    return atom.op in ("min", "div") and all(is_nonnegative(x) for x in atom.operands)


def _terms(size: Size) -> dict[Monomial, int]:
    return {(): size} if isinstance(size, int) else size.terms


def _normal(terms: dict[Monomial, int]) -> Size:
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    if not kept:
        return 0
    if len(kept) == 1 and () in kept:
        return kept[()]
    size = Expression(kept)
    return size if len(size.text) <= _LONGEST else _shortened(size.text)


def _shortened(text: str) -> Expression:
    """An atom in the place of what is too long to go on with, equal only to its equals."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16)
    return Expression({(Atom(f"long({digest.hexdigest()})", "long"),): 1})


def _atom_key(atom: Atom) -> str:
    return atom.name


def _text(terms: dict[Monomial, int]) -> str:
    parts = sorted(
        ("*".join(atom.name for atom in monomial), factor) for monomial, factor in terms.items()
    )
    return " + ".join(_term_text(names, factor) for names, factor in parts)


def _term_text(names: str, factor: int) -> str:
    if not names:
        return str(factor)
    return names if factor == 1 else f"{factor}*{names}"
