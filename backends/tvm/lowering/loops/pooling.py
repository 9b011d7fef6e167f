"""Pooling over windows of any rank, and its inverse."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import tirx

from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from . import mathematics as m
from .base import (
    Array,
    OperatorCall,
    cell,
    clamped,
    compute_type,
    index_of,
    is_float,
    maximum,
    minimum,
    nest,
    number,
    rule,
    to,
    when,
    within,
)
from .convolution import Window, inside, window_of


def _windows(call: OperatorCall, out: Sequence[int]) -> Window:
    return window_of(call, call.shape()[2:], [int(s) for s in call.node.get("kernel_shape")], out)


@rule("MaxPool")
def max_pool(call: OperatorCall) -> None:
    shape = call.shape()
    sizes = shape[2:]
    window = _windows(call, call.output_shape()[2:])
    column_major = bool(call.node.get("storage_order", 0))

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, y = xs[0], ys[0]
        indices = ys[1] if len(ys) > 1 else None
        dtype = compute_type(x.dtype)
        low = number(-math.inf, dtype) if is_float(dtype) else tirx.min_value(dtype)
        with nest(k, y.shape) as (n, c, *out):
            best = cell(k, dtype, low, "best")
            at = cell(k, "int64", -1, "at")
            with nest(k, window.kernel, "r") as within:
                place = window.places(out, within)
                with when(k, inside(place, sizes)):
                    element = to(x[[n, c, *place]], dtype)
                    better = tirx.any(element > best.get(), at.get() < number(0, "int64"))
                    if is_float(dtype):
                        better = tirx.any(better, m.is_nan(element))
                    with when(k, better):
                        best.set(element)
                        position: Expr = n * shape[1] + c
                        if column_major:
                            order = list(zip(place, sizes, strict=True))[::-1]
                        else:
                            order = list(zip(place, sizes, strict=True))
                        for i, size in order:
                            position = position * size + i
                        at.set(position)
            y.store(best.get(), [n, c, *out])
            if indices is not None:
                indices.store(at.get(), [n, c, *out])

    call.loops(body, key=())


@rule("AveragePool", "LpPool")
def average_pool(call: OperatorCall) -> None:
    """ceil_mode: a window that passes the padded edge counts what it covers before it."""
    shape = call.shape()
    sizes = shape[2:]
    window = _windows(call, call.output_shape()[2:])
    if min(*window.before, *window.after) < 0 and max(window.dilations) > 1:
        call.fail("auto_pad leaves out pixels that dilated windows reach; set pads instead")
    include_pad = bool(call.node.get("count_include_pad", 0))
    p = int(call.node.get("p", 2)) if call.node.op_type == "LpPool" else 0

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        dtype = compute_type(xs[0].dtype)
        with nest(k, ys[0].shape) as (n, c, *out):
            total = cell(k, dtype, 0)
            count = cell(k, "int32", 0, "count")
            with nest(k, window.kernel, "r") as within:
                place = window.places(out, within)
                with when(k, inside(place, sizes)):
                    element = to(xs[0][[n, c, *place]], dtype)
                    total.add(_power(element, p) if p else element)
                if include_pad:
                    padded = [s + a for s, a in zip(sizes, window.after, strict=True)]
                    shifted = [i + b for i, b in zip(place, window.before, strict=True)]
                    bounds = [s + b for s, b in zip(padded, window.before, strict=True)]
                    with when(k, inside(shifted, bounds)):
                        count.add(1)
                else:
                    with when(k, inside(place, sizes)):
                        count.add(1)
            if p:
                result = m.power(total.get(), number(1 / p, dtype))
            else:
                result = total.get() / to(tirx.max(count.get(), 1), dtype)
            ys[0].store(result, [n, c, *out])

    call.loops(body, key=())


def _power(x: Expr, p: int) -> Expr:
    size = m.absolute(x)
    result = size
    for _ in range(p - 1):
        result = result * size
    return result


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(call: OperatorCall) -> None:
    shape = call.shape()
    op_type = call.node.op_type
    p = int(call.node.get("p", 2))

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        dtype = compute_type(xs[0].dtype)
        largest = op_type == "GlobalMaxPool"
        with nest(k, shape[:2]) as outer:
            total = cell(k, dtype, number(-math.inf, dtype) if largest else 0)
            with nest(k, shape[2:], "r") as inner:
                element = to(xs[0][[*outer, *inner]], dtype)
                if largest:
                    total.set(m.largest(total.get(), element))
                else:
                    total.add(_power(element, p) if op_type == "GlobalLpPool" else element)
            result: Expr = total.get()
            if op_type == "GlobalAveragePool":
                result = result / number(math.prod(shape[2:]), dtype)
            elif op_type == "GlobalLpPool":
                result = m.power(result, number(1 / p, dtype))
            ys[0].store(result, [*outer, *(0 for _ in shape[2:])])

    call.loops(body, key=())


@rule("MaxUnpool")
def max_unpool(call: OperatorCall) -> None:
    """Indices count in the tensor that was pooled, whose size the attributes tell."""
    shape = call.shape()
    out = call.output_shape()
    rank = len(shape) - 2
    kernel = [int(s) for s in call.node.get("kernel_shape")]
    strides = [int(s) for s in call.node.get("strides", [1] * rank)]
    pads = [int(p) for p in call.node.get("pads", [0] * 2 * rank)]
    pooled = [
        (shape[2 + a] - 1) * strides[a] + kernel[a] - pads[a] - pads[a + rank] for a in range(rank)
    ]

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        from .base import unravel

        y = ys[0]
        with k.loop(y.size, "zero") as i:
            y.put(0, i)
        with nest(k, shape) as index:
            at = within(k, xs[1][index], 0, math.prod((*shape[:2], *pooled)))
            place = unravel(at, (*shape[:2], *pooled))
            with when(k, inside(place, out)):
                y.store(xs[0][index], place)

    call.loops(body, [0, 1], key=())


_FAR = 2**24
"""Pixels, beyond the edges of any image; some of them can be added up."""


@rule("MaxRoiPool")
def max_roi_pool(call: OperatorCall) -> None:
    shape = call.shape()
    height, width = (int(s) for s in call.node.get("pooled_shape"))
    scale = float(call.node.get("spatial_scale", 1.0))

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, rois = xs
        dtype = "float32"
        with nest(k, ys[0].shape) as (r, c, ph, pw):

            def corner(i: int) -> Expr:
                value = to(rois[r, i], dtype) * number(scale, dtype)
                return clamped(k, m.libm("round", value), -_FAR, _FAR)

            image = within(k, rois[r, 0], 0, shape[0])
            left, top, right, bottom = (corner(i) for i in (1, 2, 3, 4))
            best = cell(k, dtype, 0, "best")
            empty = cell(k, "int32", 1, "empty")
            bounds = []
            for first, last, parts, i, size in (
                (top, bottom, height, ph, shape[2]),
                (left, right, width, pw, shape[3]),
            ):
                length = to(tirx.max(last - first + 1, 1), dtype) / number(parts, dtype)
                start = index_of(m.libm("floor", to(i, dtype) * length)) + first
                end = index_of(m.libm("ceil", (to(i, dtype) + number(1, dtype)) * length)) + first
                bounds.append((minimum(maximum(start, 0), size), minimum(maximum(end, 0), size)))
            (h0, h1), (w0, w1) = bounds
            with nest(k, shape[2:], "s") as (h, w):
                chosen = tirx.all(to(h, "int32") >= h0, to(h, "int32") < h1, to(w, "int32") >= w0)
                with when(k, tirx.all(chosen, to(w, "int32") < w1)):
                    element = to(x[image, c, h, w], dtype)
                    larger = tirx.any(element > best.get(), m.is_nan(element))
                    with when(k, tirx.any(empty.get() > 0, larger)):
                        best.set(element)
                        empty.set(0)
            ys[0].store(best.get(), (r, c, ph, pw))

    call.loops(body, key=())
