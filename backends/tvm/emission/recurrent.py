"""Recurrent layers as kernel calls."""

from __future__ import annotations

import numpy as np

from ..kernels import recurrent
from ..plan.operations import RecurrentOp
from .emission import Emission


def emit(emission: Emission, op: RecurrentOp) -> None:
    """Pack the weights, build the kernel where no call has, and call it."""
    target, layer = emission.target, op.layer
    arguments = [emission.read(t, None) for t in op.projections]
    arguments.append(emission.constant(layer.pack(target, op.weights)))
    if op.scales is not None:
        arguments.append(emission.constant(layer.arrange(target, op.scales).reshape(-1)))
    if op.late_bias is not None:
        width = layer.units(target) * target.lanes
        padded = np.zeros((len(layer.reverse), width), np.float32)
        padded[:, : layer.hidden] = op.late_bias
        arguments.append(emission.constant(padded.reshape(-1)))
    arguments += [emission.read(t, None) for t in op.states]
    sizes = [(t.elements,) for t in op.outputs] + recurrent.scratch(layer, target)
    buffers = emission.call_all(
        (layer,),
        lambda: recurrent.build(layer, target),
        arguments,
        [(size, "float32") for size in sizes],
    )
    for tensor, buffer in zip(op.outputs, buffers, strict=False):
        emission.define(tensor, buffer)
