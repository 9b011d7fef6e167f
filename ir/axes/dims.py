"""The algebra of axes: sums of products of dims, unified as types are in a compiler.

A *dim* is one independent index set. An *axis* is a sum (concatenation, in order) of
*terms*, each a row-major product of dims; `()` is the product of nothing, of size 1.
`Concat` of `a` and `b` is `((a,), (b,))`; `Flatten` of channels `c` and a 7x7 image is
`((c, h, w),)`.

Unification makes two axes of equal size describe the same index set by *refining*
dims: `a + b` against `c` splits `c` into two, `h*d` against `c` factors it. A refined
dim is *bound* to the axis that replaces it. Where two descriptions have no common
refinement, what can't be told apart is locked.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Term = tuple["Dim", ...]
Axis = tuple[Term, ...]

ONE: Axis = ((),)
"""The axis of size 1."""


@dataclass(frozen=True)
class Lock:
    """Why a dim must stay whole: the node (label and operator) and the reason.

    `structural` marks axes that nobody would think of pruning (kernel positions,
    gates); reports leave them out.
    """

    node: str
    op_type: str
    reason: str
    structural: bool = False

    def __str__(self) -> str:
        return f"{self.node} ({self.op_type}): {self.reason}" if self.node else self.reason


SINGLE_ELEMENTS = Lock("", "", "cut into parts of one element each", structural=True)


class Dim:
    """One independent index set of `size` elements (None: unknown until run time).

    `lock` says why it must stay whole; `binding` is the axis that refines it.
    `origin` names where it came from, for messages.
    """

    __slots__ = ("binding", "lock", "origin", "size")

    def __init__(self, size: int | None, origin: str = "", lock: Lock | None = None) -> None:
        self.size = size
        self.origin = origin
        self.lock = lock
        self.binding: Axis | None = None

    def __repr__(self) -> str:
        mark = "!" if self.lock else ""
        return f"{self.origin or 'dim'}:{'?' if self.size is None else self.size}{mark}"


def literal(size: int | None, lock: Lock) -> Axis:
    """An axis that is never pruned."""
    return _plain(size, Dim(size, lock=lock))


def fresh(size: int | None, origin: str) -> Axis:
    """An axis of a new independent dim."""
    return _plain(size, Dim(size, origin))


def _plain(size: int | None, dim: Dim) -> Axis:
    """Size 1 is the empty product, size 0 the empty sum."""
    return ((),) if size == 1 else () if size == 0 else ((dim,),)


def term_size(term: Term) -> int | None:
    size = 1
    for dim in term:
        if dim.size is None:
            return None
        size *= dim.size
    return size


def axis_size(axis: Axis) -> int | None:
    """Number of elements, None where a dim's size is unknown."""
    total = 0
    for term in axis:
        size = term_size(term)
        if size is None:
            return None
        total += size
    return total


def dims_of(axis: Axis) -> Iterable[Dim]:
    """The free dims that an axis is made of, composite factors opened."""
    stack = [dim for term in resolve(axis) for dim in term]
    while stack:
        dim = stack.pop()
        if dim.binding is None:
            yield dim
        else:
            stack.extend(d for term in resolve(dim.binding) for d in term)


def is_locked(axis: Axis) -> bool:
    """Whether every part of the axis is locked."""
    return all(dim.lock is not None for dim in dims_of(axis))


def first_lock(axis: Axis) -> Lock | None:
    return next((dim.lock for dim in dims_of(axis) if dim.lock is not None), None)


def lock(axis: Axis, why: Lock) -> None:
    """Lock every dim of an axis; dims that are locked keep their first reason."""
    for dim in dims_of(axis):
        if dim.lock is None:
            dim.lock = why


def resolve(axis: Axis) -> Axis:
    """The axis in terms of dims that aren't bound any more.

    A dim bound to a sum stays, as a *composite* factor, where it isn't a term's first
    factor, since only `(a + b) * c` is the sum `a*c + b*c`.
    """
    if all(dim.binding is None for term in axis for dim in term):
        return axis
    result: list[Term] = []
    for term in axis:
        result.extend(_resolve_term(term))
    return tuple(result)


