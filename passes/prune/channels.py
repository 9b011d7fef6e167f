"""The pass that prunes channels, heads, hidden units: whatever the axes leave free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.axes.facts import Analysis
from ...ir.axes.selection import Selection
from ...ir.cost import ShapeOf, count
from ...ir.errors import SecateurError
from ...ir.graph import Value
from ...ir.model import Model
from ..base import Context, Note, Pass, PassResult
from ..inline import InlineFunctions
from ..simplify.defaults import inputs_with_defaults
from ..sizes import CountedSizes, infer_sizes
from .allocation import Allocation, Goal, allocate
from .apply import apply_selection
from .computed_weights import analyze_folded
from .groups import Group, find_groups
from .importance import IMPORTANCE, group_scores
from .masking import PruningRecord
from .sharing import tie_costly


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the least important indices until a budget is met.

    Exactly one goal: `macs` or `params`, the share of the original that may remain, or
    `ratio`, the share of channels to remove. `scope` ranks globally or takes the same
    share of every group; kept widths are multiples of `align` where the original and the
    goal allow; parameters, nodes or groups that match an `ignore` pattern stay whole.
    `normalized` also prunes axes that layer normalization runs over (statistics are
    then those of the kept indices).

    Raises SecateurError where the goal can't be reached, saying what can.
    """

    macs: float | None = None
    params: float | None = None
    ratio: float | None = None
    importance: str = "l2"
    scope: str = "global"
    align: int = 1
    ignore: tuple[str, ...] = ()
    normalized: bool = False

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        goal = self._goal()
        inlined = InlineFunctions().run(model)
        infer_sizes(model)
        sizes = CountedSizes.of(model)
        shape_of = sizes.shapes(model)
        before = count(model, shape_of)
        analysis = analyze_folded(model, prune_normalized=self.normalized)
        try:
            groups, allocation, tied = self._choose(analysis, goal, shape_of)
        except SecateurError as error:
            raise SecateurError(f"{error}{_hint(model)}") from None
        selection = allocation.selection
        record = PruningRecord.of(analysis, selection)
        statistics = _statistics(analysis, groups, selection)
        apply_selection(analysis, selection)
        infer_sizes(model)
        after = sizes.count(model)
        statistics.update(
            macs_before=before.macs,
            macs_after=after.macs,
            parameters_before=before.parameters,
            parameters_after=after.parameters,
            align=allocation.align,
            align_asked=self.align,
            tied=sorted(value.name for value in tied),
        )
        return PassResult(
            bool(selection) or inlined.changed,
            statistics,
            inlined.notes + _notes(analysis, groups),
            {"selection": record},
        )

    def _choose(
        self, analysis: Analysis, goal: Goal, shape_of: ShapeOf
    ) -> tuple[list[Group], Allocation, set[Value]]:
        """Groups, what they lose, and constants whose uses were tied for it.

        Chosen again as long as constants that nodes share would grow by being cut in
        several ways; a goal in parameters weighs that by itself.
        """
        tied: set[Value] = set()
        while True:
            groups = find_groups(analysis, self.ignore)
            free = [g for g in groups if g.lock is None]
            allocation = allocate(
                analysis,
                groups,
                group_scores(free, self.importance),
                goal,
                shape_of=shape_of,
                scope=self.scope,
                align=self.align,
            )
            kept = {dim: len(indices) for dim, indices in allocation.selection.kept.items()}
            if goal.kind == "params" or not tie_costly(analysis, kept, tied):
                return groups, allocation, tied

    def _goal(self) -> Goal:
        goals = {"macs": self.macs, "params": self.params}
        given = [Goal(kind, keep) for kind, keep in goals.items() if keep is not None]
        if self.ratio is not None:
            given.append(Goal("channels", 1.0 - self.ratio))
        if len(given) != 1:
            raise SecateurError("prune-channels: give exactly one of macs, params and ratio")
        if not 0 < given[0].keep <= 1:
            raise SecateurError("prune-channels: the goal has to lie between 0 and 1")
        if self.importance not in IMPORTANCE:
            known = ", ".join(IMPORTANCE)
            raise SecateurError(f"prune-channels: unknown importance '{self.importance}' ({known})")
        if self.scope not in ("global", "uniform"):
            raise SecateurError(f"prune-channels: unknown scope '{self.scope}' (global, uniform)")
        if self.align < 1:
            raise SecateurError("prune-channels: align has to be at least 1")
        return given[0]


def _hint(model: Model) -> str:
    """Why so little may go, where it is because weights are inputs with default values."""
    count = len(inputs_with_defaults(model))
    if not count:
        return ""
    return f"; {count} inputs with default values stay whole (--freeze-defaults: constants)"


def _statistics(
    analysis: Analysis, groups: Sequence[Group], selection: Selection
) -> dict[str, Any]:
    table, locked = [], []
    for group in groups:
        if group.lock is not None:
            locked.append({"name": group.name, "size": group.size, "reason": str(group.lock)})
            continue
        sizes = [d.size or 0 for d in group.dims]
        kept = [len(selection.kept[d]) if d in selection.kept else d.size or 0 for d in group.dims]
        table.append(
            {
                "name": group.name,
                "size": sum(sizes),
                "kept": sum(kept),
                "parameters": group.parameters(),
            }
        )
    return {"groups": table, "locked": locked}


def _notes(analysis: Analysis, groups: Sequence[Group]) -> list[Note]:
    """Why parameters that look prunable stayed: one note per distinct reason."""
    notes = [Note(n.label, n.op_type, reason) for n, reason in analysis.unruled]
    seen = set()
    for group in groups:
        why = group.lock
        if why is None or why in seen:
            continue
        seen.add(why)
        notes.append(Note(why.node, why.op_type, f"{why.reason} (locks {group.name})"))
    return notes
