"""Choosing widths by trial: several ways to share the cuts out, each recovered and compared.

No single allocation wins on every model. Each candidate is cut and recovered with one half
of the samples, and judged by how far its outputs on the other half are from the original's;
then the other way round. On samples that were fitted every candidate looks well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.axes.dims import Dim
from ...ir.cost import count
from ...ir.errors import SecateurError
from ...ir.model import Model
from ...ir.reference import Session, detached
from ...ir.scratch import scratch_folder
from ...ir.tensor import Array
from ..linear.divergence import divergence
from ..linear.mixtures import rows
from ..linear.walk import MEMORY, Recording
from ..sizes import CountedSizes
from .allocation import Allocation, Goal, Ranking, Terms, allocate, measure, noise_to_signal, plain
from .depth import (
    Branch,
    branch_means,
    cost_of_nodes,
    drop_branches,
    find_branches,
    in_order,
    kernels_left,
)
from .importance import DEFAULT_WITH_SAMPLES, Scores, find_criterion, group_scores
from .iterations import estimated_anew
from .plan import Cut, PruningPlan
from .readers import Reader, find_readers
from .recovery import ROUNDS, recover

log = logging.getLogger(__name__)

Runs = Sequence[Mapping[str, Array]]

THOROUGH = 1e11
"""Multiply-accumulates of a run over all samples, up to which each half is fitted in turn, and
targets behind activations are adapted, as in the end; else one half is, and they aren't."""

FEW = 32
"""Samples that are fitted, and as many that judge, where a run over all samples takes more.

On ResNet-20 they find the same best candidate as all samples, with half of the time of 64."""

FIRST = 3
"""Candidates that are tried then, but for a goal in latency.

With `FEW` samples the best of all six is among these in nine draws of ten (ResNet-8, a
MobileNetV2, at 70 and 50 %), and in the tenth one is 7 % behind it in divergence."""

LARGEST_EXCHANGE = 0.2
"""Share of a group's indices that an exchange takes at most."""

PATIENCE = 400
"""Failed exchanges in a row after which the search ends; most of them can't be made at all."""

FINE = 4
"""What widths are multiples of at most where a table has the latency of each."""

ITERATIONS = 3
"""Times that importance is estimated: once for the whole model, then on what cuts leave of it."""

ITERATED = 2
"""Candidates that are tried with scores that were estimated anew, the best ones."""

DEPTH_FAILURES = 2
"""Branches in a row without which nothing gets better, after which no more are tried."""

EXCHANGED = ", exchanged"


@dataclasses.dataclass
class Trial:
    """A candidate: its kept indices and how far its outputs are from the original's.

    `way` is how cuts are shared out, `iterations` how often importance was estimated. `plan` is
    that of the model which is cut: what was asked for, or without the branches for which the
    `dropped` constants stand. `cut_divergence` is the divergence without recovery. Both are on
    samples that weren't fitted.
    """

    name: str
    cut: Cut
    allocation: Allocation
    plan: PruningPlan
    way: str = ""
    iterations: int = 1
    branches: tuple[Branch, ...] = ()
    dropped: Mapping[str, Array] = dataclasses.field(default_factory=dict)
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
    """What candidates are allocated by, and for how long better ones are looked for.

    Importance is estimated in so many `iterations`; with None in `ITERATIONS`, unless the model
    is too large to try. Up to `depth` branches go whole, but for those with a name that a
    `spared` pattern matches; with None as many as help, with the same exception.
    """

    goal: Goal
    terms: Terms
    minutes: float = 0.0
    iterations: int | None = 1
    depth: int | None = 0
    spared: Sequence[str] = ()


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
    candidates = _Candidates(search, fitted, importance or DEFAULT_WITH_SAMPLES, seed)
    trials = candidates.of(plan)
    if not judged:
        return trials
    with contextlib.ExitStack() as stack:
        macs = count(plan.model, search.terms.shape_of).macs * sum(map(rows, runs))
        thorough = macs <= THOROUGH
        both: list[tuple[Runs, Runs]] = [(fitted, judged), (judged, fitted)]
        pairs = both if thorough else [(_few(fitted), _few(judged))]
        halves = [_Half(plan.model, *pair, stack.enter_context(scratch_folder())) for pair in pairs]
        judge = _Judge(plan.model, halves, seed, ROUNDS if thorough else 0, rematch=rematch)
        if not thorough and search.goal.kind != "latency":
            del trials[FIRST:]
        for trial in trials:
            judge(trial)
        trials.sort(key=lambda trial: trial.divergence)
        iterations = search.iterations or (ITERATIONS if thorough and not rematch else 1)
        if iterations > 1:
            ways = [trial.way for trial in trials[:ITERATED]]
            more = candidates.anew(search, trials[0], iterations, ways)
            more = [one for one in more if not any(_same(one.cut, t.cut) for t in trials)]
            for trial in more:
                judge(trial)
            trials = sorted([*trials, *more], key=lambda trial: trial.divergence)
        if search.depth or (search.depth is None and thorough):
            trials += _shallower(plan, trials[0], candidates, judge, search, fitted)
            trials.sort(key=lambda trial: trial.divergence)
        if search.minutes > 0:
            trials = [_improve(trials[0], judge, search.minutes, seed), *trials]
    return trials


