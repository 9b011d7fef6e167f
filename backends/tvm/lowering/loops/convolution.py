"""Convolutions of any rank and type with weights known or not, transposed, deformable."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from tvm import tirx

from ...plan.padding import automatic_pads
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from . import mathematics as m
from .base import (
    Array,
    OperatorCall,
    all_of,
    bind,
    cell,
    clamped,
    compute_type,
    divide,
    equal,
    guarded,
    modulo,
    nest,
    number,
    rule,
    select,
    to,
    when,
)


@dataclasses.dataclass(frozen=True)
class Window:
    """A sliding window over the spatial axes."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    def places(self, out: Sequence[Expr], within: Sequence[Expr]) -> list[Expr]:
        """Where the window's element `within` lies for the output element `out`."""
        return [
            out[a] * self.strides[a] + within[a] * self.dilations[a] - self.before[a]
            for a in range(self.rank)
        ]


def inside(places: Sequence[Expr], sizes: Sequence[int]) -> Expr:
    return all_of(*(c for i, s in zip(places, sizes, strict=True) for c in (i >= 0, i < s)))


def window_of(
    call: OperatorCall, sizes: Sequence[int], kernel: Sequence[int], out: Sequence[int]
) -> Window:
    """The window that a node's attributes describe over axes of these sizes."""
    rank = len(kernel)
    node = call.node
    strides = [int(s) for s in node.get("strides", [1] * rank)]
    dilations = [int(d) for d in node.get("dilations", [1] * rank)]
    pads = [int(p) for p in node.get("pads", [0] * 2 * rank)]
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        for a in range(rank):
            pads[a], pads[a + rank] = automatic_pads(
                node, sizes[a], kernel[a], strides[a], dilations[a]
            )
    elif auto == "VALID":
        pads = [0] * 2 * rank
    return Window(
        tuple(int(s) for s in kernel),
        tuple(strides),
        tuple(dilations),
        tuple(pads[:rank]),
        tuple(pads[rank:]),
    )


def _convolve(
    call: OperatorCall,
    k: KernelBuilder,
    x: Array,
    w: Array,
    y: Array,
    dtype: str,
    element: Callable[[Expr, Expr, Expr], Expr],
    finish: Callable[[Expr, Expr], Expr],
) -> None:
    """Direct convolution; `element(x, w, m)` is one product, `finish(sum, m)` the result.

    What padding holds contributes nothing.
    """
    groups = int(call.node.get("group", 1))
    window = window_of(call, x.shape[2:], w.shape[2:], y.shape[2:])
    own = w.shape[1]
    per_group = w.shape[0] // groups
    with nest(k, y.shape) as (n, o, *out):
        total = cell(k, dtype, 0)
        first = divide(o, per_group) * own
        with nest(k, (own, *window.kernel), "r") as (c, *within):
            at = window.places(out, within)
            with when(k, inside(at, x.shape[2:])):
                total.add(element(x[[n, first + c, *at]], w[[o, c, *within]], o))
        y.store(finish(total.get(), o), [n, o, *out])


@rule("Conv")
def conv(call: OperatorCall) -> None:
    dtype = compute_type(call.output_dtype())

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        def finish(total: Expr, o: Expr) -> Expr:
            return total + to(xs[2].at(o), dtype) if len(xs) > 2 else total

        _convolve(
            call, k, xs[0], xs[1], ys[0], dtype,
            lambda x, w, o: to(x, dtype) * to(w, dtype), finish,
        )  # fmt: skip

    call.loops(body, key=())


@rule("ConvInteger")
def conv_integer(call: OperatorCall) -> None:
    present = [i for i in range(4) if call.has(i)]

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        given = dict(zip(present, xs, strict=True))
        x0, w0 = given.get(2), given.get(3)

        def element(x: Expr, w: Expr, o: Expr) -> Expr:
            left = to(x, "int32") - (0 if x0 is None else to(x0.at(0), "int32"))
            right = to(w, "int32")
            if w0 is not None:
                right = right - to(w0.at(0 if w0.size == 1 else o), "int32")
            return left * right

        _convolve(call, k, xs[0], xs[1], ys[0], "int32", element, lambda total, o: total)

    call.loops(body, present, key=tuple(present))


@rule("QLinearConv")
def qlinear_conv(call: OperatorCall) -> None:
    """Inputs: x, scale, zero, w, scale, zero, output scale, zero, bias."""

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = xs

        def element(a: Expr, b: Expr, o: Expr) -> Expr:
            zero = to(w_zero.at(0 if w_zero.size == 1 else o), "int32")
            return (to(a, "int32") - to(x_zero.at(0), "int32")) * (to(b, "int32") - zero)

        def finish(total: Expr, o: Expr) -> Expr:
            if bias:
                total = total + bias[0].at(o)
            scale = x_scale.at(0) * w_scale.at(0 if w_scale.size == 1 else o) / y_scale.at(0)
            value = m.round_even(to(total, "float32") * scale) + to(y_zero.at(0), "float32")
            return m.saturate(value, ys[0].dtype)

        _convolve(call, k, x, w, ys[0], "int32", element, finish)

    call.loops(body, key=())


