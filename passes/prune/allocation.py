"""From a budget to kept indices.

A group loses its least important indices, one per dim at each step. *Uniform* takes the
same share from every group; *global* ranks the steps of all groups against each other. A
goal in MACs or parameters is met by bisecting how much is taken.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.axes.analysis import Analysis
from ...ir.axes.dims import Axis, Dim, resolve
from ...ir.axes.selection import Selection
from ...ir.cost import known_shape, node_macs
from ...ir.errors import SecateurError
from ...ir.graph import Node, Use, Value
from ...ir.ops import macs
from .groups import Group
from .importance import Scores

MOST = 0.9
"""Share of a group that is removed at most while that suffices for the goal."""


class Counts:
    """Sizes of axes when each dim keeps a number of its indices."""

    def __init__(self, kept: dict[Dim, int]) -> None:
        self._kept = kept
        self._sizes: dict[Axis, int] = {}

    def size(self, axis: Axis) -> int:
        """Elements left; axes of unknown size count as 1."""
        known = self._sizes.get(axis)
        if known is None:
            known = self._sizes[axis] = sum(self._term(term) for term in resolve(axis))
        return known

    def _term(self, term: tuple[Dim, ...]) -> int:
        size = 1
        for dim in term:
            if dim.binding is not None:
                size *= self.size(dim.binding)
            else:
                size *= self._kept.get(dim, 1 if dim.size is None else dim.size)
        return size


class CostModel:
    """MACs and parameters of the model as functions of how much each dim keeps."""

    def __init__(self, analysis: Analysis, groups: Sequence[Group]) -> None:
        free = {d for g in groups if g.lock is None for d in g.dims}
        table = macs()
        self._nodes: list[tuple[Node, dict[Value, tuple[Axis, ...]]]] = []
        self._fixed_macs = 0
        for node in analysis.model.graph.nodes:
            if (node.domain, node.op_type) not in table:
                continue
            axes = _node_axes(analysis, node)
            if any(_touches(axis, free) for value in axes.values() for axis in value):
                self._nodes.append((node, axes))
            else:
                self._fixed_macs += node_macs(node)
        self._table = table
        self._parameters: dict[Value, tuple[tuple[Axis, ...], int]] = {}
        for parameter in analysis.parameters.values():
            self._parameters[parameter.value] = (parameter.blocks[0], len(parameter.blocks))

    def macs(self, counts: Counts) -> int:
        total = self._fixed_macs
        for node, axes in self._nodes:

            def shape(
                value: Value | None, axes: dict[Value, tuple[Axis, ...]] = axes
            ) -> tuple[int, ...]:
                if value is None or value not in axes:
                    return known_shape(value)
                return tuple(counts.size(axis) for axis in axes[value])

            total += self._table[node.domain, node.op_type](node, shape)
        return total

    def parameters(self, counts: Counts) -> int:
        """Elements of all parameters that pruning may slice."""
        total = 0
        for axes, blocks in self._parameters.values():
            size = blocks
            for axis in axes:
                size *= counts.size(axis)
            total += size
        return total


def _node_axes(analysis: Analysis, node: Node) -> dict[Value, tuple[Axis, ...]]:
    """Axes of a node's values as its cost rule sees them; grouped weights by whole shape."""
    found: dict[Value, tuple[Axis, ...]] = {}
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        parameter = analysis.parameters.get(Use(node, index))
        if parameter is not None:
            first = tuple(term for block in parameter.blocks for term in block[0])
            found[value] = (first, *parameter.blocks[0][1:])
        elif analysis.axes.get(value) is not None:
            found[value] = analysis.axes[value] or ()
    for value in node.outputs:
        if value is not None and analysis.axes.get(value) is not None:
            found[value] = analysis.axes[value] or ()
    return found


def _touches(axis: Axis, free: set[Dim]) -> bool:
    stack = [dim for term in axis for dim in term]
    while stack:
        dim = stack.pop()
        if dim.binding is not None:
            stack.extend(d for term in dim.binding for d in term)
        elif dim in free:
            return True
    return False


