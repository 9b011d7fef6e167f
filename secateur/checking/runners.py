"""What runs a model, and how long it takes.

ONNX Runtime's sessions (`ir/reference.py`) and compiled artifacts alike are runners.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Protocol

from onnx import TensorProto

from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.reference import narrowed
from ..ir.tensor import Array
from ..reporting.report import Latency


class Runner(Protocol):
    """Computes outputs by name from inputs by name."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...


class Narrowing:
    """A runner some of whose inputs are float16 where others' are float32."""

    def __init__(self, runner: Runner, model: Model) -> None:
        self._runner = runner
        inputs = model.graph.inputs
        self._halves = {v.name for v in inputs if v.dtype == TensorProto.FLOAT16}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._runner.run(narrowed(feeds, self._halves))


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
