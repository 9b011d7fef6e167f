"""Models and artifacts side by side: how far they agree, and how long they take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.datasets import DataSource
from ..data.fixed_inputs import FixedInputs
from ..ir.errors import SecateurError
from ..ir.reference import Session
from ..reporting.report import Latency
from .agreement import Agreement, compare
from .measure import latencies
from .runners import Runner
from .running import feeds_for, open_model, open_runner


def benchmark_files(
    paths: Sequence[Path],
    *,
    fixed: FixedInputs | None = None,
    data: DataSource | None = None,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, Latency]:
    """Latencies by path, run in turns on inputs of the first, which is an ONNX model.

    ONNX Runtime computes as it does by itself: products of bytes may saturate where the CPU has
    none that don't.
    """
    first = open_model(paths[0], fixed)
    feed = next(iter(feeds_for(first, data, seed)))
    runners: dict[str, Runner] = {str(paths[0]): Session(first, threads=threads, fast=True)}
    outputs = () if fixed is None else fixed.outputs
    runners.update(
        {str(path): open_runner(path, threads, outputs, fast=True) for path in paths[1:]}
    )
    return latencies(runners, feed)


def compare_files(
    reference: Path,
    other: Path,
    *,
    fixed: FixedInputs | None = None,
    data: DataSource | None = None,
    seed: int = 0,
) -> Agreement:
    """How far `other`, a model or an artifact, agrees with the ONNX model `reference`."""
    model = open_model(reference, fixed)
    outputs = () if fixed is None else fixed.outputs
    runner = open_runner(other, outputs=outputs)
    return compare(Session(model), runner, feeds_for(model, data, seed))


def demand_agreement(agreement: Agreement, reference: Path, other: Path, tolerance: float) -> None:
    """Raise SecateurError where two files differ by more than a relative tolerance."""
    if agreement.flips:
        share = 1 - agreement.identical_discrete
        raise SecateurError(
            f"{other}: differs from {reference} in {100 * share:.2g} % of the elements "
            f"of outputs that are no floats"
        )
    if not agreement.within(tolerance):
        raise SecateurError(
            f"{other}: differs from {reference} by {agreement.relative_difference:.3g} "
            f"(relative), more than {tolerance:g}"
        )
