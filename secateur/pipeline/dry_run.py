"""What `optimize` would do, from the analysis alone: nothing runs, and nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..backends.tvm.targets import can_run_here, parse_target
from ..checking.measure import measure_stage
from ..checking.metrics.catalogue import kind_of_labels
from ..checking.running import open_model
from ..data.datasets import DataSource, load_dataset
from ..data.embedding import as_pixels, embed, embedded_note
from ..ir.errors import SecateurError, UnsupportedError
from ..ir.model import Model
from ..passes.prune import PruneChannels, inspect_groups
from ..passes.prune.importance import find_criterion
from ..passes.quantize import SCHEMES
from ..passes.simplify import simplify_pipeline
from ..passes.sizes import infer_sizes
from ..reporting.report import bytes_text, count_text, short
from .amounts import SIZES, Amount
from .output import check_writable
from .precision import target_for
from .settings import ARTIFACT, FILES, UNEVALUATED, Settings


def plan_run(
    source: Path,
    settings: Settings,
    calibration: DataSource | None = None,
    evaluation: DataSource | None = None,
    written: Sequence[Path] = (),
) -> list[str]:
    """Lines for people. `written` are the output folder and further files that would be there.

    Raises SecateurError for what the run would refuse.
    """
    target = target_for(settings.target, settings.precision)
    kind = kind_of_labels(settings.metrics)
    if settings.metrics and evaluation is None:
        raise SecateurError(UNEVALUATED)
    model = open_model(source, settings.fixed_inputs())
    note: list[str] = []
    if settings.embed is not None:
        how = embed(model, settings.embed)
        note = [f"{embedded_note(model, how)}."]
        calibration, evaluation = as_pixels(calibration, how), as_pixels(evaluation, how)
    stage = measure_stage("original", model, 0.0)
    lines = [
        f"{source}: {count_text(stage.nodes)} nodes, {count_text(stage.parameters)} parameters, "
        f"{count_text(stage.macs)} MACs, {bytes_text(stage.file_bytes)}.",
        *note,
    ]
    for what, data in (("calibration", calibration), ("evaluation", evaluation)):
        if data is not None:
            labelled = what == "evaluation"
            found = load_dataset(data, model, kind, labelled=labelled)
            labels = ", with labels" if found.labels is not None else ", without labels"
            lines.append(f"{what}: {len(found.samples):,} samples{labels if labelled else ''}.")
    before = len(model.graph.nodes)
    for step in simplify_pipeline():
        step.run(model)
    infer_sizes(model)
    lines.append(f"simplify: {before:,} to {len(model.graph.nodes):,} nodes.")
    recovers = calibration is not None and settings.recovery
    if settings.goals():
        lines += _pruning(model, settings, recovers=recovers)
    if settings.quantize is not None:
        if calibration is None and SCHEMES[settings.quantize].needs_samples:
            raise SecateurError("quantizing to integers needs calibration data")
        lines += _quantization(model, settings)
    lines += _compilation(model, settings)
    return [*lines, _running(can_run_here(target), settings), *_written(settings, written)]


def _pruning(model: Model, settings: Settings, *, recovers: bool) -> list[str]:
    ignore = (*settings.ignore, *settings.ignore_prune)
    normalized = settings.normalized or recovers
    groups = inspect_groups(model, ignore=ignore, prune_normalized=normalized)
    free = [group for group in groups if group.lock is None]
    goals = ", ".join(f"{name} {value}" for name, value in settings.goals().items())
    lines = [
        f"prune ({goals}): {len(free):,} groups of channels can lose some, with "
        f"{sum(group.size for group in free):,} channels; {len(groups) - len(free):,} are locked."
    ]
    reasons = Counter(group.lock.reason for group in groups if group.lock is not None)
    lines += [f"  locked, {count:,}: {reason}" for reason, count in reasons.most_common(5)]
    lines.append(f"  {_widths(model, settings, normalized=normalized)}")
    if settings.rotate and recovers:
        lines.append("  streams are turned into their principal axes first.")
    if settings.search:
        lines.append(f"  better widths are looked for, {settings.search:g} minutes.")
    if recovers:
        how = "means and deviations only" if settings.rematch else "layer by layer, then together"
        lines.append(f"recover: layers make up for what goes ({how}).")
    else:
        why = "asked not to be" if not settings.recovery else "no calibration samples"
        lines.append(f"recover: nothing is ({why}).")
    return lines


def _widths(model: Model, settings: Settings, *, normalized: bool) -> str:
    """What a cut by weights alone leaves. Raises SecateurError where the goal can't be reached."""
    options: dict[str, Any] = {**settings.pruning(), "normalized": normalized}
    del options["rotate"]
    if options.get("latency") is not None:
        return "widths follow from the compiler's cost model, and from measurements where it runs."
    if options.get("bytes") is not None and Amount.parse(options["bytes"], SIZES).share is None:
        return "how much that is of the weights, the size of the final file says."
    if options.get("bytes") is not None:
        options["bytes"] = Amount.parse(options["bytes"], SIZES).share
    if options["importance"] is not None and find_criterion(options["importance"]).needs_samples:
        options["importance"] = None
    cut = PruneChannels(**{**options, "recovery": False, "rematch": False, "search": 0.0})
    found = cut.run(model.clone()).statistics
    aligned = f", in multiples of {found['align']}" if found["align"] > 1 else ""
    return (
        f"by weights alone: {count_text(found['macs_after'])} of "
        f"{count_text(found['macs_before'])} MACs and {count_text(found['parameters_after'])} of "
        f"{count_text(found['parameters_before'])} parameters stay{aligned}."
    )


