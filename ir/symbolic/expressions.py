"""Sizes as expressions: integer polynomials over symbols and functions of sizes.

The form is canonical: sums, products and exact divisions that are equal have the same terms,
and what has no polynomial form (a division with a rest, a minimum) is an atom of its
operands, so that computing it twice gives the same atom. Symbols have ranges, from which
those of expressions follow, and with them comparisons, minima and divisions are decided.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import TypeAlias

from .ranges import (
    ANY,
    NATURAL,
    TRUTH,
    Range,
    greatest,
    least,
    range_of_product,
    range_of_quotient,
    scaled_number,
)
from .sums import range_of_sum
from .terms import key_of, text_of, without

Size: TypeAlias = "int | Expression"

_MOST_TERMS = 1024
"""Terms above which a polynomial is replaced by an atom, equal only to its equals."""

_LONGEST = 256
"""Characters of a function above which the same happens."""

_SHORT = 256
"""Denominators up to which a scale is taken for a fraction."""


class Atom:
    """What polynomials are made of: a symbol, or a function of sizes that is no polynomial.

    Atoms are equal where their keys are. `op` is "" for symbols, whose meaning is `of`: for
    whoever made the symbol to know.
    """

    __slots__ = ("_hash", "key", "of", "op", "operands", "range", "weight")

    def __init__(
        self,
        key: str,
        range: Range,
        op: str = "",
        operands: tuple[Size, ...] = (),
        of: object = None,
    ) -> None:
        self.key = key
        self.range = range
        self.op = op
        self.operands = operands
        self.of = of
        self.weight = 1 + sum(weight(x) for x in operands)
        self._hash = hash(key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Atom) and self.key == other.key

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return self.key


Monomial = tuple[Atom, ...]
"""A product of atoms, in the order of their keys."""


class Expression:
    """A polynomial that is not a plain integer: `terms` leads from monomials to factors."""

    __slots__ = ("_hash", "_range", "_text", "_weight", "terms")

    def __init__(self, terms: dict[Monomial, int]) -> None:
        self.terms = terms
        self._hash: int | None = None
        self._range: Range | None = None
        self._text: str | None = None
        self._weight: int | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self.terms == other.terms

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self.terms.items()))
        return self._hash

    @property
    def text(self) -> str:
        """The expression in words: different ones differ."""
        if self._text is None:
            self._text = text_of(self.terms)
        return self._text

    @property
    def weight(self) -> int:
        if self._weight is None:
            self._weight = sum(1 + sum(atom.weight for atom in m) for m in self.terms)
        return self._weight

    @property
    def range(self) -> Range:
        if self._range is None:
            self._range = range_of_sum(self.terms)
        return self._range

    def __repr__(self) -> str:
        return self.text

    @property
    def atom(self) -> Atom | None:
        """The only atom, where the expression is nothing else."""
        if len(self.terms) != 1:
            return None
        ((monomial, factor),) = self.terms.items()
        return monomial[0] if factor == 1 and len(monomial) == 1 else None


# --- leaves ------------------------------------------------------------------------------


def symbol(
    name: str, low: int | None = 0, high: int | None = None, divisor: int = 1, of: object = None
) -> Size:
    """The size called `name`, which lies between `low` and `high` and is a multiple of
    `divisor`; what can only be one number is that."""
    if low is not None and low == high:
        return low
    key = name if name.isidentifier() else repr(name)
    if divisor == 1:
        return single(Atom(key, Range(low, high), of=of))
    whole = symbol(name, low, high, of=of)
    part = Range(
        None if low is None else -(-low // divisor), None if high is None else high // divisor
    )
    return multiply(single(Atom(f"{key}/{divisor}", part, "part", (whole, divisor))), divisor)


def unknown(number: int, range: Range = NATURAL) -> Expression:
    """A size, or with another range a number, of which nothing else is known; `number` tells
    it from all others."""
    return single(Atom(f"unknown({number})", range, "unknown"))


def datum(text: str, range: Range = ANY, of: object = None) -> Expression:
    """A number that a run reads from a tensor, which the text names."""
    return single(Atom(text, range, "data", of=of))


def is_unknown(size: Size) -> bool:
    """Whether nothing is known of a size."""
    return isinstance(size, Expression) and size.atom is not None and size.atom.op == "unknown"


def leaves(size: Size) -> Iterator[Atom]:
    """The symbols that a size is made of, and what is unknown in it."""
    return (atom for atom in atoms([size]) if not atom.operands)


def atoms(sizes: Iterable[Size]) -> list[Atom]:
    """The symbols and functions in sizes, each after those that it is computed from."""
    found: dict[Atom, None] = {}

    def visit(size: Size) -> None:
        for atom in (a for monomial in terms_of(size) for a in monomial if a not in found):
            for operand in atom.operands:
                visit(operand)
            found[atom] = None

    for size in sizes:
        visit(size)
    return list(found)


def mentions(size: Size, *ops: str) -> bool:
    """Whether one of these functions, or something unknown or cut off, is part of a size."""
    return any(atom.op in ops for atom in atoms([size]))


def weight(size: Size) -> int:
    """How much a size is to compute: its terms, factors and functions."""
    return 1 if isinstance(size, int) else size.weight


def is_long(size: Size) -> bool:
    """Whether a part of a size was cut off."""
    return mentions(size, "long")


def bounded(size: Size, limit: int) -> Size:
    """A size of at most some weight: what is heavier is an atom, equal only to its equals."""
    return size if isinstance(size, int) or size.weight <= limit else _shortened(size)


# --- polynomials -------------------------------------------------------------------------


def add(*sizes: Size) -> Size:
    whole = 0
    for size in sizes:
        if not isinstance(size, int):
            break
        whole += size
    else:  # the usual case, and the quick one
        return whole
    total: dict[Monomial, int] = {}
    for size in sizes:
        for monomial, factor in terms_of(size).items():
            total[monomial] = total.get(monomial, 0) + factor
    return _normal(total)


def negative(size: Size) -> Size:
    return multiply(size, -1)


def subtract(a: Size, b: Size) -> Size:
    return add(a, negative(b))


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
    left, right = terms_of(a), terms_of(b)
    if len(left) * len(right) > _MOST_TERMS:
        return _function("product", (a, b), range_of_product([range_of(a), range_of(b)]))
    total: dict[Monomial, int] = {}
    for p, x in left.items():
        for q, y in right.items():
            monomial = tuple(sorted(p + q, key=key_of)) if p and q else p or q
            total[monomial] = total.get(monomial, 0) + x * y
    return _normal(total)


def divide_exactly(a: Size, b: Size) -> Size | None:
    """The quotient where `b` has one term that divides every term of `a`, else None."""
    if b == 0:
        return None
    if a == b:
        return 1
    terms = terms_of(b)
    if len(terms) != 1:
        return None
    ((divisor, number),) = terms.items()
    quotient: dict[Monomial, int] = {}
    for monomial, factor in terms_of(a).items():
        rest = without(monomial, divisor)
        if rest is None or factor % number:
            return None
        quotient[rest] = factor // number
    return _normal(quotient)


def single_term(size: Size) -> tuple[int, Monomial] | None:
    """Factor and atoms of a size that is a product; None for a sum."""
    terms = terms_of(size)
    if len(terms) != 1:
        return None
    return next((factor, monomial) for monomial, factor in terms.items())


# --- functions ---------------------------------------------------------------------------


def divide(a: Size, b: Size) -> Size:
    """Integer division as ONNX defines it (towards zero); exact where it divides evenly.

    The divisor is taken to be other than zero.
    """
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            return _function("div", (a, b), ANY)
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    if b == 1 or a == 0:
        return a
    exact = divide_exactly(a, b)
    if exact is not None:
        return exact
    if is_nonnegative(a) and is_nonnegative(b):
        return floor_divide(a, b)
    return _function("div", (a, b), ANY)


def floor_divide(a: Size, b: Size) -> Size:
    """Integer division that rounds down. The divisor is taken to be other than zero."""
    if isinstance(a, int) and isinstance(b, int) and b != 0:
        return a // b
    if b == 1 or a == 0:
        return a
    exact = divide_exactly(a, b)
    if exact is not None:
        return exact
    if not isinstance(b, int) or b <= 0:
        return _function("floor", (a, b), range_of_quotient(range_of(a), range_of(b)))
    whole: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, factor in terms_of(a).items():
        quotient, remainder = divmod(factor, b)
        if quotient:
            whole[monomial] = quotient
        if remainder:
            rest[monomial] = remainder
    return add(_normal(whole), _floor_of_rest(_normal(rest), b))


def _floor_of_rest(rest: Size, divisor: int) -> Size:
    low, high = range_of(rest)
    if low is not None and high is not None and low // divisor == high // divisor:
        return low // divisor
    offset = terms_of(rest).get((), 0)
    inner = subtract(rest, offset)
    atom = inner.atom if isinstance(inner, Expression) else None
    if atom is not None and atom.op == "floor" and isinstance(atom.operands[1], int):
        within = add(atom.operands[0], offset * atom.operands[1])
        return floor_divide(within, atom.operands[1] * divisor)
    operands = (rest, divisor)
    return _function("floor", operands, range_of_quotient((low, high), (divisor, divisor)))


def ceil_divide(a: Size, b: Size) -> Size:
    """Integer division that rounds up."""
    return negative(floor_divide(negative(a), b))


def scaled(size: Size, scale: float) -> Size:
    """The whole number of a size times a 32-bit float, as ONNX rounds it: to a float first.

    Of a short fraction the product is exact for all but the largest sizes.
    """
    exact = Fraction(scale)
    if exact.denominator <= _SHORT:
        return floor_divide(multiply(size, exact.numerator), exact.denominator)
    (bits,) = struct.unpack("<i", struct.pack("<f", scale))
    return _scaled(size, bits)


def _scaled(size: Size, bits: Size) -> Size:
    """As `scaled`, by a float of these bits."""
    assert isinstance(bits, int)
    if isinstance(size, int):
        return scaled_number(size, bits)
    low, high = (None if x is None else scaled_number(x, bits) for x in size.range)
    return _function("scaled", (size, bits), Range(low, high))


def modulo(a: Size, b: Size) -> Size:
    """The rest of `floor_divide`, of the divisor's sign."""
    if b == 0:
        return _function("mod", (a, b), ANY)
    return subtract(a, multiply(b, floor_divide(a, b)))


