"""Quantize one ONNX file with NNCF; runs in NNCF's own environment.

Usage: nncf_worker.py MODEL OUT SAMPLES INPUT METHOD. `accurate` corrects biases layer by layer
instead of in one go.
"""

from __future__ import annotations

import sys

import nncf
import numpy as np
import onnx


def main(source: str, target: str, samples: str, name: str, method: str) -> None:
    arrays = np.load(samples)
    dataset = nncf.Dataset([{name: array[None]} for array in arrays])
    options = {"fast_bias_correction": method == "default", "subset_size": len(arrays)}
    onnx.save(nncf.quantize(onnx.load(source), dataset, **options), target)


main(*sys.argv[1:])
