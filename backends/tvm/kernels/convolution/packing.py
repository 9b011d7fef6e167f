"""Weights of direct convolutions in the order that kernels read them."""

from __future__ import annotations

import numpy as np

from .....ir.tensor import Array
from ...targets import Target
from ..matrix import paired
from ..matrix.dot import PairedDot
from .tiles import Convolution, Tile, flat_extent


def pack_weights(conv: Convolution, target: Target, tile: Tile, weights: Array) -> list[Array]:
    """[O, I / groups, KH, KW] to [group, step, vector * element], as the kernel reads them; those
    of an upsampling to [1, step, vector * element], phase by phase.

    Where joined words leave a rest, that, where its channels lie, each [vector, number]: the block,
    the pixel from the first one on, and the channel; and how many each vector has.
    """
    up = conv.upsampling
    dot = conv.dot(target)
    if up is None and isinstance(dot, PairedDot):
        dense = _dense(conv, target, tile, weights)
        found = paired.split(dense)
        assert found is not None  # since the words were joined
        packed = dot.pack(found.weights)
        packed = packed.reshape(*dense.shape[:2], tile.vectors * dot.weights_per_step)
        places = _places(conv, target, tile)[found.words]
        rest = [found.rest, *np.moveaxis(places, -1, 0).copy(), found.counts]
        return [np.ascontiguousarray(packed), *(rest if found.rest.size else [])]
    if up is None:
        return [_pack(conv, target, tile, weights)]
    parts, own = [], len(weights) // up.phases
    for phase in range(up.phases):
        (top, rows), (left, columns) = up.window(phase)
        part = weights[phase * own : (phase + 1) * own]
        part = part[:, :, top : top + rows, left : left + columns]
        if part.size:
            packed = _pack(conv, target, tile, part)
            parts.append(packed.reshape(1, -1, packed.shape[-1]))
    return [np.concatenate(parts, axis=1)]


def _places(conv: Convolution, target: Target, tile: Tile) -> Array:
    """Block, pixel and channel of each word of four channels, in the order of the steps."""
    _, count = conv.input_blocks(target, tile)
    steps, last = conv.block_steps(target)
    words = conv.dot(target).depth // 4
    (kernel_h, kernel_w), dilations = conv.geometry.kernel, conv.geometry.dilations
    columns = flat_extent(conv)[1] if conv.is_flat else conv.input.columns
    found = [
        (block, kh * dilations[0] * columns + kw * dilations[1], 4 * word)
        for block in range(count)
        for kh in range(kernel_h)
        for kw in range(kernel_w)
        for word in range(words * (steps if block < count - 1 else last))
    ]
    return np.array(found, np.int32)


def _pack(conv: Convolution, target: Target, tile: Tile, weights: Array) -> Array:
    dot = conv.dot(target)
    joined = _dense(conv, target, tile, weights)
    if conv.is_close(target, tile):
        spare = tile.vectors * target.lanes - len(weights)
        rows = joined.reshape(-1, tile.vectors * target.lanes)[:, : len(weights)]
        return np.pad(rows.astype(dot.weight_dtype).reshape(-1), (0, spare)).reshape(1, 1, -1)
    return np.ascontiguousarray(
        dot.pack(joined).reshape(*joined.shape[:2], tile.vectors * dot.weights_per_step)
    )


def _dense(conv: Convolution, target: Target, tile: Tile, weights: Array) -> Array:
    """[group, step, vector, lane, channel]."""
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
    return np.concatenate([whole, rest], axis=1)
