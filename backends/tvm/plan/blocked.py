"""The blocked activation layout that convolutional kernels share (NCHWc)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from .sizes import is_open
from .tensors import PlanTensor

Fill = float | PlanTensor
"""What padding holds: a number, or the one that a tensor of one element holds at run time."""


@dataclasses.dataclass(frozen=True)
class Blocked:
    """[batch * blocks, rows * columns, block] with physical padding around each image.

    Channel c of pixel (h, w) of image n lies at
    [n * blocks + c // block, (h + top) * columns + w + left, c % block]. Where only a run fixes
    its size, rows and columns are two axes.
    The padding holds `fill`, so that a consumer may read past the image's edges. Lanes
    past the last channel hold finite numbers, but not necessarily zeros.
    Tensors of rank 3 (N, C, W) have height 1.
    """

    batch: int
    channels: int
    height: int
    width: int
    block: int
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0
    fill: Fill = 0

    @classmethod
    def of(cls, shape: Sequence[int], block: int, dtype: str) -> Blocked:
        """The layout without padding of a tensor of rank 3 or 4."""
        n, c, h, w = (shape[0], shape[1], 1, shape[2]) if len(shape) == 3 else shape
        return cls(n, c, h, w, block_for(c, block, dtype))

    @property
    def blocks(self) -> int:
        return -(-self.channels // self.block)

    @property
    def rows(self) -> int:
        return self.height + self.top + self.bottom

    @property
    def columns(self) -> int:
        return self.width + self.left + self.right

    @property
    def is_open(self) -> bool:
        """Whether a run fixes rows or columns."""
        return is_open(self.height, self.width)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns are axes of their own where they are open: then each index is compared
        with one size, and nothing with products of sizes."""
        images = self.batch * self.blocks
        if self.is_open:
            return (images, self.rows, self.columns, self.block)
        return (images, self.rows * self.columns, self.block)

    @property
    def as_row(self) -> Blocked:
        """The same memory as images of one row: of images without padding, or of one column
        without padding beside it."""
        return dataclasses.replace(
            self,
            height=1,
            width=self.height * self.width,
            top=0,
            left=self.top,
            bottom=0,
            right=self.bottom,
        )

    @property
    def is_column(self) -> bool:
        """Whether images are one column wide, and what lies around them too."""
        return not self.is_open and self.columns == self.width == 1

    @property
    def padded_channels(self) -> int:
        return self.blocks * self.block

    @property
    def pads(self) -> tuple[int, int, int, int]:
        return (self.top, self.left, self.bottom, self.right)

    def position(self, h: Any, w: Any) -> Any:
        """Index of pixel (h, w) between those of block and lane."""
        return self.at(h + self.top, w + self.left)

    def at(self, row: Any, column: Any) -> Any:
        """The same of a row and a column of the memory, padding included."""
        return (row, column) if self.is_open else row * self.columns + column

    def with_pads(self, pads: Sequence[int], fill: Fill) -> Blocked:
        top, left, bottom, right = pads
        return dataclasses.replace(
            self, top=top, left=left, bottom=bottom, right=right, fill=fill if any(pads) else 0
        )

    def covers(self, pads: Sequence[int], fill: Fill) -> bool:
        """Whether a reader that needs `pads` filled with `fill` can read this layout."""
        return not any(pads) or (
            self.fill == fill and all(own >= p for own, p in zip(self.pads, pads, strict=True))
        )


def block_for(channels: int, block: int, dtype: str) -> int:
    """Channels per block: images with few channels keep their blocks short.

    Bytes are read four channels at a time, 16-bit floats two.
    """
    if channels > 4:
        return block
    if dtype in ("uint16", "float16"):
        return channels + channels % 2
    return 4 if dtype in ("uint8", "int8") else channels
