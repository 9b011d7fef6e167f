"""Gather and its relatives. Constant indices are followed; data-dependent ones lock the axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..axes import dims
from ..axes.dims import Axis
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from ..axes.rewriting import Rewriting
from .records import Trait, rule
from .reduction import normalized

RUN_LIMIT = 256
"""Runs of consecutive indices above which a constant Gather locks its axis."""


@rule("Gather", traits=Trait.MOVES | Trait.INDEXES | Trait.ENLARGES)
def gather(r: NodeAxes) -> None:
    axes = r.axes(0)
    axis = normalized(r.get("axis", 0), len(axes))
    if r.peek(0) is not None:
        r.numbers(1)
    indices = r.constant(1)
    size = dims.axis_size(axes[axis])
    if indices is None or size is None or indices.ndim > 1:
        r.lock(axes[axis], "indices into this axis are data")
        r.set((*axes[:axis], *r.axes(1), *axes[axis + 1 :]))
        return
    wanted = indices.astype(np.int64).ravel()
    wanted = np.where(wanted < 0, wanted + size, wanted)
    if len(wanted) == 0 or wanted.min() < 0 or wanted.max() >= size:
        raise Opaque("indices out of range")
    picked = _pick(r, axes[axis], wanted)
    r.set((*axes[:axis], *((picked,) if indices.ndim else ()), *axes[axis + 1 :]))
    r.rewrite(lambda rewriter: _renumber(r, rewriter, axes[axis], picked, wanted, indices))


def _pick(r: NodeAxes, axis: Axis, wanted: npt.NDArray[np.int64]) -> Axis:
    """The axis that constant indices select, made of consecutive runs."""
    breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
    starts = wanted[np.concatenate([[0], breaks])]
    stops = wanted[np.concatenate([breaks - 1, [len(wanted) - 1]])] + 1
    if len(starts) > RUN_LIMIT:
        r.lock(axis, f"{len(starts)} runs of indices")
        return r.literal(len(wanted), f"{len(starts)} runs of indices")
    dims.cut(axis, sorted({*starts.tolist(), *stops.tolist()}))
    runs = [
        dims.split(dims.split(axis, int(stop))[0], int(start))[1]
        for start, stop in zip(starts, stops, strict=True)
    ]
    return dims.concat(runs)


def _renumber(
    r: NodeAxes,
    rewriter: Rewriting,
    axis: Axis,
    picked: Axis,
    wanted: npt.NDArray[np.int64],
    indices: npt.NDArray[Any],
) -> None:
    if not rewriter.changes(axis, picked):
        return
    kept = rewriter.indices(picked)
    old = wanted if kept is None else wanted[kept]
    remaining = rewriter.indices(axis)
    new = old if remaining is None else np.searchsorted(remaining, old)
    rewriter.set_constant(r.node, 1, new.astype(indices.dtype).reshape((-1,) * indices.ndim))


@rule("GatherElements", traits=Trait.MOVES | Trait.INDEXES)
def gather_elements(r: NodeAxes) -> None:
    """The result has the shape of the indices; along other axes than theirs they go along."""
    data, indices = r.axes(0), r.axes(1)
    axis = _along_others(r, data, indices)
    r.lock(data[axis], "indexed elementwise by data")
    r.set(indices)


def _along_others(r: NodeAxes, data: Axes, indices: Axes) -> int:
    """Tie data and indices along all axes but the indexed one, which is returned."""
    if len(data) != len(indices):
        raise Opaque(f"ranks {len(data)} and {len(indices)} have to be equal")
    axis = normalized(r.get("axis", 0), len(data))
    for i, (whole, part) in enumerate(zip(data, indices, strict=True)):
        if i == axis:
            continue
        size = dims.axis_size(whole)
        if dims.resolve(whole) == dims.resolve(part) or size == dims.axis_size(part) is not None:
            r.unify(whole, part)
        else:
            r.lock_all((whole, part), "cut to the size of the indices")
    return axis


@rule("GatherND", traits=Trait.MOVES | Trait.INDEXES | Trait.ENLARGES)
def gather_nd(r: NodeAxes) -> None:
    """data[B..., K..., rest], indices [B..., ..., k] -> [B..., ..., rest]"""
    data, indices = r.axes(0), r.axes(1)
    batch = int(r.get("batch_dims", 0))
    depth = dims.axis_size(indices[-1]) if indices else None
    if depth is None or not 0 <= batch < len(indices) or batch + depth > len(data):
        raise Opaque("the number of indexed axes is not known")
    for a, b in zip(data[:batch], indices[:batch], strict=True):
        r.unify(a, b)
    r.lock_all(data[batch : batch + depth], "indices into this axis are data")
    r.lock(indices[-1], "an index each")
    r.set((*indices[:-1], *data[batch + depth :]))


_WRITES = Trait.SAME_SHAPE | Trait.ZERO_AT_ZERO | Trait.INDEXES


@rule("Scatter", "ScatterElements", traits=_WRITES)
def scatter_elements(r: NodeAxes) -> None:
    """Updates have the shape of the indices; along other axes than theirs they go along."""
    data, indices = r.axes(0), r.axes(1)
    axis = _along_others(r, data, indices)
    r.unify_all(indices, r.axes(2))
    r.lock_all((data[axis], indices[axis]), "written at indices that are data")
    r.set(data)


@rule("ScatterND", traits=_WRITES)
def scatter_nd(r: NodeAxes) -> None:
    """data [K..., rest], indices [..., k], updates [..., rest]"""
    data, indices, updates = r.axes(0), r.axes(1), r.axes(2)
    depth = dims.axis_size(indices[-1]) if indices else None
    if depth is None or depth > len(data):
        raise Opaque("the number of indexed axes is not known")
    rows = indices[:-1]
    r.unify_all((*rows, *data[depth:]), updates)
    r.lock_all((*data[:depth], *indices), "written at indices that are data")
    r.set(data)


@rule("TensorScatter", traits=_WRITES)
def tensor_scatter(r: NodeAxes) -> None:
    """Writes an update into a cache, at an index per batch along the axis."""
    cache, update = r.axes(0), r.axes(1)
    if len(cache) != len(update):
        raise Opaque(f"ranks {len(cache)} and {len(update)} have to be equal")
    axis = normalized(r.get("axis", -2), len(cache))
    for i, (a, b) in enumerate(zip(cache, update, strict=True)):
        if i == axis:
            r.lock_all((a, b), "written at indices that are data")
        else:
            r.unify(a, b)
    if r.has(2):
        r.unify(r.axes(2)[0], cache[0])
    r.set(cache)


@rule("OneHot", traits=Trait.INDEXES | Trait.ENLARGES)
def one_hot(r: NodeAxes) -> None:
    """Inserts an axis of categories."""
    axes = r.axes(0)
    axis = normalized(r.get("axis", -1), len(axes) + 1)
    shape, depth = r.out_shape(), r.numbers(1)
    size = depth[0] if depth else shape[axis] if shape is not None else None
    categories = r.literal(size if isinstance(size, int) else None, "categories")
    r.lock_all(r.axes(2), "values for off and on")
    r.set((*axes[:axis], categories, *axes[axis:]))


@rule("ReverseSequence", traits=Trait.SAME_SHAPE | Trait.MOVES | Trait.INDEXES)
def reverse_sequence(r: NodeAxes) -> None:
    axes = r.axes(0)
    r.unify(r.axes(1)[0], axes[normalized(r.get("batch_axis", 1), len(axes))])
    r.lock(axes[normalized(r.get("time_axis", 0), len(axes))], "reversed by data")
    r.set(axes)


@rule("Compress", traits=Trait.MOVES | Trait.COUNTED)
def compress(r: NodeAxes) -> None:
    axes = r.axes(0)
    if r.get("axis") is None:
        raise Opaque("elements of the whole input are selected by data")
    axis = normalized(r.get("axis"), len(axes))
    r.lock_all((axes[axis], *r.axes(1)), "selected by data")
    shape = r.out_shape()
    size = shape[axis] if shape is not None else None
    kept = r.literal(size if isinstance(size, int) else None, "selected by data")
    r.set((*axes[:axis], kept, *axes[axis + 1 :]))


@rule("Trilu", traits=Trait.SAME_SHAPE | Trait.ZERO_AT_ZERO)
def trilu(r: NodeAxes) -> None:
    axes = r.axes(0)
    r.lock_all(axes[-2:], "a triangle of this matrix is kept")
    r.set(axes)
