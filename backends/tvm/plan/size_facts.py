"""What proofs of kernels know of the open sizes that these take: ranges, and inequalities."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from ....ir.symbolic import expressions as e
from ....ir.symbolic.expressions import Atom, Expression, Size, atoms
from .sizes import bounds_of, least_with_empty, size_of

Polynomial = Sequence[tuple[int, Sequence[int]]]
"""A sum of products: each a factor and the indices of sizes that it multiplies."""


@dataclasses.dataclass(frozen=True)
class SizeFacts:
    """What is known of the open sizes that a kernel takes after its buffers: the least and the
    greatest that each may be, and sums of products of them that are at least 0. Where the least
    may be 0 in some run (`with_empty`), it is no divisor, which is to be proven, too."""

    ranges: tuple[tuple[int, int], ...] = ()
    facts: tuple[Polynomial, ...] = ()
    with_empty: bool = False


def facts_of(
    parameters: Sequence[Atom],
    equal: Sequence[tuple[int, int]] = (),
    *,
    with_empty: bool = False,
    further: bool = False,
) -> SizeFacts:
    """What is known of sizes that a kernel takes, among which are those that they follow from.

    `equal` are sizes that are so in every run. With `with_empty` axes may have no elements, of
    which a run may find that. `further` are facts that follow from others in several steps: most
    proofs find these by themselves, and are led astray by more.
    """
    places = {atom: index for index, atom in enumerate(parameters)}
    facts: list[Polynomial] = []
    known = [s for atom in parameters for s in _not_negative(atom, e.single(atom))]
    if further:
        known += _apart(parameters)
        known += [s for atom in parameters for s in _less_than_whole(atom)]
    for a, b in equal:
        difference = e.subtract(size_of(a), size_of(b))
        known += [difference, e.negative(difference)]
        own = e.single_term(size_of(a))
        if own is not None and own[0] == 1 and len(own[1]) == 1:
            known += _not_negative(own[1][0], size_of(b))
    least = [atom for atom in parameters if atom.op == "min"]
    own_bounds = [s for atom in least for s in _not_negative(atom, e.single(atom))]
    known += [_of_axes(size, parameters) for size in own_bounds]
    dims_first = sorted(parameters, key=lambda atom: atom.op != "dim")  # whose bounds are closer
    more = [s for a in dims_first if not with_empty for s in _not_cut_off(a, parameters)]
    rounded = [s for atom in parameters for s in _rounded_up(atom)]
    more += [least for size in rounded for least in _without_functions(size, more)]
    more += [larger for size in known for larger in _relaxed(size)]
    known += [s for size in more for s in dict.fromkeys((size, _of_axes(size, parameters)))]
    for size in known:
        if places.keys() >= set(atoms([size])):
            facts.append(
                [
                    (factor, sorted(places[a] for a in monomial))
                    for monomial, factor in sorted(e.terms_of(size).items(), key=str)
                ]
            )
    bounds = least_with_empty if with_empty else bounds_of
    ranges = [bounds(atom) for atom in parameters]
    for fact in facts:
        _narrow(ranges, fact)
    return SizeFacts(tuple(ranges), tuple(facts), with_empty)


def _apart(parameters: Sequence[Atom]) -> Iterator[Size]:
    """Sizes of axes, each a sum, of which one is a multiple of the other but for a number."""
    axes = [a for a in parameters if a.op == "dim" and len(e.terms_of(a.operands[0])) > 1]
    for a, b in itertools.permutations(axes, 2):
        times = _times(a.operands[0], b.operands[0])
        apart = e.subtract(a.operands[0], e.multiply(b.operands[0], times))
        if times and isinstance(apart, int) and (times > 1 or a.key < b.key):
            found = e.add(e.single(a), e.multiply(e.single(b), -times), -apart)
            yield from (found, e.negative(found))


def _less_than_whole(atom: Atom) -> Iterator[Size]:
    """What a quotient is at most: what is divided."""
    if atom.op == "floor":
        a, b = atom.operands
        if isinstance(b, int) and b > 1 and e.is_nonnegative(a):
            yield e.subtract(a, e.single(atom))


def _narrow(ranges: list[tuple[int, int]], fact: Polynomial) -> None:
    """Make the ranges of parameters tighter by a sum of them that is at least 0."""
    factors = {places[0]: factor for factor, places in fact if len(places) == 1}
    number = sum(factor for factor, places in fact if not places)
    if len(factors) + any(not places for _, places in fact) < len(fact):
        return  # with a product of parameters
    most = {i: max(factor * end for end in ranges[i]) for i, factor in factors.items()}
    for index, factor in factors.items():
        low, high = ranges[index]
        rest = number + sum(most.values()) - most[index]  # factor * parameter >= -rest
        end = rest // abs(factor)
        ranges[index] = (max(low, -end), high) if factor > 0 else (low, min(high, end))


def _of_axes(size: Size, parameters: Sequence[Atom]) -> Size:
    """A sum with sizes of axes in the place of the symbols, or sums of these, that they are."""
    axes = {}
    for atom in parameters:
        whole = atom.operands[0] if atom.op == "dim" else 0
        if not isinstance(whole, Expression):
            continue
        if whole.atom is not None:
            axes[whole.atom] = e.single(atom)
        elif (times := _times(size, whole)) != 0:
            other = e.add(size, e.multiply(e.subtract(e.single(atom), whole), times))
            size = min(size, other, key=lambda x: len(e.terms_of(x)))
    products = (
        e.multiply(factor, *(axes.get(atom, e.single(atom)) for atom in monomial))
        for monomial, factor in e.terms_of(size).items()
    )
    return e.add(*products)


def _times(size: Size, part: Size) -> int:
    """How often a sum may hold another one, by one of its terms."""
    first = next(monomial for monomial in e.terms_of(part) if monomial)
    own, divisor = e.terms_of(size).get(first, 0), e.terms_of(part)[first]
    return own // divisor if own % divisor == 0 else 0


def _without_functions(size: Size, bounds: Sequence[Size]) -> Iterator[Size]:
    """A size, and what is at least that without one after the other of the minima and maxima of
    which these are bounds."""
    yield size
    for bound in bounds:
        for monomial, factor in e.terms_of(bound).items():
            own = e.terms_of(size).get(monomial, 0)
            is_function = len(monomial) == 1 and monomial[0].op in ("min", "max")
            if is_function and abs(factor) == 1 and own * factor < 0:
                yield from _without_functions(e.add(size, e.multiply(bound, abs(own))), bounds)
                return


def _rounded_up(atom: Atom) -> Iterator[Size]:
    """What the size of an axis from which a quotient is subtracted is at least, and at most,
    without that: n - 6 * n // 7 times 7 is at least n and at most n + 6."""
    if atom.op != "dim":
        return
    own, size = e.single(atom), atom.operands[0]
    for monomial, factor in e.terms_of(size).items():
        if factor > 0 or len(monomial) != 1 or monomial[0].op != "floor":
            continue
        a, b = monomial[0].operands
        if isinstance(b, int) and b > 0:
            rest = e.subtract(size, e.multiply(e.single(monomial[0]), factor))
            least = e.add(e.multiply(rest, b), e.multiply(a, factor))
            yield e.add(least, -factor * (b - 1), e.multiply(own, -b))
            yield e.subtract(e.multiply(own, b), least)


