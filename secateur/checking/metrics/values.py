"""Metrics of numbers and pictures: regression errors, PSNR, SSIM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.datasets import Dataset
from ...ir.tensor import Array
from .base import Metric, metric


class _OfValues(Metric):
    """An output of floats, whose rows have the labels' elements."""

    def update(self, outputs: Mapping[str, Array], labels: Sequence[Any], rows: int) -> None:
        name, output = self.chosen(outputs)
        if output.dtype.kind not in "fiu" or output.shape[:1] != (rows,):
            raise self.fail(f"output '{name}' has no row of numbers for each of {rows} samples")
        for row, label in enumerate(labels):
            want, have = np.asarray(label, np.float64), output[row].astype(np.float64)
            if want.size != have.size:
                raise self.fail(
                    f"output '{name}' has {have.size:,} numbers for a sample, "
                    f"its label {want.size:,}"
                )
            self.add(want.reshape(have.shape), have)

    def add(self, want: Array, have: Array) -> None:
        raise NotImplementedError


class _Errors(_OfValues):
    """Sums from which regression errors follow."""

    def begin(self, data: Dataset) -> None:
        self._count = 0
        self._absolute = self._squared = self._sum = self._squares = 0.0

    def add(self, want: Array, have: Array) -> None:
        difference = have - want
        self._count += want.size
        self._absolute += float(np.abs(difference).sum())
        self._squared += float(np.square(difference).sum())
        self._sum += float(want.sum())
        self._squares += float(np.square(want).sum())


@metric("mae", "number", "lower", "")
class MeanAbsoluteError(_Errors):
    """The mean absolute error over all elements."""

    def result(self) -> float:
        return self._absolute / self._count


@metric("rmse", "number", "lower", "")
class RootMeanSquaredError(_Errors):
    """The root of the mean squared error over all elements."""

    def result(self) -> float:
        return float(np.sqrt(self._squared / self._count))


@metric("r2", "number", "higher", "")
class R2(_Errors):
    """The share of the labels' variance that is explained, over all elements together."""

    def result(self) -> float:
        variance = self._squares - self._sum**2 / self._count
        return 1 - self._squared / variance if variance > 0 else float("nan")


class _OfPictures(_OfValues):
    """The mean over samples of what pictures of values up to `range` come to."""

    range: float = 0.0
    """What white and black differ by; by default what preprocessing makes of 255, and of arrays 1
    where no label is above 1.5, else 255."""

    def begin(self, data: Dataset) -> None:
        self._found: list[float] = []
        if not self.range and data.pictures is not None:
            how = data.pictures.how
            self.range = 255 * abs(how.scale) / float(np.mean(np.abs(how.std)))
        elif not self.range:
            assert data.labels is not None
            highest = max(float(np.max(label)) for label in data.labels)
            self.range = 1.0 if highest <= 1.5 else 255.0

    def result(self) -> float:
        return float(np.mean(self._found))


@metric("psnr", "image", "higher", "dB")
class Psnr(_OfPictures):
    """The peak signal-to-noise ratio in dB; 100 where pictures are equal."""

    range: float = 0.0

    def add(self, want: Array, have: Array) -> None:
        error = float(np.mean(np.square(want - have)))
        self._found.append(min(100.0, 10 * np.log10(self.range**2 / error)) if error else 100.0)


@metric("ssim", "image", "higher", "")
class Ssim(_OfPictures):
    """Structural similarity (Wang et al., 2004): Gaussian windows of 11 pixels, deviation 1.5."""

    range: float = 0.0

    def add(self, want: Array, have: Array) -> None:
        planes = [_planes(array) for array in (want, have)]
        if min(planes[0].shape[1:]) < WINDOW:
            raise self.fail(f"pictures have at least {WINDOW} pixels along each side")
        pairs = zip(*planes, strict=True)
        self._found.append(float(np.mean([similarity(a, b, self.range) for a, b in pairs])))


WINDOW = 11


def similarity(a: Array, b: Array, range: float) -> float:
    """The mean of structural similarity over one channel [height, width]."""
    first, second = (0.01 * range) ** 2, (0.03 * range) ** 2
    means = _blurred(a), _blurred(b)
    variances = _blurred(a * a) - means[0] ** 2, _blurred(b * b) - means[1] ** 2
    covariance = _blurred(a * b) - means[0] * means[1]
    above = (2 * means[0] * means[1] + first) * (2 * covariance + second)
    below = (means[0] ** 2 + means[1] ** 2 + first) * (variances[0] + variances[1] + second)
    return float(np.mean(above / below))


def _planes(array: Array) -> Array:
    """Channels first, of [channels, h, w], [h, w, channels] or [h, w]."""
    array = array.reshape(array.shape[-3:]) if array.ndim > 3 else array
    if array.ndim == 2:
        return array[None]
    return np.moveaxis(array, -1, 0) if array.shape[-1] in (1, 3) else array


def _blurred(plane: Array) -> Array:
    """Weighted means of windows that lie within."""
    weights = np.exp(-0.5 * np.square((np.arange(WINDOW) - WINDOW // 2) / 1.5))
    weights /= weights.sum()
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(plane, WINDOW, axis)
        plane = windows @ weights
    return plane
