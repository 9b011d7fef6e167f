"""Prune one ONNX file with onnxsim; runs in onnxsim's own environment.

Usage: onnxsim_worker.py MODEL OUT RATIO. Prints {"seconds": ...} on the last line.
Simplified first, since its pruning skips what still has BatchNormalization; then
channels and attention heads, both offered by its Python API.
"""

from __future__ import annotations

import json
import sys
import time

import onnx
import onnxsim


def main(source: str, target: str, ratio: str) -> None:
    model = onnx.load(source)
    start = time.perf_counter()
    model, _ = onnxsim.simplify(model)
    model = onnxsim.apply_structured_pruning(model, sparsity=float(ratio))
    model = onnxsim.apply_attention_head_pruning(model, sparsity=float(ratio))
    seconds = time.perf_counter() - start
    onnx.save(model, target)
    print(json.dumps({"seconds": seconds}))


main(*sys.argv[1:])
