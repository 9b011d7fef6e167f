"""Equalization: channels scaled so that integers of one step suit them all.

A channel's factor moves from what writes it to what reads it (`regions`), so that the model
computes what it did. Factors are those that a model of the rounding noise likes best, between
one and what makes activations and weights alike; where nothing gains, nothing changes.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019;
Xiao et al., "SmoothQuant", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ...ir.axes.facts import Analysis
from ...ir.dependencies.analysis import analyze
from ...ir.graph import Node, Use, Value
from ...ir.model import Model
from ...ir.tensor import Array, Tensor
from ..samples import Samples
from .calibrate import sweep
from .magnitudes import Magnitudes, RangeModel
from .regions import ChannelAxis, Region, find_regions
from .rules import Constants, Operands, plan

Doubles = NDArray[np.float64]

MIXTURES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Exponents that are tried: 0 makes weights alike, 1 activations."""

PARTS = (0.25, 0.5, 1.0)
"""Exponents of all factors that are tried: of channels that are nearly alike a part may do."""

LARGEST_FACTOR = 1e6
"""Ratio of a factor to the mean of all, up to which channels are evened out."""

LEAST_GAIN = 0.2
"""Share of the noise that factors have to save for a region to be changed."""

ROUNDS = 3
"""Times that regions are gone through where weights have one scale, which ties them together."""

STEPS_OF_WEIGHTS = 127.0


@dataclass(frozen=True)
class Equalized:
    """A region that was changed: its noise, as shares of the signals, before and after."""

    name: str
    channels: int
    before: float
    after: float


@dataclass
class _Channels:
    """Of a region's activations, for each channel: the magnitudes of each value that is quantized,
    and the sum of squares of what consumers read."""

    values: dict[Value, Magnitudes]
    squares: Doubles
    count: float = 0.0

    @property
    def largest(self) -> Doubles:
        """Over all values."""
        return np.asarray(np.maximum.reduce([one.largest for one in self.values.values()]))

    def add(self, value: Value, indices: NDArray[np.int64], flat: Array, *, read: bool) -> None:
        """Take in a value's elements [positions, rest]."""
        self.values[value].add(indices, flat)
        if read:
            belongs = indices >= 0
            squares = np.einsum("ij,ij->i", flat, flat, dtype=np.float64)
            np.add.at(self.squares, indices[belongs], squares[belongs])
            self.count += flat.shape[1] * belongs.sum() / self.squares.size

    def scale(self, factors: Doubles) -> None:
        """Follow activations that were divided by factors."""
        for magnitudes in self.values.values():
            magnitudes.scale(factors)
        self.squares = self.squares / factors**2


def equalize(
    model: Model,
    samples: Samples,
    *,
    per_channel: bool,
    ranges: RangeModel | None = None,
    analysis: Analysis | None = None,
) -> list[Equalized]:
    """Scale channels of `model` in place; returns the regions that gained by it.

    Shapes must have been inferred. `per_channel` says whether output channels of weights
    will have scales of their own, `ranges` how those of activations will be chosen.
    """
    ranges = ranges or RangeModel()
    analysis = analysis or analyze(model, prune_normalized=True)
    regions = find_regions(analysis)
    seen = _measure(model, analysis, regions, samples)
    constants = Constants(model)
    found: dict[int, Equalized] = {}
    for _ in range(1 if per_channel else ROUNDS):
        for number, region in enumerate(regions):
            channels = seen.get(number)
            if channels is None or not channels.largest.any():
                continue
            noise = _RoundingNoise(
                model, constants, region, channels, ranges, per_channel=per_channel
            )
            factors = noise.best()
            if factors is None:
                continue
            before, after = noise(np.ones(region.size)), noise(factors)
            apply_factors(model, region, factors)
            channels.scale(factors)
            if number in found:
                before = found[number].before
            found[number] = Equalized(region.values[0].name, region.size, before, after)
    return list(found.values())


def _measure(
    model: Model, analysis: Analysis, regions: Sequence[Region], samples: Samples
) -> dict[int, _Channels]:
    """Magnitudes of each region's channels where consumers read them, in one sweep."""
    wanted: dict[Value, list[tuple[int, NDArray[np.int64], int]]] = {}
    found: dict[int, _Channels] = {}
    for number, region in enumerate(regions):
        for value in {**region.reads, **region.summands}:
            for axis, parts in enumerate(analysis.axes.get(value) or ()):
                indices = region.positions(parts)
                if (indices >= 0).any() and value.dtype == TensorProto.FLOAT:
                    wanted.setdefault(value, []).append((number, indices, axis))
                    own = found.setdefault(number, _Channels({}, np.zeros(region.size)))
                    own.values[value] = Magnitudes(region.size)

    def visit(value: Value, array: Array, samples: range) -> None:
        for number, indices, axis in wanted[value]:
            flat = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
            if flat.size:
                found[number].add(value, indices, flat, read=value in regions[number].reads)

    sweep(model, list(wanted), samples, visit)
    return {
        number: one
        for number, one in found.items()
        if one.count and np.isfinite(one.largest).all() and np.isfinite(one.squares).all()
    }