def _quantization(model: Model, settings: Settings) -> list[str]:
    quantizer = settings.quantizer()
    integer, notes = quantizer.expected(model)
    counted = ", ".join(f"{count} {name}" for name, count in integer.most_common())
    lines = [
        f"quantize ({settings.quantize}, accuracy {quantizer.accuracy}) where calibration allows "
        f"it: {counted or 'no operator'}."
    ]
    reasons = Counter(note.reason for note in notes)
    lines += [f"  float, {count:,}: {reason}" for reason, count in reasons.most_common(5)]
    if quantizer.max_drop is not None:
        lines.append(f"  as few operators stay float as losing {quantizer.max_drop:.2%} takes.")
    return lines


def _compilation(model: Model, settings: Settings) -> list[str]:
    from ..backends.tvm.compile import unsupported_nodes  # imports TVM
    from ..backends.tvm.graph.open_sizes import read_admitted

    library, target = settings.library, parse_target(settings.target)
    how = ["as a C library"] if library is not None else []
    how += ["for few bytes"] if settings.small else []
    how += [] if settings.copies is None else [f"copies of up to {settings.copies:g} times weights"]
    how += [f"products in {settings.precision}"] if settings.precision else []
    how += ["for declared sizes"] if settings.declared_sizes else []
    how += [f"for sizes {', '.join(settings.sizes)}"] if settings.sizes else []
    how += [f"tuned for {settings.tune:g} minutes"] if settings.tune else []
    head = ", ".join([f"compile for {settings.target}", *how])
    try:
        left = unsupported_nodes(
            model,
            target,
            declared_sizes=settings.declared_sizes,
            sizes=read_admitted(settings.sizes),
        )
    except UnsupportedError as error:
        left = [str(error)]
    if not left:
        return [f"{head}: every node can be."]
    some = "; ".join(short(text, 120) for text in left[:5])
    if settings.fallback:
        return [f"{head}: {len(left):,} node(s) are left to ONNX Runtime: {some}."]
    hint = "" if library is not None else " (--fallback)"
    return [f"{head}: {len(left):,} node(s) can't be: {some}{hint}."]


def _running(here: bool, settings: Settings) -> str:
    if here:
        threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
        return f"The artifact would run here, on {threads}, be compared and measured."
    return "This machine can't run the target's code: the artifact would not be run."


def _written(settings: Settings, written: Sequence[Path]) -> list[str]:
    """The files that would be there. Raises SecateurError where they can't be."""
    if not written:
        return []
    folder, *others = written
    files = FILES if settings.library is None else (*FILES, *settings.library.replaced)
    check_writable(folder, files)
    names = [name for name in FILES if name != "model.onnx.data"]
    if settings.library is not None:
        library = settings.library.for_target(parse_target(settings.target))
        names = [name for name in (*names, *library.files) if name != ARTIFACT]
    also = f"; {', '.join(map(str, others))}" if others else ""
    return [f"{folder} would hold {', '.join(dict.fromkeys(names))}{also}."]
