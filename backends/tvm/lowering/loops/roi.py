"""RoiAlign."""

from __future__ import annotations

import numpy as np
from tvm import tirx

from ...faults import SAMPLE_LIMIT, Fault
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from . import mathematics as m
from .base import (
    Array,
    OperatorCall,
    bind,
    cell,
    clamped,
    compute_type,
    minimum,
    nest,
    number,
    rule,
    select,
    to,
    when,
    within,
)


@rule("RoiAlign")
def roi_align(call: OperatorCall) -> None:
    """Samples each bin at a grid of points, as the ONNX reference and ONNX Runtime do."""
    shape = call.shape()
    height, width = shape[2:]
    scale = float(call.node.get("spatial_scale", 1.0))
    ratio = int(call.node.get("sampling_ratio", 0))
    maximal = call.node.get("mode", "avg") == "max"
    transform = call.node.get("coordinate_transformation_mode", "half_pixel")
    half = 0.5 if call.opset >= 16 and transform == "half_pixel" else 0.0

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, rois, images = xs
        dtype = compute_type(x.dtype)
        _, _, bins_h, bins_w = ys[0].shape
        one, zero = number(1, dtype), number(0, dtype)
        with nest(k, ys[0].shape) as (r, c, ph, pw):
            image = within(k, images[[r]], 0, shape[0])
            left, top, right, bottom = (
                bind(k, to(rois[r, i], dtype) * number(scale, dtype) - number(half, dtype))
                for i in range(4)
            )
            largest = number(float(np.finfo(dtype).max), dtype)
            for edge in (left, top, right, bottom):
                off = tirx.any(tirx.isnan(edge), edge > largest, edge < zero - largest)
                k.fail_if(off, Fault.VALUE)
            roi_w, roi_h = right - left, bottom - top
            if half == 0.0:
                roi_w, roi_h = tirx.max(roi_w, one), tirx.max(roi_h, one)
            bin_h = bind(k, roi_h / number(bins_h, dtype))
            bin_w = bind(k, roi_w / number(bins_w, dtype))
            counts: list[Expr] = []
            for size in (bin_h, bin_w):
                if ratio > 0:
                    counts.append(ratio)
                    continue
                count = bind(k, m.libm("ceil", size))
                k.fail_if(count > number(SAMPLE_LIMIT, dtype), Fault.LIMIT)
                k.fail_if(count < zero, Fault.VALUE)
                counts.append(clamped(k, count, 0, SAMPLE_LIMIT + 1))
            total = cell(k, dtype, 0)
            first = cell(k, "int32", 1, "first")

            def place(start: Expr, part: Expr, i: Expr, axis: int) -> Expr:
                size, count = (bin_h, bin_w)[axis], to(counts[axis], dtype)
                sample = (to(i, dtype) + number(0.5, dtype)) * size / count
                return bind(k, start + to(part, dtype) * size + sample)

            def is_outside(at: Expr, size: int) -> Expr:
                return tirx.any(at < number(-1, dtype), at > number(size, dtype))

            def around(at: Expr, size: int) -> tuple[Expr, Expr, Expr]:
                """The two pixels around a place, and the share of the second."""
                at = bind(k, tirx.max(at, zero))
                low = clamped(k, at, 0, size)
                share = select(low >= size - 1, zero, at - to(low, dtype))
                return low, bind(k, minimum(low + 1, size - 1)), bind(k, share)

            def take(value: Expr) -> None:
                if maximal:
                    larger = tirx.any(value > total.get(), m.is_nan(value))
                    with when(k, tirx.any(first.get() > 0, larger)):
                        total.set(value)
                        first.set(0)
                else:
                    total.add(value)

            with k.loop(counts[0], "iy") as iy:
                v = place(top, ph, iy, 0)
                past = bind(k, is_outside(v, height))
                if maximal:
                    with when(k, past):
                        take(zero)
                with when(k, tirx.Not(past)):
                    h0, h1, fh = around(v, height)
                    with k.loop(counts[1], "ix") as ix:
                        h = place(left, pw, ix, 1)
                        w0, w1, fw = around(h, width)
                        corners: list[Expr] = []
                        for row, share_h in ((h0, one - fh), (h1, fh)):
                            for column, share_w in ((w0, one - fw), (w1, fw)):
                                element = to(x[image, c, row, column], dtype)
                                corners.append(element * (share_h * share_w))
                        if maximal:
                            value = corners[0]
                            for corner in corners[1:]:
                                value = bind(k, m.largest(value, corner))
                        else:
                            value = corners[0] + corners[1] + corners[2] + corners[3]
                        take(bind(k, select(is_outside(h, width), zero, value)))
            result = total.get()
            if not maximal:
                count = tirx.max(to(counts[0], "int32") * to(counts[1], "int32"), 1)
                result = result / to(count, dtype)
            ys[0].store(result, (r, c, ph, pw))

    call.loops(body, key=())