def _resolve_term(term: Term) -> Axis:
    factors: list[Dim] = []
    for position, dim in enumerate(term):
        dim = _representative(dim)
        if dim.binding is None:
            factors.append(dim)
            continue
        binding = dim.binding = resolve(dim.binding)
        if len(binding) == 1:
            factors.extend(binding[0])
        elif all(d.lock is not None for part in binding for d in part):
            # A sum of literals (or of single elements) is a literal.
            locks = (d.lock for part in binding for d in part)
            dim.binding, dim.lock = None, next(locks, SINGLE_ELEMENTS)
            factors.append(dim)
        elif factors:
            factors.append(dim)
        else:
            rest = term[position + 1 :]
            return tuple(t for part in binding for t in _resolve_term(part + rest))
    return (tuple(factors),)


def _representative(dim: Dim) -> Dim:
    """The end of a chain of dims bound to each other, which is shortened on the way."""
    end = dim
    while end.binding is not None and len(end.binding) == 1 and len(end.binding[0]) == 1:
        end = end.binding[0][0]
    while dim is not end:
        assert dim.binding is not None
        following = dim.binding[0][0]
        dim.binding = ((end,),)
        dim = following
    return end


def product(axes: Sequence[Axis], origin: str = "") -> Axis:
    """The row-major product of axes, as Flatten or Reshape makes it."""
    result: Axis = ONE
    for axis in axes:
        axis = resolve(axis)
        if not axis or not result:
            return ()
        if result == ONE:
            result = axis
        elif axis != ONE:
            factors = axis[0] if len(axis) == 1 else (_composite(axis, origin),)
            result = tuple(term + factors for term in result)
    return result


def concat(axes: Sequence[Axis]) -> Axis:
    """The concatenation of axes."""
    return tuple(term for axis in axes for term in resolve(axis))


def split(axis: Axis, at: int) -> tuple[Axis, Axis]:
    """Cut an axis before element `at` (see `cut`)."""
    axis = cut(axis, [at])
    offsets = _boundaries(axis)
    position = bisect.bisect_left(offsets, at) + 1 if at else 0
    return axis[:position], axis[position:]


def cut(axis: Axis, offsets: Sequence[int]) -> Axis:
    """Refine an axis so that terms end at all of the ascending `offsets`.

    Where a cut falls inside the block of one index of a product's first factor, that
    index becomes a part of its own, which can't be removed (a dim keeps at least one
    index), and the cut goes on in the rest of the product.
    """
    result: list[Term] = []
    start = 0
    pending = list(reversed(resolve(axis)))
    while pending:
        term = pending.pop()
        resolved = resolve((term,))
        if resolved != (term,):  # refined by a cut further left
            pending.extend(reversed(resolved))
            continue
        size = term_size(term)
        if size is None:
            raise ValueError("can't cut an axis of unknown size")
        inside = _between(offsets, start, start + size)
        result.extend(_cut_term(term, inside) if inside else (term,))
        start += size
    return resolve(tuple(result))


def _between(offsets: Sequence[int], start: int, stop: int) -> list[int]:
    """Offsets strictly inside a range, relative to its start."""
    first, last = bisect.bisect_right(offsets, start), bisect.bisect_left(offsets, stop)
    return [at - start for at in offsets[first:last]]


