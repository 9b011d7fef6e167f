"""Gather and scatter in all their forms, OneHot, and caches written in place."""

from __future__ import annotations

from tvm import tirx

from ...faults import Fault
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from . import mathematics as m
from .base import (
    Array,
    OperatorCall,
    bind,
    checked,
    nest,
    number,
    replaced,
    rule,
    select,
    to,
    within,
)


@rule("Gather")
def gather(call: OperatorCall) -> None:
    shape = call.shape()
    axis = call.axis(len(shape), 0)
    rank = call.rank(1)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with nest(k, ys[0].shape[: axis + rank]) as index:
            chosen = checked(k, xs[1][index[axis:]], shape[axis])
            with nest(k, shape[axis + 1 :], "j") as inner:
                ys[0].store(xs[0][[*index[:axis], chosen, *inner]], [*index, *inner])

    call.moving_loops(body)


@rule("GatherElements")
def gather_elements(call: OperatorCall) -> None:
    shape = call.shape()
    axis = call.axis(len(shape), 0)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with nest(k, ys[0].shape) as index:
            at = list(index)
            at[axis] = checked(k, xs[1][index], shape[axis])
            ys[0].store(xs[0][at], index)

    call.moving_loops(body)


@rule("GatherND")
def gather_nd(call: OperatorCall) -> None:
    shape, indices = call.shape(0), call.shape(1)
    batch = int(call.node.get("batch_dims", 0))
    depth = indices[-1]
    outer = len(indices) - 1

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with nest(k, ys[0].shape[:outer]) as index:
            chosen = [checked(k, xs[1][[*index, i]], shape[batch + i]) for i in range(depth)]
            with nest(k, ys[0].shape[outer:], "j") as inner:
                ys[0].store(xs[0][[*index[:batch], *chosen, *inner]], [*index, *inner])

    call.moving_loops(body)


def _combine(reduction: str, old: Expr, new: Expr) -> Expr:
    if reduction == "add":
        return old + new
    if reduction == "mul":
        return old * new
    if reduction == "max":
        return m.largest(old, new)
    if reduction == "min":
        return m.smallest(old, new)
    return new


_REDUCTIONS = ("none", "add", "mul", "max", "min")


def _copy(k: KernelBuilder, source: Array, target: Array) -> None:
    with k.loop(source.size, "copy") as i:
        target.put(source.at(i), i)


def _reduction(call: OperatorCall) -> str:
    reduction = str(call.node.get("reduction", "none"))
    if reduction not in _REDUCTIONS:
        call.fail(f"reduction '{reduction}'")
    return reduction


@rule("ScatterElements", "Scatter")
def scatter_elements(call: OperatorCall) -> None:
    """In order, so that the last of several updates of one element stays."""
    shape = call.shape()
    axis = call.axis(len(shape), 0)
    reduction = _reduction(call)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        data, indices, updates = xs
        _copy(k, data, ys[0])
        if not indices.size:
            return
        with nest(k, indices.shape) as index:
            at = list(index)
            at[axis] = checked(k, indices[index], shape[axis])
            ys[0].store(_combine(reduction, ys[0][at], updates[index]), at)

    call.loops(body, key=())


@rule("ScatterND")
def scatter_nd(call: OperatorCall) -> None:
    shape, indices_shape = call.shape(0), call.shape(1)
    depth = indices_shape[-1]
    reduction = _reduction(call)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        data, indices, updates = xs
        _copy(k, data, ys[0])
        if not updates.size:
            return
        with nest(k, indices_shape[:-1]) as outer:
            at = [checked(k, indices[[*outer, i]], shape[i]) for i in range(depth)]
            with nest(k, shape[depth:], "j") as inner:
                target = [*at, *inner]
                update = updates[[*outer, *inner]]
                ys[0].store(_combine(reduction, ys[0][target], update), target)

    call.loops(body, key=())


@rule("OneHot")
def one_hot(call: OperatorCall) -> None:
    """The depth shows in the result's shape; indices outside of it, NaN too, give the off value."""
    shape = call.output_shape()
    axis = call.axis(len(shape), -1)
    depth = shape[axis]

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        indices, values = xs
        with nest(k, shape) as index:
            given = bind(k, indices[[*index[:axis], *index[axis + 1 :]]])
            chosen = bind(k, m.convert(given, "int64"))
            place = to(index[axis], "int64")
            hit = tirx.any(chosen == place, chosen == place - number(depth, "int64"))
            ys[0].store(select(hit, values.at(1), values.at(0)), index)

    call.loops(body, [0, 2], key=())


@rule("TensorScatter")
def tensor_scatter(call: OperatorCall) -> None:
    """Writes an update into a cache, from a position per batch element on."""
    shape, update = call.shape(0), call.shape(1)
    axis = call.axis(len(shape), -2)
    size = shape[axis]
    circular = call.node.get("mode", "linear") == "circular"

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        _copy(k, xs[0], ys[0])
        with nest(k, update[:1]) as sample:
            first: Expr = 0
            if len(xs) > 2:
                given = bind(k, to(xs[2][sample], "int64"))
                if circular:
                    k.fail_if(given < number(0, "int64"), Fault.INDEX)
                    given = tirx.floormod(given, number(size, "int64"))
                first = within(k, given, 0, size if circular else size - update[axis] + 1)
            with nest(k, update[1:], "j") as rest:
                index = [*sample, *rest]
                place = first + index[axis]
                place = select(place >= size, place - size, place) if circular else place
                ys[0].store(xs[1][index], replaced(index, axis, place))

    call.loops(body, key=())
