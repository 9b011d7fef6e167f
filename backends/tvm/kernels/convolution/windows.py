"""Depthwise convolution of bytes by ARM's dot products: four neighbouring pixels at a time.

An instruction adds the products of four bytes in each of four lanes: here of four pixels of one
channel, which a permutation brings together. At a stride of one two neighbouring outputs take the
same pixels, each by weights of its own, zero where its window doesn't reach. No pixel is read that
is in no window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from tvm import tirx

from .....ir.tensor import Array
from ...tensorir.builder import KernelBuilder, load
from ...tensorir.types import BufferVar, Computed
from ..matrix.dot import bind
from ..matrix.neon import NeonDot

BLOCK = 8
"""Channels of a pixel, two vectors of sums."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """How the taps of a row are cut into fours."""

    taps: int
    stride: int

    @property
    def shared(self) -> int:
        """Outputs that take the same pixels."""
        return 2 if self.stride == 1 else 1

    @property
    def starts(self) -> range:
        """The first pixel of each four, from the first output's first one on."""
        return range(0, self.taps + self.shared - 1, 4)

    def pack(self, weights: Array, channels: int) -> Array:
        """[C, 1, KH, KW] to [block, row, four, output; half, channel, pixel]."""
        rows = weights.shape[2]
        dense = np.zeros((channels, rows, len(self.starts), self.shared, 4), np.int8)
        for number, start in enumerate(self.starts):
            for output in range(self.shared):
                for pixel in range(4):
                    tap = start + pixel - output
                    if 0 <= tap < self.taps:
                        dense[: len(weights), :, number, output, pixel] = weights[:, 0, :, tap]
        blocks = dense.reshape(channels // BLOCK, BLOCK, -1, 4).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(blocks.reshape(channels // BLOCK, -1, 4 * BLOCK))

    def steps(self, rows: int) -> int:
        """Vectors of weights of a block."""
        return rows * len(self.starts) * self.shared

    def reads(self, start: int, outputs: int) -> tuple[tuple[int, int], list[int]]:
        """The pixels from which on two are read, twice, and where in that each of the four from
        `start` on lies, of which so many outputs have some."""
        count = min(4, self.taps + outputs - 1 - start)
        if count == 1:
            return (start - 1, start - 1), [BLOCK] * 4
        second = start + max(0, count - 2)
        places = [0, BLOCK, (2 if count == 4 else 3) * BLOCK, 3 * BLOCK]
        return (start, second), [places[i] if i < count else 0 for i in range(4)]

    def multiply(
        self,
        builder: KernelBuilder,
        dot: NeonDot,
        accumulators: BufferVar,
        columns: int,
        row: int,
        read: Callable[[int, int], Computed],
        weights: Callable[[int], Computed],
    ) -> None:
        """Add a row of taps to the sums of a tile of `columns` outputs.

        `read(output, pixel)` gives two pixels, from that one of an output's window on, and
        `weights(number)` the vectors of both halves.
        """
        for number, start in enumerate(self.starts):
            factors = []
            for output in range(self.shared):
                own = weights((row * len(self.starts) + number) * self.shared + output)
                factors.append(bind(builder, own, "int8", 4 * BLOCK))
            for first in range(0, columns, self.shared):
                outputs = min(self.shared, columns - first)
                if start >= self.taps + outputs - 1:
                    continue
                pixels, places = self.reads(start, outputs)
                both = [read(first, pixel) for pixel in pixels]
                for half in (0, 1):
                    order = [places[i % 4] + 4 * half + i // 4 for i in range(16)]
                    value = bind(builder, tirx.Shuffle(both, order), "int8", 16)
                    for output in range(outputs):
                        at = (first + output) * BLOCK + 4 * half
                        own = tirx.Shuffle(
                            [factors[output]], list(range(16 * half, 16 * half + 16))
                        )
                        total = dot.step(load(accumulators, at, lanes=4), [value], [own])
                        builder.store(accumulators, total, at, lanes=4)
