"""Concatenations as kernel calls, of those operands that do not lie in the result already."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ..kernels.movement import concat
from ..plan.aliases import Alias, pieces
from ..plan.blocked import Blocked
from ..plan.caches import rows_of_memory
from ..plan.operations import AppendOp, ConcatOp
from ..plan.schedule import Buffer, CacheRows, nbytes
from ..plan.sizes import expanded, size_of, stand_in
from ..plan.tensors import PlanTensor
from .emission import Emission


def emit(emission: Emission, op: ConcatOp) -> None:
    """Copy the operands, but for those that were written where the result lies."""
    y, alias = emission.own(op.output), emission.aliases.get(op.output)
    if y is None:
        emission.define(op.output, _rows(emission, op))
    elif alias is None:
        emission.define(op.output, _blocks(emission, op.inputs, y))
    else:
        for tensors, first in pieces(op, y.block):
            there = alias.at(first)
            if [emission.aliases.get(t) for t in tensors] != [there]:
                _fill(emission, tensors, y, there)
        emission.define(op.output, emission.view(alias, y))


def _fill(emission: Emission, tensors: Sequence[PlanTensor], whole: Blocked, alias: Alias) -> None:
    """Copy tensors to a part of a buffer whose layout is that of `whole`."""
    layout = dataclasses.replace(whole, channels=sum(t.shape[1] for t in tensors))
    into = emission.view(alias, layout)
    if len(tensors) == 1:
        emission.copy(tensors[0], layout, into)
    else:
        _blocks(emission, tensors, layout, into)


def _blocks(
    emission: Emission, tensors: Sequence[PlanTensor], output: Blocked, into: Buffer | None = None
) -> Buffer:
    found = [emission.blocked(t) for t in tensors]
    layouts, dtype = tuple(layout for _, layout in found), tensors[0].dtype
    return emission.call(
        ("concat", layouts, output, dtype),
        lambda: concat.build_blocked(layouts, output, dtype, emission.target),
        [buffer for buffer, _ in found],
        output.shape,
        dtype,
        into=into,
    )


def _rows(emission: Emission, op: ConcatOp) -> Buffer:
    outer = math.prod(op.output.shape[: op.axis])
    runs = tuple(math.prod(t.shape[op.axis :]) for t in op.inputs)
    dtype = op.output.dtype
    return emission.call(
        ("concat", outer, runs, dtype),
        lambda: concat.build_plain(outer, runs, dtype, emission.target),
        [emission.read(t, None) for t in op.inputs],
        (op.output.elements,),
        dtype,
    )


def emit_append(emission: Emission, op: AppendOp) -> None:
    """Copy what is new to where it lies in the cache, whose other rows the entry brings there."""
    axis, dtype = op.axis, op.output.dtype
    before = stand_in(expanded(size_of(op.past.shape[axis])))  # which proofs follow furthest
    outer, row = math.prod(op.output.shape[:axis]), op.output.shape[axis + 1 :]
    room, shape = op.output.shape[axis], (before, op.new.shape[axis], math.prod(row))
    new, call = emission.read(op.new, None), len(emission.schedule.calls)
    buffer = emission.call(
        ("append", outer, shape, room, dtype),
        lambda: concat.build_append(outer, shape, room, dtype, emission.target),
        [new],
        op.output.shape,
        dtype,
    )
    emission.define(op.output, buffer)
    given = emission.buffers[op.past, None].input
    assert given is not None
    assert emission.schedule.open is not None
    emission.schedule.open.caches.append(
        CacheRows(
            given,
            buffer,
            call,
            outer,
            nbytes((before, *row), dtype),
            nbytes((rows_of_memory(before), *row), dtype),
            nbytes((room, *row), dtype),
        )
    )
