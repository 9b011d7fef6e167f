"""Resize in all its modes, Upsample, and sampling by a grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from ..plan import Tensor
from . import mathematics as m
from .base import (
    Array,
    Call,
    bind,
    cell,
    compute_type,
    guarded,
    index_of,
    maximum,
    minimum,
    nest,
    number,
    rule,
    select,
    to,
)
from .convolution import inside

NumpyArray = Any


@dataclasses.dataclass(frozen=True)
class Taps:
    """For each output position along an axis: input positions and their weights.

    `outside` marks outputs that take the extrapolation value.
    """

    positions: NumpyArray
    weights: NumpyArray
    outside: NumpyArray


@rule("Resize", "Upsample")
def resize(call: Call) -> None:
    """Separable: every axis has its taps. Scales from the sizes where they are computed."""
    shape, out = call.shape(), call.output_shape()
    rank = len(shape)
    node = call.node
    old = node.op_type == "Upsample" or call.opset < 11
    scales_at = 1 if old else 2
    axes = [int(a) % rank for a in node.get("axes", list(range(rank)))]
    given = node.get("scales")
    constant = call.constant(scales_at) if given is None else np.asarray(given)
    sizes_given = not old and call.has(3)
    scales = [o / s if s else 1.0 for o, s in zip(out, shape, strict=True)]
    if constant is not None and constant.size:
        for axis, scale in zip(axes, constant.reshape(-1), strict=True):
            scales[axis] = float(scale)
    elif not sizes_given and given is None and call.has(scales_at) and not _whole(shape, out):
        call.fail("scales are computed at run time; make them a constant")
    elif sizes_given and node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        scales = _kept_aspect(call, shape, out, axes)
    mode = node.get("mode", "nearest")
    transform = "asymmetric" if old else node.get("coordinate_transformation_mode", "half_pixel")
    roi = np.zeros(0)
    if transform == "tf_crop_and_resize":
        roi = call.known(1, "roi").reshape(-1)
    taps = []
    for axis in range(rank):
        if out[axis] == shape[axis] and scales[axis] == 1.0 and transform != "tf_crop_and_resize":
            taps.append(None)
            continue
        window = (0.0, 1.0)
        if roi.size and axis in axes:
            place = axes.index(axis)
            window = (float(roi[place]), float(roi[place + len(axes)]))
        taps.append(_taps(call, shape[axis], out[axis], scales[axis], mode, transform, window))
    tables: list[Tensor] = []
    for axis, tap in enumerate(taps):
        if tap is not None:
            for name, array in (("positions", tap.positions), ("weights", tap.weights)):
                array = np.ascontiguousarray(array, "int32" if name == "positions" else "float32")
                label = f"{node.label}/{name}{axis}"
                tables.append(Tensor(label, str(array.dtype), array.shape, const=array))
            mark = np.ascontiguousarray(tap.outside, "int32")
            tables.append(Tensor(f"{node.label}/outside{axis}", "int32", mark.shape, const=mark))
    value = float(node.get("extrapolation_value", 0.0))

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        x, rest = xs[0], iter(xs[1:])
        arrays = [None if t is None else (next(rest), next(rest), next(rest)) for t in taps]
        dtype = compute_type(x.dtype)
        dtype = dtype if dtype.startswith("float") else "float32"
        with nest(k, out) as index:
            total = cell(k, dtype, 0)
            counts = [1 if a is None else a[0].shape[1] for a in arrays]
            nearest = all(c == 1 for c in counts)
            with nest(k, counts, "t") as tap:
                place: list[Any] = []
                weight: Any = None
                for axis, array in enumerate(arrays):
                    if array is None:
                        place.append(index[axis])
                        continue
                    positions, weights, _ = array
                    place.append(positions[index[axis], tap[axis]])
                    own = to(weights[index[axis], tap[axis]], dtype)
                    weight = own if weight is None else weight * own
                if nearest:
                    result = x[place]
                else:
                    total.add(to(x[place], dtype) * weight if weight is not None else x[place])
            if not nearest:
                result = total.get()
                if not x.dtype.startswith("float"):
                    result = to(result, "int32")
            marks = [
                a[2][[index[axis]]] > 0
                for axis, (a, t) in enumerate(zip(arrays, taps, strict=True))
                if a is not None and t is not None and t.outside.any()
            ]
            if marks:
                fill = number(value, x.dtype)
                result = select(tirx.any(*marks), fill, to(result, x.dtype))
            ys[0].store(result, index)

    call.loops(body, [0, *tables], key=(tuple(out), mode, transform))


def _whole(shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
    """Whether the sizes alone tell the scales: only whole multiples make sure."""
    return all(o % s == 0 for o, s in zip(out, shape, strict=True) if s)


def _kept_aspect(
    call: Call, shape: tuple[int, ...], out: tuple[int, ...], axes: list[int]
) -> list[float]:
    sizes = call.constant(3)
    wanted = [int(s) for s in sizes.reshape(-1)] if sizes is not None else [out[a] for a in axes]
    ratios = [w / shape[a] for w, a in zip(wanted, axes, strict=True)]
    larger = call.node.get("keep_aspect_ratio_policy") == "not_smaller"
    scale = max(ratios) if larger else min(ratios)
    return [scale if a in axes else 1.0 for a in range(len(shape))]


def _taps(
    call: Call,
    size: int,
    out: int,
    scale: float,
    mode: str,
    transform: str,
    window: tuple[float, float],
) -> Taps:
    positions = _coordinates(call, size, out, scale, transform, window)
    outside = np.zeros(out, bool)
    if transform == "tf_crop_and_resize":
        outside = (positions < 0) | (positions > size - 1)
    if mode == "nearest":
        how = call.node.get("nearest_mode", "round_prefer_floor")
        if call.node.op_type == "Upsample" or call.opset < 11:
            how = "floor"
        table: dict[str, Callable[[NumpyArray], NumpyArray]] = {
            "round_prefer_floor": lambda p: np.ceil(p - 0.5),
            "round_prefer_ceil": lambda p: np.floor(p + 0.5),
            "floor": np.floor,
            "ceil": np.ceil,
        }
        chosen = np.clip(table[how](positions), 0, size - 1).astype(np.int32)
        return Taps(chosen[:, None], np.ones((out, 1)), outside)
    antialias = bool(call.node.get("antialias", 0)) and scale < 1
    stretch = 1 / scale if antialias else 1.0
    reach = {"linear": 1, "bilinear": 1, "cubic": 2}.get(mode)
    if reach is None:
        call.fail(f"mode '{mode}'")
    radius = reach * stretch
    count = int(math.ceil(radius)) * 2 + (2 if antialias else 0)
    first = np.floor(positions).astype(np.int64) - count // 2 + 1
    at = first[:, None] + np.arange(count)[None]
    distance = (at - positions[:, None]) / stretch
    if mode == "cubic":
        weights = _cubic(distance, float(call.node.get("cubic_coeff_a", -0.75)))
    else:
        weights = np.maximum(0.0, 1 - np.abs(distance))
    exclude = bool(call.node.get("exclude_outside", 0))
    if exclude or antialias:
        weights = np.where((at < 0) | (at >= size), 0.0, weights)
    if exclude or antialias:
        weights = weights / weights.sum(1, keepdims=True)
    return Taps(np.clip(at, 0, size - 1), weights, outside)


def _cubic(distance: NumpyArray, a: float) -> NumpyArray:
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _coordinates(
    call: Call, size: int, out: int, scale: float, transform: str, window: tuple[float, float]
) -> NumpyArray:
    """Where each output element lies in the input."""
    i = np.arange(out, dtype=np.float64)
    if transform == "half_pixel":
        return (i + 0.5) / scale - 0.5
    if transform == "half_pixel_symmetric":
        adjustment = out / (scale * size)
        center = size / 2
        return center * (1 - adjustment) + (i + 0.5) / scale - 0.5
    if transform == "pytorch_half_pixel":
        return (i + 0.5) / scale - 0.5 if scale * size > 1 else np.zeros(out)
    if transform == "align_corners":
        return i * (size - 1) / (scale * size - 1) if out > 1 else np.zeros(out)
    if transform == "asymmetric":
        return i / scale
    if transform == "tf_half_pixel_for_nn":
        return (i + 0.5) / scale
    if transform == "tf_crop_and_resize":
        start, end = window
        if out > 1:
            step = (end - start) * (size - 1) / (out - 1)
            return start * (size - 1) + i * step
        return np.full(out, 0.5 * (start + end) * (size - 1))
    return call.fail(f"coordinate_transformation_mode '{transform}'")


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
                        own = _cubic_expr(fraction, o)
                        place.append(index_of(floors[axis]) + (o - 1))
                    weight = weight * own
                total.add(read(x, [n, c], [bind(k, p) for p in place], dtype) * weight)
            ys[0].store(total.get(), [n, c, *out])

    if mode not in ("nearest", "linear", "cubic"):
        call.fail(f"mode '{mode}'")
    call.loops(body, key=())


def _cubic_expr(t: Any, tap: int) -> Any:
    """The weight of tap 0 to 3 at fraction `t`, with a = -0.75."""
    a = -0.75
    from .mathematics import lit

    distance = [t + lit(1, t), t, lit(1, t) - t, lit(2, t) - t][tap]
    x = distance
    if tap in (1, 2):
        return (lit(a + 2, x) * x - lit(a + 3, x)) * x * x + lit(1, x)
    return ((lit(a, x) * x - lit(5 * a, x)) * x + lit(8 * a, x)) * x - lit(4 * a, x)


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
