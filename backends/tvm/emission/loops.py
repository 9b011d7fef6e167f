"""Kernels of plain loops, called."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from ..plan.operations import LoopsOp
from ..tensorir.types import PrimFunc
from .emission import Emission


def emit(emission: Emission, op: LoopsOp) -> None:
    """Build the kernel where no call has, and call it."""
    signature = tuple((t.shape, t.dtype) for t in (*op.inputs, *op.outputs))
    results = emission.call_all(
        ("loops", op.build if op.key is None else op.key, signature),
        cast(Callable[[], PrimFunc], op.build),
        [emission.read(t, None) for t in op.inputs],
        [(t.shape, t.dtype) for t in op.outputs],
    )
    for tensor, buffer in zip(op.outputs, results, strict=True):
        emission.define(tensor, buffer)
