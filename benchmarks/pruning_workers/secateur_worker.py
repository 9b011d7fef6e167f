"""Prune one ONNX file with secateur and compare it with the masked original.

Usage: secateur_worker.py MODEL OUT RATIO. Prints a JSON object on the last line:
`seconds`, `error` (largest difference over the largest output) and `locked` (reasons).
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import load, save
from secateur.models.zoo import random_inputs
from secateur.passes.prune import PruneChannels
from secateur.passes.prune.masking import mask
from secateur.passes.reference import Session


def main(source: str, target: str, ratio: str) -> None:
    model = load(source)
    start = time.perf_counter()
    result = PruneChannels(ratio=float(ratio), scope="uniform").run(model)
    seconds = time.perf_counter() - start
    save(model, target)

    original = load(source)
    infer_shapes(original)
    masked = mask(original, result.artifacts["selection"])
    feeds = random_inputs(original)
    expected, found = Session(masked).run(feeds), Session(load(target)).run(feeds)
    error = max(_difference(found[name], expected[name]) for name in expected)
    print(json.dumps({"seconds": seconds, "error": error, "locked": [*map(str, result.notes)]}))


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))


main(*sys.argv[1:])