class _RoundingNoise:
    """Noise of rounding that factors of a region's channels lead to, at what reads them.

    Each output of a consumer counts by its signal's power, so that all count alike.
    """

    def __init__(
        self,
        model: Model,
        constants: Constants,
        region: Region,
        channels: _Channels,
        ranges: RangeModel,
        *,
        per_channel: bool,
    ) -> None:
        self._ranges = ranges
        self._per_channel = per_channel
        self._largest = channels.largest
        self._values = list(channels.values.values())
        self._power = channels.squares / channels.count
        alive = (self._largest > 0) & (self._power > 0)
        self._alive = alive
        self._readers: list[tuple[Doubles, Doubles, float]] = []
        """Largest magnitude and sum of squares of weights [rows, channels], and their number."""
        self._free: list[Doubles] = []
        """Of weights whose scales follow the channels: sums of squares [channels]."""
        self._writers: list[tuple[Doubles, Doubles, int]] = []
        for place in region.consumers:
            weights, operands = _weights(model, constants, place.use)
            if operands is None or operands.weight is None:
                continue
            indices = region.positions(place.parts)
            by_channel = per_channel and operands.weight.axis == place.axis
            rows = operands.weight.axis if per_channel and not by_channel else None
            self._add_reader(weights, place.axis, indices, rows, by_channel=by_channel)
        for place in region.producers if not per_channel else ():
            weights, operands = _weights(model, constants, place.use)
            if (
                operands is None
                or operands.weight is None
                or operands.weight.position != place.use.position
            ):
                continue
            indices = region.positions(place.parts)
            matrix = np.moveaxis(weights, place.axis, 0)
            largest, squares = _by_channel(matrix.reshape(len(matrix), -1), indices, alive.size)
            count = matrix.size // max(len(matrix), 1)
            self._writers.append((largest[0], squares[0], count))

    def _add_reader(
        self,
        weights: Doubles,
        along: int,
        indices: NDArray[np.int64],
        rows: int | None,
        *,
        by_channel: bool,
    ) -> None:
        moved = np.moveaxis(weights, along, 0)
        if by_channel or rows is None:
            matrix = moved.reshape(len(moved), 1, -1)
        else:
            place = rows if rows < along else rows - 1
            moved = np.moveaxis(moved, place + 1, 1)
            matrix = moved.reshape(*moved.shape[:2], -1)
        largest, squares = _by_channel(
            matrix.reshape(len(matrix), -1), indices, self._alive.size, matrix.shape[1]
        )
        if by_channel:
            self._free.append(squares[0])
        else:
            count = np.count_nonzero(indices >= 0) * matrix.shape[2] / self._alive.size
            self._readers.append((largest, squares, count))

    def best(self) -> Doubles | None:
        """The factors with the least noise; None where ones are about as good."""
        ones = np.ones(self._alive.size)
        if not self._alive.any() or not (self._readers or self._free):
            return None
        first = self(ones)
        tried = [self._normal(factors) for factors in self._candidates()]
        noises = [self(factors) for factors in tried]
        least = int(np.argmin(noises))
        if not noises[least] < first * (1 - LEAST_GAIN):
            return None
        return tried[least]

    def _candidates(self) -> list[Doubles]:
        activations = self._largest
        weights = np.zeros_like(activations)
        for largest, _, _ in self._readers:
            rows = (largest * np.where(self._alive, activations, 0.0)).max(axis=1, keepdims=True)
            weights = np.maximum(weights, (largest / np.where(rows > 0, rows, 1.0)).max(axis=0))
        sources = [activations]
        for largest, _, _ in self._writers:
            sources.append(np.maximum(largest / max(largest.max(), 1e-300), 1e-300))
        if self._writers:
            relative = activations / activations.max()
            sources.append(np.maximum.reduce([relative, *sources[1:]]))
        if not weights.any():
            return sources
        weights = np.where(weights > 0, weights, weights[weights > 0].min())
        sources.append(np.sqrt(self._power))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            whole = [source**m * weights ** (m - 1) for source in sources for m in MIXTURES]
            return [factors**part for factors in whole for part in PARTS]

    def _normal(self, factors: Doubles) -> Doubles:
        """With a geometric mean of one, within limits; one for channels that are always zero."""
        use = self._alive & np.isfinite(factors) & (factors > 0)
        logarithms = np.log(np.where(use, factors, 1.0))
        mean = logarithms[use].mean() if use.any() else 0.0
        limit = math.log(LARGEST_FACTOR)
        found = np.exp(np.clip(logarithms - mean, -limit, limit))
        return np.asarray(np.where(use, found, 1.0))

    def __call__(self, factors: Doubles) -> float:
        """Geometric mean over what consumers put out of noise by signal, both as powers."""
        made = sum(one.noise(factors, self._alive, self._ranges) for one in self._values)
        total, count = 0.0, 0
        for largest, squares, number in self._readers:
            signal = squares @ self._power
            rows = signal > 0
            scale = (largest * factors).max(axis=1) / STEPS_OF_WEIGHTS
            if not self._per_channel:
                scale = np.full_like(scale, scale.max())
            rounded = scale**2 * number * (self._power / factors**2).sum() / 12
            noise = squares @ made + rounded + self._written(squares, factors)
            total += float(np.log(noise[rows] / signal[rows]).sum())
            count += int(rows.sum())
        for squares in self._free:
            rows = self._alive & (squares > 0)
            noise = squares * made + self._written(np.diag(squares), factors)
            total += float(np.log(noise[rows] / (squares * self._power)[rows]).sum())
            count += int(rows.sum())
        return math.exp(total / max(count, 1))

    def _written(self, squares: Doubles, factors: Doubles) -> Doubles:
        """Noise of the producers' weights, where one scale holds for all of their channels."""
        found = np.zeros(len(squares))
        for largest, sums, count in self._writers:
            scale = (largest / factors).max() / STEPS_OF_WEIGHTS
            noise = scale**2 * factors**2 * count / 12
            relative = np.divide(noise, sums, out=np.zeros_like(noise), where=sums > 0)
            found += squares @ (relative * self._power)
        return found


