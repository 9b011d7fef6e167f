"""Resize in all its modes, Upsample, and sampling by a grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from . import mathematics as m
from .base import (
    Array,
    Call,
    any_of,
    bind,
    cell,
    compute_type,
    guarded,
    index_of,
    is_float,
    maximum,
    minimum,
    nest,
    number,
    rule,
    select,
    to,
)
from .convolution import inside
from .mathematics import lit

NumpyArray = Any


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One axis to resize: `taps` input elements make one output element."""

    axis: int
    size: int
    out: int
    taps: int


_Scale = Callable[[dict[int, Array], int], Any]
"""The scale of an axis inside the kernel, from the arrays by input number."""


@rule("Resize", "Upsample")
def resize(call: Call) -> None:
    """Separable: tables of positions and weights per axis, then their products.

    Scales, sizes and the region of interest may be computed at run time; the kernel
    makes the tables, in float32 as ONNX Runtime does.
    """
    shape, out = call.shape(), call.output_shape()
    node = call.node
    old = node.op_type == "Upsample" or call.opset < 11
    mode = str(node.get("mode", "nearest")).replace("bilinear", "linear")
    if mode not in ("nearest", "linear", "cubic"):
        call.fail(f"mode '{mode}'")
    transform = "asymmetric" if old else node.get("coordinate_transformation_mode", "half_pixel")
    if transform not in _TRANSFORMS:
        call.fail(f"coordinate_transformation_mode '{transform}'")
    rank = len(shape)
    chosen = [int(a) % rank for a in node.get("axes", list(range(rank)))]
    scale_of, whole = _scales(call, shape, out, chosen, old)
    crops = transform == "tf_crop_and_resize"
    axes = [
        _Axis(a, shape[a], out[a], _taps(call, mode, shape[a], out[a]))
        for a in chosen
        if crops or out[a] != shape[a] or not whole
    ]
    inputs = [i for i, v in enumerate(node.inputs) if v is not None and 0 not in call.shape(i)]
    scratch: list[tuple[Sequence[int], str]] = []
    for axis in axes:
        table = (axis.out, axis.taps)
        scratch += [(table, "int32"), (table, "float32"), ((axis.out,), "int32")]
    value = float(node.get("extrapolation_value", 0.0))

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        arrays = dict(zip(inputs, xs, strict=True))
        y, x = ys[0], xs[0]
        tables = {a.axis: ys[1 + 3 * i : 4 + 3 * i] for i, a in enumerate(axes)}
        for axis in axes:
            place = chosen.index(axis.axis)
            scale = bind(k, scale_of(arrays, axis.axis))
            window: Any = (0.0, 1.0)
            if crops:
                window = [to(arrays[1].at(place + n), "float32") for n in (0, len(chosen))]
            _make_table(call, k, axis, mode, transform, scale, window, tables[axis.axis])
        with nest(k, out) as index:
            result = _sample(k, x, index, axes, tables, mode)
            if crops:
                marks = [tables[a.axis][2][[index[a.axis]]] > 0 for a in axes]
                result = select(any_of(*marks), number(value, x.dtype), to(result, x.dtype))
            y.store(result, index)

    call.loops(body, inputs, scratch=scratch)


def _scales(
    call: Call, shape: tuple[int, ...], out: tuple[int, ...], axes: list[int], old: bool
) -> tuple[_Scale, bool]:
    """How the kernel gets an axis's scale; whether axes of equal sizes stay as they are."""
    node = call.node
    at = 1 if old else 2
    given = node.get("scales")
    constant = call.constant(at) if given is None else np.asarray(given)
    if constant is not None and constant.size:
        table = dict(zip(axes, constant.reshape(-1).tolist(), strict=True))
        whole = all(table[a] == 1.0 for a in axes if shape[a] == out[a])
        return lambda _, axis: number(table.get(axis, 1.0), "float32"), whole
    if call.has(at) and 0 not in call.shape(at):
        return lambda arrays, axis: to(arrays[at].at(axes.index(axis)), "float32"), False
    if node.get("keep_aspect_ratio_policy", "stretch") == "stretch":
        return lambda _, axis: number(out[axis] / shape[axis], "float32"), True
    larger = node.get("keep_aspect_ratio_policy") == "not_smaller"

    def kept(arrays: dict[int, Array], axis: int) -> Any:
        ratios = [
            to(arrays[3].at(i), "float32") / number(shape[a], "float32") for i, a in enumerate(axes)
        ]
        found = ratios[0]
        for ratio in ratios[1:]:
            found = tirx.max(found, ratio) if larger else tirx.min(found, ratio)
        return found

    return kept, False


def _taps(call: Call, mode: str, size: int, out: int) -> int:
    """Input elements that one output element may take."""
    if mode == "nearest":
        return 1
    reach = 1 if mode == "linear" else 2
    if not call.node.get("antialias", 0) or out >= size:
        return 2 * reach
    return 2 * (math.ceil(reach * size / max(out, 1)) + 1)


