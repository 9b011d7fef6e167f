"""Operators that move elements: reshaping, transposition, slices, padding, tiling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .....ir.tensor import Array as NumPyArray
from ...faults import Fault
from ...plan.sizes import OpenSize, is_open
from ...tensorir.builder import KernelBuilder, as_int
from ...tensorir.types import Expr
from .base import (
    Array,
    Cell,
    OperatorCall,
    all_of,
    cell,
    checked,
    clamped,
    differ,
    divide,
    equal,
    guarded,
    held,
    limited,
    maximum,
    minimum,
    modulo,
    nest,
    number,
    replaced,
    rule,
    select,
    to,
    when,
    within,
    within_axis,
)


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(call: OperatorCall) -> None:
    """The result's shape is known, so what computes it at run time needs no look."""
    ambiguous = call.node.op_type == "Squeeze" and call.has(1) and call.shape(1) == (0,)
    if ambiguous and 1 in call.output_shape():
        call.fail(
            "of an empty list of axes ONNX Runtime removes all of size 1, and ONNX's inference "
            "none; list the axes"
        )
    call.same(call.value(0))


@rule("Shape")
def shape_(call: OperatorCall) -> None:
    shape = call.shape(0)
    start, end = int(call.node.get("start", 0)), call.node.get("end")
    call.define_constant(np.asarray(shape[start : None if end is None else int(end)], np.int64))


@rule("Size")
def size(call: OperatorCall) -> None:
    call.define_constant(np.asarray(math.prod(call.shape(0)), np.int64))


@rule("Transpose")
def transpose(call: OperatorCall) -> None:
    rank = call.rank()
    order = [int(p) for p in call.node.get("perm", list(range(rank))[::-1])]

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with nest(k, ys[0].shape) as index:
            source: list[Expr] = [0] * rank
            for axis, place in enumerate(order):
                source[place] = index[axis]
            ys[0].store(xs[0][source], index)

    call.loops(body, key=())


@rule("Expand")
def expand(call: OperatorCall) -> None:
    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with nest(k, ys[0].shape) as index:
            ys[0].store(xs[0].broadcast(index), index)

    call.loops(body, [0], key=())