class _Candidates:
    """Ways to share the cuts out of a plan, by what is seen on some runs."""

    def __init__(self, search: Search, fitted: Runs, importance: str, seed: int) -> None:
        self._search = search
        self._fitted = fitted
        self._importance = importance
        self._seed = seed

    def of(
        self,
        plan: PruningPlan,
        search: Search | None = None,
        only: Collection[str] | None = None,
    ) -> list[Trial]:
        """All of them, or those of some ways. Ties constants in `plan` where that is needed."""
        search = search or self._search
        readers: list[Reader] | None = None
        while True:
            if readers is None and find_criterion(self._importance).needs_samples:
                dims = [dim for group in plan.free for dim in group.move]
                readers = find_readers(plan.analysis, dims, self._fitted, seed=self._seed)
            scores = group_scores(plan.free, self._importance, readers, seed=self._seed)
            trials = _candidates(plan, search, scores, only)
            if search.goal.kind in ("params", "bytes"):
                return trials
            if not any(plan.tie(t.allocation.selection) for t in trials):
                return trials
            readers = None  # of dims that are others now

    def anew(
        self, search: Search, trial: Trial, iterations: int, ways: Collection[str]
    ) -> list[Trial]:
        """Candidates of some ways for a trial's model, by importance that is estimated again while
        cuts by the trial's own way come nearer to the goal."""
        plan, goal, scores = trial.plan, search.goal, trial.allocation.scores
        for number in range(1, iterations):
            share = dataclasses.replace(goal, keep=goal.keep ** (number / iterations))
            nearer = dataclasses.replace(search, goal=share)
            (part,) = _candidates(plan, nearer, scores, [trial.way])
            scores = estimated_anew(
                plan, part.cut, scores, self._fitted, self._importance, seed=self._seed
            )
        found: list[Trial] = []
        for one in _candidates(plan, search, scores, ways):
            copy = plan.copy()  # of which constants are tied that the cut would make larger
            if goal.kind in ("params", "bytes") or not copy.tie(copy.selection(one.cut)):
                one.name, one.iterations = f"{one.way}, in {iterations} iterations", iterations
                found.append(one)
        return found


def _shallower(
    plan: PruningPlan,
    best: Trial,
    candidates: _Candidates,
    judge: _Judge,
    search: Search,
    runs: Runs,
) -> list[Trial]:
    """The best candidate without one branch, two, ..., as long as another one less helps.

    Each is cut by what its branches leave to be saved, the best candidate's way and by a
    knapsack: with fewer layers the rest is cut less, where its table of widths tells more. The
    first branch that doesn't help may be a bad one: the next one by itself is tried, too.
    """
    terms = search.terms
    cost = cost_of_nodes(plan.model, search.goal.kind, terms.shape_of, terms.kernels)
    branches = find_branches(plan.model, terms.shape_of, cost, search.spared)
    ways = dict.fromkeys([best.way, "knapsack"] if terms.scope != "uniform" else [best.way])
    means = branch_means(plan.model, branches, runs)
    ordered = in_order(branches, means)
    found: list[Trial] = []
    gone: list[Branch] = []
    failed, least = 0, best.divergence
    for branch in ordered:
        if failed == DEPTH_FAILURES or len(gone) == (search.depth or len(ordered)):
            break
        tried = [*gone, branch]
        dropped = {b.value: means[b.value].constant for b in tried}
        trials = _without(plan, tried, dropped, candidates, search, ways, best.iterations)
        for trial in trials:
            judge(trial)
        found += trials
        nearest = min((trial.divergence for trial in trials), default=math.inf)
        if nearest >= least:
            failed += 1
        else:
            gone, failed, least = tried, 0, nearest
    return found