def _make_table(
    call: Call,
    k: Any,
    axis: _Axis,
    mode: str,
    transform: str,
    scale: Any,
    window: Sequence[Any],
    table: Sequence[Array],
) -> None:
    positions, weights, outside = table
    one, zero = number(1, "float32"), number(0, "float32")
    last = axis.size - 1
    with k.loop(axis.out, "o") as o:
        at = bind(k, _TRANSFORMS[transform](to(o, "float32"), scale, axis, window))
        past = tirx.any(at < zero, at > number(last, "float32"))
        outside.store(to(past, "int32"), (o,))
        if mode == "nearest":
            nearest = index_of(_nearest(call, at))
            positions.store(maximum(minimum(nearest, last), 0), (o, 0))
            return
        antialias = bool(call.node.get("antialias", 0))
        shrink = tirx.min(scale, one) if antialias else one
        exclude = bool(call.node.get("exclude_outside", 0))
        first = bind(k, index_of(m.libm("floor", at)) - (axis.taps // 2 - 1))
        total = cell(k, "float32", 0, "total")
        with k.loop(axis.taps, "t") as t:
            place = first + t
            distance = bind(k, m.absolute((to(place, "float32") - at) * shrink))
            if mode == "linear":
                weight = tirx.max(zero, one - distance)
            else:
                weight = _cubic(distance, float(call.node.get("cubic_coeff_a", -0.75)))
            if exclude:
                weight = select(tirx.all(place >= 0, place <= last), weight, zero)
            weight = bind(k, weight)
            total.add(weight)
            weights.store(weight, (o, t))
            positions.store(maximum(minimum(place, last), 0), (o, t))
        if exclude or antialias:
            with k.loop(axis.taps, "n") as t:
                weights.store(weights[o, t] / total.get(), (o, t))


def _sample(
    k: Any,
    x: Array,
    index: list[Any],
    axes: Sequence[_Axis],
    tables: Mapping[int, Sequence[Array]],
    mode: str,
) -> Any:
    """One output element."""
    place = list(index)
    if mode == "nearest":
        for axis in axes:
            place[axis.axis] = tables[axis.axis][0][index[axis.axis], 0]
        return x[place]
    dtype = compute_type(x.dtype) if is_float(x.dtype) else "float32"
    total = cell(k, dtype, 0)
    with nest(k, [a.taps for a in axes], "t") as taps:
        weight: Any = number(1, dtype)
        for axis, tap in zip(axes, taps, strict=True):
            positions, weights, _ = tables[axis.axis]
            place[axis.axis] = positions[index[axis.axis], tap]
            weight = weight * to(weights[index[axis.axis], tap], dtype)
        total.add(to(x[place], dtype) * weight)
    return total.get() if is_float(x.dtype) else to(total.get(), "int32")


def _cubic(x: Any, a: float) -> Any:
    """The cubic convolution kernel at a distance (Keys 1981)."""
    near = (lit(a + 2, x) * x - lit(a + 3, x)) * x * x + lit(1, x)
    far = ((lit(a, x) * x - lit(5 * a, x)) * x + lit(8 * a, x)) * x - lit(4 * a, x)
    return select(x <= lit(1, x), near, select(x < lit(2, x), far, lit(0, x)))


def _nearest(call: Call, at: Any) -> Any:
    how = call.node.get("nearest_mode", "round_prefer_floor")
    if call.node.op_type == "Upsample" or call.opset < 11:
        how = "floor"
    half = number(0.5, "float32")
    if how == "round_prefer_floor":
        return m.libm("ceil", at - half)
    if how == "round_prefer_ceil":
        return m.libm("floor", at + half)
    if how not in ("floor", "ceil"):
        call.fail(f"nearest_mode '{how}'")
    return m.libm(how, at)


def _half_pixel(i: Any, scale: Any, axis: _Axis, window: Any) -> Any:
    return (i + lit(0.5, i)) / scale - lit(0.5, i)


def _half_pixel_symmetric(i: Any, scale: Any, axis: _Axis, window: Any) -> Any:
    adjustment = lit(axis.out, i) / (scale * lit(axis.size, i))
    offset = lit(axis.size / 2, i) * (lit(1, i) - adjustment)
    return offset + _half_pixel(i, scale, axis, window)


def _pytorch_half_pixel(i: Any, scale: Any, axis: _Axis, window: Any) -> Any:
    return _half_pixel(i, scale, axis, window) if axis.out > 1 else lit(0, i)


def _align_corners(i: Any, scale: Any, axis: _Axis, window: Any) -> Any:
    if axis.out == 1:
        return lit(0, i)
    return i * lit(axis.size - 1, i) / (scale * lit(axis.size, i) - lit(1, i))


def _asymmetric(i: Any, scale: Any, axis: _Axis, window: Any) -> Any:
    return i / scale if axis.out > 1 else lit(0, i)


def _crop_and_resize(i: Any, scale: Any, axis: _Axis, window: Any) -> Any:
    start, end = window
    last = lit(axis.size - 1, i)
    if axis.out == 1:
        return lit(0.5, i) * (start + end) * last
    return start * last + i * ((end - start) * last / lit(axis.out - 1, i))


_TRANSFORMS: dict[str, Callable[[Any, Any, _Axis, Any], Any]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
    "tf_half_pixel_for_nn": lambda i, scale, axis, window: (i + lit(0.5, i)) / scale,
    "tf_crop_and_resize": _crop_and_resize,
}


@rule("GridSample")
def grid_sample(call: Call) -> None:
    """Any number of spatial axes; the grid's last axis counts them backwards."""
    shape = call.shape()
    rank = len(shape) - 2
    mode = str(call.node.get("mode", "linear")).replace("bilinear", "linear")
    mode = mode.replace("bicubic", "cubic")
    padding = call.node.get("padding_mode", "zeros")
    corners = bool(call.node.get("align_corners", 0))

    def read(x: Array, outer: list[Any], place: list[Any], dtype: str) -> Any:
        if padding == "zeros":
            element = to(x[[*outer, *place]], dtype)
            return guarded(inside(place, shape[2:]), element, number(0, dtype))
        if padding == "border":
            place = [maximum(minimum(i, s - 1), 0) for i, s in zip(place, shape[2:], strict=True)]
        else:
            place = [_reflect(i, s, corners) for i, s in zip(place, shape[2:], strict=True)]
        return to(x[[*outer, *place]], dtype)

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        x, grid = xs
        dtype = compute_type(x.dtype)
        one = number(1, dtype)
        with nest(k, ys[0].shape) as (n, c, *out):
            coordinates = []
            for axis in range(rank):
                g = to(grid[[n, *out, rank - 1 - axis]], dtype)
                size = shape[2 + axis]
                if corners:
                    at = (g + one) * number((size - 1) / 2, dtype)
                else:
                    at = ((g + one) * number(size, dtype) - one) * number(0.5, dtype)
                if padding == "border":
                    at = tirx.max(tirx.min(at, number(size - 1, dtype)), number(0, dtype))
                coordinates.append(bind(k, at))
            if mode == "nearest":
                place = [bind(k, index_of(m.round_even(at))) for at in coordinates]
                ys[0].store(read(x, [n, c], place, dtype), [n, c, *out])
                return
            taps = 2 if mode == "linear" else 4
            floors = [bind(k, m.libm("floor", at)) for at in coordinates]
            total = cell(k, dtype, 0)
            for offset in np.ndindex(*(taps,) * rank):
                weight: Any = one
                place = []
                for axis, o in enumerate(offset):
                    fraction = coordinates[axis] - floors[axis]
                    if taps == 2:
                        own = fraction if o else one - fraction
                        place.append(index_of(floors[axis]) + o)
                    else:
                        own = _cubic_weight(fraction, o)
                        place.append(index_of(floors[axis]) + (o - 1))
                    weight = weight * own
                total.add(read(x, [n, c], [bind(k, p) for p in place], dtype) * weight)
            ys[0].store(total.get(), [n, c, *out])

    if mode not in ("nearest", "linear", "cubic"):
        call.fail(f"mode '{mode}'")
    call.loops(body, key=())


def _cubic_weight(t: Any, tap: int) -> Any:
    """The weight of tap 0 to 3 at fraction `t`."""
    return _cubic([t + lit(1, t), t, lit(1, t) - t, lit(2, t) - t][tap], -0.75)


def _reflect(index: Any, size: int, corners: bool) -> Any:
    """An index mirrored at the edges' centres (align_corners) or at the edges."""
    if size == 1:
        return 0
    if corners:
        period = 2 * (size - 1)
        folded = tirx.floormod(index, period)
        return tirx.min(folded, period - folded)
    folded = tirx.floormod(index, 2 * size)
    return tirx.min(folded, 2 * size - 1 - folded)


@rule("AffineGrid")
def affine_grid(call: Call) -> None:
    """The image's sizes show in the result's shape."""
    out = call.output_shape()
    rank = out[-1]
    corners = bool(call.node.get("align_corners", 0))

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        theta = xs[0]
        dtype = compute_type(theta.dtype)
        with nest(k, out[:-1]) as (n, *place):
            coordinates = []
            for axis in range(rank):
                size = out[1 + axis]
                at = to(place[axis], dtype)
                if corners:
                    step, start = (2 / (size - 1) if size > 1 else 0.0), -1.0
                else:
                    step, start = 2 / size, 1 / size - 1
                coordinates.append(bind(k, at * number(step, dtype) + number(start, dtype)))
            for row in range(rank):
                total = to(theta[n, row, rank], dtype)
                for column, value in enumerate(reversed(coordinates)):
                    total = total + to(theta[n, row, column], dtype) * value
                ys[0].store(total, [n, *place, row])

    call.loops(body, [0], key=())
