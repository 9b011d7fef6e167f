"""Gather and its relatives. Constant indices are followed; data-dependent ones lock the axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..axes import dims
from ..axes.dims import Axis
from ..axes.node_axes import NodeAxes, Opaque
from .reduction import normalized
from .registry import rule

RUN_LIMIT = 256
"""Runs of consecutive indices above which a constant Gather locks its axis."""


@rule("Gather")
def gather(r: NodeAxes) -> None:
    axes = r.axes(0)
    axis = normalized(r.get("axis", 0), len(axes))
    _gather_content(r)
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
    rewriter: Any,
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


def _gather_content(r: NodeAxes) -> None:
    if r.get("axis", 0) != 0 or not r.knows_content():
        return
    content, indices = r.content(0), r.numbers(1)
    position = r.node.input(1)
    if content is None or indices is None or content.ndim != 1 or position is None:
        return
    picked = content[np.array(indices, np.int64)]
    r.set_content(picked.reshape(()) if position.rank == 0 else picked)


@rule("GatherElements")
def gather_elements(r: NodeAxes) -> None:
    """Indices have the output's shape; every axis but the indexed one may be cut short."""
    data, indices = r.axes(0), r.axes(1)
    r.lock_all(data, "indexed elementwise by data")
    r.lock_all(indices, "indices are data")
    r.set(indices)


@rule("ReverseSequence")
def reverse_sequence(r: NodeAxes) -> None:
    axes = r.axes(0)
    for name, default in (("batch_axis", 1), ("time_axis", 0)):
        r.lock(axes[normalized(r.get(name, default), len(axes))], "reversed by data")
    r.lock_all(r.axes(1), "lengths are data")
    r.set(axes)


@rule("Trilu")
def trilu(r: NodeAxes) -> None:
    axes = r.axes(0)
    r.lock_all(axes[-2:], "a triangle of this matrix is kept")
    r.set(axes)
