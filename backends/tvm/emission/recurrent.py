"""Recurrent layers as kernel calls."""

from __future__ import annotations

import numpy as np

from ..kernels import recurrent
from ..plan.operations import RecurrentOp
from .emitter import Emitter


def emit(emitter: Emitter, op: RecurrentOp) -> None:
    """Pack the weights, build the kernel where no call has, and call it."""
    target, layer = emitter.target, op.layer
    arguments = [emitter.read(t, None) for t in op.projections]
    arguments.append(emitter.constant(layer.pack(target, op.weights)))
    if op.late_bias is not None:
        width = layer.units(target) * target.lanes
        padded = np.zeros((len(layer.reverse), width), np.float32)
        padded[:, : layer.hidden] = op.late_bias
        arguments.append(emitter.constant(padded.reshape(-1)))
    arguments += [emitter.read(t, None) for t in op.states]
    sizes = [(t.elements,) for t in op.outputs] + recurrent.scratch(layer, target)
    buffers = emitter.call_all(
        (layer,),
        lambda: recurrent.build(layer, target),
        arguments,
        [(size, "float32") for size in sizes],
    )
    for tensor, buffer in zip(op.outputs, buffers, strict=False):
        emitter.define(tensor, buffer)
