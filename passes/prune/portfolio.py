"""Choosing widths by trial: several ways to share the cuts out, each recovered and compared.

No single allocation wins on every model. Each candidate is cut and recovered with one half
of the samples, and judged by how far its outputs on the other half are from the original's;
on samples that were fitted every candidate looks well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...ir.axes.dims import Dim
from ...ir.cost import ShapeOf
from ...ir.errors import SecateurError
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.tensor import Array
from ..linear.divergence import Divergence
from .allocation import Goal, Ranking, allocate, noise_to_signal, plain
from .importance import Scores, group_scores
from .plan import Cut, PruningPlan
from .recovery import recover
from .surgeon import reconstruction_scores

Runs = Sequence[Mapping[str, Array]]


@dataclasses.dataclass
class Trial:
    """A candidate: its kept indices and how far its outputs are from the original's.

    `cut_divergence` is that without recovery. Both are on samples that weren't fitted.
    """

    name: str
    cut: Cut
    align: int
    divergence: float = float("inf")
    cut_divergence: float = float("inf")

    @property
    def helps(self) -> bool | None:
        """Whether recovery brought the outputs nearer; None where that wasn't judged."""
        if self.divergence == self.cut_divergence == float("inf"):
            return None
        return self.divergence <= self.cut_divergence

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "divergence": self.divergence,
            "divergence_unrecovered": self.cut_divergence,
        }


@dataclasses.dataclass(frozen=True)
class Search:
    """What candidates are allocated by."""

    goal: Goal
    shape_of: ShapeOf
    align: int
    scope: str


def choose(
    plan: PruningPlan, search: Search, runs: Runs, *, importance: str, seed: int
) -> list[Trial]:
    """All candidates, the best first.

    `runs` are inputs of the plan's model, of which every second is left for judging; with a
    single one there is nothing to judge by, and the candidates stay in the order of merit
    that they have on most models. Ties constants in `plan` where that is needed.
    """
    fitted, judged = list(runs[::2]), list(runs[1::2])
    while True:
        scores = _scores(plan, fitted, importance, seed)
        trials = _candidates(plan, search, scores, importance)
        if search.goal.kind == "params" or not any(plan.tie(plan.selection(t.cut)) for t in trials):
            break
    if not judged:
        return trials
    outputs = _outputs(plan.model, judged)
    for trial in trials:
        copy = plan.copy()
        if not plan.agrees(copy):
            raise SecateurError("prune-channels: a copy of the model has other groups")
        record = copy.apply(copy.selection(trial.cut))
        trial.cut_divergence = divergence(outputs, copy.model, judged)
        recover(plan.model, copy.model, record, fitted, seed=seed)
        trial.divergence = divergence(outputs, copy.model, judged)
    return sorted(trials, key=lambda trial: trial.divergence)


def divergence(outputs: Sequence[Mapping[str, Array]], model: Model, runs: Runs) -> float:
    """Of a model's outputs on some runs from the given ones."""
    session = Session(model, threads=0)
    distance = Divergence()
    for run, wanted in zip(runs, outputs, strict=True):
        distance.add(wanted, session.run(run))
    return distance.value


def _outputs(model: Model, runs: Runs) -> list[dict[str, Array]]:
    session = Session(model, threads=0)
    return [session.run(run) for run in runs]


def _scores(plan: PruningPlan, runs: Runs, importance: str, seed: int) -> dict[Dim, Scores]:
    """By reconstruction; of groups that no layer reads by magnitude, in like units."""
    magnitudes = group_scores(plan.free, importance)
    found = reconstruction_scores(plan.analysis, list(magnitudes), runs, seed=seed)
    ratios = [
        found[dim].sum() / magnitudes[dim].sum() for dim in found if magnitudes[dim].sum() > 0
    ]
    scale = float(np.median(ratios)) if ratios else 1.0
    return {dim: found.get(dim, scores * scale) for dim, scores in magnitudes.items()}


def _candidates(
    plan: PruningPlan, search: Search, scores: dict[Dim, Scores], importance: str
) -> list[Trial]:
    """Different widths, of the same order of channels."""
    magnitudes = group_scores(plan.free, importance)
    ways: dict[str, tuple[str, Ranking | None]] = {
        "mean": ("global", plain(scores, magnitudes)),
        "reconstruction": ("global", plain(scores)),
        "magnitude per cost": ("global", plain(magnitudes)),
        "magnitude": ("global", noise_to_signal(magnitudes)),
        "uniform": ("uniform", None),
    }
    if search.scope == "uniform":
        ways = {"uniform": ways["uniform"]}
    trials: list[Trial] = []
    for name, (scope, ranking) in ways.items():
        found = allocate(
            plan.analysis,
            plan.groups,
            scores,
            search.goal,
            shape_of=search.shape_of,
            scope=scope,
            align=search.align,
            ranking=ranking,
        )
        cut = plan.cut_of(found.selection)
        if not any(_same(cut, trial.cut) for trial in trials):
            trials.append(Trial(name, cut, found.align))
    return trials


def _same(one: Cut, other: Cut) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)
    )
