"""Sizes of axes as expressions, so that what a shape computation says can be compared.

A computed size is an expression over sizes *of axes*. Which dims an axis is made of is known
when all nodes have been seen; then its size is a polynomial over dims. `8 * N` with N known
only at run time is the size of the axis `N * heads` while heads has 8 indices: whether it
still is when some are removed, and by which factor it is off, are questions about polynomials.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..symbolic import expressions as e
from ..symbolic.expressions import Monomial, Size
from ..symbolic.facts import Contents
from .dims import ONE, Axis, Dim, axis_size, resolve
from .selection import Selection

SizeOf = Callable[[Dim], "int | None"]
"""The size of a dim, None where it stays a symbol."""


class AxisSizes:
    """The symbols that stand for sizes of axes in one analysis."""

    def __init__(self) -> None:
        self._symbols: dict[Axis, Size] = {}

    def of(self, axis: Axis) -> Size:
        """The size of an axis, whatever is going to be removed from it."""
        if axis == ONE:
            return 1
        if axis not in self._symbols:
            known = axis_size(axis)
            low = 0 if known is None else min(known, 1)  # a dim keeps at least one index
            name = f"axis{len(self._symbols)}"
            self._symbols[axis] = e.symbol(name, low, known, of=axis)
        return self._symbols[axis]


def axes_of(size: Size) -> list[Axis]:
    """The axes whose sizes a size depends on."""
    return [leaf.of for leaf in e.leaves(size) if isinstance(leaf.of, tuple)]


def axes_of_all(contents: Contents) -> list[Axis]:
    return [axis for element in contents.flat for axis in axes_of(element)]


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


def size_over_dims(axis: Axis, size_of: SizeOf) -> Size:
    """The size of an axis as a polynomial over dims."""
    total: dict[Monomial, int] = {}
    for term in resolve(axis):
        factors = [
            _dim_size(dim, size_of) if dim.binding is None else size_over_dims(dim.binding, size_of)
            for dim in term
        ]
        for monomial, factor in e.terms_of(e.multiply(*factors)).items():
            total[monomial] = total.get(monomial, 0) + factor
    return e.of_terms(total)


def _dim_size(dim: Dim, size_of: SizeOf) -> Size:
    size = size_of(dim)
    if size is not None:
        return size
    return e.symbol(f"dim{id(dim)}", 0 if dim.size is None else 1, dim.size, of=dim)


def over_dims(size: Size, size_of: SizeOf) -> Size:
    """A computed size as an expression over dims."""

    def value_of(leaf: e.Atom) -> Size:
        return size_over_dims(leaf.of, size_of) if isinstance(leaf.of, tuple) else e.single(leaf)

    return e.substitute(size, value_of)


def evaluate(size: Size, selection: Selection | None = None) -> int | None:
    """A size as a number under a selection (None: nothing removed), None where it is unknown."""
    found = over_dims(size, whole if selection is None else selected(selection))
    return found if isinstance(found, int) else None


def evaluate_all(contents: Contents, selection: Selection | None = None) -> list[int | None]:
    return [evaluate(element, selection) for element in contents.flat]


def is_size_of(size: Size, axis: Axis) -> bool:
    """Whether a computed size is that of the axis, whatever it is."""
    return over_dims(size, whole) == size_over_dims(axis, whole)


def ratio(wanted: Size, actual: Size) -> tuple[int, int] | None:
    """Two numbers p / q with wanted = actual * p / q, in lowest terms."""
    a, b = e.single_term(wanted), e.single_term(actual)
    if a is None or b is None or a[1] != b[1] or not a[0] or not b[0]:
        return None
    divisor = math.gcd(a[0], b[0])
    return a[0] // divisor, b[0] // divisor


def follows(size: Size, axis: Axis) -> bool:
    """Whether, whatever is removed, a size is that of an axis times a number.

    It is that size as long as nothing is removed; `ratio` tells the number.
    """
    if not is_size_of(size, axis):
        return False
    unknown = set()
    for part in (over_dims(size, prunable), size_over_dims(axis, prunable)):
        for monomial, factor in e.terms_of(part).items():
            dims = [atom.of for atom in monomial if isinstance(atom.of, Dim)]
            if len(dims) != len(monomial) or factor < 0:
                return False
            unknown.add(tuple(id(dim) for dim in dims if dim.size is None))
    return len(unknown) == 1


def settled(contents: Contents) -> Contents:
    """Contents in which sizes that no choice and no run can change are numbers."""
    result = contents.copy()
    for index, element in enumerate(contents.flat):
        found = over_dims(element, prunable)
        if isinstance(found, int):
            result.flat[index] = found
    return result
