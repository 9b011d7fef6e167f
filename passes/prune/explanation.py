"""Why a cut is as it is: for each group its channels' scores, and who reads them."""

from __future__ import annotations

from typing import Any

from ...ir.axes.dims import Dim, dims_of
from ...ir.axes.facts import Analysis
from ...ir.axes.selection import Selection
from ...ir.graph import Node, Value
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
    readers = _Readers(plan.analysis)
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
                "readers": readers.of(group),
                "score_lost": loss.share if loss else 0.0,
                "score_removed": loss.removed if loss else None,
                "score_kept": loss.kept if loss else None,
            }
        )
    return {"importance": importance, "groups": table, "locked": locked}


class _Readers:
    """Who reads the indices of groups. The dims of each value are looked up once for all groups."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        self._dims: dict[Value, frozenset[Dim]] = {}

    def of(self, group: Group) -> list[str]:
        """Labels of the nodes with weights that read the indices: a cut changes their sums."""
        nodes = dict.fromkeys(t.parameter.node for ties in group.ties.values() for t in ties)
        labels = (n.label for n in nodes if not self._read_by(n).isdisjoint(group.move))
        return list(dict.fromkeys(labels))

    def _read_by(self, node: Node) -> frozenset[Dim]:
        """The dims of the axes of a node's first input."""
        source = node.inputs[0] if node.inputs else None
        if source is None:
            return frozenset()
        if source not in self._dims:
            axes = self._analysis.axes.get(source) or ()
            self._dims[source] = frozenset(dim for axis in axes for dim in dims_of(axis))
        return self._dims[source]
