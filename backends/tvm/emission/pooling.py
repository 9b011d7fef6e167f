"""Pooling as kernel calls."""

from __future__ import annotations

import numpy as np

from ..kernels.image import pooling
from ..plan.operations import PoolingOp
from .emitter import Emitter
from .work import is_parallel


def emit(emitter: Emitter, op: PoolingOp) -> None:
    """Build the kernel where no call has, and call it."""
    y = emitter.layouts[op.output]
    x, layout = emitter.blocked(op.input, op.geometry.pads, op.fill, y.block)
    operands, arguments = emitter.operands(op, y, y.padded_channels)
    divisor, table = 0.0, []
    if op.counts is not None:
        if (op.counts == op.counts.flat[0]).all():
            divisor = float(op.counts.flat[0])
        else:
            table = [emitter.constant(np.ascontiguousarray(op.counts).reshape(-1))]
    kernel = pooling.Pooling(
        op.kind,
        layout,
        op.input.dtype,
        y,
        op.geometry,
        op.element,
        divisor,
        op.program,
        operands,
    )
    parallel = is_parallel(op, emitter.target)
    emitter.produce(
        op.output,
        (kernel, parallel),
        lambda: pooling.build(kernel, emitter.target, parallel),
        [x, *table, *arguments],
    )
