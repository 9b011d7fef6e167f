"""Sizes that only a run fixes, in the place of integers.

An `OpenSize` is what shapes of plans hold where a model leaves a size open. It computes with
integers and others of its kind, so that rules written for integers serve it, too; two are equal
where they are known to be. What can't be known before a run (an order of sizes that overlap, the
number itself) is an error, never a guess. Inside kernels one becomes an expression of TensorIR.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeGuard, cast

import numpy as np

from ....ir.errors import UnsupportedError
from ....ir.symbolic import expressions as e
from ....ir.symbolic.expressions import Atom, Expression, Size, atoms
from ....ir.symbolic.factors import factors
from ....ir.symbolic.ranges import Range
from ..graph.most import MOST, is_decided, upper_bound
from .numeric import Numeric

ROOM = ("spare", "held")
"""Functions of the rows of a cache and of how many a call says that its memory has room for
(`caches.py`): those beyond them, and all."""

COMPUTED = ("", "part", "floor", "min", "max", "less", "scaled", "dim", *ROOM)
"""Functions in sizes that an artifact computes; "" are the symbols themselves, "dim" a sum that
is the size of an axis, or what is left of one, which kernels take as one number. What it is no
greater than, if known, is another operand of it."""

DECIDED = ("data", "checked", "choose", "equal", "div")
"""Others that it computes of what data decide; "data" are numbers that a run reads."""


class OpenSizeError(UnsupportedError):
    """A size that only a run fixes would have to be known while compiling."""


def _unknown(question: str) -> OpenSizeError:
    return OpenSizeError(f"{question} depends on a size that only a run fixes")


_renderers: list[Callable[[Expression], Numeric]] = []


def set_renderer(renderer: Callable[[Expression], Numeric]) -> None:
    """Let sizes become expressions of kernels so: for the layer that knows TVM."""
    _renderers[:] = [renderer]


def _render(expression: Expression) -> Numeric:
    return _renderers[0](expression)


class OpenSize:
    """A size as an expression over the model's symbols, which stands for an `int`."""

    __slots__ = ("expanded", "expression")

    def __init__(self, expression: Expression) -> None:
        self.expression = expression
        self.expanded = expanded(expression)

    def __repr__(self) -> str:
        return self.expression.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpenSize) and self.expanded == other.expanded

    def __hash__(self) -> int:
        return hash(self.expanded)

    # --- what must be known -------------------------------------------------------------

    def __bool__(self) -> bool:
        low = self.expression.range.low
        if low is not None and low > 0:
            return True
        raise _unknown(f"whether {self} is 0")

    def __int__(self) -> int:
        raise _unknown(f"the number {self}")

    __index__ = __int__

    def bit_length(self) -> int:
        raise _unknown(f"the number {self}")

    def __truediv__(self, other: object) -> NoReturn:
        raise _unknown(f"the number {self}")

    __rtruediv__ = __truediv__

    def __float__(self) -> float:
        raise _unknown(f"the number {self}")

    def _is_below(self, other: int | OpenSize, least: int, sign: str) -> bool:
        """Whether `other` is larger by `least` or more."""
        others = (other, other) if isinstance(other, int) else (other.expression, other.expanded)
        for a, b in zip((self.expression, self.expanded), others, strict=True):
            low, high = e.range_of(e.subtract(b, a))
            if low is not None and low >= least:
                return True
            if high is not None and high < least:
                return False
        raise _unknown(f"whether {self} {sign} {other}")

    def __lt__(self, other: _Operand) -> bool | Numeric:
        if _is_ours(other):
            return self._is_below(other, 1, "<")
        return _render(self.expression) < other

    def __le__(self, other: _Operand) -> bool | Numeric:
        if _is_ours(other):
            return self._is_below(other, 0, "<=")
        return _render(self.expression) <= other

    def __gt__(self, other: _Operand) -> bool | Numeric:
        if _is_ours(other):
            return not self._is_below(other, 0, ">")
        return _render(self.expression) > other

    def __ge__(self, other: _Operand) -> bool | Numeric:
        if _is_ours(other):
            return not self._is_below(other, 1, ">=")
        return _render(self.expression) >= other

    # --- arithmetic ---------------------------------------------------------------------

    def _apply(
        self, other: _Operand, function: Callable[[Size, Size], Size], name: str, *, swapped: bool
    ) -> int | Numeric:
        if _is_ours(other):
            a, b = (
                (size_of(other), self.expression) if swapped else (self.expression, size_of(other))
            )
            return stand_in(function(a, b))
        own = _render(self.expression)
        found: Numeric = getattr(own, f"__r{name}__" if swapped else f"__{name}__")(other)
        return found

    def __add__(self, other: _Operand) -> int | Numeric:
        return self._apply(other, lambda a, b: e.add(a, b), "add", swapped=False)

    def __radd__(self, other: _Operand) -> int | Numeric:
        return self._apply(other, lambda a, b: e.add(a, b), "add", swapped=True)

    def __sub__(self, other: _Operand) -> int | Numeric:
        return self._apply(other, e.subtract, "sub", swapped=False)

    def __rsub__(self, other: _Operand) -> int | Numeric:
        return self._apply(other, e.subtract, "sub", swapped=True)

    def __mul__(self, other: _Operand) -> int | Numeric:
        return self._apply(other, lambda a, b: e.multiply(a, b), "mul", swapped=False)

    def __rmul__(self, other: _Operand) -> int | Numeric:
        return self._apply(other, lambda a, b: e.multiply(a, b), "mul", swapped=True)

    def __floordiv__(self, other: _Operand) -> int | Numeric:
        return self._apply(other, e.floor_divide, "floordiv", swapped=False)

    def __rfloordiv__(self, other: _Operand) -> int | Numeric:
        return self._apply(other, e.floor_divide, "floordiv", swapped=True)

    def __mod__(self, other: _Operand) -> int | Numeric:
        return self._apply(other, e.modulo, "mod", swapped=False)

    def __rmod__(self, other: _Operand) -> int | Numeric:
        return self._apply(other, e.modulo, "mod", swapped=True)

    def __neg__(self) -> int:
        return stand_in(e.negative(self.expression))

    def __tvm_ffi_object__(self) -> Numeric:
        """What TVM takes for this: its protocol for objects of others."""
        return _render(self.expression)


