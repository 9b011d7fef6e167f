"""Weights of direct convolutions in the order that kernels read them."""

from __future__ import annotations

import numpy as np

from .....ir.tensor import Array
from ...targets import Target
from .tiles import Convolution, Tile


def pack_weights(conv: Convolution, target: Target, tile: Tile, weights: Array) -> Array:
    """[O, I / groups, KH, KW] to [group, step, vector * element], as the kernel reads them; those
    of an upsampling to [1, step, vector * element], phase by phase."""
    up = conv.upsampling
    if up is None:
        return _pack(conv, target, tile, weights)
    parts, own = [], len(weights) // up.phases
    for phase in range(up.phases):
        (top, rows), (left, columns) = up.window(phase)
        part = weights[phase * own : (phase + 1) * own]
        part = part[:, :, top : top + rows, left : left + columns]
        if part.size:
            packed = _pack(conv, target, tile, part)
            parts.append(packed.reshape(1, -1, packed.shape[-1]))
    return np.concatenate(parts, axis=1)


def _pack(conv: Convolution, target: Target, tile: Tile, weights: Array) -> Array:
    dot, lanes = conv.dot(target), target.lanes
    out_channels, per_in, kernel_h, kernel_w = weights.shape
    starts, count = conv.input_blocks(target, tile)
    block, width = conv.input.block, tile.vectors * lanes
    groups = conv.phase_vectors(target) // tile.vectors
    dense = np.zeros((groups, width, count * block, kernel_h, kernel_w), weights.dtype)
    per_out = out_channels // conv.groups
    for o in range(out_channels):
        g = o // width
        first = o // per_out * per_in - starts[g] * block
        dense[g, o % width, first : first + per_in] = weights[o]
    steps = block // dot.depth
    packed = dense.reshape(
        groups, tile.vectors, lanes, count, steps, dot.depth, kernel_h, kernel_w
    ).transpose(0, 3, 6, 7, 4, 1, 2, 5)
    taps, (_, last) = kernel_h * kernel_w, conv.block_steps(target)
    step = (tile.vectors, lanes, dot.depth)
    whole = packed[:, :-1].reshape(groups, (count - 1) * taps * steps, *step)
    rest = packed[:, -1, :, :, :last].reshape(groups, taps * last, *step)
    joined = np.concatenate([whole, rest], axis=1)
    if conv.is_close(target, tile):
        spare = width - out_channels
        rows = joined.reshape(-1, width)[:, :out_channels].astype(dot.weight_dtype)
        return np.pad(rows.reshape(-1), (0, spare)).reshape(1, 1, -1)
    return np.ascontiguousarray(
        dot.pack(joined).reshape(*joined.shape[:2], tile.vectors * dot.weights_per_step)
    )
