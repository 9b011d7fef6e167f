"""Softmax and the normalizations, for every type and axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ...kernels.rows.rows import mean_part
from ...plan.sizes import is_open
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from . import mathematics as m
from .base import (
    Array,
    Cell,
    OperatorCall,
    all_of,
    cell,
    compute_type,
    equal,
    guarded,
    inserted,
    nest,
    number,
    rule,
    select,
    to,
)
from .mathematics import lit


@rule("Softmax", "LogSoftmax")
def softmax(call: OperatorCall) -> None:
    """Before opset 13 over all axes from `axis` on together."""
    shape = call.shape()
    flat = call.opset < 13
    axis = call.axis(len(shape), 1 if flat else -1)
    outer = math.prod(shape[:axis])
    size = math.prod(shape[axis:]) if flat or not shape else shape[axis]
    inner = 1 if flat else math.prod(shape[axis + 1 :])
    logarithm = call.node.op_type == "LogSoftmax"

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, y = xs[0], ys[0]
        dtype = compute_type(x.dtype)
        with nest(k, (outer, inner)) as (o, i):

            def at(r: Expr) -> Expr:
                return (o * size + r) * inner + i

            top = cell(k, dtype, number(-math.inf, dtype), "top")
            total = cell(k, dtype, 0, "total")
            with k.loop(size, "m") as r:
                top.set(m.largest(top.get(), to(x.at(at(r)), dtype)))
            with k.loop(size, "s") as r:
                total.add(m.exp(to(x.at(at(r)), dtype) - top.get()))
            with k.loop(size, "w") as r:
                shifted = to(x.at(at(r)), dtype) - top.get()
                value = (
                    shifted - m.log(total.get()) if logarithm else (m.exp(shifted) / total.get())
                )
                y.put(value, at(r))

    call.loops(body, key=())


def _moments(
    k: KernelBuilder, dtype: str, count: int, each: Callable[[Callable[[Expr], None]], None]
) -> tuple[Cell, Cell]:
    """Mean and variance (of the population) of the elements that `each` visits."""
    part = mean_part(count)
    mean = cell(k, dtype, 0, "mean")
    each(lambda element: mean.add(to(element, dtype) * number(part, dtype)))
    whole = number(count, dtype) * number(part, dtype) if is_open(count) else None
    mean.set(mean.get() / (number(count * part, dtype) if whole is None else whole))
    variance = cell(k, dtype, 0, "variance")

    def square(element: Expr) -> None:
        difference = to(element, dtype) - mean.get()
        variance.add(difference * difference)

    each(square)
    variance.set(variance.get() / number(count, dtype))
    return mean, variance


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_normalization(call: OperatorCall) -> None:
    """Over the axes from `axis` on; statistics in float32 (`stash_type`)."""
    shape = call.shape()
    axis = call.axis(len(shape), -1)
    size = math.prod(shape[axis:])
    epsilon = float(call.node.get("epsilon", 1e-5))
    root_only = call.node.op_type != "LayerNormalization"

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, scale = xs[0], xs[1]
        bias = xs[2] if len(xs) > 2 else None
        dtype = compute_type(x.dtype)
        with nest(k, shape[:axis]) as outer:

            def each(function: Callable[[Expr], None]) -> None:
                with nest(k, shape[axis:], "r") as inner:
                    function(x[[*outer, *inner]])

            if root_only:
                square = cell(k, dtype, 0, "square")
                each(lambda e: square.add(to(e, dtype) * to(e, dtype)))
                mean = None
                variance: Expr = square.get() / number(size, dtype)
            else:
                mean, found = _moments(k, dtype, size, each)
                variance = found.get()
            inverse = cell(k, dtype, 0, "inverse")
            inverse.set(number(1, dtype) / m.sqrt(variance + number(epsilon, dtype)))
            with nest(k, shape[axis:], "w") as inner:
                index = [*outer, *inner]
                value = to(x[index], dtype)
                if mean is not None:
                    value = value - mean.get()
                value = value * inverse.get()
                value = value * to(scale.broadcast(index), dtype)
                if bias is not None:
                    value = value + to(bias.broadcast(index), dtype)
                ys[0].store(value, index)
            place = [*outer, *(0 for _ in shape[axis:])]
            results = (inverse,) if root_only else (mean, inverse)
            for y, result in zip(ys[1:], results, strict=False):
                if y is not None and result is not None:
                    y.store(result.get(), place)

    call.loops(body, key=())


@rule("InstanceNormalization", "GroupNormalization")
def group_normalization(call: OperatorCall) -> None:
    """InstanceNormalization is one group per channel; before opset 21 scales are per group."""
    shape = call.shape()
    instance = call.node.op_type == "InstanceNormalization"
    groups = shape[1] if instance else int(call.node.get("num_groups"))
    per_group = not instance and call.opset < 21
    epsilon = float(call.node.get("epsilon", 1e-5))
    each_channels = shape[1] // groups
    size = each_channels * math.prod(shape[2:])

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, scale, bias = xs
        dtype = compute_type(x.dtype)
        with nest(k, (shape[0], groups)) as (n, g):

            def each(function: Callable[[Expr], None]) -> None:
                with nest(k, (each_channels, *shape[2:]), "r") as (c, *inner):
                    function(x[[n, g * each_channels + c, *inner]])

            mean, variance = _moments(k, dtype, size, each)
            inverse = cell(k, dtype, 0, "inverse")
            inverse.set(number(1, dtype) / m.sqrt(variance.get() + number(epsilon, dtype)))
            with nest(k, (each_channels, *shape[2:]), "w") as (c, *inner):
                channel = g * each_channels + c
                at = g if per_group else channel
                value = (to(x[[n, channel, *inner]], dtype) - mean.get()) * inverse.get()
                value = value * to(scale.at(at), dtype) + to(bias.at(at), dtype)
                ys[0].store(value, [n, channel, *inner])

    call.loops(body, key=())


@rule("BatchNormalization")
def batch_normalization(call: OperatorCall) -> None:
    """Inference, and training mode with its running statistics (opset 14)."""
    shape = call.shape()
    epsilon = float(call.node.get("epsilon", 1e-5))
    momentum = float(call.node.get("momentum", 0.9))
    training = bool(call.node.get("training_mode", 0))
    if call.opset < 14 and any(call.wants(i) for i in range(1, 5)):
        call.fail("training mode before opset 14")
    if call.node.get("spatial", 1) != 1 or (call.opset < 7 and not call.node.get("is_test", 0)):
        call.fail("training mode and spatial=0 before opset 9")
    rank = len(shape)
    channels = shape[1] if rank > 1 else 1

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, scale, bias, mean_in, variance_in = xs
        dtype = compute_type(x.dtype)
        with k.loop(channels, "c") as c:
            where = [s for i, s in enumerate(shape) if i != 1]

            def index(inner: list[Expr]) -> list[Expr]:
                return inserted(inner, 1, c) if rank > 1 else inner

            def each(function: Callable[[Expr], None]) -> None:
                with nest(k, where, "r") as inner:
                    function(x[index(inner)])

            if training:
                mean, variance = _moments(k, dtype, math.prod(where), each)
                for y, new, old in zip(
                    ys[1:3], (mean, variance), (mean_in, variance_in), strict=False
                ):
                    if y is not None:
                        kept = to(old.at(c), dtype) * number(momentum, dtype)
                        y.put(kept + new.get() * number(1 - momentum, dtype), c)
            else:
                mean = cell(k, dtype, to(mean_in.at(c), dtype), "mean")
                variance = cell(k, dtype, to(variance_in.at(c), dtype), "variance")
            factor = cell(k, dtype, 0, "factor")
            root = m.sqrt(variance.get() + number(epsilon, dtype))
            factor.set(to(scale.at(c), dtype) / root)
            with nest(k, where, "w") as inner:
                value = (to(x[index(inner)], dtype) - mean.get()) * factor.get()
                ys[0].store(value + to(bias.at(c), dtype), index(inner))

    call.loops(body, key=())


@rule("LpNormalization")
def lp_normalization(call: OperatorCall) -> None:
    """Zero vectors stay zero."""
    shape = call.shape()
    axis = call.axis(len(shape), -1)
    p = int(call.node.get("p", 2))

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        dtype = compute_type(xs[0].dtype)
        with nest(k, [s for i, s in enumerate(shape) if i != axis]) as index:
            total = cell(k, dtype, 0)
            with k.loop(shape[axis], "r") as r:
                element = to(xs[0][inserted(index, axis, r)], dtype)
                total.add(m.absolute(element) if p == 1 else element * element)
            norm = cell(k, dtype, total.get() if p == 1 else m.sqrt(total.get()), "norm")
            with k.loop(shape[axis], "w") as r:
                place = inserted(index, axis, r)
                element = to(xs[0][place], dtype)
                value = select(equal(norm.get(), 0), lit(0, element), element / norm.get())
                ys[0].store(value, place)

    call.loops(body, key=())


@rule("LRN")
def local_response_normalization(call: OperatorCall) -> None:
    shape = call.shape()
    size = int(call.node.get("size"))
    alpha = float(call.node.get("alpha", 1e-4))
    beta, bias = float(call.node.get("beta", 0.75)), float(call.node.get("bias", 1.0))

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        dtype = compute_type(xs[0].dtype)
        with nest(k, shape) as (n, c, *inner):
            total = cell(k, dtype, 0)
            with k.loop(size, "r") as r:
                at = c + r - (size - 1) // 2
                inside = all_of(at >= 0, at < shape[1])
                element = guarded(inside, xs[0][[n, at, *inner]], number(0, xs[0].dtype))
                element = to(element, dtype)
                total.add(element * element)
            base = number(bias, dtype) + number(alpha / size, dtype) * total.get()
            value = to(xs[0][[n, c, *inner]], dtype) / m.power(base, number(beta, dtype))
            ys[0].store(value, [n, c, *inner])

    call.loops(body, key=())


@rule("MeanVarianceNormalization")
def mean_variance_normalization(call: OperatorCall) -> None:
    shape = call.shape()
    axes = [a % len(shape) for a in call.node.get("axes", [0, 2, 3])]
    kept = [i for i in range(len(shape)) if i not in axes]
    count = math.prod(shape[a] for a in axes)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        dtype = compute_type(xs[0].dtype)
        with nest(k, [shape[i] for i in kept]) as outer:

            def index(inner: Sequence[Expr]) -> list[Expr]:
                place: list[Expr] = [0] * len(shape)
                for i, axis in zip(outer, kept, strict=True):
                    place[axis] = i
                for i, axis in zip(inner, axes, strict=True):
                    place[axis] = i
                return place

            def each(function: Callable[[Expr], None]) -> None:
                with nest(k, [shape[a] for a in axes], "r") as inner:
                    function(xs[0][index(inner)])

            mean, variance = _moments(k, dtype, count, each)
            deviation = cell(k, dtype, m.sqrt(variance.get()) + number(1e-9, dtype), "deviation")
            with nest(k, [shape[a] for a in axes], "w") as inner:
                value = (to(xs[0][index(inner)], dtype) - mean.get()) / deviation.get()
                ys[0].store(value, index(inner))

    call.loops(body, key=())
