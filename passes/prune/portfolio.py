"""Choosing widths by trial: several ways to share the cuts out, each recovered and compared.

No single allocation wins on every model. Each candidate is cut and recovered with one half
of the samples, and judged by how far its outputs on the other half are from the original's;
then the other way round. On samples that were fitted every candidate looks well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.axes.dims import Dim
from ...ir.cost import count
from ...ir.errors import SecateurError
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.scratch import scratch_folder
from ...ir.tensor import Array
from ..linear.divergence import divergence
from ..linear.mixtures import rows
from ..linear.walk import MEMORY, Recording
from .allocation import Allocation, Goal, Ranking, Terms, allocate, noise_to_signal, plain
from .importance import DEFAULT_WITH_SAMPLES, Scores, find_criterion, group_scores
from .plan import Cut, PruningPlan
from .readers import Reader, find_readers
from .recovery import ROUNDS, recover

Runs = Sequence[Mapping[str, Array]]

THOROUGH = 1e11
"""Multiply-accumulates of a run over all samples, up to which each half is fitted in turn, and
targets behind activations are adapted, as in the end; else one half is, and they aren't."""

LARGEST_EXCHANGE = 0.2
"""Share of a group's indices that an exchange takes at most."""

PATIENCE = 400
"""Failed exchanges in a row after which the search ends; most of them can't be made at all."""

FINE = 4
"""What widths are multiples of at most where a table has the latency of each."""

EXCHANGED = ", exchanged"


@dataclasses.dataclass
class Trial:
    """A candidate: its kept indices and how far its outputs are from the original's.

    `cut_divergence` is that without recovery. Both are on samples that weren't fitted.
    """

    name: str
    cut: Cut
    allocation: Allocation
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
    """What candidates are allocated by, and for how long better ones are looked for."""

    goal: Goal
    terms: Terms
    minutes: float = 0.0


def choose(
    plan: PruningPlan,
    search: Search,
    runs: Runs,
    *,
    importance: str | None = None,
    seed: int = 0,
    rematch: bool = False,
) -> list[Trial]:
    """All candidates, the best first.

    `runs` are inputs of the plan's model, of which every second makes one half; with a
    single one there is nothing to judge by, and the candidates stay in the order of merit
    that they have on most models. `importance` orders the indices of each group, by what is
    seen on the first half. Ties constants in `plan` where that is needed.
    """
    fitted, judged = list(runs[::2]), list(runs[1::2])
    importance = importance or DEFAULT_WITH_SAMPLES
    readers: list[Reader] | None = None
    while True:
        if readers is None and find_criterion(importance).needs_samples:
            dims = [dim for group in plan.free for dim in group.move]
            readers = find_readers(plan.analysis, dims, fitted, seed=seed)
        scores = group_scores(plan.free, importance, readers, seed=seed)
        trials = _candidates(plan, search, scores)
        if search.goal.kind in ("params", "bytes"):
            break
        if not any(plan.tie(t.allocation.selection) for t in trials):
            break
        readers = None  # of dims that are others now
    if not judged:
        return trials
    with contextlib.ExitStack() as stack:
        macs = count(plan.model, search.terms.shape_of).macs * sum(map(rows, runs))
        pairs = [(fitted, judged), (judged, fitted)][: 2 if macs <= THOROUGH else 1]
        halves = [_Half(plan.model, *pair, stack.enter_context(scratch_folder())) for pair in pairs]
        rounds = ROUNDS if macs <= THOROUGH else 0
        judge = _Judge(plan, halves, seed, rounds, rematch=rematch)
        for trial in trials:
            judge(trial)
        trials.sort(key=lambda trial: trial.divergence)
        if search.minutes > 0:
            trials = [_improve(plan, trials[0], judge, search.minutes, seed), *trials]
    return trials