_Operand = int | OpenSize | Numeric
"""What a size computes with: other sizes, or what a kernel computes."""


def _is_ours(value: object) -> TypeGuard[int | OpenSize]:
    return isinstance(value, (int, OpenSize))


def size_of(value: int | OpenSize) -> Size:
    """The expression of a size that a plan holds."""
    return value.expression if isinstance(value, OpenSize) else value


def stand_in(size: Size) -> int:
    """A size as plans hold it. Type checkers take all of them for integers."""
    if isinstance(size, int):
        return size
    found = OpenSize(size)
    return found.expanded if isinstance(found.expanded, int) else cast(int, found)


def stand_in_of_axis(size: Size) -> int:
    """The size of an axis, which is 1 or more: a run is refused where it would be less.

    A sum becomes one atom, so that what kernels compute are products of atoms. One that is a
    product becomes several: of the windows of some images kernels know how many lie in a row.
    """
    if isinstance(size, int):
        return size
    return math.prod(map(_factor_of_axis, factors(size)))


def _factor_of_axis(size: Size) -> int:
    """A factor of the size of an axis, which isn't negative, or the size itself."""
    atom = size.atom if isinstance(size, Expression) else None
    if isinstance(size, int) or (atom is not None and (atom.range.low or 0) > 0):
        return stand_in(size)
    return _as_atom(size, _from_1(size))


def _from_1(size: Expression) -> Range:
    return Range(max(size.range.low or 1, 1), size.range.high)


def _as_atom(size: Expression, bounds: Range, *most: Size, within: str = "") -> int:
    """A size as one number; its key is short, so that what is computed from it can have one."""
    text = f"{size.text}{within}"
    if len(text) > _LONGEST:
        text = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return stand_in(e.single(Atom(f"({text})", bounds, "dim", (size, *most))))


