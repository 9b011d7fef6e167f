"""A model's groups, and cuts of it that are told apart from the objects of one analysis."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ...ir.axes.facts import Analysis
from ...ir.axes.selection import Indices, Selection
from ...ir.graph import Value
from ...ir.model import Model
from ...ir.tensor import Array
from .apply import apply_selection
from .computed_weights import analyze_folded
from .groups import Group, find_groups
from .masking import PruningRecord
from .sharing import tie, tie_costly

Cut = Mapping[str, Sequence[Indices]]
"""Kept indices of the dims of each group that loses some, by the group's name."""


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A model before it was cut, what is left of it, and whether recovery was seen to help.

    `helps` is None where nothing was held back to judge that by. `rematch` asks for the cheap
    way to recover.
    """

    original: Model
    record: PruningRecord
    helps: bool | None = None
    rematch: bool = False


class PruningPlan:
    """The groups of a model, under options of `PruneChannels`."""

    def __init__(
        self, model: Model, *, ignore: Sequence[str] = (), normalized: bool = False
    ) -> None:
        self.model = model
        self.ignore = tuple(ignore)
        self.normalized = normalized
        self.tied: set[Value] = set()
        self.analysis: Analysis = analyze_folded(model, prune_normalized=normalized)
        self.groups: list[Group] = find_groups(self.analysis, self.ignore)

    @property
    def free(self) -> list[Group]:
        """Groups that may lose indices."""
        return [group for group in self.groups if group.lock is None]

    def tie(self, selection: Selection) -> bool:
        """Tie constants that a selection would make larger; whether there are any."""
        kept = {dim: len(indices) for dim, indices in selection.kept.items()}
        if not tie_costly(self.analysis, kept, self.tied):
            return False
        self.groups = find_groups(self.analysis, self.ignore)
        return True

    def copy(self) -> PruningPlan:
        """A plan of a copy of the model, with the same groups."""
        other = PruningPlan(self.model.clone(), ignore=self.ignore, normalized=self.normalized)
        other.tie_like(self)
        return other

    def tie_like(self, other: PruningPlan) -> None:
        """Tie the constants that another plan has tied."""
        if other.tied:
            self.tied = tie(self.analysis, {value.name for value in other.tied})
            self.groups = find_groups(self.analysis, self.ignore)

    def agrees(self, other: PruningPlan) -> bool:
        """Whether both have the same groups, so that a cut of one is one of the other."""
        mine, theirs = ([_shape(group) for group in plan.free] for plan in (self, other))
        return mine == theirs

    def cut_of(self, selection: Selection) -> Cut:
        """A selection in terms of names."""
        return {
            group.name: [selection.kept[d] for d in group.move]
            for group in self.free
            if all(d in selection.kept for d in group.move)
        }

    def selection(self, cut: Cut) -> Selection:
        """What a cut of a plan that agrees with this one keeps."""
        kept = {}
        for group in self.free:
            for dim, indices in zip(group.move, cut.get(group.name, ()), strict=False):
                kept[dim] = indices
        return Selection(kept)

    def apply(
        self, selection: Selection, dropped: Mapping[str, Array] | None = None
    ) -> PruningRecord:
        """Cut the model in place. The plan is of no use afterwards.

        `dropped` are constants that already stand for branches of the model, for the record.
        """
        record = PruningRecord.of(self.analysis, selection)
        record = dataclasses.replace(record, dropped=dropped or {})
        apply_selection(self.analysis, selection)
        return record


def _shape(group: Group) -> tuple[object, ...]:
    return group.name, [(dim.size, count) for dim, count in group.move.items()]
