"""The steps that change a model, each with the oracle that its result must equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..backends.tvm.graph.expand import expand_quantized
from ..ir.model import Model
from ..passes.base import Context, Note, Pass, PassResult
from ..passes.manager import PassManager, PassRecord
from ..passes.prune import PruneChannels, Recover, RotateStreams
from ..passes.prune.masking import mask
from ..passes.prune.names import name_values
from ..passes.quantize import Quantize, schemes
from ..passes.simplify import simplify_pipeline
from ..passes.sizes import infer_sizes
from ..reporting.report import PassRun


@dataclasses.dataclass(frozen=True)
class Step:
    """Passes that belong together. `result` is what a model that went through is called.

    `oracle` says what the result must equal to rounding, in words; it is empty for a
    step that changes outputs on purpose and can't be checked that way.
    """

    name: str
    result: str
    passes: Sequence[Pass]
    oracle: str = ""


@dataclasses.dataclass
class StepResult:
    """What a step did, and the model that its result must equal, if there is one."""

    step: Step
    runs: list[PassRun]
    seconds: float
    oracle: Model | None
    context: Context
    """What the next step finds as its context."""


def simplify_step() -> Step:
    return Step("simplify", "simplified", simplify_pipeline(), oracle="original")


def rotate_step() -> Step:
    return Step("rotate", "rotated", [RotateStreams()])


def prune_step(pass_: PruneChannels) -> Step:
    return Step("prune", "pruned", [pass_], oracle="channel-masked original")


def recover_step() -> Step:
    return Step("recover", "recovered", [Recover()])


def scheme_of(name: str | None, profile: str | None) -> str:
    """The scheme of quantization that a name or a profile stands for. Raises SecateurError."""
    return schemes.scheme_of(name, profile)


def quantize_step(pass_: Quantize) -> Step:
    first = [SpellOutQuantized()] if pass_.requantize else []
    return Step("quantize", "quantized", [*first, pass_])


@dataclasses.dataclass(frozen=True)
class SpellOutQuantized(Pass):
    """Operators that hold scales of their own, as QLinearConv, as QuantizeLinear and
    DequantizeLinear around float ones."""

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        before = len(model.graph.nodes)
        expand_quantized(model)
        return PassResult(len(model.graph.nodes) != before)


def run_step(step: Step, model: Model, context: Context) -> StepResult:
    """Apply the step to `model` in place and infer the shapes of the result."""
    before = model.clone() if step.oracle else None
    records = PassManager(step.passes, dump=context.dump).run(model, context)
    infer_sizes(model)
    selection = records[-1].result.artifacts.get("selection")
    if before is not None and selection is not None:
        name_values(before)
        before = mask(before, selection)
    for record in records:
        context = context.after(record.result)
    return StepResult(
        step=step,
        context=context,
        runs=[pass_run(step.result, record) for record in records],
        seconds=sum(record.seconds for record in records),
        oracle=before,
    )


def step_warnings(result: StepResult) -> list[str]:
    """What passes of a step found suspicious."""
    return [
        f"{result.step.result}: {text}"
        for run in result.runs
        for text in run.statistics.get("warnings", ())
    ]


def pass_run(stage: str, record: PassRecord) -> PassRun:
    """What the report says of an executed pass."""
    result = record.result
    return PassRun(
        stage=stage,
        text=record.pass_text,
        seconds=record.seconds,
        changed=result.changed,
        statistics=result.statistics,
        notes=[_note(note) for note in result.notes],
    )


def _note(note: Note) -> dict[str, str]:
    return dataclasses.asdict(note)
