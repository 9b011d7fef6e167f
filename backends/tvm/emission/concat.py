"""Concatenations as kernel calls, of those operands that do not lie in the result already."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ..kernels.movement import concat
from ..plan.layout import Blocked
from ..plan.operations import ConcatOp
from ..plan.parts import Part, pieces
from ..plan.schedule import Buffer
from ..plan.tensors import Tensor
from .emitter import Emitter


def emit(emitter: Emitter, op: ConcatOp) -> None:
    """Copy the operands, but for those that were written where the result lies."""
    y, part = emitter.own(op.output), emitter.parts.get(op.output)
    if y is None:
        emitter.define(op.output, _rows(emitter, op))
    elif part is None:
        emitter.define(op.output, _blocks(emitter, op.inputs, y))
    else:
        for tensors, first in pieces(op, y.block):
            there = part.at(first)
            if [emitter.parts.get(t) for t in tensors] != [there]:
                _fill(emitter, tensors, y, there)
        emitter.define(op.output, emitter.view(part, y))


def _fill(emitter: Emitter, tensors: Sequence[Tensor], whole: Blocked, part: Part) -> None:
    """Copy tensors to a part of a buffer whose layout is that of `whole`."""
    layout = dataclasses.replace(whole, channels=sum(t.shape[1] for t in tensors))
    into = emitter.view(part, layout)
    if len(tensors) == 1:
        emitter.copy(tensors[0], layout, into)
    else:
        _blocks(emitter, tensors, layout, into)


def _blocks(
    emitter: Emitter, tensors: Sequence[Tensor], output: Blocked, into: Buffer | None = None
) -> Buffer:
    found = [emitter.blocked(t) for t in tensors]
    layouts, dtype = tuple(layout for _, layout in found), tensors[0].dtype
    return emitter.call(
        ("concat", layouts, output, dtype),
        lambda: concat.build_blocked(layouts, output, dtype, emitter.target),
        [buffer for buffer, _ in found],
        output.shape,
        dtype,
        into=into,
    )


def _rows(emitter: Emitter, op: ConcatOp) -> Buffer:
    outer = math.prod(op.output.shape[: op.axis])
    runs, dtype = tuple(t.elements // outer for t in op.inputs), op.output.dtype
    return emitter.call(
        ("concat", outer, runs, dtype),
        lambda: concat.build_plain(outer, runs, dtype, emitter.target),
        [emitter.read(t, None) for t in op.inputs],
        (op.output.elements,),
        dtype,
    )
