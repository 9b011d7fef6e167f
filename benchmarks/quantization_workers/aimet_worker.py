"""Quantize one ONNX file with AIMET; runs in AIMET's own environment.

Usage: aimet_worker.py MODEL OUT SAMPLES INPUT METHOD. `equalised` scales channels across layers
first; `AdaRound` learns how weights are rounded, in 2,000 steps a layer, a fifth of what AIMET
takes without being asked. Biases become int32.
"""

from __future__ import annotations

import sys

import aimet_onnx
import numpy as np
import onnx
from aimet_onnx.cross_layer_equalization import equalize_model

STEPS = 2000


def main(source: str, target: str, samples: str, name: str, method: str) -> None:
    inputs = [{name: array[None]} for array in np.load(samples)]
    model = onnx.load(source)
    if method == "equalised":
        equalize_model(model)
    sim = aimet_onnx.QuantizationSimModel(model, param_type="int8", activation_type="int8")
    if method == "AdaRound":
        aimet_onnx.apply_adaround(sim, inputs, num_iterations=STEPS)
    sim.compute_encodings(inputs)
    onnx.save(sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), target)


main(*sys.argv[1:])
