"""From a budget to kept indices.

A group loses its least important indices, one per dim at each step. *Uniform* takes the
same share from every group; *global* ranks the steps of all groups against each other, by
what `Ranking` says. A goal in a cost (`CostModel`) is met by bisecting how much is taken.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...ir.axes.dims import Dim
from ...ir.axes.facts import Analysis
from ...ir.axes.selection import Selection
from ...ir.cost import ShapeOf, known_shape
from ...ir.errors import SecateurError
from .budget import CostModel, KernelCost
from .groups import Group, Limit
from .importance import Scores
from .knapsack import knapsack, levels

MOST = 0.9
"""Share of a group that is removed at most while that suffices for the goal."""


GIVE_BACK = 256
"""Attempts to undo a step that the goal doesn't need; large models don't need any."""


NEAR = 0.9
"""Share of a goal that aligned widths have to come to, or they are aligned to less.

In a small model a multiple of 16 may be half of a layer: to cut so much more than was asked for
costs more accuracy than whole vectors are worth.
"""

NEAR_IN_LATENCY = 0.95
"""The same of a goal in latency, where the cost of every width is known: alignment is worth
nothing by itself."""


class Removal(Protocol):
    """Maps the share of all indices to remove, and the most that any group may lose, to steps."""

    def __call__(self, share: float, most: float) -> list[int]: ...


@dataclass(frozen=True)
class Goal:
    """What to reach: a share of one of the original's costs, or of its channels.

    `keep` is the share that may remain, in (0, 1].
    """

    kind: str  # "macs", "params", "bytes", "latency" or "channels"
    keep: float

    @property
    def noun(self) -> str:
        return {"macs": "MACs", "params": "parameters"}.get(self.kind, self.kind)


@dataclass(frozen=True)
class Terms:
    """What widths are allocated under.

    `scope` is global, uniform or knapsack. `shape_of` gives the sizes at which
    multiply-accumulates count, `kernels` what latency is
    counted by. Widths are multiples of `align`, or of the largest half, quarter, ... of it with
    which the goal can be reached without cutting much more; `limits` bound single groups.
    """

    shape_of: ShapeOf = known_shape
    scope: str = "global"
    align: int = 1
    limits: Sequence[Limit] = ()
    kernels: Sequence[KernelCost] = ()


@dataclass(frozen=True)
class Ranking:
    """What orders the steps of all groups: their damage, by what they save to a power.

    `damage` gives that of each step of a group, least first. A power of 1 takes most from
    the widest layers; 0 spares narrow ones that cost the most. What they save counts in the
    goal's measure, or, `by_macs`, in multiply-accumulates whatever the goal.
    """

    damage: Callable[[Group], Scores]
    power: float
    by_macs: bool = False


def noise_to_signal(scores: Mapping[Dim, Scores]) -> Ranking:
    """By the increase of (removed / kept) importance, and the root of what is saved."""

    def damage(group: Group) -> Scores:
        return _noise_to_signal(_ranked(group, scores), sum(scores[d].sum() for d in group.move))

    return Ranking(damage, 0.5)


def plain(scores: Mapping[Dim, Scores], *others: Mapping[Dim, Scores]) -> Ranking:
    """By the importance that a step removes per what it saves; of several their mean.

    The mean is the geometric one, which asks nothing of their units.
    """

    def damage(group: Group) -> Scores:
        tables = [np.maximum(_ranked(group, table), 1e-30) for table in (scores, *others)]
        return np.asarray(np.exp(np.mean(np.log(tables), axis=0)))

    return Ranking(damage, 1.0)


@dataclass(frozen=True)
class Loss:
    """What a group's cut takes of its score: the share, the most that went, the least that stays.

    The latter two are None where nothing went, or where several dims lose indices at each step.
    """

    share: float
    removed: float | None = None
    kept: float | None = None


@dataclass(frozen=True)
class Allocation:
    """Kept indices, what widths are multiples of, and the steps that each free group takes."""

    selection: Selection
    align: int
    removed: tuple[int, ...]
    _space: _Space

    @property
    def scores(self) -> dict[Dim, Scores]:
        """Those that order the indices of each dim."""
        return self._space.scores

    def losses(self) -> dict[str, Loss]:
        """What every free group's cut takes of its score, by the group's name."""
        scores = self._space.scores
        found = {}
        for steps, removed in zip(self._space.steps, self.removed, strict=True):
            group = steps.group
            total = float(sum(scores[dim].sum() for dim in group.move))
            lost = float(_ranked(group, scores)[:removed].sum())
            share = lost / total if total > 0 else 0.0
            if removed and list(group.move.values()) == [1]:
                ordered = np.sort(scores[group.dims[0]])
                least, most = float(ordered[removed]), float(ordered[removed - 1])
                found[group.name] = Loss(share, most, least)
            else:
                found[group.name] = Loss(share)
        return found

    def exchange(self, take: int, count: int, give: int) -> Allocation | None:
        """Take `count` more steps of one free group, and give another what that saves.

        Groups are told by their place among the free ones. None where nothing changes, or
        where the goal would be missed.
        """
        space = self._space
        removed = list(self.removed)
        most = space.steps[take].group.size - 1
        removed[take] = space.steps[take].aligned(min(removed[take] + count, most))
        if removed[take] <= self.removed[take] or take == give:
            return None
        low, high = 0, removed[give]  # the least that the other has to lose
        while low < high:
            middle = (low + high) // 2
            removed[give] = middle
            if space.cost(removed) <= space.target:
                high = middle
            else:
                low = middle + 1
        removed[give] = space.steps[give].aligned(low)
        if space.cost(removed) > space.target:
            removed[give] = self.removed[give]
        if removed[give] == self.removed[give] or space.cost(removed) > space.target:
            return None
        return space.allocation(removed)


@dataclass(frozen=True)
class _Space:
    """What an allocation was made from."""

    model: Measure
    steps: Sequence[_Steps]
    scores: dict[Dim, Scores]
    target: float
    align: int

    def cost(self, removed: Sequence[int]) -> int:
        return self.model.cost(_kept_counts(self.steps, removed))

    def allocation(self, removed: Sequence[int]) -> Allocation:
        selection = _select(self.steps, removed, self.scores)
        return Allocation(selection, self.align, tuple(removed), self)


def allocate(
    analysis: Analysis,
    groups: Sequence[Group],
    scores: dict[Dim, Scores],
    goal: Goal,
    terms: Terms | None = None,
    *,
    ranking: Ranking | None = None,
) -> Allocation:
    """Kept indices of every free group.

    `scores` order the indices of each dim, `ranking` (by default `noise_to_signal` of the
    scores) the steps of all groups. Raises SecateurError where the goal can't be reached at
    all, saying what can.
    """
    terms = terms or Terms()
    free = [g for g in groups if g.lock is None]
    ranking = ranking or noise_to_signal(scores)
    damages = [ranking.damage(group) for group in free]
    model = measure(analysis, free, goal, terms)
    target = goal.keep * model.full
    saving = model
    if ranking.by_macs:
        saving = measure(analysis, free, Goal("macs", goal.keep), terms)
    if goal.kind == "channels":
        single = _all_steps(free, 1, terms.limits)
        removed = _removal(terms.scope, single, damages)(1.0 - goal.keep, 1.0)
        target = float(model.cost(_kept_counts(single, removed)))
        if terms.align == 1:
            return _Space(model, single, scores, target, 1).allocation(removed)
    align, best = terms.align, None
    enough = NEAR_IN_LATENCY if goal.kind == "latency" else NEAR
    while True:
        steps = _all_steps(free, align, terms.limits)
        rank = damages
        if goal.kind != "channels":
            saved = [_saving_of_a_step(saving, s, goal) for s in steps]
            rank = [d / n**ranking.power for d, n in zip(damages, saved, strict=True)]
        found = _reach(model, steps, _removal(terms.scope, steps, rank), target)
        if isinstance(found, list) and terms.scope == "knapsack":
            found = _knapsack(model, steps, damages, target) or found
        if isinstance(found, list):
            if terms.scope != "uniform":
                near = math.inf if goal.kind == "latency" else 0.99 * target
                found = _give_back(model, steps, rank, found, near, target)
            space = _Space(model, steps, scores, target, align)
            if best is None or space.cost(found) > best[0].cost(best[1]):
                best = space, found
            if align == 1 or space.cost(found) >= enough * target:
                return best[0].allocation(best[1])
        elif align == 1:
            within = " within the limits" if terms.limits else ""
            raise SecateurError(
                f"{goal.keep:.3%} of the {goal.noun} can't be reached: pruning everything that may "
                f"go{within} leaves {found / model.full if model.full else 1.0:.3%}"
            )
        align //= 2


def measure(analysis: Analysis, free: Sequence[Group], goal: Goal, terms: Terms) -> Measure:
    """What the goal counts."""
    if goal.kind == "channels":
        return ChannelCount(free)
    kind = {"params": "parameters"}.get(goal.kind, goal.kind)
    return CostModel(analysis, kind, shape_of=terms.shape_of, kernels=terms.kernels)


def _saving_of_a_step(model: Measure, steps: _Steps, goal: Goal) -> float:
    """Of the first one; in latency, where most save nothing and some much, the mean of half."""
    many = max(1, steps.group.size // 2) if goal.kind == "latency" else 1
    return max(model.saving(_kept_counts([steps], [many])) / many, 1.0)


class Measure(Protocol):
    """What a goal counts, as a function of the kept indices of dims that lose some."""

    full: int

    def cost(self, kept: Mapping[Dim, int]) -> int:
        """What is left."""

    def saving(self, kept: Mapping[Dim, int]) -> int:
        """What is saved."""


class ChannelCount:
    """The number of indices of all dims of some groups."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.full = sum(d.size or 0 for d in {d for g in groups for d in g.move})

    def cost(self, kept: Mapping[Dim, int]) -> int:
        return self.full - self.saving(kept)

    def saving(self, kept: Mapping[Dim, int]) -> int:
        return sum((d.size or 0) - n for d, n in kept.items())


