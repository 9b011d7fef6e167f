"""Measurements on anything that runs a model: accuracy, latency.

ONNX Runtime's sessions (`ir/reference.py`) and compiled artifacts alike are runners.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..ir.errors import SecateurError
from ..ir.tensor import Array
from ..passes.samples import Samples
from ..reporting.report import Latency


class Runner(Protocol):
    """Computes outputs by name from inputs by name."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy: the share, 0..1, of `samples` whose label scores highest."""

    top1: float
    samples: int


def evaluate(
    runner: Runner,
    samples: Samples,
    labels: Sequence[Any] | Array,
    *,
    output: str | None = None,
    batch: int = 1,
) -> Accuracy:
    """Classify all samples and compare with `labels` [samples] of class indices.

    `output` names the scores, by default the first output; all its axes but the first
    are taken as one axis of classes. `batch` is the number of samples in one run where
    the model's batch size is free. Raises SecateurError where the scores do not have
    one row for each sample, or fewer classes than labels.
    """
    labels = np.asarray(labels).reshape(-1)
    if len(labels) != len(samples):
        raise SecateurError(f"evaluation: {len(labels)} labels for {len(samples)} samples")
    lowest, highest = int(labels.min()), int(labels.max())
    hits = start = 0
    for feeds, valid in samples.feeds(batch):
        scores = _scores(runner.run(feeds), output, samples.rows(feeds))
        wanted = labels[start : start + valid]
        if not 0 <= lowest <= highest < scores.shape[1]:
            raise SecateurError(
                f"evaluation: labels reach from {lowest} to {highest}, "
                f"the model scores {scores.shape[1]} classes"
            )
        hits += int(np.count_nonzero(scores[:valid].argmax(axis=1) == wanted))
        start += valid
    return Accuracy(hits / len(samples), len(samples))


def _scores(outputs: Mapping[str, Array], name: str | None, rows: int) -> Array:
    name = name if name is not None else next(iter(outputs))
    if name not in outputs:
        raise SecateurError(f"evaluation: the model has no output '{name}'")
    scores = np.asarray(outputs[name])
    if scores.ndim < 2 or len(scores) != rows or scores.dtype.kind not in "fiu":
        raise SecateurError(
            f"evaluation: output '{name}', {scores.dtype} of shape {list(scores.shape)}, "
            f"does not score classes for {rows} samples"
        )
    return scores.reshape(rows, -1)


def measure_latency(
    runners: Mapping[str, Runner],
    feeds: Mapping[str, Array],
    *,
    repeats: int = 50,
    warmup: int = 3,
) -> dict[str, Latency]:
    """Time all runners on the same inputs, in turns, so that they share the machine's noise."""
    if repeats < 1:
        raise SecateurError(f"latency needs at least one repeat, not {repeats}")
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(warmup):
        for runner in runners.values():
            runner.run(feeds)
    for _ in range(repeats):
        for name, runner in runners.items():
            start = time.perf_counter_ns()
            runner.run(feeds)
            times[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: Latency(statistics.median(t), min(t), max(t)) for name, t in times.items()}
