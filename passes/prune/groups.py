"""Groups: dims that are chosen together, the parameters tied to them, and what locks them."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...ir.axes.analysis import Analysis, Parameter, analyze
from ...ir.axes.balance import Move, moves, settle
from ...ir.axes.dims import Axis, Dim, Lock, dims_of, resolve, term_size
from ...ir.graph import Model
from ...ir.infer import infer_shapes


@dataclass(frozen=True)
class Tie:
    """A dim's place in a parameter: which block, which axis."""

    parameter: Parameter
    block: int
    axis: int


@dataclass
class Group:
    """Indices that go together: one step removes `move[dim]` indices of each dim.

    Most groups are a single dim and remove one index at a time. `weight` is the least
    number of elements that one index stands for in any axis (2 where a shuffle
    interleaves two halves).
    """

    name: str
    move: Move
    ties: dict[Dim, list[Tie]] = field(default_factory=dict)
    weight: int = 1
    lock: Lock | None = None

    @property
    def dims(self) -> list[Dim]:
        return list(self.move)

    @property
    def size(self) -> int:
        """Steps, and the one that always stays, that the smallest dim is good for."""
        return 1 + min((_size(d) - 1) // n for d, n in self.move.items())

    def parameters(self) -> list[str]:
        """Names of the tied parameters."""
        names = (t.parameter.value.name for ties in self.ties.values() for t in ties)
        return list(dict.fromkeys(names))

    def nodes(self) -> list[str]:
        """Labels of the nodes that read the tied parameters."""
        labels = (t.parameter.node.label for ties in self.ties.values() for t in ties)
        return list(dict.fromkeys(labels))


def _size(dim: Dim) -> int:
    assert dim.size is not None
    return dim.size


def find_groups(analysis: Analysis, ignore: Sequence[str] = ()) -> list[Group]:
    """All groups that tie a parameter, in the order of the graph, then the locked ones.

    Dims with a parameter or node name that matches one of the `ignore` patterns (shell
    style) are locked.
    """
    ties = _ties(analysis)
    if ignore:
        _lock_ignored(ties, ignore)
        settle(analysis.families)
    weights = _weights(analysis)
    names: dict[str, int] = defaultdict(int)
    groups = []

    def add(move: Move, lock: Lock | None) -> None:
        tied = {d: ties[d] for d in move if d in ties}
        name = _group_name(tied)
        names[name] += 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        groups.append(Group(name, move, tied, min(weights.get(d, 1) for d in move), lock))

    known = [d for d in ties if d.size is not None and d.size > 1]
    for move in moves(analysis.families, known):
        if any(d in ties for d in move):
            add(move, None)
    for dim in known:
        if dim.lock is not None and not dim.lock.structural:
            add({dim: 1}, dim.lock)
    return groups


def _ties(analysis: Analysis) -> dict[Dim, list[Tie]]:
    found: dict[Dim, list[Tie]] = {}
    for parameter in analysis.parameters.values():
        for number, block in enumerate(parameter.blocks):
            for position, axis in enumerate(block):
                for dim in dict.fromkeys(dims_of(axis)):
                    found.setdefault(dim, []).append(Tie(parameter, number, position))
    return found


def _weights(analysis: Analysis) -> dict[Dim, int]:
    """The least number of elements that an index of a dim stands for in any axis."""
    weights: dict[Dim, int] = {}
    seen: set[Axis] = set()
    for axis in analysis.all_axes():
        axis = resolve(axis)
        if axis in seen:
            continue
        seen.add(axis)
        for term in axis:
            size = term_size(term)
            for dim in term:
                if size is not None and dim.size and dim.lock is None:
                    weights[dim] = min(weights.get(dim, size), size // dim.size)
    return weights


def _group_name(ties: dict[Dim, list[Tie]]) -> str:
    """The first tied parameter of rank 2 or more, the one that produces the axis if any."""
    candidates = [t for places in ties.values() for t in places]
    best = min(candidates, key=lambda t: (len(t.parameter.tensor.shape) < 2, t.axis))
    return best.parameter.value.name


def _lock_ignored(ties: dict[Dim, list[Tie]], patterns: Sequence[str]) -> None:
    for dim, places in ties.items():
        names = {n for t in places for n in (t.parameter.value.name, t.parameter.node.label)}
        for pattern in patterns:
            if dim.lock is None and any(fnmatch.fnmatchcase(n, pattern) for n in names):
                dim.lock = Lock("", "", f"ignored by '{pattern}'")


@dataclass(frozen=True)
class GroupReport:
    """One group as `secateur inspect` shows it; sizes in indices."""

    name: str
    size: int
    dims: int
    parameters: list[str]
    nodes: list[str]
    parameters_per_index: int
    lock: str | None

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def inspect_groups(model: Model, *, prune_normalized: bool = False) -> list[GroupReport]:
    """Every group of a model, with locks and their reasons. The model isn't changed
    but for inferred types."""
    infer_shapes(model)
    analysis = analyze(model, prune_normalized=prune_normalized)
    return [report(group) for group in find_groups(analysis)]


def report(group: Group) -> GroupReport:
    return GroupReport(
        name=group.name,
        size=group.size,
        dims=len(group.dims),
        parameters=group.parameters(),
        nodes=group.nodes(),
        parameters_per_index=_parameters_per_index(group),
        lock=None if group.lock is None else str(group.lock),
    )


def _parameters_per_index(group: Group) -> int:
    """Elements of tied parameters that go with one index of each of the group's dims."""
    total = 0
    for dim, ties in group.ties.items():
        for tie in _distinct(ties):
            block = tie.parameter.blocks[tie.block]
            size = 1
            for axis in block:
                size *= sum(term_size(term) or 1 for term in resolve(axis))
            axis = resolve(block[tie.axis])
            share = sum(term_size(t) or 0 for t in axis if dim in _opened(t))
            whole = sum(term_size(t) or 0 for t in axis)
            total += size * share // whole // _size(dim) if whole else 0
    return total


def _opened(term: Iterable[Dim]) -> set[Dim]:
    return {d for factor in term for d in dims_of(((factor,),))}


def _distinct(ties: Sequence[Tie]) -> Iterator[Tie]:
    seen: set[tuple[str, int, int]] = set()
    for tie in ties:
        key = (tie.parameter.value.name, tie.block, tie.axis)
        if key not in seen:
            seen.add(key)
            yield tie