def _reach(
    model: Measure, steps: Sequence[_Steps], remove: Removal, target: float
) -> list[int] | int:
    """Steps of each group that reach the target, or the least cost that can be reached."""

    def cost(removed: Sequence[int]) -> int:
        return model.cost(_kept_counts(steps, removed))

    least = model.full
    for most in (MOST, 1.0):
        least = cost(remove(1.0, most))
        if least <= target:
            return _bisect(functools.partial(remove, most=most), cost, target)
    return least


def _knapsack(
    model: Measure, steps: Sequence[_Steps], damages: Sequence[Scores], target: float
) -> list[int] | None:
    """Steps of each group by a table of errors and costs; None where that finds none."""

    @functools.cache
    def known(removed: tuple[int, ...]) -> int:
        return model.cost(_kept_counts(steps, removed))

    def cost(removed: Sequence[int]) -> int:
        return known(tuple(removed))

    for most in (MOST, 1.0):
        allowed = _allowed(steps, most)
        options = [levels(s.least, n, s.aligned) for s, n in zip(steps, allowed, strict=True)]
        found = knapsack(cost, options, damages, target) if steps else None
        if found is not None:
            return found
    return None


def _bisect(
    remove: Callable[[float], list[int]], cost: Callable[[Sequence[int]], int], target: float
) -> list[int]:
    """The least removal, by share, that costs at most `target`, to a thousandth of it."""
    low, high = 0.0, 1.0
    best = remove(1.0)
    for _ in range(24):
        middle = (low + high) / 2
        removed = remove(middle)
        reached = cost(removed)
        if reached <= target:
            high, best = middle, removed
            if reached >= 0.999 * target:
                break
        else:
            low = middle
    return best