def _without(
    plan: PruningPlan,
    branches: Sequence[Branch],
    dropped: Mapping[str, Array],
    candidates: _Candidates,
    search: Search,
    ways: Collection[str],
    iterations: int,
) -> list[Trial]:
    """Candidates of some ways without some branches; none where the goal is out of reach."""
    model = plan.model.clone()
    drop_branches(model, dropped)
    other = PruningPlan(model, ignore=plan.ignore, normalized=plan.normalized)
    _, shape_of = CountedSizes.usual(model)
    kernels = kernels_left(search.terms.kernels, plan.model, model)
    terms = dataclasses.replace(search.terms, shape_of=shape_of, kernels=kernels)
    whole = measure(plan.analysis, plan.free, search.goal, search.terms).full
    rest = measure(other.analysis, other.free, search.goal, terms).full
    keep = min(1.0, search.goal.keep * whole / max(rest, 1))
    goal = dataclasses.replace(search.goal, keep=keep)
    own = dataclasses.replace(search, goal=goal, terms=terms)
    try:
        found = candidates.of(other, own, ways)
        if iterations > 1:
            found = candidates.anew(own, found[0], iterations, ways) or found
    except SecateurError:
        return []
    many = f"{len(branches)} branch{'es' if len(branches) > 1 else ''}"
    return [
        dataclasses.replace(
            one, name=f"{one.name}, without {many}", branches=tuple(branches), dropped=dropped
        )
        for one in found
    ]


def _few(runs: Runs) -> Runs:
    """The first runs that have `FEW` samples together, or all."""
    total = 0
    for number, run in enumerate(runs):
        total += rows(run)
        if total >= FEW:
            return runs[: number + 1]
    return runs


class _Half:
    """Inputs to recover with, and inputs to judge by; and what the original makes of them."""

    def __init__(self, model: Model, fitted: Runs, judged: Runs, folder: Path) -> None:
        self.fitted, self.judged = fitted, judged
        self.recording = Recording(model, fitted, folder, memory=MEMORY // 2)
        session = Session(model, threads=0)
        self.outputs = [{n: detached(a) for n, a in session.run(run).items()} for run in judged]


class _Judge:
    """Cuts copies of a trial's model, recovers them, and sees how far their outputs are."""

    def __init__(
        self, original: Model, halves: Sequence[_Half], seed: int, rounds: int, *, rematch: bool
    ) -> None:
        self._original = original
        self._halves = halves
        self._seed = seed
        self._rounds = rounds
        self._rematch = rematch

    def __call__(self, trial: Trial) -> None:
        found = [self._measured(trial, half) for half in self._halves]
        trial.cut_divergence, trial.divergence = np.mean(found, axis=0).tolist()
        apart = trial.divergence, trial.cut_divergence
        log.debug("%s: divergence %.3g, %.3g unrecovered", trial.name, *apart)

    def _measured(self, trial: Trial, half: _Half) -> tuple[float, float]:
        """The divergence of the cut model, and after recovery."""
        copy = trial.plan.copy()
        if not trial.plan.agrees(copy):
            raise SecateurError("prune-channels: a copy of the model has other groups")
        record = copy.apply(copy.selection(trial.cut), trial.dropped)
        cut = divergence(half.outputs, copy.model, half.judged)
        recover(
            self._original,
            copy.model,
            record,
            half.fitted,
            seed=self._seed,
            rounds=self._rounds,
            rematch=self._rematch,
            recording=half.recording,
        )
        return cut, divergence(half.outputs, copy.model, half.judged)


def _improve(best: Trial, judge: _Judge, minutes: float, seed: int) -> Trial:
    """Exchange widths between two groups as long as time allows, keeping what is better."""
    generator = np.random.default_rng(seed)
    end = time.monotonic() + 60 * minutes
    free, failed = best.plan.free, 0
    while time.monotonic() < end and failed < PATIENCE:
        take, give = (int(i) for i in generator.integers(len(free), size=2))
        most = max(1, round(LARGEST_EXCHANGE * free[take].size))
        allocation = best.allocation.exchange(take, 1 + int(generator.integers(most)), give)
        failed += 1
        if allocation is None:
            continue
        trial = dataclasses.replace(
            best,
            name=f"{best.name.removesuffix(EXCHANGED)}{EXCHANGED}",
            cut=best.plan.cut_of(allocation.selection),
            allocation=allocation,
        )
        judge(trial)
        if trial.divergence < best.divergence:
            best, failed = trial, 0
    return best


def _candidates(
    plan: PruningPlan,
    search: Search,
    scores: dict[Dim, Scores],
    only: Collection[str] | None = None,
) -> list[Trial]:
    """Different widths, of the same order of channels; of all ways, or of some, in their order."""
    magnitudes = group_scores(plan.free)
    ways: dict[str, tuple[str, Ranking | None]] = {
        "mean": ("global", plain(scores, magnitudes)),
        "knapsack": ("knapsack", plain(scores, magnitudes)),
        "magnitude per cost": ("global", plain(magnitudes)),
        "reconstruction": ("global", plain(scores)),
        "magnitude": ("global", noise_to_signal(magnitudes)),
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
    for name in ways if only is None else only:
        scope, ranking = ways[name]
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
            trials.append(Trial(name, cut, found, plan, name))
    return trials


def _same(one: Cut, other: Cut) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)
    )
