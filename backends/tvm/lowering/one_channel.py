"""Convolutions of bytes with one input channel: taps along one axis become channels.

Instructions multiply four channels of a byte each at a time, of which such a convolution has one;
so have images in shades of grey, and spectra of sound. Neighbouring elements, copied side by side,
fill them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ....ir.tensor import Array
from ..plan.geometry import Geometry
from ..plan.operations import ConcatOp, ConvolutionOp, ElementwiseOp
from ..plan.programs import Program
from ..plan.sizes import is_open
from ..plan.strides import row_major
from ..plan.tensors import PlanTensor, View
from .context import Lowering

DEPTH = 4
"""Channels that instructions multiply at a time."""

MOST_TAPS = 16
"""Taps that are copied at most: longer windows would need many times the input's memory."""


def fold_taps(lowering: Lowering, op: ConvolutionOp) -> ConvolutionOp:
    """The same convolution of more channels and fewer taps, where that takes fewer steps.

    Adds the operations that make its input.
    """
    source, geometry, fill = op.input, op.geometry, op.fill
    axis = _axis(geometry)
    taps = geometry.kernel[axis]
    if source.dtype not in ("uint8", "int8") or op.weights.shape[1] != 1 or op.groups != 1:
        return op
    if not 1 < taps <= MOST_TAPS or not lowering.target.sums_products_of_bytes:
        return op
    if not isinstance(fill, int):  # what a run computes
        return op
    if is_open(*source.shape[1:], *geometry.pads) or 0 in source.shape:
        return op
    place = len(source.shape) - 2 + axis
    margins = geometry.pads[axis], geometry.pads[axis + 2]
    whole = _padded(lowering, op, place, margins, fill)
    shape, strides = list(whole.shape), list(row_major(whole.shape))
    step = strides[place]
    shape[1], strides[1] = taps, step * geometry.dilations[axis]
    shape[place] = (whole.shape[place] - (taps - 1) * geometry.dilations[axis] - 1) // (
        geometry.strides[axis]
    ) + 1
    strides[place] = step * geometry.strides[axis]
    folded = PlanTensor(f"{op.output.name}/taps", source.dtype, tuple(shape))
    view = View(whole, folded.shape, tuple(strides))
    lowering.add(ElementwiseOp(op.label, [folded], [view], Program((source.dtype,))))
    weights = np.moveaxis(op.weights[:, 0], 1 + axis, 1)
    return dataclasses.replace(
        op,
        input=folded,
        weights=np.expand_dims(weights, 2 + axis),
        geometry=_along_the_other(geometry, axis),
    )


def _axis(geometry: Geometry) -> int:
    """The axis whose taps leave the fewest steps, then the fewest elements to copy."""
    kernel = geometry.kernel

    def cost(axis: int) -> tuple[int, int]:
        return kernel[1 - axis] * -(-kernel[axis] // DEPTH), kernel[axis]

    return min((1, 0), key=cost)


def _padded(
    lowering: Lowering, op: ConvolutionOp, place: int, margins: Sequence[int], fill: int
) -> PlanTensor:
    """The input with what lies around it along one axis."""
    source = op.input
    if not any(margins):
        return source
    parts = [source]
    for margin, first in zip(margins, (True, False), strict=True):
        if margin:
            shape = _with(source.shape, place, margin)
            name = f"{op.output.name}/{'before' if first else 'behind'}"
            part = _filled(lowering, op, name, shape, fill)
            parts.insert(0 if first else len(parts), part)
    shape = _with(source.shape, place, source.shape[place] + sum(margins))
    whole = PlanTensor(f"{op.output.name}/padded", source.dtype, shape)
    lowering.add(ConcatOp(op.label, [whole], parts, place))
    return whole


def _filled(
    lowering: Lowering, op: ConvolutionOp, name: str, shape: tuple[int, ...], fill: int
) -> PlanTensor:
    """A tensor of one number: a constant, unless a run fixes how many images there are."""
    dtype, known = op.input.dtype, _with(shape, 0, 1)
    own = known if is_open(shape[0]) else shape
    array: Array = np.full(own, fill, dtype)
    image = PlanTensor(name, dtype, own, array)
    if own == shape:
        return image
    part = PlanTensor(f"{name} of all", dtype, shape)
    view = View(image, shape, (0, *row_major(known)[1:]))
    lowering.add(ElementwiseOp(op.label, [part], [view], Program((dtype,))))
    return part


def _along_the_other(geometry: Geometry, axis: int) -> Geometry:
    """The window without its taps along one axis."""
    kernel, stride, dilation = (
        sizes[1 - axis] for sizes in (geometry.kernel, geometry.strides, geometry.dilations)
    )
    top, left, bottom, right = geometry.pads
    if axis == 0:
        return Geometry((1, kernel), (1, stride), (1, dilation), (0, left, 0, right))
    return Geometry((kernel, 1), (stride, 1), (dilation, 1), (top, 0, bottom, 0))


def _with(sizes: Sequence[int], place: int, size: int) -> tuple[int, ...]:
    return (*sizes[:place], size, *sizes[place + 1 :])
