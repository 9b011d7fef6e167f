"""The schedule: calls of kernels on buffers, in order.

Buffers are plain memory; shapes and layouts are known to those who emit the calls.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ....ir.tensor import Array


@dataclasses.dataclass(eq=False)
class Buffer:
    """Memory of `nbytes`.

    An input of the model has its index as `input`, a constant its elements as `array`. A
    part of another buffer says which as `whole`, and at which byte it begins.
    """

    nbytes: int
    input: int | None = None
    array: Array | None = None
    whole: Buffer | None = None
    offset: int = 0

    def part(self, offset: int, nbytes: int) -> Buffer:
        """`nbytes` of this buffer from a byte on."""
        return Buffer(nbytes, whole=self, offset=offset)

    def root(self) -> tuple[Buffer, int]:
        """The buffer that this one lies in, itself if none, and where."""
        buffer, offset = self, 0
        while buffer.whole is not None:
            offset += buffer.offset
            buffer = buffer.whole
        return buffer, offset


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """A call of a kernel: what it reads, then what it writes."""

    kernel: str
    arguments: tuple[Buffer, ...]


@dataclasses.dataclass
class Schedule:
    """`outputs` are buffers that hold the results after the last call."""

    calls: list[KernelCall] = dataclasses.field(default_factory=list)
    outputs: list[Buffer] = dataclasses.field(default_factory=list)


def nbytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * np.dtype(dtype).itemsize