def _cut_term(term: Term, offsets: Sequence[int]) -> Axis:
    first, rest = term[0], term[1:]
    inner = term_size(rest)
    assert inner is not None
    points = sorted({point for at in offsets for point in (at // inner, -(-at // inner))})
    result: list[Term] = []
    start = 0
    for part in _split_dim(first, points):
        size = axis_size(part)
        assert size is not None
        block = tuple(t for piece in part for t in _resolve_term(piece + rest))
        inside = _between(offsets, start * inner, (start + size) * inner)
        result.extend(cut(block, inside) if inside else block)
        start += size
    return tuple(result)


def _boundaries(axis: Axis) -> list[int]:
    """End offsets of the terms of an axis."""
    return list(itertools.accumulate(_known_size(term) for term in axis))


def _known_size(term: Term) -> int:
    size = term_size(term)
    assert size is not None
    return size


def _split_dim(dim: Dim, points: Sequence[int]) -> list[Axis]:
    """Refine a dim into a sum that is cut at `points`. Locked dims give locked parts."""
    assert dim.size is not None
    assert dim.binding is None
    inner = [p for p in points if 0 < p < dim.size]
    if not inner:
        return [((dim,),)]
    parts = [_part(dim, a, b) for a, b in itertools.pairwise([0, *inner, dim.size])]
    dim.binding = tuple(term for part in parts for term in part)
    return parts


def _part(dim: Dim, start: int, stop: int) -> Axis:
    if stop - start == 1:
        return ONE
    origin = f"{dim.origin}[{start}:{stop}]" if dim.origin else ""
    return ((Dim(stop - start, origin, dim.lock),),)


def _composite(axis: Axis, origin: str) -> Dim:
    """A dim that stands for a sum inside a product."""
    dim = Dim(axis_size(axis), origin)
    dim.binding = axis
    return dim


def unify(a: Axis, b: Axis, why: Lock) -> bool:
    """Make two axes describe the same index set.

    Returns False where they can't (unequal sizes); then both are locked. `why` is the
    reason shown for what has to be locked.
    """
    if a is b:
        return True
    a, b = resolve(a), resolve(b)
    if a == b:
        return True
    size_a, size_b = axis_size(a), axis_size(b)
    if size_a is None or size_b is None:
        return _unify_unknown(a, b, why)
    if size_a != size_b:
        lock(a, why)
        lock(b, why)
        return False
    for whole, parts in ((a, b), (b, a)):
        if len(whole) == 1 < len(parts) and len(whole[0]) == 1 and whole[0][0].lock is None:
            whole[0][0].binding = parts  # as cutting it at their ends would, at less cost
            return True
    while not (is_plain(a) and is_plain(b)):
        ends_a, ends_b = _boundaries(a), _boundaries(b)
        if ends_a == ends_b:
            for term_a, term_b in zip(a, b, strict=True):
                unify((term_a,), (term_b,), why)
            return True
        ends = sorted({*ends_a, *ends_b})
        a = cut(a, ends)
        b = cut(b, ends)
        a = resolve(a)  # cutting b may have refined dims of a
    _unify_terms(a[0], b[0], why)
    return True


def is_plain(axis: Axis) -> bool:
    """Whether the axis is a single product."""
    return len(axis) == 1


def _unify_unknown(a: Axis, b: Axis, why: Lock) -> bool:
    """Unify axes of which at least one has an unknown size.

    Factors in common go; one unknown dim a side is bound; against a known size, what is
    unknown on the other side becomes known. Anything else is locked.
    """
    for known, other in ((a, b), (b, a)):
        size = axis_size(known)
        if size is not None:
            divided = _at_size(other, size)
            if divided is not None:
                return unify(known, divided, why)
    if is_plain(a) and is_plain(b):
        p, q = _without_common_ends(a[0], b[0])
        if term_size(p) is not None and term_size(q) is not None:
            return unify((p,), (q,), why)
        for end in (0, -1):
            if not p or not q or p[end].size is not None or q[end].size is not None:
                continue
            rest, other_rest = _drop(p, end), _drop(q, end)
            if term_size(rest) == term_size(other_rest) is not None:
                _bind_dim(p[end], q[end])
                return unify((rest,), (other_rest,), why)
    lock(a, why)
    lock(b, why)
    return True


def _at_size(axis: Axis, size: int) -> Axis | None:
    """An axis of unknown size once its size is found to be `size`."""
    around = around_unknown(axis)
    why = first_lock(axis)
    if around is None or why is None:
        return None
    before, behind = around
    whole = (axis_size(before) or 0) * (axis_size(behind) or 0)
    if not whole or size % whole:
        return None
    return product([before, literal(size // whole, why), behind])


def _without_common_ends(p: Term, q: Term) -> tuple[Term, Term]:
    for end in (0, -1):
        while p and q and p[end] is q[end]:
            p, q = _drop(p, end), _drop(q, end)
    return p, q


def unknown_size(axis: Axis) -> tuple[int, tuple[int, ...]] | None:
    """Size of an axis as a number times dims of unknown size, by identity.

    Equal results mean equal sizes. None for a sum with parts of unknown size.
    """
    size = axis_size(axis)
    if size is not None:
        return size, ()
    terms = resolve(axis)
    if len(terms) != 1:
        return None
    known = math.prod(dim.size for dim in terms[0] if dim.size is not None)
    return known, tuple(sorted(id(dim) for dim in terms[0] if dim.size is None))


def around_unknown(axis: Axis) -> tuple[Axis, Axis] | None:
    """What an axis of unknown size has before and behind the dims of unknown size.

    None where it isn't the product of the three, or where something in the middle is
    free; which elements such an axis loses can't be said without knowing its size.
    """
    before: list[Term] = []
    rest: Term | None = None
    for term in resolve(axis):
        unknown = [i for i, dim in enumerate(term) if dim.size is None]
        if not unknown or (rest is not None and term[unknown[0] :] != rest):
            return None
        rest = term[unknown[0] :]
        before.append(term[: unknown[0]])
        middle = term[unknown[0] : unknown[-1] + 1]
        if any(dim.lock is None for dim in dims_of((middle,))):
            return None
        behind = term[unknown[-1] + 1 :]
    return (tuple(before), (behind,)) if rest is not None else None


def _unify_terms(p: Term, q: Term, why: Lock) -> None:
    """Unify two products of equal size by refining both to common factors.

    Factors are matched from the front and, where the sizes there have no common
    divisor, from the back; what is left in the middle is locked.
    """
    for end in (0, -1):
        p, q = _reopen(p), _reopen(q)
        while p and q:
            if len(p) == 1 and p[0].binding is not None:
                return _unify_composite(p[0], (q,), why)
            if len(q) == 1 and q[0].binding is not None:
                return _unify_composite(q[0], (p,), why)
            x, y = p[end], q[end]
            if x.size == y.size:
                _unify_factors(x, y, why)
                p, q = _drop(p, end), _drop(q, end)
            else:
                assert x.size is not None
                assert y.size is not None
                common = math.gcd(x.size, y.size)
                if common == 1 or x.binding is not None or y.binding is not None:
                    break
                _factor(x, common, end)
                _factor(y, common, end)
            p, q = _reopen(p), _reopen(q)
    lock((p,), why)
    lock((q,), why)
    return None


def _unify_composite(composite: Dim, other: Axis, why: Lock) -> None:
    assert composite.binding is not None
    unify(composite.binding, other, why)


def _unify_factors(x: Dim, y: Dim, why: Lock) -> None:
    if x is y:
        return
    if x.binding is None and y.binding is None:
        _bind_dim(x, y)
    else:
        unify(x.binding or ((x,),), y.binding or ((y,),), why)


def _drop(term: Term, end: int) -> Term:
    return term[1:] if end == 0 else term[:-1]


def _reopen(term: Term) -> Term:
    """The factors of a product after some were refined: no size 1, sums as composites."""
    factors: list[Dim] = []
    for dim in term:
        binding = dim.binding
        if binding is not None:
            dim.binding = binding = resolve(binding)
        if binding is None or len(binding) > 1:
            factors.append(dim)
        else:
            factors.extend(binding[0])
    return tuple(d for d in factors if d.size != 1)


def _factor(dim: Dim, size: int, end: int) -> None:
    """Refine a dim into a product whose factor at `end` has `size` elements."""
    assert dim.size is not None
    if dim.size == size:
        return
    part = Dim(size, dim.origin, dim.lock)
    rest = Dim(dim.size // size, dim.origin, dim.lock)
    dim.binding = ((part, rest),) if end == 0 else ((rest, part),)


def _bind_dim(x: Dim, y: Dim) -> None:
    """Make two free dims of equal size one; a lock of either holds for both."""
    if x.lock is not None and (y.lock is None or (y.lock.structural and not x.lock.structural)):
        x, y = y, x
    if y.origin == "":
        y.origin = x.origin
    x.binding = ((y,),)


def partition(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Cut an axis into consecutive parts of the given sizes."""
    ends = list(itertools.accumulate(sizes))
    axis = cut(axis, ends)
    parts: list[Axis] = []
    position, offset = 0, 0
    for end in ends:
        start = position
        while offset < end:
            offset += _known_size(axis[position])
            position += 1
        parts.append(axis[start:position])
    return parts
