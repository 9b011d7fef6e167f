"""Constants that several nodes read: cut alike where cuts of their own would take more memory.

Each use of a constant is cut for itself, so that a bias of zeros that twenty layers share
ties nothing. A large weight that layers share would then be needed in several versions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ...ir.axes import dims
from ...ir.axes.balance import settle
from ...ir.axes.dims import Dim, Lock
from ...ir.axes.facts import Analysis, Parameter
from ...ir.graph import Value
from .budget import CostModel, SharedConstant, shared_constants

LARGE = 0.05
"""Share of a model's parameters that a constant may grow by before its uses are tied."""


def tie_costly(analysis: Analysis, kept: Mapping[Dim, int], tied: set[Value]) -> bool:
    """Tie the uses of constants that would grow, when dims keep the given numbers of indices.

    Those that grow by more than `LARGE` of all parameters are tied, and the largest others
    while all parameters together grow. `tied` are those tied so far; whether there are more.
    """
    model = CostModel(analysis, "parameters")
    growths = [(c.growth(kept), c) for c in shared_constants(analysis) if c.value not in tied]
    growing = sorted((g for g in growths if g[0] > 0), key=lambda g: -g[0])
    total = -model.saving(kept)
    chosen: list[SharedConstant] = []
    for growth, constant in growing:
        if growth > LARGE * model.full or total > 0:
            chosen.append(constant)
            total -= growth
    for constant in chosen:
        _tie(analysis, constant)
        tied.add(constant.value)
    if chosen:
        settle(analysis.families)
    return bool(chosen)


def tie(analysis: Analysis, names: Collection[str]) -> set[Value]:
    """Tie the uses of the constants of given names; returns the constants."""
    chosen = [c for c in shared_constants(analysis) if c.value.name in names]
    for constant in chosen:
        _tie(analysis, constant)
    if chosen:
        settle(analysis.families)
    return {constant.value for constant in chosen}


def _tie(analysis: Analysis, constant: SharedConstant) -> None:
    """Let all uses lose the same indices, or none where something needs the whole."""
    uses = [p for p in analysis.parameters.values() if p.value is constant.value]
    reason = "parts of a shared constant take more memory than the whole"
    first = uses[0]
    why = Lock(first.node.label, first.node.op_type, reason)
    alike = not constant.stays and all(len(p.blocks) == len(first.blocks) for p in uses)
    for parameter in uses:
        if alike:
            _unify(first, parameter, why)
        else:
            for block in parameter.blocks:
                for axis in block:
                    dims.lock(axis, why)


def _unify(first: Parameter, other: Parameter, why: Lock) -> None:
    for ours, theirs in zip(first.blocks, other.blocks, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if a is not b and not dims.unify(a, b, why):
                dims.lock(a, why)
                dims.lock(b, why)