def _give_back(
    model: Measure,
    steps: Sequence[_Steps],
    rank: Sequence[Scores],
    removed: list[int],
    near: float,
    target: float,
) -> list[int]:
    """Undo steps that the goal doesn't need, the most damaging first.

    Aligned widths and groups that many layers share make coarse steps, so that the
    least share that suffices may take far too much. What costs `near` or more is left as it is;
    in latency many steps cost nothing.
    """
    if model.cost(_kept_counts(steps, removed)) >= near:
        return removed
    removed = list(removed)
    open_groups = {i for i, count in enumerate(removed) if count}
    for _ in range(GIVE_BACK):
        if not open_groups:
            break
        index = max(open_groups, key=lambda i: rank[i][removed[i] - 1])
        fewer = steps[index].aligned(removed[index] - 1)
        trial = [*removed[:index], fewer, *removed[index + 1 :]]
        if fewer < removed[index] and model.cost(_kept_counts(steps, trial)) <= target:
            removed = trial
        else:
            open_groups.discard(index)
        if not removed[index]:
            open_groups.discard(index)
    return removed


class _Steps:
    """The steps of a group, in widths that are multiples of something."""

    def __init__(self, group: Group, align: int, limits: Sequence[Limit] = ()) -> None:
        self.group = group
        # Widths are weight * kept, so fewer indices make a multiple of `align`.
        self.step = align // math.gcd(align, group.weight)
        size = group.size
        self.least, self.most = 0, size - 1
        for limit in limits:
            if limit.matches(group):
                self.least = max(self.least, size - max(1, math.floor(limit.most * size)))
                self.most = min(self.most, size - math.ceil(limit.least * size - 1e-9))
        self.most = max(0, self.most)
        self.least = min(self.least, self.most)

    def aligned(self, removed: int) -> int:
        """At most `removed`, such that what is kept is a multiple of the step.

        Where limits ask for more, the least that they ask for.
        """
        removed = min(max(removed, self.least), self.most)
        size = min(d.size or 0 for d in self.group.move)
        if self.step == 1 or any(n > 1 for n in self.group.move.values()):
            return removed
        rounded = -(-(size - removed) // self.step) * self.step
        fewer = size - rounded if rounded < size else 0
        return fewer if fewer >= self.least else removed


def _all_steps(groups: Sequence[Group], align: int, limits: Sequence[Limit]) -> list[_Steps]:
    """The steps of all groups, which together leave an index of each dim."""
    steps = [_Steps(group, align, limits) for group in groups]
    capacity = {d: (d.size or 0) - 1 for group in groups for d in group.move}
    for own in steps:
        own.least = min([own.least, *(capacity[d] // n for d, n in own.group.move.items())])
        for dim, n in own.group.move.items():
            capacity[dim] -= own.least * n
    return steps


def _ranked(group: Group, scores: Mapping[Dim, Scores]) -> Scores:
    """The importance that each step of a group removes, least first."""
    most = group.size - 1
    ranked = np.zeros(most)
    for dim, count in group.move.items():
        ascending = np.sort(scores[dim])[: most * count]
        ranked += ascending.reshape(most, count).sum(axis=1)
    return ranked


def _noise_to_signal(lost: Scores, total: float) -> Scores:
    """Increase of (removed / kept) importance at each step: the last indices cost most."""
    if total <= 0:
        return np.ones_like(lost)
    removed = np.minimum(np.concatenate([[0.0], np.cumsum(lost) / total]), 1 - 1e-9)
    return np.asarray(total * np.diff(removed / (1 - removed)))


def _allowed(steps: Sequence[_Steps], share: float) -> list[int]:
    """Steps of each group that together take at most a share of each dim, and not all."""
    capacity: dict[Dim, int] = {}
    for s in steps:
        for dim in s.group.move:
            size = dim.size or 0
            capacity[dim] = min(size - 1, int(share * size + 0.5))
    allowed = []
    for s in steps:
        most = min([s.most, *(capacity[d] // n for d, n in s.group.move.items())])
        for dim, n in s.group.move.items():
            capacity[dim] -= most * n
        allowed.append(most)
    return allowed


def _removal(scope: str, steps: Sequence[_Steps], rank: Sequence[Scores]) -> Removal:
    """Steps to take of each group, as a function of a share and of the most any may lose."""
    if scope == "uniform":
        return functools.partial(_uniform, steps)
    return functools.partial(_global, steps, rank)


def _uniform(steps: Sequence[_Steps], share: float, most: float) -> list[int]:
    allowed = _allowed(steps, min(share, most))
    return [s.aligned(n) for s, n in zip(steps, allowed, strict=True)]


def _global(
    steps: Sequence[_Steps], rank: Sequence[Scores], share: float, most: float
) -> list[int]:
    """Take the given share of all indices, lowest rank first."""
    if not steps:
        return []
    allowed = _allowed(steps, most)
    scores = np.concatenate([r[:n] for r, n in zip(rank, allowed, strict=True)])
    owner = np.repeat(np.arange(len(steps)), allowed)
    weight = np.repeat([sum(s.group.move.values()) for s in steps], allowed)
    order = np.argsort(scores, kind="stable")
    total = sum(d.size or 0 for d in {d for s in steps for d in s.group.move})
    taken = np.searchsorted(np.cumsum(weight[order]), share * total + 1e-9, side="right")
    removed = np.bincount(owner[order[:taken]], minlength=len(steps))
    return [s.aligned(int(n)) for s, n in zip(steps, removed, strict=True)]


def removed_counts(groups: Sequence[Group], steps: Sequence[int]) -> dict[Dim, int]:
    """Indices that each dim loses when each group takes a number of steps."""
    removed: dict[Dim, int] = defaultdict(int)
    for group, count in zip(groups, steps, strict=True):
        for dim, n in group.move.items():
            removed[dim] += n * count
    return {d: n for d, n in removed.items() if n}


def _kept_counts(steps: Sequence[_Steps], removed: Sequence[int]) -> dict[Dim, int]:
    counts = removed_counts([s.group for s in steps], removed)
    return {d: (d.size or 0) - n for d, n in counts.items()}


def _select(
    steps: Sequence[_Steps], removed: Sequence[int], scores: dict[Dim, Scores]
) -> Selection:
    counts = removed_counts([s.group for s in steps], removed)
    return Selection(
        {d: np.sort(np.argsort(scores[d], kind="stable")[n:]) for d, n in counts.items()}
    )
