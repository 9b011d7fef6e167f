"""Where Resize reads: coordinates, taps and weights, of ONNX's operator specification.

The formulas take arrays of numbers, or expressions inside a kernel, and the functions of either.
All numbers are float32 unless said otherwise, and are rounded in the order of ONNX Runtime: the
nearest element depends on the last bit. Sizes are numbers by `size`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ....ir.graph import Node
from ....ir.tensor import Array
from .numeric import Number
from .sizes import exact_quotient, is_open
from .tensors import PlanTensor

MODES = ("nearest", "linear", "cubic")
NEAREST_MODES = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")

HALF_WAY = 1e-6
"""Coordinates nearer to the middle of two elements than this count as halfway between them."""

WHOLE_LENGTH = 2.0**-22
"""Relative difference of scale times size from a whole number that rounding may make."""


class Functions(Protocol[Number]):
    """The functions that formulas are made of, named as NumPy names them."""

    def floor(self, x: Number, /) -> Number: ...
    def ceil(self, x: Number, /) -> Number: ...
    def abs(self, x: Number, /) -> Number: ...
    def minimum(self, a: Number, b: Number | float, /) -> Number: ...
    def maximum(self, a: Number, b: Number | float, /) -> Number: ...
    def where(
        self, condition: Number | bool, a: Number | float, b: Number | float, /
    ) -> Number: ...

    def size(self, size: int, /) -> Number | float:
        """A size as a number to compute with."""

    def single(self, x: Number | float, /) -> Number:
        """Rounded to float32, also where it is a product that is added to something."""

    def double(self, x: Number | float, /) -> Number:
        """As float64."""


class _ArrayFunctions:
    """The functions of arrays."""

    def floor(self, x: Array) -> Array:
        return np.floor(x)

    def ceil(self, x: Array) -> Array:
        return np.ceil(x)

    def abs(self, x: Array) -> Array:
        return np.abs(x)

    def minimum(self, a: Array, b: Array | float) -> Array:
        return np.minimum(a, b)

    def maximum(self, a: Array, b: Array | float) -> Array:
        return np.maximum(a, b)

    def where(self, condition: Array | bool, a: Array | float, b: Array | float) -> Array:
        return np.where(condition, a, b)

    def size(self, size: int) -> float:
        return float(size)

    def single(self, x: Array | float) -> Array:
        return np.asarray(x, np.float32)

    def double(self, x: Array | float) -> Array:
        return np.asarray(x, np.float64)


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis to resize from `size` elements to `out`."""

    size: int
    out: int


@dataclasses.dataclass(frozen=True, eq=False)
class Taps:
    """What each output element of an axis takes: `places` and `weights`, [out, taps] each.

    Weights are None where each output element is an input element.
    """

    places: Array
    weights: Array | None

    @classmethod
    def unchanged(cls, size: int) -> Taps:
        return cls(np.arange(size, dtype=np.int32)[:, None], None)

    @property
    def count(self) -> int:
        return int(self.places.shape[1])

    def reads(self) -> list[PlanTensor]:
        """Tensors that hold what is taken: none, since it is known."""
        return []

    def repeats(self, size: int) -> int:
        """How often each of `size` input elements comes in a row; 0 where that differs."""
        factor = self.places.shape[0] // size
        regular = np.repeat(np.arange(size), factor)
        return factor if np.array_equal(self.places.reshape(-1), regular) else 0

    def groups(self, size: int) -> tuple[int, int, int] | None:
        """How many output elements lie between one of `size` input elements and the next.

        After the first, after each of the following ones, and after the last. None where
        that is irregular, or output elements are something else than between two of input.
        """
        if self.weights is None or self.count != 2 or size < 2:
            return None
        left, right = self.places.T
        counts = np.bincount(left, minlength=size)
        regular = (np.diff(left) >= 0).all() and (counts[1:-1] == counts[1]).all()
        if not regular or not np.array_equal(right, np.minimum(left + 1, size - 1)):
            return None
        return int(counts[0]), int(counts[1]), int(counts[-1])


@dataclasses.dataclass(frozen=True, eq=False)
class OpenTaps:
    """As `Taps`, of an axis whose sizes only a run fixes, and tensors hold what it takes.

    `pattern` are the taps of a short axis, which those of longer ones repeat: where there are
    whole numbers of output elements for each element of input.
    """

    count: int
    places: PlanTensor
    weights: PlanTensor | None
    pattern: Taps | None

    def reads(self) -> list[PlanTensor]:
        return [self.places, *([] if self.weights is None else [self.weights])]

    def repeats(self, size: int) -> int:
        """As `Taps.repeats`, whatever the size."""
        return 0 if self.pattern is None else self.pattern.repeats(PATTERN)

    def groups(self, size: int) -> tuple[int, int, int] | None:
        """As `Taps.groups`, for 2 elements and more."""
        return None if self.pattern is None else self.pattern.groups(PATTERN)


