"""Quantize one ONNX file with neural-compressor's ONNX package; runs in its own environment.

Usage: neural_compressor_worker.py MODEL OUT SAMPLES INPUT METHOD. `SmoothQuant` scales channels
first. Weights per channel, QDQ.
"""

from __future__ import annotations

import sys

import numpy as np
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import QuantFormat, config, quantize


class Reader(data_reader.CalibrationDataReader):
    """The samples, one at a time."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self.feeds = feeds
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)

    def rewind(self) -> None:
        self.left = iter(self.feeds)


def main(source: str, target: str, samples: str, name: str, method: str) -> None:
    arrays = np.load(samples)
    chosen = config.StaticQuantConfig(
        calibration_data_reader=Reader([{name: array[None]} for array in arrays]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        calibration_sampling_size=len(arrays),
        extra_options={"SmoothQuant": method == "SmoothQuant"},
    )
    quantize(source, target, chosen)


main(*sys.argv[1:])