@rule("ConvTranspose")
def conv_transpose(call: OperatorCall) -> None:
    """Each output element gathers the input elements whose windows cover it."""
    x_shape, w_shape, out = call.shape(0), call.shape(1), call.output_shape()
    node, rank = call.node, len(x_shape) - 2
    groups = int(node.get("group", 1))
    kernel = w_shape[2:]
    strides = [int(s) for s in node.get("strides", [1] * rank)]
    dilations = [int(d) for d in node.get("dilations", [1] * rank)]
    extra = [int(p) for p in node.get("output_padding", [0] * rank)]
    pads = [int(p) for p in node.get("pads", [0] * 2 * rank)][:rank]
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER") or node.get("output_shape") is not None:
        for a in range(rank):
            extent = (kernel[a] - 1) * dilations[a] + 1
            full = strides[a] * (x_shape[2 + a] - 1) + extra[a] + extent
            total = max(full - out[2 + a], 0)
            pads[a] = total // 2 if auto == "SAME_UPPER" else total - total // 2
            if auto == "NOTSET":
                pads[a] = total - total // 2
    elif auto == "VALID":
        pads = [0] * rank
    own, per_group = x_shape[1] // groups, w_shape[1]
    dtype = compute_type(call.output_dtype())

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, w, *bias = xs
        with nest(k, (out[0], groups, per_group, *out[2:])) as (n, group, channel, *place):
            o = group * per_group + channel
            total = cell(k, dtype, to(bias[0].at(o), dtype) if bias else 0)
            with nest(k, (own, *kernel), "r") as (c, *within):
                at: list[Expr] = []
                conditions: list[Expr] = []
                for a in range(rank):
                    shifted = place[a] + pads[a] - within[a] * dilations[a]
                    source = divide(shifted, strides[a])
                    conditions += [shifted >= 0, source < x_shape[2 + a]]
                    if strides[a] != 1:
                        conditions.append(equal(modulo(shifted, strides[a]), 0))
                    at.append(source)
                with when(k, all_of(*conditions)):
                    element = to(x[[n, group * own + c, *at]], dtype)
                    total.add(element * to(w[[group * own + c, channel, *within]], dtype))
            ys[0].store(total.get(), [n, o, *place])

    call.loops(body, key=())


@rule("DeformConv")
def deform_conv(call: OperatorCall) -> None:
    """Two-dimensional, with bilinear sampling (ONNX DeformConv)."""
    x_shape, w_shape = call.shape(0), call.shape(1)
    if len(x_shape) != 4:
        call.fail("only images of two dimensions")
    present = [i for i in range(5) if call.has(i)]
    groups = int(call.node.get("group", 1))
    offset_groups = int(call.node.get("offset_group", 1))
    kernel = w_shape[2:]
    own, per_group = w_shape[1], w_shape[0] // groups
    per_offset = x_shape[1] // offset_groups
    dtype = compute_type(call.output_dtype())

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        given = dict(zip(present, xs, strict=True))
        x, w, offset = given[0], given[1], given[2]
        bias, mask = given.get(3), given.get(4)
        window = window_of(call, x.shape[2:], kernel, ys[0].shape[2:])
        with nest(k, ys[0].shape) as (n, o, oh, ow):
            total = cell(k, dtype, 0 if bias is None else to(bias.at(o), dtype))
            with nest(k, (own, *kernel), "r") as (c, i, j):
                channel = divide(o, per_group) * own + c
                block = divide(channel, per_offset)
                point = i * kernel[1] + j
                base = (block * math.prod(kernel) + point) * 2
                row, column = window.places((oh, ow), (i, j))
                h = to(row, dtype) + to(offset[n, base, oh, ow], dtype)
                v = to(column, dtype) + to(offset[n, base + 1, oh, ow], dtype)
                value = bilinear(k, x, [n, channel], h, v, dtype)
                if mask is not None:
                    at = block * math.prod(kernel) + point
                    value = value * to(mask[n, at, oh, ow], dtype)
                total.add(value * to(w[o, c, i, j], dtype))
            ys[0].store(total.get(), (n, o, oh, ow))

    call.loops(body, present, key=tuple(present))


def bilinear(k: KernelBuilder, x: Array, outer: list[Expr], h: Expr, w: Expr, dtype: str) -> Expr:
    """Interpolation at (h, w) of an image whose surroundings are zero."""
    height, width = x.shape[-2:]
    h, w = bind(k, h), bind(k, w)
    top, left = bind(k, m.libm("floor", h)), bind(k, m.libm("floor", w))
    ih, iw = clamped(k, top, -2, height + 1), clamped(k, left, -2, width + 1)
    total: Expr = number(0, dtype)
    for dh in (0, 1):
        for dw in (0, 1):
            share_h = h - top if dh else number(1, dtype) - (h - top)
            share_w = w - left if dw else number(1, dtype) - (w - left)
            at = [ih + dh, iw + dw]
            element = guarded(
                inside(at, (height, width)), to(x[[*outer, *at]], dtype), number(0, dtype)
            )
            total = total + element * share_h * share_w
    past = tirx.any(h <= number(-1, dtype), h >= number(height, dtype))
    past = tirx.any(past, w <= number(-1, dtype), w >= number(width, dtype))
    return select(past, number(0, dtype), total)
