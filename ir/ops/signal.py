"""Fourier transforms: one axis is transformed, the last one holds real and imaginary parts."""

from __future__ import annotations

from ..axes.dims import Axis
from ..axes.node_axes import NodeAxes, Opaque
from .records import Trait, rule
from .reduction import normalized

TRANSFORMED = "the transform runs along this axis"


@rule("DFT")
def dft(r: NodeAxes) -> None:
    axes = r.axes(0)
    along = [int(r.get("axis", 1))] if r.opset < 20 else r.numbers(2) if r.has(2) else [-2]
    if along is None:
        raise Opaque("the axis is known only at run time")
    position = normalized(along[0], len(axes))
    r.lock_all((axes[position], axes[-1]), TRANSFORMED)
    result = list(axes)
    for i in (position, len(axes) - 1):
        result[i] = _inferred(r, i)
    r.set(tuple(result))


@rule("STFT", traits=Trait.INDEXES)
def stft(r: NodeAxes) -> None:
    """[N, samples] or [N, samples, parts] -> [N, frames, frequencies, 2]"""
    axes = r.axes(0)
    r.lock_all(axes[1:], TRANSFORMED)
    r.set((axes[0], *(_inferred(r, i) for i in (1, 2, 3))))


def _inferred(r: NodeAxes, position: int) -> Axis:
    shape = r.out_shape()
    size = shape[position] if shape is not None and len(shape) > position else None
    return r.literal(size if isinstance(size, int) else None, TRANSFORMED)
