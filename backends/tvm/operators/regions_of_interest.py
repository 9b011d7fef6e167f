"""RoiAlign."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from . import mathematics as m
from .base import (
    Array,
    Call,
    bind,
    cell,
    compute_type,
    index_of,
    nest,
    number,
    rule,
    select,
    to,
    when,
)


@rule("RoiAlign")
def roi_align(call: Call) -> None:
    """Samples each bin at a grid of points, as the ONNX reference and ONNX Runtime do."""
    shape = call.shape()
    height, width = shape[2:]
    scale = float(call.node.get("spatial_scale", 1.0))
    ratio = int(call.node.get("sampling_ratio", 0))
    maximal = call.node.get("mode", "avg") == "max"
    transform = call.node.get("coordinate_transformation_mode", "half_pixel")
    half = 0.5 if call.opset >= 16 and transform == "half_pixel" else 0.0

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        x, rois, images = xs
        dtype = compute_type(x.dtype)
        _, _, bins_h, bins_w = ys[0].shape
        one, zero = number(1, dtype), number(0, dtype)
        with nest(k, ys[0].shape) as (r, c, ph, pw):
            image = bind(k, index_of(images[[r]]))
            left, top, right, bottom = (
                bind(k, to(rois[r, i], dtype) * number(scale, dtype) - number(half, dtype))
                for i in range(4)
            )
            roi_w, roi_h = right - left, bottom - top
            if half == 0.0:
                roi_w, roi_h = tirx.max(roi_w, one), tirx.max(roi_h, one)
            bin_h = bind(k, roi_h / number(bins_h, dtype))
            bin_w = bind(k, roi_w / number(bins_w, dtype))
            counts: list[Any] = []
            for size in (bin_h, bin_w):
                count = ratio if ratio > 0 else index_of(m.libm("ceil", size))
                counts.append(bind(k, count))
            total = cell(k, dtype, 0)
            first = cell(k, "int32", 1, "first")
            with k.loop(counts[0], "iy") as iy, k.loop(counts[1], "ix") as ix:

                def place(start: Any, p: Any, i: Any, size: Any, count: Any) -> Any:
                    within = (to(i, dtype) + number(0.5, dtype)) * size / to(count, dtype)
                    return bind(k, start + to(p, dtype) * size + within)

                v = place(top, ph, iy, bin_h, counts[0])
                h = place(left, pw, ix, bin_w, counts[1])
                outside = tirx.any(
                    v < number(-1, dtype),
                    v > number(height, dtype),
                    h < number(-1, dtype),
                    h > number(width, dtype),
                )
                parts = []
                for at, size in ((v, height), (h, width)):
                    at = tirx.max(at, zero)
                    low = tirx.min(index_of(at), size - 1)
                    high = tirx.min(low + 1, size - 1)
                    fraction = select(low >= size - 1, zero, at - to(low, dtype))
                    parts.append((bind(k, low), bind(k, high), bind(k, fraction)))
                (h0, h1, fh), (w0, w1, fw) = parts
                corners = []
                for row, share_h in ((h0, one - fh), (h1, fh)):
                    for column, share_w in ((w0, one - fw), (w1, fw)):
                        element = to(x[image, c, row, column], dtype)
                        corners.append(element * (share_h * share_w))
                if maximal:
                    value = corners[0]
                    for corner in corners[1:]:
                        value = tirx.max(value, corner)
                else:
                    value = corners[0] + corners[1] + corners[2] + corners[3]
                value = bind(k, select(outside, zero, value))
                if maximal:
                    with when(k, tirx.any(first.get() > 0, value > total.get())):
                        total.set(value)
                        first.set(0)
                else:
                    total.add(value)
            result = total.get()
            if not maximal:
                count = tirx.max(to(counts[0], "int32") * to(counts[1], "int32"), 1)
                result = result / to(count, dtype)
            ys[0].store(result, (r, c, ph, pw))

    call.loops(body, key=())
