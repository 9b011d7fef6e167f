"""Why a cut is as it is: for each group its channels' scores, and who reads them."""

from __future__ import annotations

from typing import Any

from ...ir.axes.dims import dims_of
from ...ir.axes.selection import Selection
from .allocation import Loss
from .groups import Group
from .plan import PruningPlan


def explain(
    plan: PruningPlan, selection: Selection, losses: dict[str, Loss], importance: str
) -> dict[str, Any]:
    """Tables of free groups and of locked ones, for the report.

    `losses` are those of each free group's scores by the criterion `importance`.
    """
    table, locked = [], []
    for group in plan.groups:
        if group.lock is not None:
            locked.append({"name": group.name, "size": group.size, "reason": str(group.lock)})
            continue
        sizes = [d.size or 0 for d in group.dims]
        kept = [len(selection.kept[d]) if d in selection.kept else d.size or 0 for d in group.dims]
        loss = losses.get(group.name)
        table.append(
            {
                "name": group.name,
                "size": sum(sizes),
                "kept": sum(kept),
                "parameters": group.parameters(),
                "readers": _readers(plan, group),
                "score_lost": loss.share if loss else 0.0,
                "score_removed": loss.removed if loss else None,
                "score_kept": loss.kept if loss else None,
            }
        )
    return {"importance": importance, "groups": table, "locked": locked}


def _readers(plan: PruningPlan, group: Group) -> list[str]:
    """Labels of the nodes with weights that read the group's indices: a cut changes their sums."""
    found = []
    for ties in group.ties.values():
        for tie in ties:
            node = tie.parameter.node
            source = node.inputs[0] if node.inputs else None
            axes = plan.analysis.axes.get(source) if source is not None else None
            if any(dim in group.move for axis in axes or () for dim in dims_of(axis)):
                found.append(node.label)
    return list(dict.fromkeys(found))