class _Half:
    """Inputs to recover with, and inputs to judge by; and what the original makes of them."""

    def __init__(self, model: Model, fitted: Runs, judged: Runs, folder: Path) -> None:
        self.fitted, self.judged = fitted, judged
        self.recording = Recording(model, fitted, folder, memory=MEMORY // 2)
        session = Session(model, threads=0)
        self.outputs = [session.run(run) for run in judged]


class _Judge:
    """Cuts copies of the model for a trial, recovers them, and sees how far their outputs are."""

    def __init__(
        self, plan: PruningPlan, halves: Sequence[_Half], seed: int, rounds: int, *, rematch: bool
    ) -> None:
        self._plan = plan
        self._halves = halves
        self._seed = seed
        self._rounds = rounds
        self._rematch = rematch

    def __call__(self, trial: Trial) -> None:
        found = [self._measured(trial, half) for half in self._halves]
        trial.cut_divergence, trial.divergence = np.mean(found, axis=0).tolist()

    def _measured(self, trial: Trial, half: _Half) -> tuple[float, float]:
        """The divergence of the cut model, and after recovery."""
        plan = self._plan
        copy = plan.copy()
        if not plan.agrees(copy):
            raise SecateurError("prune-channels: a copy of the model has other groups")
        record = copy.apply(copy.selection(trial.cut))
        cut = divergence(half.outputs, copy.model, half.judged)
        recover(
            plan.model,
            copy.model,
            record,
            half.fitted,
            seed=self._seed,
            rounds=self._rounds,
            rematch=self._rematch,
            recording=half.recording,
        )
        return cut, divergence(half.outputs, copy.model, half.judged)


def _improve(plan: PruningPlan, best: Trial, judge: _Judge, minutes: float, seed: int) -> Trial:
    """Exchange widths between two groups as long as time allows, keeping what is better."""
    generator = np.random.default_rng(seed)
    end = time.monotonic() + 60 * minutes
    free, failed = plan.free, 0
    while time.monotonic() < end and failed < PATIENCE:
        take, give = (int(i) for i in generator.integers(len(free), size=2))
        most = max(1, round(LARGEST_EXCHANGE * free[take].size))
        allocation = best.allocation.exchange(take, 1 + int(generator.integers(most)), give)
        failed += 1
        if allocation is None:
            continue
        cut = plan.cut_of(allocation.selection)
        trial = Trial(f"{best.name.removesuffix(EXCHANGED)}{EXCHANGED}", cut, allocation)
        judge(trial)
        if trial.divergence < best.divergence:
            best, failed = trial, 0
    return best


def _candidates(plan: PruningPlan, search: Search, scores: dict[Dim, Scores]) -> list[Trial]:
    """Different widths, of the same order of channels."""
    magnitudes = group_scores(plan.free)
    ways: dict[str, tuple[str, Ranking | None]] = {
        "mean": ("global", plain(scores, magnitudes)),
        "reconstruction": ("global", plain(scores)),
        "magnitude per cost": ("global", plain(magnitudes)),
        "magnitude": ("global", noise_to_signal(magnitudes)),
        "knapsack": ("knapsack", plain(scores, magnitudes)),
        "uniform": ("uniform", None),
    }
    by_latency = search.goal.kind == "latency"
    if by_latency:
        # The widths of a goal in MACs are candidates, too: there most steps save something.
        for name in ("mean", "reconstruction", "magnitude per cost", "magnitude"):
            scope, ranking = ways[name]
            assert ranking is not None
            ways[f"{name} by MACs"] = (scope, dataclasses.replace(ranking, by_macs=True))
    if search.terms.scope == "uniform":
        ways = {"uniform": ways["uniform"]}
    trials: list[Trial] = []
    for name, (scope, ranking) in ways.items():
        terms = dataclasses.replace(search.terms, scope=scope)
        if scope == "knapsack" and by_latency:  # what widths cost is in the table
            terms = dataclasses.replace(terms, align=math.gcd(terms.align, FINE))
        found = allocate(
            plan.analysis,
            plan.groups,
            scores,
            search.goal,
            terms,
            ranking=ranking,
        )
        cut = plan.cut_of(found.selection)
        if not any(_same(cut, trial.cut) for trial in trials):
            trials.append(Trial(name, cut, found))
    return trials


def _same(one: Cut, other: Cut) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)
    )
