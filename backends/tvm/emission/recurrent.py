"""Recurrent layers as kernel calls."""

from __future__ import annotations

import numpy as np

from ..kernels import recurrent, recurrent_bytes
from ..plan.operations import RecurrentOp
from .emission import Emission


def emit(emission: Emission, op: RecurrentOp) -> None:
    """Pack the weights, build the kernel where no call has, and call it."""
    target, layer = emission.target, op.layer
    arguments = [emission.read(t, None) for t in op.projections]
    by_bytes = recurrent_bytes.multiplies_state(layer, target)
    pack = layer.pack_words if by_bytes else layer.pack
    arguments.append(emission.constant(pack(target, op.weights)))
    if op.scales is not None:
        arguments.append(emission.constant(layer.arrange(target, op.scales).reshape(-1)))
    if by_bytes:
        totals = op.weights.sum(2, dtype=np.int32)
        arguments.append(emission.constant(layer.arrange(target, totals).reshape(-1)))
    if op.late_bias is not None:
        width = layer.units(target) * target.lanes
        padded = np.zeros((len(layer.reverse), width), np.float32)
        padded[:, : layer.hidden] = op.late_bias
        arguments.append(emission.constant(padded.reshape(-1)))
    arguments += [emission.read(t, None) for t in op.states]
    module = recurrent_bytes if by_bytes else recurrent
    buffers = emission.call_all(
        (layer,),
        lambda: module.build(layer, target),
        arguments,
        [((t.elements,), "float32") for t in op.outputs] + module.scratch(layer, target),
    )
    for tensor, buffer in zip(op.outputs, buffers, strict=False):
        emission.define(tensor, buffer)
