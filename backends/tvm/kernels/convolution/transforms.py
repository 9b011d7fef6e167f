"""The transformations of F(4x4, 3x3): in floats, and in integers, whose results are exact.

In integers each row of the weights' transformation is multiplied by what makes it whole numbers,
at most 49 times as large as a weight, and the results are so many times too large: 9 times a power
of two. 32-bit sums are right modulo 2^32, whatever they pass on the way, and so is their quotient
by 9, a product by its inverse; the power of two is shifted out of what must then fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from tvm import tirx

from .....ir.tensor import Array
from ...targets import Target
from ...tensorir.builder import (
    KernelBuilder,
    cast,
    constant,
    join,
    load,
    reinterpret,
    splat,
)
from ...tensorir.types import BufferVar, Computed, Expr, Index
from ..matrix.dot import bind, copies, in_order, madd
from ..matrix.reduction import weight_range

INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)


@dataclasses.dataclass(frozen=True)
class Floats:
    """What is added and multiplied of floats."""

    source: str = "float32"
    """The type of the convolution's input."""
    taps: str = "float32"
    """The type of weights that a run transforms."""

    element: ClassVar = "float32"
    """The type of transformed inputs and weights."""
    accumulator: ClassVar = "float32"
    together: ClassVar = 1
    """Input channels that one multiplication takes."""
    scales: ClassVar[tuple[float, float, float, float]] = (1 / 4, -1 / 6, 1 / 24, 1)
    """Of the rows of the weights' transformation: the first, the two that begin with ones, the two
    that have squares of two, the last."""
    output: ClassVar[tuple[tuple[int, ...], ...]] = (
        (1, 1, 1, 1, 1, 0),
        (0, 1, -1, 2, -2, 0),
        (0, 1, 1, 4, 4, 0),
        (0, 1, -1, 8, -8, 1),
    )

    def pixel(self, buffer: BufferVar, *index: Index, lanes: int) -> Computed:
        """A pixel's channels, as they are transformed."""
        return load(buffer, *index, lanes=lanes)

    def factors(
        self, k: KernelBuilder, buffer: BufferVar, *index: Expr, count: int, lanes: int
    ) -> list[Computed]:
        """Transformed numbers, `together` for each of so many steps, for all lanes."""
        *outer, first = index
        return [splat(load(buffer, *outer, first + i), lanes) for i in range(count)]

    def step(self, total: Computed, factor: Computed, weights: Computed, lanes: int) -> Computed:
        return total + factor * weights

    def finish(self, k: KernelBuilder, total: Computed, i: int, j: int, lanes: int) -> Computed:
        """The result at a place of the tile, of its transformed products."""
        return total

    @property
    def weights(self) -> Array:
        """The matrix of the weights' transformation."""
        first, ones, squares, last = self.scales
        rows = [
            [first, 0, 0],
            [ones, ones, ones],
            [ones, -ones, ones],
            [squares, 2 * squares, 4 * squares],
            [squares, -2 * squares, 4 * squares],
            [0, 0, last],
        ]
        return np.array(rows, np.float64)

    def transform(self, weights: Array) -> Array:
        """[O, I, 3, 3] to [36, O, I]."""
        matrix = self.weights
        result = np.einsum("ik,ockl,jl->ijoc", matrix, weights.astype(np.float64), matrix)
        return result.reshape(36, *weights.shape[:2]).astype(self.element)


FLOATS = Floats()


@dataclasses.dataclass(frozen=True)
class NeonFloats(Floats):
    """The same for AArch64, which multiplies by one element of any register."""

    def factors(
        self, k: KernelBuilder, buffer: BufferVar, *index: Expr, count: int, lanes: int
    ) -> list[Computed]:
        read = bind(k, load(buffer, *index, lanes=count), self.element, count)
        return [copies(read, count, i, lanes) for i in range(count)]


_NINTH = pow(9, -1, 2**32) - 2**32 * (pow(9, -1, 2**32) >= 2**31)
"""What 32-bit numbers are multiplied by to divide multiples of 9 by it."""

_SHIFTS = (3, 2, 1, 1)
"""The powers of two that rows and columns of results are too large by."""

_MOST = 2 ** (31 - 2 * max(_SHIFTS))
"""Sums below this are exact."""


@dataclasses.dataclass(frozen=True)
class Integers(Floats):
    """Bytes, transformed to 16 bits, of which two channels are multiplied by one instruction."""

    element = "int16"
    accumulator = "int32"
    together = 2
    scales = (6, -1, 1, 6)
    output = (
        (1, 4, 4, 1, 1, 0),
        (0, 2, -2, 1, -1, 0),
        (0, 1, 1, 1, 1, 0),
        (0, 1, -1, 2, -2, 1),
    )

    def pixel(self, buffer: BufferVar, *index: Index, lanes: int) -> Computed:
        return cast(load(buffer, *index, lanes=lanes), "int16", lanes)

    def factors(
        self, k: KernelBuilder, buffer: BufferVar, *index: Expr, count: int, lanes: int
    ) -> list[Computed]:
        *outer, first = index
        pairs = [load(buffer, *outer, first + 2 * i, lanes=2) for i in range(count)]
        words = (splat(reinterpret(pair, "int32", 1), lanes) for pair in pairs)
        return [reinterpret(word, "int16", 2 * lanes) for word in words]

    def step(self, total: Computed, factor: Computed, weights: Computed, lanes: int) -> Computed:
        return madd(lanes, total, factor, weights)

    def finish(self, k: KernelBuilder, total: Computed, i: int, j: int, lanes: int) -> Computed:
        ninth = total * constant(_NINTH, "int32", lanes)
        return ninth >> constant(_SHIFTS[i] + _SHIFTS[j], "int32", lanes)


