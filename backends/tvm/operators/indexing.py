"""Gather and scatter in all their forms, OneHot, and caches written in place."""

from __future__ import annotations

from typing import Any

from . import mathematics as m
from .base import (
    Array,
    Call,
    equal,
    index_of,
    nest,
    rule,
    select,
    wrap,
)


@rule("Gather")
def gather(call: Call) -> None:
    shape = call.shape()
    axis = call.axis(len(shape), 0)
    rank = call.rank(1)

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        with nest(k, ys[0].shape) as index:
            chosen = index_of(xs[1][index[axis : axis + rank]])
            at = [*index[:axis], wrap(chosen, shape[axis]), *index[axis + rank :]]
            ys[0].store(xs[0][at], index)

    call.loops(body, key=())


@rule("GatherElements")
def gather_elements(call: Call) -> None:
    shape = call.shape()
    axis = call.axis(len(shape), 0)

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        with nest(k, ys[0].shape) as index:
            at = list(index)
            at[axis] = wrap(index_of(xs[1][index]), shape[axis])
            ys[0].store(xs[0][at], index)

    call.loops(body, key=())


@rule("GatherND")
def gather_nd(call: Call) -> None:
    shape, indices = call.shape(0), call.shape(1)
    batch = int(call.node.get("batch_dims", 0))
    depth = indices[-1]
    outer = len(indices) - 1

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        with nest(k, ys[0].shape) as index:
            at = list(index[:batch])
            for i in range(depth):
                chosen = index_of(xs[1][[*index[:outer], i]])
                at.append(wrap(chosen, shape[batch + i]))
            ys[0].store(xs[0][[*at, *index[outer:]]], index)

    call.loops(body, key=())


def _combine(reduction: str, old: Any, new: Any) -> Any:
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


def _copy(k: Any, source: Array, target: Any) -> None:
    with k.loop(source.size, "copy") as i:
        target.put(source.at(i), i)


def _reduction(call: Call) -> str:
    reduction = str(call.node.get("reduction", "none"))
    if reduction not in _REDUCTIONS:
        call.fail(f"reduction '{reduction}'")
    return reduction


@rule("ScatterElements", "Scatter")
def scatter_elements(call: Call) -> None:
    """In order, so that the last of several updates of one element stays."""
    shape = call.shape()
    axis = call.axis(len(shape), 0)
    reduction = _reduction(call)

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        data, indices, updates = xs
        _copy(k, data, ys[0])
        if not indices.size:
            return
        with nest(k, indices.shape) as index:
            at = list(index)
            at[axis] = wrap(index_of(indices[index]), shape[axis])
            ys[0].store(_combine(reduction, ys[0][at], updates[index]), at)

    call.loops(body, key=())


@rule("ScatterND")
def scatter_nd(call: Call) -> None:
    shape, indices_shape = call.shape(0), call.shape(1)
    depth = indices_shape[-1]
    reduction = _reduction(call)

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        data, indices, updates = xs
        _copy(k, data, ys[0])
        if not updates.size:
            return
        with nest(k, (*indices_shape[:-1], *shape[depth:])) as index:
            outer = index[: len(indices_shape) - 1]
            at = [wrap(index_of(indices[[*outer, i]]), shape[i]) for i in range(depth)]
            target = [*at, *index[len(outer) :]]
            ys[0].store(_combine(reduction, ys[0][target], updates[index]), target)

    call.loops(body, key=())


@rule("OneHot")
def one_hot(call: Call) -> None:
    """The depth shows in the result's shape; indices outside of it give the off value."""
    shape = call.output_shape()
    axis = call.axis(len(shape), -1)
    depth = shape[axis]

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        indices, values = xs
        with nest(k, shape) as index:
            chosen = index_of(indices[[*index[:axis], *index[axis + 1 :]]])
            chosen = select(chosen < 0, chosen + depth, chosen)
            ys[0].store(select(equal(chosen, index[axis]), values.at(1), values.at(0)), index)

    call.loops(body, [0, 2], key=())


@rule("TensorScatter")
def tensor_scatter(call: Call) -> None:
    """Writes an update into a cache, from a position per batch element on."""
    shape, update = call.shape(0), call.shape(1)
    axis = call.axis(len(shape), -2)
    circular = call.node.get("mode", "linear") == "circular"

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        _copy(k, xs[0], ys[0])
        with nest(k, update) as index:
            first = index_of(xs[2][[index[0]]]) if len(xs) > 2 else 0
            at = list(index)
            place = first + index[axis]
            past = place >= shape[axis]
            at[axis] = select(past, place - shape[axis], place) if circular else place
            ys[0].store(xs[1][index], at)

    call.loops(body, key=())