PATTERN = 8
"""Input elements of an axis that shows how longer ones are sampled."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The attributes of Resize, or of Upsample, that say how an axis is sampled."""

    mode: str
    transform: str
    nearest_mode: str
    cubic_coefficient: float
    exclude_outside: bool
    antialias: bool

    @classmethod
    def of(cls, node: Node, opset: int) -> Sampling:
        old = is_old(node, opset)
        return cls(
            str(node.get("mode", "nearest")).replace("bilinear", "linear"),
            "asymmetric" if old else node.get("coordinate_transformation_mode", "half_pixel"),
            "by_scale" if old else node.get("nearest_mode", "round_prefer_floor"),
            float(node.get("cubic_coeff_a", -0.75)),
            bool(node.get("exclude_outside", 0)),
            bool(node.get("antialias", 0)),
        )

    @property
    def unknown(self) -> str | None:
        """What of the attributes no standard defines."""
        if self.mode not in MODES:
            return f"mode '{self.mode}'"
        if self.transform not in _TRANSFORMS:
            return f"coordinate_transformation_mode '{self.transform}'"
        if self.mode == "nearest" and self.nearest_mode not in (*NEAREST_MODES, "by_scale"):
            return f"nearest_mode '{self.nearest_mode}'"
        return None

    @property
    def crops(self) -> bool:
        """Whether the region of interest counts, and elements outside of the input are set."""
        return self.transform == "tf_crop_and_resize"

    @property
    def normalizes(self) -> bool:
        """Whether weights are to be divided by their sum."""
        return self.exclude_outside or self.antialias

    @property
    def reach(self) -> int:
        """How far from an element those lie that it is interpolated of, without antialiasing."""
        return {"nearest": 0, "linear": 1, "cubic": 2}[self.mode]

    def spreads(self, axis: Axis) -> bool:
        """Whether only a run tells how many input elements one output element may take."""
        return self.antialias and self.mode != "nearest" and is_open(axis.size, axis.out)

    def taps(self, axis: Axis) -> int:
        """Input elements that one output element may take."""
        if self.mode == "nearest":
            return 1
        if not self.antialias or axis.out >= axis.size:
            return 2 * self.reach
        return 2 * (math.ceil(self.reach * axis.size / max(axis.out, 1)) + 1)

    def coordinate(
        self,
        xp: Functions[Number],
        axis: Axis,
        i: Number,
        scale: Number,
        window: Sequence[Number],
    ) -> Number:
        """Where output element `i` lies in the input; `window` is the region of interest."""
        return _TRANSFORMS[self.transform](xp, i, scale, axis, window)

    def nearest(self, xp: Functions[Number], at: Number, scale: Number) -> Number:
        """The element nearest to a coordinate, perhaps outside of the input."""
        below = xp.floor(at)
        if self.nearest_mode == "floor":
            return below
        if self.nearest_mode == "ceil":
            return xp.ceil(at)
        if self.nearest_mode == "by_scale":  # before there was an attribute
            return xp.where(scale < 1.0, xp.ceil(at), below)
        past = at - below - 0.5
        up = past > -HALF_WAY if self.nearest_mode == "round_prefer_ceil" else past >= HALF_WAY
        return xp.where(up, below + 1.0, below)

    def inside(self, xp: Functions[Number], axis: Axis, at: Number) -> Number:
        """The coordinate to interpolate at.

        Past the edge lie copies of the edge's element, so linear interpolation there is at
        the edge itself, and does not round.
        """
        if self.mode != "linear" or self.normalizes:
            return at
        return xp.minimum(xp.maximum(at, 0.0), xp.size(axis.size - 1))

    def shrink(self, xp: Functions[Number], scale: Number) -> Number | float:
        """What distances are multiplied by, so that antialiasing takes more elements."""
        return xp.minimum(scale, 1.0) if self.antialias else 1.0

    def weight(
        self, xp: Functions[Number], axis: Axis, place: Number, at: Number, shrink: Number | float
    ) -> Number:
        """The weight of the element at `place` for an output element at `at`."""
        distance = xp.abs(place - at) * shrink
        if self.mode == "linear" and not self.normalizes:
            # The distance from the other tap, which rounds less than 1 minus the own one.
            weight = xp.abs(at - xp.where(place <= at, place + 1.0, place - 1.0))
            # Where both taps are the last element: half of each.
            weight = xp.where(at >= xp.size(axis.size - 1), 0.5, weight)
        elif self.mode == "linear":
            weight = xp.maximum(1.0 - distance, 0.0)
        else:
            weight = cubic(xp, distance, self.cubic_coefficient)
        if self.exclude_outside:
            weight = xp.where(place < 0.0, 0.0, weight)
            weight = xp.where(place > xp.size(axis.size - 1), 0.0, weight)
        return weight

    def pattern(self, axis: Axis) -> Taps | None:
        """How an axis is sampled that is a whole number of times as long, whatever its size."""
        factor = exact_quotient(axis.out, axis.size)
        if factor is None or self.transform in ("align_corners", "tf_crop_and_resize"):
            return None
        return self.table(Axis(PATTERN, PATTERN * factor), factor)

    def table(self, axis: Axis, scale: float) -> Taps:
        """The taps of a whole axis, where the region of interest doesn't count."""
        xp = _ArrayFunctions()
        factor, start, end = xp.single(scale), xp.single(0), xp.single(1)
        i: Array = np.arange(axis.out, dtype=np.float32)
        at: Array = np.broadcast_to(self.coordinate(xp, axis, i, factor, (start, end)), i.shape)
        if self.mode == "nearest":
            return Taps(_clamped(self.nearest(xp, at, factor)[:, None], axis), None)
        at = self.inside(xp, axis, at)[:, None]
        count = self.taps(axis)
        places: Array = np.floor(at) + np.arange(1 - count // 2, 1 + count // 2, dtype=np.float32)
        shrink = self.shrink(xp, factor)
        weights = self.weight(xp, axis, places, at, shrink)
        if self.normalizes:
            total = np.zeros((axis.out, 1), np.float32)
            for tap in range(count):  # in the order of a kernel
                total += weights[:, tap : tap + 1]
            weights = weights / total
        return Taps(_clamped(places, axis), np.asarray(weights, np.float32))


def is_old(node: Node, opset: int) -> bool:
    """Whether the node is Upsample, or Resize as it was in opset 10."""
    return node.op_type == "Upsample" or opset < 11


def fitted_scale(xp: Functions[Number], ratios: Sequence[Number], policy: str) -> Number:
    """The common scale of all axes that keeps the aspect ratio, from sizes wished for."""
    choose = xp.maximum if policy == "not_smaller" else xp.minimum
    found = ratios[0]
    for ratio in ratios[1:]:
        found = choose(found, ratio)
    return found


def _clamped(places: Array, axis: Axis) -> Array:
    return np.clip(places, 0, axis.size - 1).astype(np.int32)


def cubic(xp: Functions[Number], x: Number, a: float) -> Number:
    """The cubic convolution kernel at a distance (Keys 1981)."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1.0
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return xp.where(x <= 1.0, near, xp.where(x < 2.0, far, 0.0))


def _half_pixel(
    xp: Functions[Number], i: Number, scale: Number, axis: Axis, window: Sequence[Number]
) -> Number:
    return (i + 0.5) / scale - 0.5


def _half_pixel_symmetric(
    xp: Functions[Number], i: Number, scale: Number, axis: Axis, window: Sequence[Number]
) -> Number:
    """ONNX Runtime divides and adds in float64 here."""
    adjustment = xp.size(axis.out) / (scale * xp.size(axis.size))
    offset = (1.0 - adjustment) * (xp.size(axis.size) / 2)
    return xp.single(xp.double(offset) + (xp.double(i) + 0.5) / xp.double(scale) - 0.5)


def _pytorch_half_pixel(
    xp: Functions[Number], i: Number, scale: Number, axis: Axis, window: Sequence[Number]
) -> Number:
    if is_open(axis.out):
        middle = _half_pixel(xp, i, scale, axis, window)
        return xp.where(xp.size(axis.out) > 1.0, middle, 0.0)
    return _half_pixel(xp, i, scale, axis, window) if axis.out > 1 else i * 0.0


def _align_corners(
    xp: Functions[Number], i: Number, scale: Number, axis: Axis, window: Sequence[Number]
) -> Number:
    """The length is scale times size, which may have a fraction that the output hasn't."""
    if axis.out == 1:
        return i * 0.0
    size, out = xp.size(axis.size), xp.size(axis.out)
    length = scale * size
    whole = xp.abs(length - out) <= out * WHOLE_LENGTH
    length = xp.where(whole, xp.single(out), length)
    at = i * xp.size(axis.size - 1) / (length - 1.0)
    return xp.where(out > 1.0, at, 0.0) if is_open(axis.out) else at


def _asymmetric(
    xp: Functions[Number], i: Number, scale: Number, axis: Axis, window: Sequence[Number]
) -> Number:
    return i / scale


def _tf_half_pixel(
    xp: Functions[Number], i: Number, scale: Number, axis: Axis, window: Sequence[Number]
) -> Number:
    return (i + 0.5) / scale


def _crop_and_resize(
    xp: Functions[Number], i: Number, scale: Number, axis: Axis, window: Sequence[Number]
) -> Number:
    start, end = window
    last = xp.size(axis.size - 1)
    middle = (start + end) * 0.5 * last
    if axis.out == 1:
        return middle
    at = xp.single(start * last) + i * (end - start) * last / xp.size(axis.out - 1)
    return xp.where(xp.size(axis.out) > 1.0, at, middle) if is_open(axis.out) else at


class _Transform(Protocol):
    """Where an index of the result lies in the operand, along one axis."""

    def __call__(
        self,
        xp: Functions[Number],
        i: Number,
        scale: Number,
        axis: Axis,
        window: Sequence[Number],
        /,
    ) -> Number:
        """Where output element `i` lies in the input."""


_TRANSFORMS: dict[str, _Transform] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
    "tf_half_pixel_for_nn": _tf_half_pixel,
    "tf_crop_and_resize": _crop_and_resize,
}