@dataclass(frozen=True)
class Goal:
    """What to reach: a share of the original MACs or parameters, or a share of channels.

    `keep` is the share that may remain, in (0, 1].
    """

    kind: str  # "macs", "params" or "channels"
    keep: float


def allocate(
    analysis: Analysis,
    groups: Sequence[Group],
    scores: dict[Dim, Scores],
    goal: Goal,
    *,
    scope: str = "global",
    align: int = 1,
) -> Selection:
    """Kept indices of every free group. Raises SecateurError where the goal is out of reach."""
    free = [g for g in groups if g.lock is None]
    steps = [_Steps(g, scores, align) for g in free]
    if goal.kind == "channels":
        rank = [s.damage for s in steps]
        return _select(steps, _removal(scope, steps, rank)(1.0 - goal.keep, 1.0), scores)
    model = CostModel(analysis, groups)
    measure: Callable[[Counts], int] = model.macs if goal.kind == "macs" else model.parameters
    full = measure(Counts({}))
    target = goal.keep * full
    saved = [full - measure(Counts(_kept_counts([s], [1]))) for s in steps]
    rank = [s.worth(n) for s, n in zip(steps, saved, strict=True)]
    remove = _removal(scope, steps, rank)

    def cost(removed: Sequence[int]) -> int:
        return measure(Counts(_kept_counts(steps, removed)))

    for most in (MOST, 1.0):
        if cost(remove(1.0, most)) <= target:
            take = functools.partial(remove, most=most)
            return _select(steps, _bisect(take, cost, target), scores)
    reachable = cost(remove(1.0, 1.0)) / full if full else 1.0
    noun = "MACs" if goal.kind == "macs" else "parameters"
    raise SecateurError(
        f"{goal.keep:.0%} of the {noun} can't be reached: pruning everything that may go leaves "
        f"{reachable:.1%}" + (f" (widths are multiples of {align})" if align > 1 else "")
    )


def _bisect(
    remove: Callable[[float], list[int]], cost: Callable[[Sequence[int]], int], target: float
) -> list[int]:
    """The least removal, by share, that costs at most `target`."""
    low, high = 0.0, 1.0
    best = remove(1.0)
    for _ in range(24):
        middle = (low + high) / 2
        removed = remove(middle)
        if cost(removed) <= target:
            high, best = middle, removed
        else:
            low = middle
    return best


class _Steps:
    """The order in which a group loses its indices, step by step."""

    def __init__(self, group: Group, scores: dict[Dim, Scores], align: int) -> None:
        self.group = group
        # Widths are weight * kept, so fewer indices make a multiple of `align`.
        self.step = align // math.gcd(align, group.weight)
        self.most = group.size - 1
        ranked = np.zeros(self.most)
        for dim, count in group.move.items():
            ascending = np.sort(scores[dim])[: self.most * count]
            ranked += ascending.reshape(self.most, count).sum(axis=1)
        self.damage = _noise_to_signal(ranked, sum(scores[d].sum() for d in group.move))

    def worth(self, saved: int) -> Scores:
        """What ranks steps: damage, eased for groups whose steps save much.

        The square root stands between ranking by damage alone, which spares narrow
        layers that cost the most, and by damage per saving, which strips the widest.
        """
        return self.damage / math.sqrt(max(saved, 1))

    def aligned(self, removed: int) -> int:
        """At most `removed`, such that what is kept is a multiple of the step."""
        size = min(d.size or 0 for d in self.group.move)
        if self.step == 1 or any(n > 1 for n in self.group.move.values()):
            return removed
        rounded = -(-(size - removed) // self.step) * self.step
        return size - rounded if rounded < size else 0


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
        most = min(capacity[d] // n for d, n in s.group.move.items())
        for dim, n in s.group.move.items():
            capacity[dim] -= most * n
        allowed.append(most)
    return allowed


def _removal(
    scope: str, steps: Sequence[_Steps], rank: Sequence[Scores]
) -> Callable[[float, float], list[int]]:
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
