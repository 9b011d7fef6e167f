"""What a model or artifact lost against the original, for continuous integration to judge."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.batches import batch_sizes
from ..data.datasets import Dataset, DataSource, load_dataset
from ..data.fixed_inputs import FixedInputs
from ..data.random_inputs import random_feeds
from ..ir.display import printable
from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.reference import Session
from ..passes.losses import lost
from ..passes.quantize.mixed import agreement
from ..reporting.report import Check, Fidelity, MetricInfo
from .evaluation import RANDOM, evaluate
from .metrics.catalogue import kind_of_labels
from .runners import Runner
from .running import open_model, open_runner


def parse_drop(text: str) -> float:
    """The share of `1%` or `0.01`. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?(%?)", text.strip())
    if match is None:
        raise ValueError(f"'{text}' is no share, as 1% or 0.01 are")
    share = float(match[1]) / (100 if match[2] else 1)
    if share > 1:
        raise ValueError(f"'{text}' is more than all")
    return share


def check_drop(
    path: Path,
    original: Path,
    most: float,
    *,
    fixed: FixedInputs | None = None,
    data: DataSource | None = None,
    metrics: Sequence[str] = (),
    threads: int = 1,
    seed: int = 0,
) -> list[Check]:
    """Compare what `path`, a model, artifact or C library, computes with the ONNX model `original`.

    With labels each metric counts: those that are shares by their difference, others by the
    difference's share of the original's value. Without, on samples or else on random inputs, each
    output: by the share of samples whose highest score is another; of outputs without scores, by
    the share of elements that differ, for floats by the noise's share of the signal's power.
    Raises SecateurError where one lost more than the share `most`, or was not to be measured.
    """
    model = open_model(original, fixed)
    dataset = None if data is None else load_dataset(data, model, kind_of_labels(metrics))
    feeds = random_feeds(model, seed) if dataset is None else ()
    runners: dict[str, Runner] = {"original": Session(model), "result": open_runner(path, threads)}
    size = 1 if dataset is None else batch_sizes(model, dataset)[0]
    found = evaluate(runners, dataset, texts=metrics, feeds=feeds, what="samples", batch=size)
    if found.infos:
        checks = _of_metrics(found.metrics, found.infos, found.samples or 0, most)
    else:
        if metrics:
            raise SecateurError("metrics need samples with labels")
        what = RANDOM if dataset is None else "samples"
        checks = _of_outputs(found.fidelity["result"], what, most)
    failed = [check for check in checks if not check.passed]
    if failed:
        lines = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        raise SecateurError(f"{path}: lost more than {100 * most:g} % against {original}: {lines}")
    return checks


def judge_of(
    data: Dataset | None, metrics: Sequence[str] = ()
) -> Callable[[Model], Callable[[Model], float]] | None:
    """Makes of a model what tells the share that another loses against it on samples.

    With labels of the metric that loses most, else of agreement; None without samples.
    """
    if data is None:
        return None

    def of(original: Model) -> Callable[[Model], float]:
        if data.labels is None:
            return agreement(original, data.samples)
        reference = Session(original, threads=0)
        size = batch_sizes(original, data)[0]

        def judge(model: Model) -> float:
            runners = {"original": reference, "result": Session(model, threads=0)}
            found = evaluate(runners, data, texts=metrics, batch=size)
            before, after = found.metrics["original"], found.metrics["result"]
            losses = [metric_loss(i, before[i.name], after[i.name]) for i in found.infos]
            return float(np.max([0.0, *losses]))  # NaN where one is

        return judge

    return of


def metric_loss(info: MetricInfo, before: float, after: float) -> float:
    """What a metric lost: of one that is a share the difference, of another the difference's
    share of the value before."""
    change = before - after if info.better == "higher" else after - before
    if info.unit == "share" or before == after:
        return change
    return change / abs(before) if before else float("inf") * (1 if change > 0 else -1)


def _of_metrics(
    metrics: Mapping[str, Mapping[str, float]],
    infos: Sequence[MetricInfo],
    samples: int,
    most: float,
) -> list[Check]:
    checks = []
    for info in infos:
        before, after = metrics["original"][info.name], metrics["result"][info.name]
        share = metric_loss(info, before, after)
        detail = f"{before:.4g} to {after:.4g} on {samples:,} samples, {_lost(share)}"
        checks.append(Check(f"metric {info.name}", share <= most, detail))  # NaN doesn't pass
    return checks


def _of_outputs(fidelity: Fidelity, what: str, most: float) -> list[Check]:
    checks = []
    for output in fidelity.outputs:
        share, measure = lost(output)
        detail = f"{_lost(share)}, by {measure}, in {fidelity.samples:,} {what}"
        checks.append(Check(f"output '{printable(output.name)}'", share <= most, detail))
    return checks


def _lost(share: float) -> str:
    return f"{100 * share:.3g} % lost" if share > 0 else "nothing lost"
