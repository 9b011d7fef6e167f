"""Pooling as kernel calls."""

from __future__ import annotations

import numpy as np

from ..kernels.image import pooling
from ..plan.geometry import Counted
from ..plan.operations import PoolingOp
from .emission import Emission


def emit(emission: Emission, op: PoolingOp) -> None:
    """Build the kernel where no call has, and call it."""
    y = emission.layouts[op.output]
    x, layout = emission.blocked(op.input, op.geometry.margins, op.fill, y.block)
    operands, arguments = emission.operands(op, y, y.padded_channels)
    divisor, table = 0.0, []
    counted = op.counts if isinstance(op.counts, Counted) else None
    if isinstance(op.counts, np.ndarray):
        if (op.counts == op.counts.flat[0]).all():
            divisor = float(op.counts.flat[0])
        else:
            table = [emission.constant(np.ascontiguousarray(op.counts).reshape(-1))]
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
        counted,
    )
    parallel = emission.is_parallel(op)
    emission.produce(
        op.output,
        (kernel, parallel),
        lambda: pooling.build(kernel, emission.target, parallel),
        [x, *table, *arguments],
    )