@dataclasses.dataclass(frozen=True)
class NeonIntegers(Integers):
    """The same for ARM, which adds up products of 16 bits one channel at a time (smlal)."""

    together = 1

    def factors(
        self, k: KernelBuilder, buffer: BufferVar, *index: Expr, count: int, lanes: int
    ) -> list[Computed]:
        read = bind(k, load(buffer, *index, lanes=count), "int16", count)
        return [copies(read, count, i, _HALF) for i in range(count)]

    def step(self, total: Computed, factor: Computed, weights: Computed, lanes: int) -> Computed:
        products = []
        for start in range(0, lanes, _HALF):
            own = tirx.Shuffle([weights], list(range(start, start + _HALF)))
            products.append(cast(own, "int32", _HALF) * cast(factor, "int32", _HALF))
        return in_order(total + join(products, _HALF), lanes)


_HALF = 4
"""Numbers of 16 bits in half of ARM's registers, whose products fill one."""


def transforms(source: str, target: Target, weights: Array | None = None) -> Floats:
    """Those of a type of input, and of the weights where a run transforms them."""
    neon = "neon" in target.features
    if source == "float32":
        return NeonFloats() if neon and target.machine == "aarch64" else FLOATS
    low, high = (-128, 127) if weights is None else weight_range(weights)
    by = NeonIntegers if neon else Integers
    return by(source, "int8" if low >= -128 and high <= 127 else "int16")


def multiplies(source: str, target: Target) -> bool:
    """Whether the target has the instructions, and none that multiply bytes faster."""
    if source == "float32":
        return True
    if source not in ("int8", "uint8"):
        return False
    if target.machine == "x86_64":
        return "vnni" not in target.features and target.lanes == target.block
    return "neon" in target.features and "dotprod" not in target.features


def is_exact(source: str, weights: Array) -> bool:
    """Whether results of integers fit, whatever the input holds; floats are as they are."""
    if source == "float32":
        return True
    sizes = np.abs(weights.reshape(len(weights), -1).astype(np.int64))
    sums = int(sizes.sum(1).max(initial=0)) * (128 if source == "int8" else 255)
    return sums < _MOST and 49 * int(sizes.max(initial=0)) < 2**15


def combine(
    coefficients: Sequence[int], values: Sequence[Computed], dtype: str, lanes: int
) -> Computed:
    """The linear combination, without multiplications by one."""
    total: Computed | None = None
    for c, value in zip(coefficients, values, strict=True):
        if c == 0:
            continue
        if total is None:
            total = value if c == 1 else value * constant(c, dtype, lanes)
        elif c == 1:
            total = total + value
        elif c == -1:
            total = total - value
        else:
            total = total + value * constant(c, dtype, lanes)
    assert total is not None  # no row of the transformations is zero
    return total


def transform_weights(
    k: KernelBuilder,
    by: Floats,
    taps: Sequence[Computed],
    made: BufferVar,
    first: Expr,
    step: int,
    lanes: int,
) -> None:
    """Vectors of 3 x 3 taps to 36, each of which lies `step` after the one before."""
    half = k.local(18 * lanes, by.element, "half")
    start, ones, squares, end = by.scales

    def times(value: Computed, factor: float) -> Computed:
        return value if factor == 1 else value * constant(factor, by.element, lanes)

    def six(values: Sequence[Computed]) -> list[Computed]:
        """Three values by the matrix of weights, with what its rows share computed once."""
        a, b, c = values
        ends = bind(k, times(a + c, ones), by.element, lanes)
        others = bind(k, times(a, squares) + times(c, 4 * squares), by.element, lanes)
        return [
            times(a, start),
            ends + times(b, ones),
            ends + times(b, -ones),
            others + times(b, 2 * squares),
            others + times(b, -2 * squares),
            times(c, end),
        ]

    taps = [bind(k, cast(tap, by.element, lanes), by.element, lanes) for tap in taps]
    for j in range(3):
        for i, value in enumerate(six([taps[3 * r + j] for r in range(3)])):
            k.store(half, value, (i * 3 + j) * lanes, lanes=lanes)
    for i in range(6):
        row = [load(half, (i * 3 + j) * lanes, lanes=lanes) for j in range(3)]
        for j, value in enumerate(six(row)):
            k.store(made, value, first + (i * 6 + j) * step, lanes=lanes)
