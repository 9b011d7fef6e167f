"""What elementwise kernels compute: their inputs, output and program."""

from __future__ import annotations

import dataclasses
import math

from ...plan.blocked import Blocked
from ...plan.programs import Program


@dataclasses.dataclass(frozen=True)
class Source:
    """An input: a blocked tensor, or a row-major one, broadcast to the output's shape.

    `shape` has the output's rank. A view (transposition, slice, expansion) gives its
    element `strides` per axis, the `offset` of its first element and the number of
    `elements` of the tensor that it views. Of a blocked tensor it may be whole blocks
    from `first_block` on.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: Blocked | None = None
    strides: tuple[int, ...] | None = None
    offset: int = 0
    elements: int | None = None
    first_block: int = 0

    @property
    def buffer_shape(self) -> tuple[int, ...]:
        if self.layout is not None:
            return self.layout.shape
        return (math.prod(self.shape) if self.elements is None else self.elements,)

    @property
    def element_strides(self) -> list[int]:
        """Elements between neighbours on each axis; 0 where the axis is broadcast."""
        strides, step = [0] * len(self.shape), 1
        for axis in reversed(range(len(self.shape))):
            own = step if self.strides is None else self.strides[axis]
            strides[axis] = own if self.shape[axis] != 1 else 0
            step *= self.shape[axis]
        return strides


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """One kernel; `layout` is the output's, None for row-major. `shape` is the output's."""

    shape: tuple[int, ...]
    layout: Blocked | None
    sources: tuple[Source, ...]
    program: Program