def minimum(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    if a == b:
        return a
    difference = subtract(a, b)
    if is_nonnegative(difference):
        return b
    if is_nonnegative(negative(difference)):
        return a
    (p, q), (r, s) = range_of(a), range_of(b)
    low = None if p is None or r is None else min(p, r)
    return _function("min", _ordered(a, b), Range(low, least(q, s)))


def maximum(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    if a == b:
        return a
    difference = subtract(a, b)
    if is_nonnegative(difference):
        return a
    if is_nonnegative(negative(difference)):
        return b
    (p, q), (r, s) = range_of(a), range_of(b)
    high = None if q is None or s is None else max(q, s)
    return _function("max", _ordered(a, b), Range(greatest(p, r), high))


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
    (_, q), (_, s) = range_of(a), range_of(b)
    high = None if q is None or s is None else max(q, s)
    return _function("broadcast", _ordered(a, b), Range(0, high))


def equal(a: Size, b: Size) -> Size:
    """1 or 0, or which of them is told at run time."""
    if a == b:
        return 1
    low, high = range_of(subtract(a, b))
    if (low is not None and low > 0) or (high is not None and high < 0):
        return 0
    return _function("equal", _ordered(a, b), TRUTH)


def less(a: Size, b: Size) -> Size:
    """1 where a < b, else 0, or which of them is told at run time."""
    low, high = range_of(subtract(b, a))
    if low is not None and low > 0:
        return 1
    if high is not None and high <= 0:
        return 0
    return _function("less", (a, b), TRUTH)


def checked(number: Size, most: Size | None = None) -> Size:
    """A number that data decide, as a size: no run goes on where it isn't from 0 to `most`."""
    if is_nonnegative(number) and (most is None or _is_most(number, most)):
        return number
    high = range_of(number).high
    if most is None:
        return _function("checked", (number,), Range(0, high))
    return _function("checked", (number, most), Range(0, least(high, range_of(most).high)))


def _is_most(number: Size, most: Size) -> bool:
    """Whether a number's bounds say that it is at most another one."""
    high = range_of(number).high
    return isinstance(most, int) and high is not None and high <= most


def choose(condition: Size, a: Size, b: Size) -> Size:
    """The second where the first isn't 0, else the third."""
    if isinstance(condition, int):
        return a if condition else b
    if a == b:
        return a
    (p, q), (r, s) = range_of(a), range_of(b)
    low = None if p is None or r is None else min(p, r)
    high = None if q is None or s is None else max(q, s)
    return _function("choose", (condition, a, b), Range(low, high))


def _divided(whole: Size, divisor: Size) -> Size:
    return floor_divide(whole, divisor)


FUNCTIONS: dict[str, Callable[..., Size]] = {
    "broadcast": broadcast,
    "checked": checked,
    "choose": choose,
    "dim": add,
    "div": divide,
    "equal": equal,
    "floor": floor_divide,
    "held": add,
    "less": less,
    "max": maximum,
    "min": minimum,
    "mod": modulo,
    "part": _divided,
    "product": multiply,
    "scaled": _scaled,
    "spare": lambda _: 0,
}
"""What the functions in atoms compute, `held` and `spare` of caches without room for more rows."""


def _function(op: str, operands: tuple[Size, ...], range: Range) -> Size:
    """A function of sizes that is equal to itself only; what can only be one number is that."""
    if range.low is not None and range.low == range.high:
        return range.low
    key = f"{op}({', '.join(map(str, operands))})"
    if len(key) > _LONGEST:
        if not any(mentions(x, "data") for x in operands):
            return _cut_off(key, range)
        key = f"{op}#{_digest(key)}"  # it is to be computed, whatever its length
    return single(Atom(key, range, op, operands))


def _ordered(a: Size, b: Size) -> tuple[Size, Size]:
    return (a, b) if str(a) <= str(b) else (b, a)


# --- numbers -----------------------------------------------------------------------------


def substitute(size: Size, value_of: Callable[[Atom], Size]) -> Size:
    """A size in which each symbol, and what is unknown, is what `value_of` says of it."""
    if isinstance(size, int):
        return size
    parts: list[Size] = []
    for monomial, factor in size.terms.items():
        parts.append(multiply(factor, *(_substituted(atom, value_of) for atom in monomial)))
    return add(*parts)


def _substituted(atom: Atom, value_of: Callable[[Atom], Size]) -> Size:
    if not atom.operands:
        return value_of(atom)
    return FUNCTIONS[atom.op](*(substitute(x, value_of) for x in atom.operands))


def range_of(size: Size) -> Range:
    return Range(size, size) if isinstance(size, int) else size.range


def is_nonnegative(size: Size) -> bool:
    """Whether a size is certainly not negative."""
    low = range_of(size).low
    return low is not None and low >= 0


# --- terms ---------------------------------------------------------------------


def single(atom: Atom) -> Expression:
    """An atom as a size."""
    return Expression({(atom,): 1})


def terms_of(size: Size) -> dict[Monomial, int]:
    """The factor of each product of atoms in a sum of such."""
    return {(): size} if isinstance(size, int) else size.terms


def of_terms(terms: dict[Monomial, int]) -> Size:
    """The polynomial of these terms, however many there are."""
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    if not kept:
        return 0
    if len(kept) == 1 and () in kept:
        return kept[()]
    return Expression(kept)


def _normal(terms: dict[Monomial, int]) -> Size:
    size = of_terms(terms)
    if isinstance(size, int) or len(size.terms) <= _MOST_TERMS:
        return size
    return _shortened(size)


def _shortened(size: Expression) -> Expression:
    return _cut_off(size.text, size.range)


def _cut_off(text: str, range: Range) -> Expression:
    """An atom in the place of what is too long to go on with, equal only to its equals."""
    return single(Atom(f"long({_digest(text)})", range, "long"))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
