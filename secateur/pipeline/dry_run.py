"""What `optimize` would do, from the analysis alone: nothing runs, and nothing is written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ..backends.tvm.targets import can_run_here, parse_target
from ..checking.measure import measure_stage
from ..checking.metrics.catalogue import kind_of_labels
from ..checking.running import open_model
from ..data.datasets import DataSource, load_dataset
from ..data.embedding import as_pixels, embed
from ..ir.errors import SecateurError, UnsupportedError
from ..ir.model import Model
from ..passes.prune import inspect_groups
from ..passes.quantize import SCHEMES
from ..passes.simplify import simplify_pipeline
from ..passes.sizes import infer_sizes
from ..reporting.report import bytes_text, count_text, short
from .settings import Settings


def plan_run(
    source: Path,
    settings: Settings,
    calibration: DataSource | None = None,
    evaluation: DataSource | None = None,
) -> list[str]:
    """Lines for people. Raises SecateurError for what the run would refuse at once."""
    target = parse_target(settings.target)
    model = open_model(source, settings.fixed_inputs())
    if settings.embed is not None:
        how = embed(model, settings.embed)
        calibration, evaluation = as_pixels(calibration, how), as_pixels(evaluation, how)
    stage = measure_stage("original", model, 0.0)
    lines = [
        f"{source}: {count_text(stage.nodes)} nodes, {count_text(stage.parameters)} parameters, "
        f"{count_text(stage.macs)} MACs, {bytes_text(stage.file_bytes)}."
    ]
    for what, data in (("calibration", calibration), ("evaluation", evaluation)):
        if data is not None:
            found = load_dataset(data, model, kind_of_labels(settings.metrics))
            labels = "with labels" if found.labels is not None else "without labels"
            lines.append(f"{what}: {len(found.samples):,} samples, {labels}.")
    before = len(model.graph.nodes)
    for step in simplify_pipeline():
        step.run(model)
    infer_sizes(model)
    lines.append(f"simplify: {before:,} to {len(model.graph.nodes):,} nodes.")
    if settings.goals():
        lines += _pruning(model, settings)
    if settings.quantize is not None:
        if calibration is None and SCHEMES[settings.quantize].needs_samples:
            raise SecateurError("quantizing to integers needs calibration data")
        lines += _quantization(model, settings)
    return [*lines, *_compilation(model, settings.target), _running(can_run_here(target))]


def _pruning(model: Model, settings: Settings) -> list[str]:
    ignore = (*settings.ignore, *settings.ignore_prune)
    groups = inspect_groups(model, ignore=ignore, prune_normalized=settings.normalized)
    free = [group for group in groups if group.lock is None]
    goals = ", ".join(f"{name} {value}" for name, value in settings.goals().items())
    lines = [
        f"prune ({goals}): {len(free):,} groups of channels can lose some, with "
        f"{sum(group.size for group in free):,} channels; {len(groups) - len(free):,} are locked."
    ]
    reasons = Counter(group.lock.reason for group in groups if group.lock is not None)
    return lines + [f"  locked, {count:,}: {reason}" for reason, count in reasons.most_common(5)]


def _quantization(model: Model, settings: Settings) -> list[str]:
    integer, notes = settings.quantizer().expected(model)
    counted = ", ".join(f"{count} {name}" for name, count in integer.most_common())
    lines = [
        f"quantize ({settings.quantize}) where calibration allows it: {counted or 'no operator'}."
    ]
    reasons = Counter(note.reason for note in notes)
    return lines + [f"  float, {count:,}: {reason}" for reason, count in reasons.most_common(5)]


def _compilation(model: Model, target: str) -> list[str]:
    from ..backends.tvm.compile import unsupported_nodes  # imports TVM

    try:
        left = unsupported_nodes(model, parse_target(target))
    except UnsupportedError as error:
        left = [str(error)]
    if not left:
        return [f"compile for {target}: every node can be."]
    some = "; ".join(short(text, 120) for text in left[:5])
    return [f"compile for {target}: {len(left):,} node(s) can't be: {some} (--fallback)."]


def _running(here: bool) -> str:
    if here:
        return "The artifact would run here, be compared and measured."
    return "This machine can't run the target's code: the artifact would not be run."
