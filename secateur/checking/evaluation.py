"""Every stage of a run on the same samples: metrics by labels, and fidelity to the original.

All models see a sample before the next one is read, so that samples are read once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..data.datasets import Dataset
from ..data.npz import DataError
from ..ir.advance import advanced
from ..ir.model import Model
from ..ir.tensor import Array
from ..passes.fidelity import FidelityTotals
from ..passes.samples import Samples
from ..reporting.report import Fidelity, MetricInfo, Report
from .data_check import constant_inputs, other_ranges, suspicions
from .fidelity import fidelity_warnings
from .metrics.base import Metric
from .metrics.catalogue import make_metrics
from .runners import Runner

UNLABELLED_SAMPLES = 256
"""Samples that count where there are no labels."""

RANDOM = "random inputs"


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What runners came to: metrics and fidelity by the name of each."""

    metrics: dict[str, dict[str, float]]
    fidelity: dict[str, Fidelity]
    infos: list[MetricInfo]
    samples: int | None
    """Behind the metrics; None without any."""


def evaluate(
    runners: Mapping[str, Runner],
    data: Dataset | None,
    *,
    texts: Sequence[str] = (),
    feeds: Sequence[Mapping[str, Array]] = (),
    what: str = RANDOM,
    batch: int = 1,
) -> Evaluated:
    """Run all of `runners`, the first of which is the original, on samples or else on `feeds`.

    With labels, the metrics of `texts`, or the usual one, count over all samples; else up to
    `UNLABELLED_SAMPLES` are looked at. `what` calls the samples in reports. `batch` is how many
    samples a run has where models leave that open. Raises SecateurError.
    """
    made: dict[str, list[Metric]] = {}
    if data is not None:
        made = {name: make_metrics(texts, data) for name in runners}
    measured = any(made.values())
    limit = None if measured else UNLABELLED_SAMPLES
    reference = next(iter(runners))
    totals = {name: FidelityTotals() for name in runners if name != reference}
    start = 0
    runs = _runs(data, feeds, batch, limit)
    for feed, rows, valid in advanced(runs, _count(data, feeds, batch, limit)):
        labels: Any = ()
        if measured and data is not None and data.labels is not None:
            labels = data.labels[start : start + valid]
        want: dict[str, Array] = {}
        for name, runner in runners.items():
            have = runner.run(feed)
            want = want or have
            for metric in made.get(name, ()):
                metric.update(have, labels, rows)
            if name in totals:
                totals[name].add(want, have, rows, valid)
        start += valid
    infos = [MetricInfo(m.name, m.better, m.unit) for m in next(iter(made.values()), [])]
    metrics = {name: {m.name: m.result() for m in own} for name, own in made.items()}
    fidelity = {}
    if start:
        fidelity = {n: Fidelity(t.samples, what, tuple(t.outputs())) for n, t in totals.items()}
    return Evaluated(metrics, fidelity, infos, start if measured else None)


def _runs(
    data: Dataset | None, feeds: Sequence[Mapping[str, Array]], batch: int, limit: int | None
) -> Iterable[tuple[Mapping[str, Array], int, int]]:
    """Inputs of runs, how many samples each has, and how many of these count."""
    if data is None:
        return [(feed, _rows(feed), _rows(feed)) for feed in feeds]
    samples: Samples = data.samples
    runs = ((feed, samples.rows(feed), valid) for feed, valid in samples.feeds(batch))
    size = samples.batch or batch
    return runs if limit is None else itertools.islice(runs, max(1, limit // size))


def _count(
    data: Dataset | None, feeds: Sequence[Mapping[str, Array]], batch: int, limit: int | None
) -> int:
    """How many runs there are."""
    if data is None:
        return len(feeds)
    size = data.samples.batch or batch
    count = math.ceil(len(data.samples) / size)
    return count if limit is None else min(count, max(1, limit // size))


def _rows(feed: Mapping[str, Array]) -> int:
    sizes = {array.shape[0] if array.ndim else 1 for array in feed.values()}
    return sizes.pop() if len(sizes) == 1 else 1


def evaluate_report(
    report: Report,
    model: Model,
    runners: Mapping[str, Runner],
    evaluation: Dataset | None,
    calibration: Dataset | None,
    random: Callable[[], Sequence[Mapping[str, Array]]],
    texts: Sequence[str] = (),
) -> None:
    """Fill in metrics and fidelity of all stages of a report, and warn of what is suspicious.

    `model` is the original, that all samples are for.
    Fidelity is measured on evaluation samples, else on those for calibration, else, and where
    these are the same everywhere, on `random` inputs; not at all where there are none.
    """
    warnings = []
    data, what = evaluation, "evaluation samples"
    for own, name in ((evaluation, "evaluation"), (calibration, "calibration")):
        if own is not None and not own.synthetic:
            warnings += [f"{name}: {text}" for text in suspicions(model, own)]
    if evaluation is not None and calibration is not None and not calibration.synthetic:
        warnings += other_ranges(calibration, evaluation)
    if data is None and calibration is not None and not constant_inputs(calibration):
        data, what = calibration, "calibration samples"
        if calibration.synthetic:
            what = "made-up samples"
    feeds: Sequence[Mapping[str, Array]] = ()
    if data is None:
        with contextlib.suppress(DataError):  # which the report has a note of
            feeds = random()
    if not runners or (data is None and not feeds):
        report.warnings += warnings
        return
    found = evaluate(runners, data, texts=texts, feeds=feeds, what=RANDOM if data is None else what)
    report.metrics, report.evaluation_samples = found.infos, found.samples
    for stage in report.stages:
        stage.metrics = found.metrics.get(stage.name, {})
        stage.top1 = stage.metrics.get("top1")
        stage.fidelity = found.fidelity.get(stage.name)
        if stage.fidelity is not None:
            warnings += fidelity_warnings(stage.name, stage.fidelity)
    report.warnings += warnings
