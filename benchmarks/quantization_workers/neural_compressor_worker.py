"""Quantize one ONNX file with neural-compressor's ONNX package; runs in its own environment.

Usage: neural_compressor_worker.py MODEL OUT SAMPLES INPUT METHOD. `SmoothQuant` scales channels
first. Weights per channel, QDQ.
"""

from __future__ import annotations

import sys

from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import QuantFormat, config, quantize
from samples import Samples


class Reader(Samples, data_reader.CalibrationDataReader):
    """The samples, of the type that the package asks for."""


def main(source: str, target: str, samples: str, name: str, method: str) -> None:
    reader = Reader(samples, name)
    chosen = config.StaticQuantConfig(
        calibration_data_reader=reader,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        calibration_sampling_size=len(reader),
        extra_options={"SmoothQuant": method == "SmoothQuant"},
    )
    quantize(source, target, chosen)


main(*sys.argv[1:])
