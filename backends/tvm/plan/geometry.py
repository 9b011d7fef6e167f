"""Geometry of convolution and pooling windows."""

from __future__ import annotations

import dataclasses

from .sizes import OpenSizeError, greatest, is_open

LARGEST_MARGIN = 1 << 10
"""Pixels beside an image that a run may choose to read, at most."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of a 2-D convolution or pooling window; 1-D ones have height 1."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    """top, left, bottom, right; where only a run fixes them, expressions of small numbers"""

    def __post_init__(self) -> None:
        if any(is_open(pad) and greatest(pad) > LARGEST_MARGIN for pad in self.pads):
            raise OpenSizeError("how much lies around an image")

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """What is read around an image at most."""
        top, left, bottom, right = map(greatest, self.pads)
        return top, left, bottom, right

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Output size for an input size."""
        top, left, bottom, right = self.pads
        sizes = []
        for axis, padded in enumerate((height + top + bottom, width + left + right)):
            extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            sizes.append((padded - extent) // self.strides[axis] + 1)
        return sizes[0], sizes[1]

    @property
    def transposed(self) -> Geometry:
        """The window with rows for columns."""
        top, left, bottom, right = self.pads
        return Geometry(
            (self.kernel[1], self.kernel[0]),
            (self.strides[1], self.strides[0]),
            (self.dilations[1], self.dilations[0]),
            (left, top, right, bottom),
        )

    @property
    def is_pointwise(self) -> bool:
        return self.kernel == (1, 1) and self.strides == (1, 1) and not any(self.margins)


@dataclasses.dataclass(frozen=True)
class Counted:
    """What averages over windows divide by where only a run fixes sizes: elements of the image,
    and of `margins` around it."""

    pads: tuple[int, int, int, int]
    """Where the first window begins and how far the last may pass: top, left, bottom, right"""
    margins: tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Upsampling:
    """Storing results interleaved: those of the channels' phases in turn.

    The kernel computes `size` positions (h, w) and for each of them all `factors` phases
    (r, c), outermost among its channels, and stores at
    (factors[0] * h + r + offset[0], factors[1] * w + c + offset[1]) what lies inside.

    `windows` has, per axis and phase, the first tap of the kernel that isn't zero, and how many
    there are from that to the last.
    """

    factors: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]
    windows: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]

    @property
    def phases(self) -> int:
        return self.factors[0] * self.factors[1]

    def window(self, phase: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """First tap and number of taps of a phase, in rows and columns."""
        row, column = divmod(phase, self.factors[1])
        return self.windows[0][row], self.windows[1][column]

    @property
    def taps(self) -> int:
        """Taps of all phases together."""
        rows, columns = (sum(count for _, count in axis) for axis in self.windows)
        return rows * columns
