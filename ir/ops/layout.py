"""Operators that only move elements: Transpose, Concat, Split, Slice, Pad, Expand, Tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..axes import dims
from ..axes.dims import ONE, Axis
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from ..axes.rewriting import Rewriting
from ..axes.sizes import evaluate, evaluate_all, is_size_of
from ..symbolic import expressions as e
from ..symbolic.expressions import Size
from ..symbolic.facts import Contents, contents_of
from .records import Trait, rule
from .reduction import normalized, reduced_axes
from .shapes import axis_of_size

FAR = 10**9
"""Slice ends from here on mean "to the end" of an axis of unknown size (exporters write this
or INT_MAX)."""


@rule("Transpose", traits=Trait.MOVES | Trait.LINEAR)
def transpose(r: NodeAxes) -> None:
    axes = r.axes(0)
    order = r.get("perm") or list(reversed(range(len(axes))))
    if sorted(order) != list(range(len(axes))):
        raise Opaque(f"perm {order} doesn't permute {len(axes)} axes")
    r.set(tuple(axes[i] for i in order))


@rule("Concat", traits=Trait.ZERO_AT_ZERO)
def concat(r: NodeAxes) -> None:
    operands = [r.axes(i) for i in range(len(r.node.inputs))]
    rank = len(operands[0])
    if any(len(axes) != rank for axes in operands):
        raise Opaque("operands of different ranks")
    axis = normalized(r.get("axis", 1), rank)
    for other in operands[1:]:
        for position in range(rank):
            if position != axis:
                r.unify(operands[0][position], other[position])
    joined = [axes[axis] for axes in operands]
    sizes = [dims.axis_size(a) for a in joined]
    if None in sizes:
        r.lock_all(joined, "joined with a part whose size is known only at run time")
        total = r.literal(None, "joined from parts of unknown size")
    elif sum(len(a) for a in joined) > _MOST_PARTS:
        r.lock_all(joined, "joined from too many parts")
        total = r.literal(sum(filter(None, sizes)), "joined from too many parts")
    else:
        total = dims.concat(joined)
    r.set((*operands[0][:axis], total, *operands[0][axis + 1 :]))


_MOST_PARTS = 2**16
"""Parts of an axis up to which they are followed one by one."""


@rule("Split", traits=Trait.MOVES)
def split(r: NodeAxes) -> None:
    axes = r.axes(0)
    axis = normalized(r.get("axis", 0), len(axes))
    count = len(r.node.outputs)
    total = dims.axis_size(axes[axis])
    if total is None:
        _split_unknown(r, axes, axis)
        return
    sizes, content = r.get("split"), None
    if sizes is None and r.has(1):
        content = r.content(1)
        sizes = None if content is None else evaluate_all(content)
        if content is None or sizes is None or any(s is None for s in sizes):
            raise Opaque("the sizes of the parts are known only at run time")
    if sizes is None:
        sizes = equal_parts(total, count)
    if len(sizes) != count or sum(sizes) != total or any(s < 0 for s in sizes):
        raise Opaque(f"parts of {sizes} don't make {total}")
    parts = dims.partition(axes[axis], sizes)
    for index, part in enumerate(parts):
        r.set((*axes[:axis], part, *axes[axis + 1 :]), index)
    if content is not None:
        r.expect(1, content, parts)
    else:
        r.rewrite(lambda rewriter: _rewrite_split(r, rewriter, parts))


def equal_parts(total: int, count: int) -> list[int]:
    """Sizes of Split without sizes: equal; since opset 18 the last one may be smaller."""
    size = -(-total // count)
    return [max(0, min(size, total - i * size)) for i in range(count)]


def _split_unknown(r: NodeAxes, axes: Axes, axis: int) -> None:
    why = "split along an axis whose size is known only at run time"
    r.lock(axes[axis], why)
    for index in range(len(r.node.outputs)):
        shape = r.out_shape(index)
        size = shape[axis] if shape is not None else None
        part = r.literal(size if isinstance(size, int) else None, why)
        r.set((*axes[:axis], part, *axes[axis + 1 :]), index)


def _rewrite_split(r: NodeAxes, rewriter: Rewriting, parts: list[Axis]) -> None:
    sizes = [rewriter.size(part) for part in parts]
    if not any(rewriter.changes(part) for part in parts):
        return
    if r.node.get("split") is not None or r.opset < 13:
        r.node.set("split", sizes)
    elif sizes != equal_parts(sum(sizes), len(sizes)) or (r.opset < 18 and len(set(sizes)) > 1):
        r.node.attributes.pop("num_outputs", None)
        rewriter.set_constant(r.node, 1, np.array(sizes, np.int64))


@dataclass(frozen=True)
class Bound:
    """One sliced axis; None for what is known only at run time."""

    axis: int
    start: int | None
    stop: int | None
    step: int | None


@rule("Slice", traits=Trait.MOVES | Trait.INDEXES)
def slice_(r: NodeAxes) -> None:
    axes = r.axes(0)
    bounds = _slice_bounds(r, len(axes))
    result = list(axes)
    starts: list[Axis | int | None] = []
    stops: list[Axis | int | None] = []
    ends = r.peek(2) if r.opset >= 10 else None
    for index, bound in enumerate(bounds):
        whole = axes[bound.axis]
        from_start = bound == Bound(bound.axis, 0, None, 1)
        if from_start and ends is not None and is_size_of(ends.ravel()[index], whole):
            starts.append(0)
            stops.append(whole)
            continue
        before, part, stop = _slice_axis(r, whole, bound)
        result[bound.axis] = part
        starts.append(before)
        stops.append(stop)
    wholes = [axes[bound.axis] for bound in bounds]
    for name, index, required in (("starts", 1, starts), ("ends", 2, stops)):
        if r.opset < 10:
            content = contents_of(np.array(r.get(name), np.int64))
            assert content is not None
            r.expect_attribute(name, _positions(r, content, wholes, required), required)
        else:
            content = r.content(index)
            assert content is not None
            r.expect(index, _positions(r, content, wholes, required), required)
    r.set(tuple(result))


def _positions(
    r: NodeAxes, content: Contents, wholes: Sequence[Axis], required: Sequence[Axis | int | None]
) -> Contents:
    """Bounds that count from the end or lie behind it, as the positions that they mean."""

    def position(bound: Size, size: Size) -> Size:
        behind = e.maximum(0, e.add(bound, size))
        return e.choose(e.less(bound, 0), behind, e.minimum(bound, size))

    result = np.empty(content.size, object)
    for i, (bound, whole, wanted) in enumerate(zip(content.ravel(), wholes, required, strict=True)):
        moves = wanted is not None and not isinstance(wanted, int)
        moves = moves and not is_size_of(bound, whole)
        result[i] = position(bound, r.size(whole)) if moves else bound
    return result


def _slice_axis(
    r: NodeAxes, whole: Axis, bound: Bound
) -> tuple[Axis | int | None, Axis, Axis | int | None]:
    """What the start has to be, the axis of the result, and what the end has to be."""
    size = dims.axis_size(whole)
    start, stop, step = bound.start, bound.stop, bound.step
    if step == 1 and start == 0 and stop is not None and stop >= max(FAR, size or 0):
        return 0, whole, None
    if size is None or start is None or stop is None or step is None:
        r.lock(whole, "sliced at bounds that are known only at run time")
        return start, _inferred(r, bound.axis), stop
    start_within = max(start, -size) if step < 0 else start  # not beyond the first, as ONNX has it
    first, last, stride = slice(start_within, stop, step).indices(size)
    if stride != 1:
        r.lock(whole, f"sliced with step {stride}")
        count = len(range(first, last, stride))
        return start, r.literal(count, f"sliced with step {stride}"), stop
    last = max(first, last)
    before, part, _ = dims.partition(whole, [first, last - first, size - last])
    return before, part, dims.concat([before, part])


def _slice_bounds(r: NodeAxes, rank: int) -> list[Bound]:
    if r.opset < 10:
        starts, ends, axes = r.get("starts", []), r.get("ends", []), r.get("axes")
        steps: list[int | None] = [1] * len(starts)
    else:
        starts, ends = _elements(r, 1), _elements(r, 2)
        axes = r.numbers(3)
        if r.has(3) and axes is None:
            raise Opaque("the axes are known only at run time")
        steps = _elements(r, 4) if r.has(4) else [1] * len(starts)
    if axes is None:
        axes = list(range(len(starts)))
    return [
        Bound(normalized(axis, rank), start, stop, step)
        for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True)
    ]


def _elements(r: NodeAxes, index: int) -> list[int | None]:
    content = r.content(index)
    if content is None:
        raise Opaque("the number of bounds is known only at run time")
    return evaluate_all(content)


def _inferred(r: NodeAxes, axis: int) -> Axis:
    shape = r.out_shape()
    size = shape[axis] if shape is not None else None
    return r.literal(size if isinstance(size, int) else None, "a part of an unknown size")


@rule("Pad", traits=Trait.INDEXES | Trait.ENLARGES)
def pad(r: NodeAxes) -> None:
    """Constant padding is an axis of its own, which may shrink like any other."""
    axes = r.axes(0)
    pads, listed = _pads(r, len(axes))
    if len(pads) != 2 * len(listed):
        raise Opaque(f"pads {pads} don't fit {len(listed)} axes")
    constant = r.get("mode", "constant") == "constant"
    result = list(axes)
    required: list[Axis | int | None] = list(pads)
    for i, axis in enumerate(listed):
        before, after = pads[i], pads[i + len(listed)]
        if before == after == 0:
            continue
        if dims.axis_size(axes[axis]) is None or before < 0 or after < 0 or not constant:
            r.lock(axes[axis], "padded with its own elements, cropped, or of unknown size")
            result[axis] = _inferred(r, axis)
            continue
        front, back = r.fresh(before, f"before{axis}"), r.fresh(after, f"after{axis}")
        required[i], required[i + len(listed)] = front, back
        result[axis] = dims.concat([front, axes[axis], back])
    if r.get("pads") is not None:
        content = contents_of(np.array(pads, np.int64))
        assert content is not None
        r.expect_attribute("pads", content, required)
    else:
        content = r.content(1)
        assert content is not None
        r.expect(1, content, required)
    r.set(tuple(result))


def _pads(r: NodeAxes, rank: int) -> tuple[list[int], list[int]]:
    """Elements to add before and after, and the axes that they are for."""
    if r.get("pads") is not None:
        return list(r.get("pads")), list(range(rank))
    content = r.content(1)
    pads = [] if content is None else evaluate_all(content)
    known = [p for p in pads if p is not None]
    if content is None or len(known) != len(pads):
        raise Opaque("pads are known only at run time")
    if not r.has(3):
        return known, list(range(rank))
    axes = r.numbers(3)
    if axes is None:
        raise Opaque("the axes are known only at run time")
    return known, [normalized(a, rank) for a in axes]


@rule("Expand", traits=Trait.MOVES | Trait.LINEAR | Trait.ENLARGES)
def expand(r: NodeAxes) -> None:
    axes = r.axes(0)
    content = r.content(1)
    if content is None:
        raise Opaque("the shape is known only at run time")
    targets = evaluate_all(content)
    rank = max(len(axes), len(targets))
    padded = (ONE,) * (rank - len(axes)) + tuple(axes)
    offset = rank - len(targets)
    result: list[Axis] = []
    for i, axis in enumerate(padded):
        target = targets[i - offset] if i >= offset else 1
        element = content.ravel()[i - offset] if i >= offset else 1
        if axis != ONE:
            open_size = dims.axis_size(axis) is None and target != 1
            if open_size and not is_size_of(element, axis):
                r.lock(axis, "expanded to a size that is known only at run time")
            result.append(axis)
        else:
            result.append(axis_of_size(r, element, f"expanded{i}"))
    required = [result[offset + i] if targets[i] != 1 else None for i in range(len(targets))]
    r.expect(1, content, required)
    r.set(tuple(result))


@rule("Tile", traits=Trait.MOVES | Trait.ENLARGES)
def tile(r: NodeAxes) -> None:
    axes = r.axes(0)
    content = r.content(1)
    if content is None or content.size != len(axes):
        raise Opaque("repeats are known only at run time")
    result: list[Axis] = []
    required: list[Axis | int | None] = []
    for axis, element in zip(axes, content.ravel(), strict=True):
        count = evaluate(element)
        required.append(count)
        if count == 1:
            result.append(axis)
        elif axis == ONE and count is None:
            result.append(axis_of_size(r, element))
            required[-1] = result[-1]
        elif count is None:
            raise Opaque("repeats are known only at run time")
        elif dims.axis_size(axis) is None or count == 0:
            r.lock(axis, "repeated, of unknown size")
            result.append(r.literal(None, "repeated"))
        else:
            result.append(dims.product([r.factor(count, "repeats"), axis]))
    r.expect(1, content, required)
    r.set(tuple(result))


@rule("Squeeze", traits=Trait.IN_ORDER)
def squeeze(r: NodeAxes) -> None:
    axes = r.axes(0)
    if r.get("axes") is None and not r.has(1):
        if any(dims.axis_size(a) is None for a in axes):
            raise Opaque("which axes have size 1 is known only at run time")
        removed = {i for i, a in enumerate(axes) if dims.axis_size(a) == 1}
        r.rewrite(lambda rewriter: _name_axes(r, rewriter, axes, removed))
    else:
        removed = reduced_axes(r, len(axes))
    if any(dims.axis_size(axes[i]) not in (1, None) for i in removed):
        raise Opaque("squeezes an axis that isn't of size 1")
    r.set(tuple(a for i, a in enumerate(axes) if i not in removed))


def _name_axes(r: NodeAxes, rewriter: Rewriting, axes: Axes, removed: set[int]) -> None:
    """Squeeze by number what had size 1, since another axis may have it now."""
    if not rewriter.changes(*axes):
        return
    if r.opset < 13:
        r.node.set("axes", sorted(removed))
    else:
        rewriter.set_constant(r.node, 1, np.array(sorted(removed), np.int64))


@rule("Unsqueeze", traits=Trait.IN_ORDER)
def unsqueeze(r: NodeAxes) -> None:
    axes = r.axes(0)
    added = r.get("axes")
    if added is None:
        added = r.numbers(1)
    if added is None:
        raise Opaque("the axes are known only at run time")
    rank = len(axes) + len(added)
    positions = {normalized(a, rank) for a in added}
    rest = iter(axes)
    r.set(tuple(ONE if i in positions else next(rest) for i in range(rank)))
