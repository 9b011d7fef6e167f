"""One change to one file: ONNX in, ONNX out, checked before it appears."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..backends.tvm.cache import Cache
from ..backends.tvm.targets import level_here, parse_target
from ..checking.checks import check_equivalent, check_feeds, check_file
from ..checking.drop import judge_of
from ..checking.evaluation import evaluate_report
from ..checking.measure import describe_model, environment, measure_stage
from ..checking.metrics.catalogue import kind_of_labels
from ..checking.runners import Runner
from ..checking.running import open_model
from ..data.datasets import UNLABELLED, DataSource, load_dataset
from ..data.fixed_inputs import FixedInputs
from ..data.npz import DataError
from ..data.random_inputs import random_feeds
from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.onnx_io import atomic_files, save
from ..ir.reference import Session
from ..ir.tensor import Array
from ..passes.base import Context
from ..passes.dump import Dump
from ..passes.quantize import Quantize
from ..reporting.report import Check, Report
from .latency import Machine
from .pruning import check_amounts, prune_model
from .settings import UNEVALUATED
from .steps import Step, StepResult, quantize_step, recover_step, run_step, step_warnings


class Transformation:
    """A file being made of another one. `original` is the model as the user gave it."""

    def __init__(self, original: Model, before: Model, options: dict[str, Any]) -> None:
        self.original = original
        self.report = Report(
            model=describe_model(before),
            options=options,
            environment=environment(),
            stages=[measure_stage("original", before, 0.0)],
        )
        self.feeds: list[dict[str, Array]] = []
        self._file: Path | None = None

    @contextlib.contextmanager
    def writing(self, output: Path) -> Iterator[None]:
        """What `save` writes within this block appears as `output` when it ends, or never."""
        start = time.perf_counter()
        with atomic_files(output, output.with_name(output.name + ".data")) as (file, _):
            self._file = file
            yield
        self.report.seconds = time.perf_counter() - start

    def save(self, model: Model, *, full: bool = True) -> None:
        """Write the result and check it (see `check_file`)."""
        assert self._file is not None
        save(model, self._file)
        self.report.checks.append(check_file(self._file, self.feeds, self.original, full=full))


Change = Callable[[Model, Context, list[dict[str, Array]]], Iterator[tuple[Model, StepResult]]]
"""Makes one model of another, step by step, given inputs to try it on."""


def transform_file(
    source: Path,
    output: Path,
    name: str,
    change: Change,
    *,
    fixed: FixedInputs | None = None,
    data: DataSource | None = None,
    evaluation: DataSource | None = None,
    metrics: Sequence[str] = (),
    seed: int = 0,
    dump: Path | None = None,
) -> Report:
    """Change the model in `source`, check the result, and write it to `output`.

    `name` is what reports call the change. `data` are the samples to calibrate with and to
    compare on; by default the latter are random. On `evaluation` samples, else on `data`, the
    result's fidelity to the original is measured, and with labels the `metrics`. `dump` is a
    folder for the model's text after each pass.
    `output` appears whole or not at all, and may be `source`. Raises SecateurError.
    """
    kind = kind_of_labels(metrics)
    if metrics and evaluation is None:
        raise SecateurError(UNEVALUATED)
    original = open_model(source, fixed)
    model = original.clone()
    samples = None if data is None else load_dataset(data, model, labelled=False)
    labelled = None if evaluation is None else load_dataset(evaluation, model, kind)
    job = Transformation(original, model, {"step": name, "seed": seed})
    report = job.report

    for loaded in (samples, labelled):
        report.notes += [] if loaded is None else loaded.notes
    report.notes = list(dict.fromkeys(report.notes))
    runners: dict[str, Runner] = {}

    with job.writing(output):
        try:
            job.feeds = check_feeds(model, samples, seed)
        except DataError as error:
            report.notes.append(f"nothing was compared: {error}")
        if labelled is not None and labelled.labels is None:
            report.notes.append(UNLABELLED)
        _run_later(runners, "original", model, report)
        arrays = None if samples is None else samples.samples.arrays
        made_up = samples is not None and samples.synthetic
        judge = judge_of(labelled, metrics)
        writer = None if dump is None else Dump(dump)
        context = Context(arrays, seed, synthetic=made_up, judge=judge, dump=writer)
        for changed, result in change(model, context, job.feeds):
            model = changed
            report.passes += result.runs
            report.warnings += step_warnings(result)
            report.stages.append(measure_stage(result.step.result, model, result.seconds))
            _run_later(runners, result.step.result, model, report)
            if result.oracle is not None:
                check = _check_result(result.step, result.oracle, model, job.feeds)
                report.checks.append(check)
        evaluate_report(
            report,
            original,
            runners,
            labelled,
            samples,
            lambda: random_feeds(original, seed),
            metrics,
        )
        job.save(model)
    return report


def _run_later(runners: dict[str, Runner], name: str, model: Model, report: Report) -> None:
    """Keep a session of a stage, if there is one of the original."""
    if runners or name == "original":
        try:
            runners[name] = Session(model, threads=0)
        except SecateurError as error:
            report.notes.append(f"{name}: nothing was measured: {error}")


def prune_file(
    source: Path,
    output: Path,
    options: Mapping[str, Any],
    *,
    target: str | None = None,
    fixed: FixedInputs | None = None,
    data: DataSource | None = None,
    evaluation: DataSource | None = None,
    metrics: Sequence[str] = (),
    seed: int = 0,
    dump: Path | None = None,
) -> Report:
    """Prune, by the options of `prune_model`; with samples, recover what that costs.

    `target` names the machine on which latency counts.
    """
    options = {**options, "align": options["align"] or 1}
    check_amounts(options)
    goal = options.get("latency") is not None
    if goal and target is None:
        raise SecateurError("a budget of latency needs a target to compile for (--target)")
    machine = None if target is None else level_here(parse_target(target))

    def change(
        model: Model, context: Context, feeds: list[dict[str, Array]]
    ) -> Iterator[tuple[Model, StepResult]]:
        where = None
        if machine is not None:
            where = Machine(machine, Cache.of_user(), feed=feeds[0] if feeds else None)
        model, result = prune_model(model, options, context, machine=where)
        yield model, result
        if context.calibration and options.get("recovery", True):
            yield model, run_step(recover_step(), model, result.context)

    return transform_file(
        source,
        output,
        "prune",
        change,
        fixed=fixed,
        data=data,
        evaluation=evaluation,
        metrics=metrics,
        seed=seed,
        dump=dump,
    )


def quantize_file(
    source: Path,
    output: Path,
    options: Mapping[str, Any] | None = None,
    *,
    fixed: FixedInputs | None = None,
    data: DataSource | None = None,
    evaluation: DataSource | None = None,
    metrics: Sequence[str] = (),
    seed: int = 0,
    dump: Path | None = None,
) -> Report:
    """Quantize, calibrated with samples where there are any, by the options of `Quantize`."""
    pass_ = Quantize(**(options or {}))
    pass_.check()
    step = quantize_step(pass_)

    def change(
        model: Model, context: Context, feeds: list[dict[str, Array]]
    ) -> Iterator[tuple[Model, StepResult]]:
        yield model, run_step(step, model, context)

    return transform_file(
        source,
        output,
        step.name,
        change,
        fixed=fixed,
        data=data,
        evaluation=evaluation,
        metrics=metrics,
        seed=seed,
        dump=dump,
    )


def _check_result(step: Step, oracle: Model, model: Model, feeds: list[dict[str, Array]]) -> Check:
    name = f"{step.result} model against {step.oracle}"
    try:
        Session(oracle, optimize=False)
    except SecateurError as error:
        return Check(name, False, f"not compared: {error}")
    return check_equivalent(name, oracle, model, feeds)
