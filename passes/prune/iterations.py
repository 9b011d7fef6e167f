"""Importance estimated anew on the way to a budget: iterative pruning, without training.

What channels are worth changes as others go and layers make up for them. So a copy is cut by a
part of the budget and recovered, scores are taken from what is left of it, and so on (as the
iterative schedules of Han et al., "Learning both Weights and Connections", 2015, and Molchanov
et al., "Importance Estimation for Neural Network Pruning", 2019, in which training takes the
place of recovery).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from ...ir.axes.dims import Dim
from ...ir.tensor import Array
from ..sizes import infer_sizes
from .importance import Scores, find_criterion, group_scores
from .plan import Cut, PruningPlan
from .readers import find_readers
from .recovery import recover

log = logging.getLogger(__name__)


def estimated_anew(
    plan: PruningPlan,
    cut: Cut,
    scores: Mapping[Dim, Scores],
    runs: Sequence[Mapping[str, Array]],
    importance: str,
    *,
    seed: int = 0,
) -> dict[Dim, Scores]:
    """`scores` of the dims of `plan`, with those that `cut` keeps estimated on what it leaves.

    What it leaves is a copy, cut and recovered with `runs`. Indices that went are worth less than
    any that stayed. Dims of groups that the copy hasn't alike keep the scores that they have.
    """
    copy = plan.copy()
    record = copy.apply(copy.selection(cut))
    recover(plan.model, copy.model, record, runs, seed=seed, rounds=0)
    infer_sizes(copy.model)
    rest = PruningPlan(copy.model, ignore=plan.ignore, normalized=plan.normalized)
    rest.tie_like(plan)
    readers = None
    if find_criterion(importance).needs_samples:
        dims = [dim for group in rest.free for dim in group.move]
        readers = find_readers(rest.analysis, dims, runs, seed=seed)
    found = group_scores(rest.free, importance, readers, seed=seed)
    groups = {group.name: group for group in rest.free}
    merged = dict(scores)
    for group in plan.free:
        left = groups.get(group.name)
        indices = cut.get(group.name) or [np.arange(dim.size or 0) for dim in group.move]
        if left is None or [d.size for d in left.move] != [len(kept) for kept in indices]:
            log.debug("%s: its scores stay: the cut model has no such group", group.name)
            continue
        for dim, own, kept in zip(group.move, left.move, indices, strict=True):
            gone = np.setdiff1d(np.arange(dim.size or 0), kept)
            order = np.argsort(np.argsort(scores[dim][gone], kind="stable"), kind="stable")
            new = np.empty(dim.size or 0)
            new[kept] = found[own]
            least = float(found[own].min(initial=np.inf))
            new[gone] = least * (1 + order) / (len(gone) + 1) if len(gone) else 0.0
            new[gone] = np.minimum(scores[dim][gone], new[gone])
            merged[dim] = new
    return merged
