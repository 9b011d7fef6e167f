"""Reshape, Flatten, and the operators that compute shapes.

Reshape lines up the products of the axes on both sides: equal products are one group,
in which axes merge, split, or both. Sizes known only at run time take part by identity
(the batch axis of the input is the batch axis that Shape read).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..axes import dims
from ..axes.dims import ONE, Axis
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from ..axes.sizes import axes_of, evaluate, over_dims, size_over_dims, whole
from ..symbolic import expressions as e
from ..symbolic.expressions import Size
from ..symbolic.facts import Contents, contents_of, unknown_elements
from .records import Trait, rule

UNKNOWN = "its size is known only at run time"


def product_size(axis: Axis) -> Size | None:
    """Size of an axis as a product of dims of unknown size and a number; None for a sum."""
    size = size_over_dims(axis, whole)
    return size if e.single_term(size) is not None else None


def product_of_dims(element: Size) -> Size | None:
    """The same of an element of a shape."""
    size = over_dims(element, whole)
    product = e.single_term(size)
    if product is None or not all(isinstance(atom.of, dims.Dim) for atom in product[1]):
        return None
    return size


def axis_of_size(r: NodeAxes, element: Size, label: str = "") -> Axis:
    """An axis along which nothing differs, whose size is an element of a shape."""
    size = evaluate(element)
    if size is not None:
        return r.fresh(size, label)
    wanted = product_of_dims(element)
    for axis in axes_of(element):
        base = product_size(axis)
        times = None if wanted is None or base is None else e.divide_exactly(wanted, base)
        if isinstance(times, int):
            return dims.product([axis, r.literal(times, "a computed size")])
    return r.fresh(None)


@rule("Reshape", traits=Trait.IN_ORDER)
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
    targets = _target_sizes(r, axes, elements)
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


def _target_sizes(r: NodeAxes, axes: Axes, elements: Sequence[Size]) -> list[Size | None]:
    """Sizes of the target; one element that is -1 or unknown follows from the others.

    What inference or the file says of the output is used only where that isn't enough.
    """
    targets = [None if x == -1 else product_of_dims(x) for x in elements]
    _complete(targets, axes)
    shape = r.out_shape()
    if None in targets and shape is not None and len(shape) == len(targets):
        for i, size in enumerate(shape):
            if targets[i] is None and isinstance(size, int):
                targets[i] = size
        _complete(targets, axes)
    return targets


def _complete(targets: list[Size | None], axes: Axes) -> None:
    """Divide the input's size by that of all other axes, if one is missing."""
    missing = [i for i, t in enumerate(targets) if t is None]
    sizes = [product_size(axis) for axis in axes]
    known = [size for size in sizes if size is not None]
    if len(missing) != 1 or len(known) != len(sizes):
        return
    rest = e.multiply(*(t for t in targets if t is not None))
    targets[missing[0]] = e.divide_exactly(e.multiply(*known), rest)


def _line_up(r: NodeAxes, axes: Axes, targets: Sequence[Size | None]) -> Axes:
    """Axes of the result, group by group of equal products.

    From the front; where sizes there can't be compared, from the back. What is left in
    the middle is one locked group.
    """
    result: list[Axis] = [ONE] * len(targets)
    ins = [(factor, product_size(factor)) for axis in axes for factor in _factors(axis)]
    outs = [(j, t) for j, t in enumerate(targets) if t != 1]
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
        result[j] = r.literal(target if isinstance(target, int) else None, UNKNOWN)
    return tuple(result)


def _factors(axis: Axis) -> list[Axis]:
    """An axis of unknown size by its factors, so that those of known size line up alone."""
    axis = dims.resolve(axis)
    if axis == ONE or dims.axis_size(axis) is not None or len(axis) != 1:
        return [] if axis == ONE else [axis]
    return [((dim,),) for dim in axis[0]]


def _group(ins: Sequence[Size | None], outs: Sequence[Size | None]) -> tuple[int, int] | None:
    """How many sizes of each side the first group of equal products takes, if there is one."""
    left: Size = 1
    right: Size = 1
    i = j = 0
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
            left, i = e.multiply(left, step), i + 1
        else:
            right, j = e.multiply(right, step), j + 1


def _larger(left: Size, right: Size) -> bool:
    """Whether the right side has to catch up."""
    a, b = e.single_term(left), e.single_term(right)
    if a is not None and b is not None and a[1] == b[1]:
        return a[0] > b[0]
    return e.divide_exactly(right, left) is None


def _relate(
    r: NodeAxes,
    ins: Sequence[Axis],
    outs: Sequence[tuple[int, Size | None]],
    result: list[Axis],
) -> None:
    if len(outs) == 1:
        result[outs[0][0]] = dims.product(ins)
        return
    if _relate_known(r, ins, outs, result):
        return
    whole = dims.product(ins)
    if not all(isinstance(t, int) for _, t in outs):
        r.lock(whole, f"reshaped; {UNKNOWN}")
        for j, target in outs:
            result[j] = r.literal(target if isinstance(target, int) else None, UNKNOWN)
        return
    for j, target in outs:
        assert isinstance(target, int)
        result[j] = r.fresh(target, f"axis{j}")
    r.unify(whole, dims.product([result[j] for j, _ in outs]), "reshaped across factors")


def _relate_known(
    r: NodeAxes,
    ins: Sequence[Axis],
    outs: Sequence[tuple[int, Size | None]],
    result: list[Axis],
) -> bool:
    """What is of unknown size and outermost on both sides stays: [N, h*s] -> [N*h, s].

    The rest is locked. Whether the sizes are of that kind.
    """
    first, target = product_size(ins[0]), outs[0][1]
    if first is None or isinstance(first, int) or target is None:
        return False
    sizes = [e.divide_exactly(target, first), *(t for _, t in outs[1:])]
    known = [t for t in sizes if isinstance(t, int)]
    rest = dims.product(ins[1:])
    if len(known) < len(sizes) or dims.axis_size(rest) is None:
        return False
    r.lock(rest, f"reshaped; {UNKNOWN}")
    for (j, _), size in zip(outs, known, strict=True):
        result[j] = r.literal(size, UNKNOWN)
    result[outs[0][0]] = dims.product([ins[0], result[outs[0][0]]])
    return True


@rule("Flatten", traits=Trait.IN_ORDER)
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
