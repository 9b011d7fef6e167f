"""Samples as calibrators read them that follow ONNX Runtime's reader; needs nothing but NumPy."""

from __future__ import annotations

import numpy as np


class Samples:
    """The samples of a file of one array, one at a time, by the input's name."""

    def __init__(self, path: str, name: str) -> None:
        self.feeds: list[dict[str, np.ndarray]] = [{name: array[None]} for array in np.load(path)]
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)

    def rewind(self) -> None:
        self.left = iter(self.feeds)

    reset_iter = rewind

    def __len__(self) -> int:
        return len(self.feeds)