_LONGEST = 96
"""Characters of a size above which it is named by its digest."""


def expanded(size: Size) -> Size:
    """A size without atoms that stand for sums."""
    if isinstance(size, int) or not any(
        atom.op == "dim" for monomial in size.terms for atom in monomial
    ):
        return size
    parts: list[Size] = []
    for monomial, factor in size.terms.items():
        atoms = (atom.operands[0] if atom.op == "dim" else e.single(atom) for atom in monomial)
        parts.append(e.multiply(factor, *atoms))
    return e.add(*parts)


def is_open(*values: int) -> bool:
    """Whether any of these sizes is fixed by a run only."""
    return any(isinstance(value, OpenSize) for value in values)


def as_one(value: int) -> int:
    """A size as one number that kernels take, whatever it is computed from."""
    size = size_of(value)
    if isinstance(size, int):
        return size
    low, high = size.range
    return _as_atom(size, Range(1 if low is None else low, high))


def within(value: int, low: int, high: int) -> int:
    """A size as one number of which more is known than follows from its parts."""
    size = size_of(value)
    if isinstance(size, int):
        return size
    return _as_atom(size, Range(low, high), within=f" from {low} to {high}")


def in_words_of(whole: int, place: int) -> int:
    """A place within a size as that and a number, where it is so far from its end in every run:
    proofs needn't find out that it is."""
    apart = e.subtract(expanded(size_of(place)), expanded(size_of(whole)))
    return whole + apart if isinstance(apart, int) else place


def place_of(first: int, size: int, whole: int) -> int:
    """Where a part of a size begins within a whole, as one number: proofs needn't follow what the
    parts before it are. That it fits is for the caller to know."""
    own = size_of(first)
    if isinstance(own, int):
        return first
    bounds = Range(0, e.range_of(size_of(whole)).high)
    most = e.subtract(size_of(whole), size_of(size))
    return _as_atom(own, bounds, most, within=f" before {size}")


def exact_quotient(value: int, divisor: int) -> int | None:
    """How often a size holds another, where that is a known number without a rest."""
    found = e.divide_exactly(size_of(value), size_of(divisor))
    return found if isinstance(found, int) else None


def may_be_equal(a: int, b: int) -> bool:
    """Whether two sizes are the same number in some run."""
    low, high = e.range_of(e.subtract(size_of(a), size_of(b)))
    return (low is None or low <= 0) and (high is None or high >= 0)


def uncomputable(size: Size) -> Atom | None:
    """A part of a size that an artifact can't compute from the sizes of its inputs."""
    return next((atom for atom in atoms([size]) if not is_computable(atom)), None)


def is_computable(atom: Atom) -> bool:
    """Whether an artifact computes a part of a size, given those that it follows from."""
    return atom.op in COMPUTED or (atom.op in DECIDED and is_decided(e.single(atom)))


def may_be_none(size: Size) -> bool:
    """Whether a run may find that a size is 0, which plans take for 1 or more: data decide it, or
    it follows from one of an input of which 0 is admitted."""
    return not isinstance(size, int) and any(
        atom.op == "data" or (not atom.op and atom.range.low == 0) for atom in atoms([size])
    )


def empty_symbols(size: Size) -> list[Atom]:
    """The symbols in a size of which 0 is admitted."""
    return [atom for atom in atoms([size]) if not atom.op and atom.range.low == 0]


def shown(value: int) -> str:
    """A size in words for users: of what data decide without its bounds."""
    size, whole = size_of(value), expanded(size_of(value))
    if isinstance(whole, Expression) and whole.atom is not None and not whole.atom.op:
        return str(whole)
    return str(_unbounded(whole) if is_decided(size) else size)


def _unbounded(size: Size) -> Size:
    if isinstance(size, int):
        return size
    products = (
        e.multiply(factor, *(_unbounded_atom(atom) for atom in monomial))
        for monomial, factor in size.terms.items()
    )
    return e.add(*products)