def _not_cut_off(atom: Atom, parameters: Sequence[Atom]) -> Iterator[Size]:
    """Where axes have elements, what a minimum is at least and a maximum at most: a number itself
    of whose maximum with 0 such an axis is a multiple or a share."""
    if atom.op == "min":
        lows = [e.range_of(_of_axes(size, parameters)).low for size in atom.operands]
        known = [low for low in lows if low is not None]
        if len(known) == len(lows):
            yield e.subtract(e.single(atom), min(known))
    if atom.op == "max":
        least, size = sorted(atom.operands, key=lambda x: not isinstance(x, int))
        low = e.range_of(size).low
        if isinstance(least, int) and low is not None and low < least:
            yield e.subtract(e.add(size, least - low), e.single(atom))
    if atom.op == "dim" and atom.range.low:
        for own in atoms(atom.operands[:1]):
            if own.op == "max" and 0 in own.operands and _is_0_with(own, atom.operands[0]):
                yield e.subtract(e.add(*own.operands), e.single(own))
                yield e.add(*own.operands, -1)


def _is_0_with(atom: Atom, size: Size) -> bool:
    """Whether a size is 0 wherever a part of it is."""

    def vanishes(other: Atom) -> bool:
        is_quotient = other.op == "floor" and other.operands[1] != 0
        return other == atom or (is_quotient and _is_0_with(atom, other.operands[0]))

    return all(any(map(vanishes, monomial)) for monomial in e.terms_of(size))


def _relaxed(size: Size) -> Iterator[Size]:
    """What is at least a size: an operand of a minimum that is added, or of a maximum that is
    subtracted, in its place."""
    for monomial, factor in e.terms_of(size).items():
        if len(monomial) == 1 and monomial[0].op == ("min" if factor > 0 else "max"):
            own = e.single(monomial[0])
            for operand in monomial[0].operands:
                yield e.add(size, e.multiply(e.subtract(operand, own), factor))


def _not_negative(atom: Atom, own: Size) -> list[Size]:
    """Sums and products of sizes that an atom's definition makes 0 or more."""
    if atom.op in ("dim", "checked"):
        difference = e.subtract(own, atom.operands[0])
        most = [e.subtract(whole, own) for whole in atom.operands[1:]]
        return [difference, e.negative(difference), *most]
    if atom.op in ("floor", "part"):
        a, b = atom.operands
        if isinstance(b, int) and b > 0:
            rest = e.subtract(a, e.multiply(own, b))
            exact = atom.op == "part"
            return [rest, e.subtract(0 if exact else b - 1, rest)]
    if atom.op in ("min", "max"):
        differences = [e.subtract(operand, own) for operand in atom.operands]
        return differences if atom.op == "min" else [e.negative(d) for d in differences]
    return []