@rule("Tile")
def tile(call: OperatorCall) -> None:
    """How often each axis repeats shows in the result's shape."""
    given = call.shape(0)
    told = call.lowering.told(call.node.input(1)) if is_open(*call.output_shape()) else None
    repeats = [o // s if s else 0 for o, s in zip(call.output_shape(), given, strict=True)]
    if told is not None:
        repeats = told.reshape(-1).tolist()

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        pairs = [size_ for pair in zip(repeats, given, strict=True) for size_ in pair]
        with nest(k, pairs) as index:
            source = index[1::2]
            places = zip(index[::2], source, given, strict=True)
            ys[0].store(xs[0][source], [r * size_ + i for r, i, size_ in places])

    if call.opset < 6:
        call.fail("Tile before opset 6")
    call.loops(body, [0], key=())


@rule("Concat")
def concat(call: OperatorCall) -> None:
    shape = call.output_shape()
    axis = call.axis(len(shape), 1)
    inputs = [i for i, v in enumerate(call.node.inputs) if v is not None]
    for index in inputs:
        for a, (own, size) in enumerate(zip(call.shape(index), shape, strict=True)):
            if a != axis and is_open(own, size):
                call.lowering.require_equal(own, size)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        first = 0
        for x in xs:
            if x.size:
                with nest(k, x.shape) as index:
                    ys[0].store(x[index], replaced(index, axis, index[axis] + first))
            first += x.shape[axis]

    call.loops(body, inputs, key=())


@rule("Split")
def split(call: OperatorCall) -> None:
    axis = call.axis(call.rank(), 0)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        first = 0
        for number_, y in enumerate(ys):
            size_ = call.output_shape(number_)[axis]
            if y.size:
                with nest(k, y.shape) as index:
                    y.store(xs[0][replaced(index, axis, index[axis] + first)], index)
            first += size_

    if sum(call.output_shape(i)[axis] for i in range(len(call.node.outputs))) != call.shape()[axis]:
        call.fail("the parts' sizes don't sum up to the whole")
    call.loops(body, [0])


@rule("Slice")
def slice_(call: OperatorCall) -> None:
    """Where it begins and how it steps may be computed at run time."""
    shape = call.shape()
    names = ("starts", "ends", "axes", "steps")
    if call.opset < 10:
        constants = [call.node.get(n) for n in names]
    else:
        constants = [call.constant(i) for i in range(1, 5)]
    known = [None if c is None else np.asarray(c).reshape(-1) for c in constants]
    starts, ends, axes, steps = known
    runtime = [i for i, c in enumerate(known, 1) if c is None and call.has(i)]
    count = call.shape(1)[0] if starts is None else len(starts)

    out = call.output_shape()
    rank = len(shape)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        arrays = dict(zip([0, *runtime], xs, strict=True))

        def given(index: int, constant: NumPyArray | None, i: int, default: int) -> Expr:
            if index in arrays:
                return clamped(k, arrays[index][[i]], -_FAR, _FAR)
            return default if constant is None else max(min(int(constant[i]), _FAR), -_FAR)

        first = [cell(k, "int32", 0, f"first{a}") for a in range(rank)]
        stride = [cell(k, "int32", 1, f"stride{a}") for a in range(rank)]
        length = [cell(k, "int32", size, f"length{a}") for a, size in enumerate(shape)]
        taken: list[Expr] = []
        for i in range(count):
            axis = checked(k, arrays[3][[i]] if 3 in arrays else given(3, axes, i, i), rank)
            for other in taken:
                k.fail_if(equal(axis, other), Fault.VALUE)
            taken.append(axis)
            start, end = given(1, starts, i, 0), given(2, ends, i, 0)
            step = given(4, steps, i, 1)
            k.fail_if(equal(step, 0), Fault.VALUE)
            for a, size_ in enumerate(shape):
                with when(k, equal(axis, a)):
                    begin, number_ = _sliced(k, start, end, step, size_)
                    first[a].set(begin)
                    most = size_ - 1 if is_open(out[a]) else _most_step(size_, out[a])
                    stride[a].set(maximum(minimum(step, most), -most))
                    length[a].set(number_)
        for own, declared in zip(length, out, strict=True):
            k.fail_if(differ(own.get(), declared), Fault.VALUE)
        begins = [limited(k, c.get(), 0, n) for c, n in zip(first, shape, strict=True)]
        strides = [
            limited(k, c.get(), -size_, size_) for c, size_ in zip(stride, shape, strict=True)
        ]
        with nest(k, out) as index:
            source = [
                _place(begin, i, step, size_)
                for begin, i, step, size_ in zip(begins, index, strides, shape, strict=True)
            ]
            ys[0].store(xs[0][source], index)

    call.loops(body, [0, *runtime])


def _place(begin: Expr, index: Expr, step: Expr, size_: int) -> Expr:
    """Where an element of a slice lies, within the axis; of an open one nothing says that 32 bits
    hold how far steps may lead."""
    if not is_open(size_):
        return within_axis(begin + index * step, size_)
    begin, index, step = (to(x, "int64") for x in (begin, index, step))
    last = number(size_, "int64") - 1
    return to(minimum(maximum(begin + index * step, number(0, "int64")), last), "int32")


def _most_step(size_: int, length: int) -> int:
    """The largest step that leads to so many elements."""
    return (size_ - 1) // max(length - 1, 1)


_FAR = 2**30
"""Beyond the end of every axis."""


def _sliced(k: KernelBuilder, start: Expr, end: Expr, step: Expr, size_: int) -> tuple[Expr, Expr]:
    """Where a slice of an axis begins, and how many elements it has."""
    back = step < 0
    low, high = select(back, -1, 0), select(back, size_ - 1, size_)
    bounds = []
    for bound in (start, end):
        bound = select(bound < 0, bound + size_, bound)
        bounds.append(held(k, maximum(minimum(bound, high), low)))
    begin, stop = maximum(bounds[0], minimum(0, size_ - 1)), bounds[1]
    span = held(k, maximum(select(back, begin - stop, stop - begin), 0))
    stride = held(k, maximum(select(back, 0 - step, step), 1))
    return begin, held(k, divide(span + stride - 1, stride))


# --- padding ---------------------------------------------------------------------


@rule("Pad")
def pad(call: OperatorCall) -> None:
    """Pads may be computed at run time; constant ones may crop."""
    shape = call.shape()
    rank = len(shape)
    mode = call.node.get("mode", "constant")
    given = call.node.get("pads", call.node.get("paddings"))
    pads = call.constant(1) if given is None else np.asarray(given)
    if pads is not None and is_open(*pads.flat):
        pads = None  # what follows from sizes is read as what a run computes
    axes = call.constant(3) if call.has(3) else np.arange(rank)
    count = call.shape(3)[0] if call.has(3) else rank
    value = float(call.node.get("value", 0.0))
    inputs = [0] + ([1] if pads is None else []) + ([2] if call.has(2) else [])
    inputs += [3] if axes is None else []
    dtype = call.dtype()

    out = call.output_shape()

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        arrays = dict(zip(inputs, xs, strict=True))
        edges: list[list[Expr]] = [[0] * rank, [0] * rank]
        cells: list[list[Cell]] = []
        if axes is None:
            names = ("before", "after")
            cells = [[cell(k, "int32", 0, f"{n}{a}") for a in range(rank)] for n in names]
        taken: list[Expr] = []
        for i in range(count):
            sizes = [
                within(k, arrays[1][[j]], -_FAR, _FAR, Fault.VALUE)
                if pads is None
                else int(pads.reshape(-1)[j])
                for j in (i, i + count)
            ]
            if axes is not None:
                for edge, size_ in zip(edges, sizes, strict=True):
                    edge[int(axes[i]) % rank] = size_
                continue
            axis = checked(k, arrays[3][[i]], rank)
            for other in taken:
                k.fail_if(equal(axis, other), Fault.VALUE)
            taken.append(axis)
            for a in range(rank):
                with when(k, equal(axis, a)):
                    for bounds, size_ in zip(cells, sizes, strict=True):
                        bounds[a].set(size_)
        if axes is None:
            edges = [[limited(k, c.get(), -_FAR, _FAR) for c in edge] for edge in cells]
        for size_, before, after, declared in zip(shape, *edges, out, strict=True):
            k.fail_if(differ(before + after, declared - size_), Fault.VALUE)
        fill: Expr = number(value, dtype)
        if 2 in arrays:
            fill = arrays[2].at(0)
        kept = [_kept(k, mode, *sides) for sides in zip(shape, *edges, strict=True)]
        with nest(k, out) as index:
            if mode == "constant":
                at = [i - before for i, before in zip(index, edges[0], strict=True)]
                inside = [
                    c for i, size_ in zip(at, shape, strict=True) for c in (i >= 0, i < size_)
                ]
                ys[0].store(guarded(all_of(*inside), _safe(arrays[0], at), fill), index)
                return
            source = [
                _outside(k, i - before, part, mode, reach, size_)
                for i, before, part, reach, size_ in zip(
                    index, edges[0], kept, out, shape, strict=True
                )
            ]
            ys[0].store(arrays[0][source], index)

    if count * 2 != (len(pads.reshape(-1)) if pads is not None else call.shape(1)[0]):
        call.fail("pads don't fit the axes")
    if mode not in ("constant", "edge", "reflect", "wrap"):
        call.fail(f"mode '{mode}'")
    call.loops(body, inputs)


def _safe(x: Array, at: Sequence[Expr]) -> Expr:
    return x[at] if x.size else number(0, x.dtype)


def _kept(k: KernelBuilder, mode: str, size_: int, before: Expr, after: Expr) -> tuple[Expr, Expr]:
    """The part of an axis that negative pads leave, as its first and its number of elements.

    The kernel fails where the mode needs more elements than there are.
    """
    first = held(k, maximum(0 - before, 0))
    count = held(k, size_ - first - maximum(0 - after, 0))
    if isinstance(count, OpenSize):
        count = as_int(count)
    if mode != "constant":
        k.fail_if(count < 1, Fault.VALUE)
    if mode == "reflect":
        for edge in (before, after):
            k.fail_if(edge >= count, Fault.VALUE)
    return first, count


def _outside(
    k: KernelBuilder, at: Expr, kept: tuple[Expr, Expr], mode: str, reach: int, size_: int
) -> Expr:
    """The place inside an axis that a place outside of it stands for."""
    first, count = kept
    index = at - first
    if mode == "edge":
        index = maximum(minimum(index, count - 1), 0)
    elif mode == "wrap":
        index = _folded(k, index, count, reach)
    else:
        index = held(k, maximum(index, 0 - index))
        beyond = held(k, maximum(index - (count - 1), 0))
        index = held(k, index - beyond) - beyond  # twice the axis may be no number
    return within_axis(index + first, size_)


def _folded(k: KernelBuilder, index: Expr, period: Expr, reach: int) -> Expr:
    """The index modulo a period.

    Where the period is known, by as many subtractions as padding may take: LLVM's loop
    vectorizer takes an index modulo a power of two for one that never wraps around.
    """
    if not isinstance(period, int):
        return held(k, modulo(index, maximum(period, 1)))
    for _ in range(-(-reach // period)):
        index = held(k, select(index < 0, index + period, index))
        index = held(k, select(index >= period, index - period, index))
    return index


@rule("CenterCropPad")
def center_crop_pad(call: OperatorCall) -> None:
    """Crops or pads with zeros around the middle, to the result's shape."""
    own, result = call.shape(), call.output_shape()

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        shift = [_shift(size_, wanted) for size_, wanted in zip(own, result, strict=True)]
        with nest(k, ys[0].shape) as index:
            at = [i + s for i, s in zip(index, shift, strict=True)]
            inside = [
                c
                for i, size_, wanted in zip(at, own, result, strict=True)
                if size_ != wanted and (is_open(size_, wanted) or wanted > size_)
                for c in (i >= 0, i < size_)
            ]
            read = [within_axis(i, n) if is_open(n) else i for i, n in zip(at, own, strict=True)]
            ys[0].store(guarded(all_of(*inside), xs[0][read], number(0, xs[0].dtype)), index)

    call.loops(body, [0], key=())


def _shift(size_: int, wanted: int) -> Expr:
    """The position that the first element of a cropped or padded axis comes from."""
    if size_ == wanted:
        return 0
    over = as_int(size_) - wanted if is_open(size_, wanted) else size_ - wanted
    return select(over >= 0, divide(over, 2), -divide(-over, 2))


# --- blocks ----------------------------------------------------------------------


@rule("DepthToSpace")
def depth_to_space(call: OperatorCall) -> None:
    b = int(call.node.get("blocksize"))
    by_columns = call.node.get("mode", "DCR") == "CRD"
    n, _, height, width = call.shape()
    channels = call.output_shape()[1]

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with nest(k, (n, channels, height, b, width, b)) as (i, c, h, row, w, column):
            block = row * b + column
            source = c * (b * b) + block if by_columns else block * channels + c
            ys[0].store(xs[0][i, source, h, w], (i, c, h * b + row, w * b + column))

    call.loops(body, key=())


@rule("SpaceToDepth")
def space_to_depth(call: OperatorCall) -> None:
    b = int(call.node.get("blocksize"))
    by_columns = call.node.get("mode", "DCR") == "CRD"
    n, _, height, width = call.output_shape()
    channels = call.shape()[1]

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with nest(k, (n, channels, b, b, height, width)) as (i, c, row, column, h, w):
            block = row * b + column
            target = c * (b * b) + block if by_columns else block * channels + c
            ys[0].store(xs[0][i, c, h * b + row, w * b + column], (i, target, h, w))

    call.loops(body, key=())


@rule("ReverseSequence")
def reverse_sequence(call: OperatorCall) -> None:
    batch = int(call.node.get("batch_axis", 1))
    time = int(call.node.get("time_axis", 0))

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        shape = ys[0].shape
        with nest(k, shape[: batch + 1]) as outer:
            length = within(k, xs[1][[outer[batch]]], 0, shape[time] + 1)
            with nest(k, shape[batch + 1 :], "j") as inner:
                index = [*outer, *inner]
                at = index[time]
                source = select(at < length, length - 1 - at, at)
                ys[0].store(xs[0][replaced(index, time, source)], index)

    call.loops(body, key=())


@rule("Trilu")
def trilu(call: OperatorCall) -> None:
    upper = bool(call.node.get("upper", 1))

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with nest(k, ys[0].shape) as index:
            diagonal = clamped(k, xs[1].at(0), -_FAR, _FAR) if len(xs) > 1 else 0
            row, column = index[-2], index[-1]
            keep = column - row >= diagonal if upper else column - row <= diagonal
            ys[0].store(select(keep, xs[0][index], number(0, xs[0].dtype)), index)

    call.loops(body, key=())


@rule("Col2Im")
def col2im(call: OperatorCall) -> None:
    """Sums the columns' blocks where they overlap (ONNX Col2Im).

    The image's sizes show in the result; where the block's are computed at run time,
    the kernel chooses among those that fit.
    """
    n, channels, *image = call.output_shape()
    rank = len(image)
    strides, dilations, pads = _col2im_window(call, rank)
    blocks = col2im_blocks(call)

    def add_columns(
        k: KernelBuilder, x: Array, y: Array, block: tuple[int, ...], counts: list[int]
    ) -> None:
        with nest(k, (n, channels, *block, *counts)) as (sample, c, *rest):
            within, place = rest[:rank], rest[rank:]
            column: Expr = 0
            for i, size_ in zip(place, counts, strict=True):
                column = column * size_ + i
            at = [place[a] * strides[a] + within[a] * dilations[a] - pads[a] for a in range(rank)]
            inside = [b for i, s in zip(at, image, strict=True) for b in (i >= 0, i < s)]
            row: Expr = c
            for a in range(rank):
                row = row * block[a] + within[a]
            with when(k, all_of(*inside)):
                target = (sample, c, *at)
                y.store(y[target] + x[sample, row, column], target)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with k.loop(ys[0].size, "zero") as i:
            ys[0].put(0, i)
        for block, counts in blocks.items():
            matches = [
                equal(to(xs[1][[a]], "int64"), number(block[a], "int64")) for a in range(rank)
            ]
            with when(k, all_of(*matches) if len(blocks) > 1 else True):
                add_columns(k, xs[0], ys[0], block, counts)

    call.loops(body, [0, 2], key=tuple(blocks))


def col2im_blocks(call: OperatorCall) -> dict[tuple[int, ...], list[int]]:
    """The sizes of blocks that fit the rows and columns, with the numbers of blocks per axis."""
    _, rows, columns = call.shape()
    channels, *image = call.output_shape()[1:]
    rank = len(image)
    strides, dilations, pads = _col2im_window(call, rank)
    given = call.constant(2)
    candidates = (
        _factorizations(rows // channels, rank)
        if given is None
        else iter([tuple(int(i) for i in given.reshape(-1))])
    )
    found: dict[tuple[int, ...], list[int]] = {}
    for block in candidates:
        extents = [dilations[a] * (block[a] - 1) + 1 for a in range(rank)]
        room = [image[a] + pads[a] + pads[a + rank] - extents[a] for a in range(rank)]
        counts = [r // s + 1 if r >= 0 else 0 for r, s in zip(room, strides, strict=True)]
        if math.prod(counts) == columns and math.prod(block) * channels == rows:
            found[block] = counts
    if not found:
        call.fail("the number of columns doesn't fit the image")
    return found


def _col2im_window(call: OperatorCall, rank: int) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads."""
    node = call.node
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    return list(strides), list(dilations), list(node.get("pads", [0] * 2 * rank))


def _factorizations(product: int, count: int) -> Iterator[tuple[int, ...]]:
    """All tuples of `count` positive numbers with this product."""
    if count == 1:
        yield (product,)
        return
    for first in range(1, product + 1):
        if product % first == 0:
            for rest in _factorizations(product // first, count - 1):
                yield (first, *rest)
