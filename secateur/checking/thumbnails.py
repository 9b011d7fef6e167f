"""Samples as small pictures, as they reach the model."""

from __future__ import annotations

import base64
import io

import numpy as np

from ..data.datasets import Dataset
from ..data.npz import DataError
from ..data.pictures import pillow
from ..ir.tensor import Array
from .data_check import channel_axis

SHOWN = 24
"""Samples of a report."""

LARGEST = 128
"""Pixels along a side; larger ones leave rows and columns out."""


def thumbnails(data: Dataset | None) -> list[str]:
    """Some samples, spread over all of them, as data URIs of PNG files.

    Their values are spread over black to white, all channels alike. Empty where inputs are no
    pictures, and without Pillow.
    """
    if data is None or len(data.samples.arrays) != 1:
        return []
    (array,) = data.samples.arrays.values()
    axis = channel_axis((1, *array.shape[1:]))
    if axis is None or array.shape[axis] not in (1, 3) or array.dtype.kind not in "fiu":
        return []
    try:
        image = pillow()
    except DataError:
        return []
    indices = np.unique(np.linspace(0, len(array) - 1, SHOWN).astype(int))
    samples = [np.moveaxis(array[int(index)], axis - 1, -1) for index in indices]
    if not samples[0].size:
        return []
    low, high = min(float(s.min()) for s in samples), max(float(s.max()) for s in samples)
    found = []
    for sample in samples:
        content = io.BytesIO()
        image.fromarray(_pixels(sample, low, high)).save(content, "PNG")
        found.append("data:image/png;base64," + base64.b64encode(content.getvalue()).decode())
    return found


def _pixels(sample: Array, low: float, high: float) -> Array:
    step = max(1, -(-max(sample.shape[:2]) // LARGEST))
    shown = sample[::step, ::step].astype(np.float64)
    shown = shown[..., 0] if shown.shape[-1] == 1 else shown
    found: Array = np.rint(255 * (shown - low) / max(high - low, 1e-12)).astype(np.uint8)
    return found
