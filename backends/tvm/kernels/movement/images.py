"""Images among the operands of elementwise kernels: their axes, and elements of row-major ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ...plan.sizes import is_open
from ...tensorir.builder import load
from ...tensorir.types import BufferVar, Computed, Expr
from .sources import Elementwise, Source


def image_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """(N, C, H, W) of a shape of rank 0 to 4; rank 3 is (N, C, W)."""
    if len(shape) == 3:
        return (shape[0], shape[1], 1, shape[2])
    padded = [1] * (4 - len(shape)) + list(shape)
    return (padded[0], padded[1], padded[2], padded[3])


def axes_of(source: Source, kernel: Elementwise) -> tuple[int, ...] | None:
    """N, C, H and W as axes of a row-major source of open size that is the output's."""
    axes = image_shape(kernel.shape)
    whole = source.strides is None and source.layout is None and source.shape == kernel.shape
    images = kernel.layout is not None or any(s.layout is not None for s in kernel.sources)
    return axes if whole and images and is_open(*axes[2:]) else None


def as_row(kernel: Elementwise) -> Elementwise:
    """The same with images of open size as one row, where there are no gaps in any."""
    size = image_shape(kernel.shape)
    if not is_open(*size[2:]) or size[2] == 1:
        return kernel
    if kernel.layout is not None and any(kernel.layout.pads):
        return kernel
    sources = []
    for source in kernel.sources:
        axes, layout = image_shape(source.shape), source.layout
        if axes[2:] not in ((1, 1), size[2:]) or source.strides is not None:
            return kernel
        if layout is not None and axes[2:] == size[2:]:
            if any(layout.pads):
                return kernel
            layout = layout.as_row
        shape = (*axes[:2], axes[2] * axes[3])
        sources.append(dataclasses.replace(source, shape=shape, layout=layout))
    layout = kernel.layout.as_row if kernel.layout is not None else None
    shape = (*size[:2], size[2] * size[3])
    return dataclasses.replace(kernel, shape=shape, layout=layout, sources=tuple(sources))


def load_row_major(
    kernel: Elementwise,
    source: Source,
    buffer: BufferVar,
    strides: Sequence[int],
    at: Sequence[Expr],
    lanes: int = 1,
) -> Computed:
    """Elements of a source at an index along N, C, H and W."""
    if axes_of(source, kernel) is not None:
        return load(buffer, tuple(at), lanes=lanes)
    place: Expr = source.offset
    for index, stride in zip(at, strides, strict=True):
        place = place + index * stride
    return load(buffer, place, lanes=lanes)