def _by_channel(
    flat: Doubles, indices: NDArray[np.int64], size: int, rows: int = 1
) -> tuple[Doubles, Doubles]:
    """Largest magnitude and sum of squares [rows, channels] of `flat` [positions, rows * rest]."""
    split = flat.reshape(len(flat), rows, -1)
    largest, squares = np.zeros((size, rows)), np.zeros((size, rows))
    belongs = indices >= 0
    np.maximum.at(largest, indices[belongs], np.abs(split).max(axis=2, initial=0)[belongs])
    np.add.at(squares, indices[belongs], np.square(split).sum(axis=2)[belongs])
    return largest.T, squares.T


def _weights(model: Model, constants: Constants, use: Use) -> tuple[Doubles, Operands | None]:
    """A constant, and what quantization does with the node that reads it."""
    assert isinstance(use.user, Node)
    tensor = model.constant(use.user.input(use.position))
    assert tensor is not None
    answer = plan(use.user, constants)
    operands = answer if isinstance(answer, Operands) else None
    return np.asarray(tensor.numpy(), np.float64), operands


def apply_factors(model: Model, region: Region, factors: Doubles) -> None:
    """Divide producers' constants by the channels' factors, and multiply consumers' by them."""
    for places, power in ((region.producers, -1), (region.consumers, 1)):
        for place in places:
            _scale_constant(model, place, region, factors**power)


def _scale_constant(model: Model, place: ChannelAxis, region: Region, factors: Doubles) -> None:
    """Multiply a constant's elements by the factors of the channels that they belong to."""
    use = place.use
    assert isinstance(use.user, Node)
    value = use.user.input(use.position)
    tensor = model.constant(value)
    assert value is not None
    assert tensor is not None
    array = np.asarray(tensor.numpy(), np.float64)
    indices = region.positions(place.parts)
    shape = [1] * array.ndim
    shape[place.axis] = -1
    array = array * np.where(indices >= 0, factors[indices], 1.0).reshape(shape)
    new = Tensor.from_array(array.astype(tensor.numpy().dtype), tensor.dtype)
    name = model.fresh_name(f"{value.name}_equalized")
    use.user.set_input(use.position, model.graph.add_initializer(name, new))
    if value.uses:
        return
    if value.producer is not None:
        value.producer.detach_inputs()
        model.graph.remove_nodes({value.producer})
    elif model.graph.initializers.get(value.name) is value:
        del model.graph.initializers[value.name]
