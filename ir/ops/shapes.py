"""Reshape, Flatten, and the operators that compute shapes.

Reshape lines up the products of the axes on both sides: equal products are one group,
in which axes merge, split, or both. Sizes known only at run time take part by identity
(the batch axis of the input is the batch axis that Shape read).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..axes import dims
from ..axes.dims import ONE, Axis
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from ..axes.sizes import axes_of, evaluate, over_dims, whole
from ..symbolic import expressions as e
from ..symbolic.expressions import Size
from ..symbolic.facts import Contents, contents_of, unknown_elements
from .records import Trait, rule

UNKNOWN = "its size is known only at run time"


@dataclass(frozen=True)
class Monomial:
    """A size as a known factor times dims of unknown size."""

    factor: int
    unknown: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, factor: int, unknown: Counter[int]) -> Monomial:
        return cls(factor, tuple(sorted((k, n) for k, n in unknown.items() if n)))

    def __mul__(self, other: Monomial) -> Monomial:
        return Monomial.of(
            self.factor * other.factor, Counter(dict(self.unknown)) + Counter(dict(other.unknown))
        )

    def divide(self, other: Monomial) -> Monomial | None:
        """self / other, None where it isn't whole."""
        have, take = Counter(dict(self.unknown)), Counter(dict(other.unknown))
        if other.factor == 0 or self.factor % other.factor or any(have[k] < take[k] for k in take):
            return None
        return Monomial.of(self.factor // other.factor, have - take)


ONE_ELEMENT = Monomial(1)


def axis_monomial(axis: Axis) -> Monomial | None:
    """Size of an axis; None for a sum with parts of unknown size."""
    size = dims.unknown_size(axis)
    return None if size is None else Monomial.of(size[0], Counter(size[1]))


def element_monomial(element: Size) -> Monomial | None:
    product = e.single_term(over_dims(element, whole))
    if product is None or not all(isinstance(atom.of, dims.Dim) for atom in product[1]):
        return None
    return Monomial.of(product[0], Counter(id(atom.of) for atom in product[1]))


def axis_of_size(r: NodeAxes, element: Size, label: str = "") -> Axis:
    """An axis along which nothing differs, whose size is an element of a shape."""
    size = evaluate(element)
    if size is not None:
        return r.fresh(size, label)
    wanted = element_monomial(element)
    for axis in axes_of(element):
        base = axis_monomial(axis)
        times = None if wanted is None or base is None else wanted.divide(base)
        if times is not None and not times.unknown:
            return dims.product([axis, r.literal(times.factor, "a computed size")])
    return r.fresh(None)


@rule("Reshape", traits=Trait.MOVES)
def reshape(r: NodeAxes) -> None:
    axes = r.axes(0)
    if r.get("shape") is not None:  # opset 1 to 4
        content = contents_of(np.array(r.get("shape"), np.int64))
    else:
        content = r.content(1)
    if content is None:
        content = _unknown_contents(r)
    if not r.get("allowzero", 0):
        content = _copied_sizes(r, content, axes)
    elements = list(content.ravel())
    targets = _target_monomials(r, axes, elements)
    result = _line_up(r, axes, targets)
    required = [
        None if element == -1 else axis for element, axis in zip(elements, result, strict=True)
    ]
    if r.get("shape") is not None:
        r.expect_attribute("shape", content, required)
    else:
        r.expect(1, content, required)
    r.set(result)


def _copied_sizes(r: NodeAxes, content: Contents, axes: Axes) -> Contents:
    """A target in which 0 is the size of the input's axis at the same place."""
    result = content.copy()
    for position, element in enumerate(content):
        if isinstance(element, int) and element == 0:
            if position >= len(axes):
                raise Opaque("0 in the target shape copies an axis that the input doesn't have")
            result[position] = r.size(axes[position])
    return result


def _unknown_contents(r: NodeAxes) -> Contents:
    """Nothing is known of the target but how many elements it has."""
    shape = r.out_shape()
    if shape is None:
        raise Opaque("the target shape is known only at run time")
    return unknown_elements(len(shape))


def _target_monomials(r: NodeAxes, axes: Axes, elements: Sequence[Size]) -> list[Monomial | None]:
    """Sizes of the target; one element that is -1 or unknown follows from the others.

    What inference or the file says of the output is used only where that isn't enough.
    """
    targets = [None if x == -1 else element_monomial(x) for x in elements]
    _complete(targets, axes)
    shape = r.out_shape()
    if None in targets and shape is not None and len(shape) == len(targets):
        for i, size in enumerate(shape):
            if targets[i] is None and isinstance(size, int):
                targets[i] = Monomial(size)
        _complete(targets, axes)
    return targets


def _complete(targets: list[Monomial | None], axes: Axes) -> None:
    """Divide the input's size by that of all other axes, if one is missing."""
    missing = [i for i, t in enumerate(targets) if t is None]
    sizes = [axis_monomial(axis) for axis in axes]
    if len(missing) != 1 or any(s is None for s in sizes):
        return
    total, rest = ONE_ELEMENT, ONE_ELEMENT
    for size in sizes:
        assert size is not None
        total = total * size
    for t in targets:
        if t is not None:
            rest = rest * t
    targets[missing[0]] = total.divide(rest)


def _line_up(r: NodeAxes, axes: Axes, targets: Sequence[Monomial | None]) -> Axes:
    """Axes of the result, group by group of equal products.

    From the front; where sizes there can't be compared, from the back. What is left in
    the middle is one locked group.
    """
    result: list[Axis] = [ONE] * len(targets)
    ins = [(factor, axis_monomial(factor)) for axis in axes for factor in _factors(axis)]
    outs = [(j, t) for j, t in enumerate(targets) if t != ONE_ELEMENT]
    while (taken := _group([m for _, m in ins], [t for _, t in outs])) is not None:
        i, j = taken
        _relate(r, [axis for axis, _ in ins[:i]], outs[:j], result)
        ins, outs = ins[i:], outs[j:]
    while (taken := _group([m for _, m in ins[::-1]], [t for _, t in outs[::-1]])) is not None:
        i, j = len(ins) - taken[0], len(outs) - taken[1]
        _relate(r, [axis for axis, _ in ins[i:]], outs[j:], result)
        ins, outs = ins[:i], outs[:j]
    for axis, _ in ins:
        r.lock(axis, f"reshaped; {UNKNOWN}")
    for j, target in outs:
        known = target is not None and not target.unknown
        result[j] = r.literal(target.factor if known and target else None, UNKNOWN)
    return tuple(result)


def _factors(axis: Axis) -> list[Axis]:
    """An axis of unknown size by its factors, so that those of known size line up alone."""
    axis = dims.resolve(axis)
    if axis == ONE or dims.axis_size(axis) is not None or len(axis) != 1:
        return [] if axis == ONE else [axis]
    return [((dim,),) for dim in axis[0]]


def _group(
    ins: Sequence[Monomial | None], outs: Sequence[Monomial | None]
) -> tuple[int, int] | None:
    """How many sizes of each side the first group of equal products takes, if there is one."""
    left, right, i, j = ONE_ELEMENT, ONE_ELEMENT, 0, 0
    while True:
        if left == right and i and j:
            return i, j
        take_left = i < len(ins) and (j >= len(outs) or not _larger(left, right) or i == 0)
        if not take_left and j >= len(outs):
            return None
        step = ins[i] if take_left else outs[j]
        if step is None:
            return None
        if take_left:
            left, i = left * step, i + 1
        else:
            right, j = right * step, j + 1


def _larger(left: Monomial, right: Monomial) -> bool:
    """Whether the right side has to catch up."""
    if left.unknown == right.unknown:
        return left.factor > right.factor
    return right.divide(left) is None


def _relate(
    r: NodeAxes,
    ins: Sequence[Axis],
    outs: Sequence[tuple[int, Monomial | None]],
    result: list[Axis],
) -> None:
    if len(outs) == 1:
        result[outs[0][0]] = dims.product(ins)
        return
    if _relate_known(r, ins, outs, result):
        return
    whole = dims.product(ins)
    if any(t is None or t.unknown for _, t in outs):
        r.lock(whole, f"reshaped; {UNKNOWN}")
        for j, target in outs:
            known = target is not None and not target.unknown
            result[j] = r.literal(target.factor if known and target else None, UNKNOWN)
        return
    for j, target in outs:
        assert target is not None
        result[j] = r.fresh(target.factor, f"axis{j}")
    r.unify(whole, dims.product([result[j] for j, _ in outs]), "reshaped across factors")


def _relate_known(
    r: NodeAxes,
    ins: Sequence[Axis],
    outs: Sequence[tuple[int, Monomial | None]],
    result: list[Axis],
) -> bool:
    """What is of unknown size and outermost on both sides stays: [N, h*s] -> [N*h, s].

    The rest is locked. Whether the sizes are of that kind.
    """
    first, target = axis_monomial(ins[0]), outs[0][1]
    if first is None or not first.unknown or target is None:
        return False
    sizes = [target.divide(first), *(t for _, t in outs[1:])]
    known = [t.factor for t in sizes if t is not None and not t.unknown]
    rest = dims.product(ins[1:])
    if len(known) < len(sizes) or dims.axis_size(rest) is None:
        return False
    r.lock(rest, f"reshaped; {UNKNOWN}")
    for (j, _), size in zip(outs, known, strict=True):
        result[j] = r.literal(size, UNKNOWN)
    result[outs[0][0]] = dims.product([ins[0], result[outs[0][0]]])
    return True


@rule("Flatten", traits=Trait.MOVES)
def flatten(r: NodeAxes) -> None:
    axes = r.axes(0)
    axis = int(r.get("axis", 1))
    axis = axis + len(axes) if axis < 0 else axis
    if not 0 <= axis <= len(axes):
        raise Opaque(f"axis {axis} of a tensor of rank {len(axes)}")
    r.set((dims.product(axes[:axis]), dims.product(axes[axis:])))


@rule("Shape", traits=Trait.NON_NEGATIVE)
def shape(r: NodeAxes) -> None:
    r.measure(0)
    if r.is_parameter(0):  # a constant as this node sees it is never sliced
        return
    axes = r.axes(0)
    start = int(r.get("start", 0))
    stop = r.get("end")
    part = axes[slice(start, None if stop is None else int(stop))]
    r.set((r.literal(len(part), "a shape"),))


@rule("Size", traits=Trait.NON_NEGATIVE)
def size(r: NodeAxes) -> None:
    r.measure(0)
    if r.is_parameter(0):
        return
    r.set(())


@rule("ConstantOfShape", traits=Trait.ENLARGES)
def constant_of_shape(r: NodeAxes) -> None:
    content = r.content(0)
    if content is None:
        raise Opaque("the shape is known only at run time")
    elements = list(content.ravel())
    axes: list[Axis] = []
    for position, element in enumerate(elements):
        axes.append(axis_of_size(r, element, f"axis{position}"))
    r.expect(0, content, axes)
    r.set(tuple(axes))


@rule("Range", traits=Trait.ENLARGES)
def range_(r: NodeAxes) -> None:
    """Its length depends on contents; a locked axis whose length can't follow pruning."""
    shape = r.out_shape()
    known = shape[0] if shape else None
    r.set((r.literal(known if isinstance(known, int) else None, "counted by Range"),))
