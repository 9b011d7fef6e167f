"""Prune one ONNX file with secateur and compare it with the masked original.

Usage: secateur_worker.py MODEL OUT RATIO. Prints a JSON object on the last line:
`seconds`, `error` (largest difference from the masked original, over the largest
output), `effect` (the same between the masked and the plain original; 0 would mean that
the mask, and so the comparison, is empty) and `locked` (reasons).
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import load, save
from secateur.ir.reference import Session
from secateur.ir.tensor import Array
from secateur.models.zoo import random_inputs
from secateur.passes.prune import PruneChannels
from secateur.passes.prune.masking import mask


def main(source: str, target: str, ratio: str) -> None:
    model = load(source)
    start = time.perf_counter()
    result = PruneChannels(ratio=float(ratio), scope="uniform").run(model)
    seconds = time.perf_counter() - start
    save(model, target)

    original = load(source)
    infer_shapes(original)
    feeds = random_inputs(original)
    masked = Session(mask(original, result.artifacts["selection"])).run(feeds)
    report = {
        "seconds": seconds,
        "error": _difference(Session(load(target)).run(feeds), masked),
        "effect": _difference(Session(original).run(feeds), masked),
        "locked": [str(note) for note in result.notes],
    }
    print(json.dumps(report))


def _difference(found: dict[str, Array], expected: dict[str, Array]) -> float:
    return max(_relative(found[name], array) for name, array in expected.items())


def _relative(found: Array, expected: Array) -> float:
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))


main(*sys.argv[1:])
