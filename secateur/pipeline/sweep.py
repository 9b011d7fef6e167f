"""One model pruned to several budgets: a curve of what it is worth at each."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..backends.tvm.cache import Cache
from ..backends.tvm.targets import level_here, parse_target
from ..checking.checks import check_feeds
from ..checking.evaluation import evaluate
from ..checking.measure import measure_stage
from ..checking.running import open_model
from ..data.batches import batch_sizes
from ..data.datasets import Dataset, DataSource, load_dataset
from ..data.fixed_inputs import FixedInputs
from ..data.npz import DataError
from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.onnx_io import atomic_files
from ..ir.reference import Session
from ..passes.base import Context
from ..passes.linear.divergence import Divergence
from ..passes.prune import PruneChannels
from ..reporting.curve import Curve, Point, to_svg
from ..reporting.report import Stage, to_json
from .amounts import Amount
from .latency import LatencyBudget, Machine
from .pruning import prune_model
from .steps import StepResult, recover_step, rotate_step, run_step

KINDS = ("macs", "params", "bytes", "latency", "ratio")
"""What budgets of a sweep may count."""


def parse_budgets(text: str) -> list[float]:
    """The shares of `0.9,0.8,0.7`, the largest first, each once. Raises SecateurError."""
    shares = [Amount.parse(part, {}).share for part in text.split(",")]
    return sorted({share for share in shares if share is not None}, reverse=True)


def sweep_file(
    source: Path,
    output: Path,
    kind: str,
    budgets: Sequence[float],
    options: Mapping[str, Any],
    *,
    target: str | None = None,
    fixed: FixedInputs | None = None,
    data: DataSource | None = None,
    evaluation: DataSource | None = None,
    seed: int = 0,
) -> Curve:
    """Prune the model in `source` to each budget, and write the curve to `output`.

    `output` gets the points as JSON, and the file beside it that ends in .svg the drawing; both
    appear whole or not at all. A point whose budget can't be met says why. Other arguments are
    those of `prune_file`. Raises SecateurError where no budget can be met.
    """
    drawing = output.with_suffix(".svg")
    if drawing == output:
        raise SecateurError(f"{output}: the drawing goes there; give the data another ending")
    if kind == "latency" and target is None:
        raise SecateurError("a budget of latency needs a target to compile for (--target)")
    original = open_model(source, fixed)
    samples = None if data is None else load_dataset(data, original, labelled=False)
    judged = None if evaluation is None else load_dataset(evaluation, original, "class")
    options = {**options, "align": options.get("align") or 1}
    job = _Sweep(original, kind, options, samples, judged, target, seed)
    with atomic_files(output, drawing) as (file, image):
        curve = Curve(
            source.name,
            {"macs": "MACs", "params": "parameters", "ratio": "channels"}.get(kind, kind),
            [job.whole(), *(job.point(budget) for budget in budgets)],
            {**options, "seed": seed, "target": target},
        )
        failed = [point.error for point in curve.points if point.error]
        if len(failed) == len(budgets):
            raise SecateurError(failed[0])
        file.write_text(to_json(dataclasses.asdict(curve)), encoding="utf-8")
        image.write_text(to_svg(curve), encoding="utf-8")
    return curve


class _Sweep:
    """The runs of one sweep, and what they are compared with."""

    def __init__(
        self,
        original: Model,
        kind: str,
        options: Mapping[str, Any],
        samples: Dataset | None,
        judged: Dataset | None,
        target: str | None,
        seed: int,
    ) -> None:
        self.original, self.kind, self.options = original, kind, options
        self.judged = judged
        arrays = None if samples is None else samples.samples.arrays
        made_up = samples is not None and samples.synthetic
        self.context = Context(arrays, seed, synthetic=made_up)
        self.feeds = []
        with contextlib.suppress(DataError):  # open sizes: no outputs to compare, but sizes
            self.feeds = check_feeds(original, judged or samples, seed)
        self.stage = measure_stage("original", original, 0.0)
        self.reference = Session(original, threads=0)
        self.budget: LatencyBudget | None = None
        if kind == "latency" and target is not None:
            feed = self.feeds[0] if self.feeds else None
            machine = Machine(level_here(parse_target(target)), Cache.of_user(), feed=feed)
            pruning = {n: value for n, value in options.items() if n != "rotate"}
            pass_ = PruneChannels(**pruning, latency=1.0)
            self.budget = LatencyBudget(self._rotated(), pass_, machine)

    def _rotated(self) -> Model:
        """What budgets of latency are for: with streams in their principal axes where asked for."""
        if not self.options.get("rotate") or not self.context.calibration:
            return self.original
        rotated = self.original.clone()
        run_step(rotate_step(), rotated, self.context)
        return rotated

    def whole(self) -> Point:
        return self._point(1.0, self.original, self.stage, 1.0 if self.budget else None, 0.0)

    def point(self, budget: float) -> Point:
        """The model at one budget, recovered where there are samples."""
        try:
            model, result = self._prune(budget)
        except SecateurError as error:
            return Point(budget, error=str(error))
        statistics = result.runs[-1].statistics
        recovers = bool(self.context.calibration) and self.options.get("recovery", True)
        if recovers:
            run_step(recover_step(), model, result.context)
        held_back = None
        for trial in statistics["candidates"][:1]:
            held_back = min(trial["divergence"], trial["divergence_unrecovered"])
        latency = statistics.get("latency", {})
        after = latency.get("measured_after", latency.get("after"))
        before = latency.get("measured_before", latency.get("before"))
        stage = measure_stage("pruned", model, 0.0)
        share = after / before if before else None
        # Samples that recovery fitted say nothing of its worth; those it held back do.
        if self.judged is None and recovers:
            return self._point(budget, model, stage, share, held_back)
        return self._point(budget, model, stage, share, self._divergence(model))

    def _prune(self, budget: float) -> tuple[Model, StepResult]:
        if self.budget is not None:
            return self.budget.prune(self.context, Amount.parse(budget, {}))
        options = {**self.options, self.kind: budget}
        if self.kind == "ratio":
            options["ratio"] = 1.0 - budget
        return prune_model(self.original.clone(), options, self.context)

    def _point(
        self,
        budget: float,
        model: Model,
        stage: Stage,
        latency: float | None,
        divergence: float | None,
    ) -> Point:
        top1 = None
        if self.judged is not None and self.judged.labels is not None:
            runners = {"pruned": Session(model, threads=0)}
            top1 = evaluate(runners, self.judged, texts=["top1"]).metrics["pruned"]["top1"]
        whole = self.stage
        return Point(
            budget,
            _share(stage.macs, whole.macs),
            _share(stage.parameters, whole.parameters),
            latency,
            stage.file_bytes,
            top1,
            divergence,
        )

    def _divergence(self, model: Model) -> float | None:
        """Of the outputs on the evaluation samples, or on random inputs where there are none."""
        if not self.feeds:
            return None
        feeds = self.feeds
        if self.judged is not None:
            feeds = list(self.judged.feeds(sizes=batch_sizes(self.original, self.judged)))
        session, distance = Session(model, threads=0), Divergence()
        for feed in feeds:
            distance.add(self.reference.run(feed), session.run(feed))
        return distance.value


def _share(now: int | None, before: int | None) -> float | None:
    return None if now is None or not before else now / before
