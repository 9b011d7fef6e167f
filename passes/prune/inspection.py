"""What `secateur inspect` shows of a model's groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...ir.axes.dims import Dim, Lock, dims_of
from ...ir.axes.facts import Analysis
from ...ir.model import Model
from ..sizes import CountedSizes, infer_sizes
from .budget import CostModel
from .computed_weights import analyze_folded
from .groups import Group, find_groups
from .names import name_values


@dataclass(frozen=True)
class TiedAxis:
    """One axis of a parameter that loses elements with the group's indices."""

    name: str
    axis: int


@dataclass(frozen=True)
class GroupReport:
    """One group.

    `size` counts its indices over all dims, `together` how many of them go in one step.
    `operators` are the nodes that the group's axes pass on their way. Parameters and
    MACs per step are those that the first step saves while everything else is whole.
    """

    name: str
    size: int
    together: int
    parameters: list[TiedAxis]
    operators: list[str]
    parameters_per_step: int
    macs_per_step: int
    lock: Lock | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect_groups(
    model: Model, *, ignore: Sequence[str] = (), prune_normalized: bool = False
) -> list[GroupReport]:
    """Every group of a model, the locked ones too; those inside model-local functions as
    they are once calls are inlined. The model itself isn't changed."""
    model = model.clone()
    name_values(model)
    infer_sizes(model)
    analysis = analyze_folded(model, prune_normalized=prune_normalized)
    groups = find_groups(analysis, ignore)
    passed = _operators(analysis)
    _, shape_of = CountedSizes.usual(model)
    macs = CostModel(analysis, "macs", shape_of=shape_of, locked=True)
    parameters = CostModel(analysis, "parameters", locked=True)
    reports = []
    for group in groups:
        kept = {d: (d.size or 0) - n for d, n in group.move.items()}
        reports.append(
            GroupReport(
                name=group.name,
                size=sum(d.size or 0 for d in group.dims),
                together=sum(group.move.values()),
                parameters=tied_axes(group),
                operators=list(dict.fromkeys(o for d in group.dims for o in passed[d])),
                parameters_per_step=parameters.saving(kept),
                macs_per_step=macs.saving(kept),
                lock=group.lock,
            )
        )
    return reports


def tied_axes(group: Group) -> list[TiedAxis]:
    """The parameter axes of a group, each once."""
    found = (
        TiedAxis(tie.parameter.value.name, tie.axis) for ties in group.ties.values() for tie in ties
    )
    return list(dict.fromkeys(found))


def _operators(analysis: Analysis) -> dict[Dim, list[str]]:
    """For each dim, the nodes whose results have it on an axis, in the graph's order."""
    passed: dict[Dim, dict[str, None]] = defaultdict(dict)
    for value, axes in analysis.axes.items():
        if value.producer is None or axes is None:
            continue
        label = f"{value.producer.label} ({value.producer.op_type})"
        for axis in axes:
            for dim in dims_of(axis):
                passed[dim][label] = None
    return defaultdict(list, {dim: list(labels) for dim, labels in passed.items()})