def _unbounded_atom(atom: Atom) -> Size:
    if atom.op in ("checked", "dim"):
        return _unbounded(atom.operands[0])
    return (
        e.FUNCTIONS[atom.op](*map(_unbounded, atom.operands)) if atom.operands else e.single(atom)
    )


def most_of(size: Size, equal: Sequence[tuple[int, int]] = ()) -> Size | None:
    """What a size that data decide is no greater than, known before a run computes; None where
    nothing says. `equal` are sizes that are so in every run."""
    if isinstance(size, int) or not is_decided(size):
        return size
    found = [upper_bound(size)]
    for pair in equal:
        for a, b in (pair, pair[::-1]):
            times = e.divide_exactly(expanded(size), expanded(size_of(a)))
            if isinstance(times, int) and times > 0 and not is_decided(size_of(b)):
                found.append(e.multiply(size_of(b), times))
    known = [most for most in found if most is not None]
    return functools.reduce(e.minimum, known) if known else None


def is_bounded(symbol: Atom) -> bool:
    """Whether the model or the user says how large a size of an input may be."""
    high = symbol.range.high
    return high is not None and high < MOST


def greatest(value: int) -> int:
    """The largest number that a size may be."""
    high = e.range_of(size_of(value)).high
    return MOST if high is None else min(high, MOST)


def typical(value: int) -> int:
    """A number that a size may well be, not 0, for estimates of how much is computed."""
    size = size_of(value)

    def usual(atom: Atom) -> Size:
        low, high = atom.range
        return max(low or 1, min(_USUAL, high if high is not None else _USUAL))

    found = e.substitute(size, usual)
    return max(1, found) if isinstance(found, int) else _USUAL


_USUAL = 128


def cascade(extent: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Pieces of an open extent: (how many, the size of each, where the first begins).

    As many of `most` as fit, then at most one of each smaller power of two.
    """
    start, rest, size = 0, extent, most
    while True:
        count = rest // size
        if count != 0:
            yield count, size, start
        rest = _rest(rest - count * size, extent)
        start = extent - rest
        if size == 1 or rest == 0:
            return
        size = 1 << ((size - 1).bit_length() - 1)


def _rest(size: int, extent: int) -> int:
    """What is left over of an extent, as one number, so that proofs needn't know what was taken."""
    if isinstance(size, int):
        return size
    own = size_of(size)
    bounds = Range(0, e.range_of(size_of(extent)).high)
    return _as_atom(own, bounds, size_of(extent), within=" left")


def cascade_of(extent: int, most: int) -> Iterator[tuple[int, int, int]]:
    """As `cascade`, of a known extent, too."""
    if is_open(extent):
        yield from cascade(extent, most)
        return
    start = 0
    while start < extent:
        size = min(most, extent - start)
        count = (extent - start) // size
        yield count, size, start
        start += count * size


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """What shapes broadcast to in every run. Raises ValueError where they may not in some."""
    if not is_open(*(size for shape in shapes for size in shape)):
        return np.broadcast_shapes(*shapes)
    rank = max(map(len, shapes))
    result = []
    for axis in range(-rank, 0):
        sizes = dict.fromkeys(s[axis] for s in shapes if len(s) >= -axis and s[axis] != 1)
        if len(sizes) > 1:
            raise ValueError(f"sizes {', '.join(map(str, sizes))} may differ")
        result.append(next(iter(sizes), 1))
    return tuple(result)


def bounds_of(atom: Atom) -> tuple[int, int]:
    """The least and the greatest number that a part of a size is in any run that isn't refused."""
    low, high = atom.range
    return max(-MOST if low is None else low, -MOST), min(MOST if high is None else high, MOST)


def least_with_empty(atom: Atom) -> tuple[int, int]:
    """As `bounds_of`, where axes may have no elements of which a run may find that."""
    low, high = bounds_of(atom)
    return (min(low, 0) if may_be_none(e.single(atom)) else low), high
