"""Groups: dims that are chosen together, the parameters tied to them, and what locks them."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...ir.axes.balance import Move, moves, settle
from ...ir.axes.dims import SINGLE_ELEMENTS, Axis, Dim, Lock, axis_size, dims_of, resolve, term_size
from ...ir.axes.facts import Analysis, Parameter
from ...ir.errors import SecateurError
from ..matching import matches, refuse_unmatched

TAKEN_APART = "its channels are taken apart one by one on their way"


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
        """Number of pruning steps the smallest dim allows, plus one: a dim keeps an index."""
        return 1 + min((_size(d) - 1) // n for d, n in self.move.items())

    def parameters(self) -> list[str]:
        """Names of the tied parameters."""
        names = (t.parameter.value.name for ties in self.ties.values() for t in ties)
        return list(dict.fromkeys(names))

    def nodes(self) -> list[str]:
        """Labels of the nodes that read the tied parameters."""
        labels = (t.parameter.node.label for ties in self.ties.values() for t in ties)
        return list(dict.fromkeys(labels))


@dataclass(frozen=True)
class Limit:
    """Shares of its indices, from `least` to `most`, that a group may keep.

    It holds for groups of which a parameter or a node has a name that matches `pattern`.
    """

    pattern: str
    least: float = 0.0
    most: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Limit:
        """The limit of `pattern=least..most`, where either number may be left out.

        Raises SecateurError.
        """
        pattern, equals, bounds = text.rpartition("=")
        low, dots, high = bounds.partition("..")
        try:
            found = cls(pattern, float(low or 0), float(high or 1))
        except ValueError:
            found = None
        known = pattern and equals and dots and bounds != dots
        if found is None or not known or not 0 <= found.least <= found.most <= 1 or not found.most:
            raise SecateurError(
                f"limit '{text}' is not of the form pattern=least..most, such as 'stem*=0.5..', "
                "with shares between 0 and 1"
            )
        return found

    def matches(self, group: Group) -> bool:
        names = (*group.parameters(), *group.nodes())
        return any(fnmatch.fnmatchcase(name, self.pattern) for name in names)


def _size(dim: Dim) -> int:
    assert dim.size is not None
    return dim.size


def find_groups(analysis: Analysis, ignore: Sequence[str] = ()) -> list[Group]:
    """All groups: free ones in the order of the graph, then locked ones that tie a parameter.

    A free dim need not tie a parameter: weights may be computed. Dims with a parameter
    or node name that matches one of the `ignore` patterns (shell style) are locked.
    Raises SecateurError for a pattern that matches nothing.
    """
    ties = _ties(analysis)
    if ignore:
        _refuse_unmatched(analysis, ties, ignore)
        _lock_ignored(ties, ignore)
        settle(analysis.families)
    weights = _weights(analysis)
    carriers = _carriers(analysis)
    names: dict[str, int] = defaultdict(int)
    groups = []

    def add(move: Move, lock: Lock | None) -> None:
        tied = {d: ties[d] for d in move if d in ties}
        name = _group_name(tied) if tied else next(carriers[d] for d in move if d in carriers)
        names[name] += 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        groups.append(Group(name, move, tied, min(weights.get(d, 1) for d in move), lock))

    known = [d for d in ties if d.size is not None and d.size > 1]
    computed = [d for d in carriers if d not in ties and d.lock is None]
    for move in moves(analysis.families, [*known, *computed]):
        add(move, None)
    for dim in known:
        if dim.lock is not None and not dim.lock.structural:
            add({dim: 1}, dim.lock)
    groups.extend(_taken_apart(analysis))
    return groups


def _taken_apart(analysis: Analysis) -> list[Group]:
    """Parameters that nodes split into single indices, none of which can be removed."""
    found: dict[str, Group] = {}
    for parameter in analysis.parameters.values():
        for block in parameter.blocks if len(parameter.tensor.shape) > 1 else ():
            for axis in block:
                size = axis_size(axis)
                if size is None or size < 2:
                    continue
                if any(dim.lock is not SINGLE_ELEMENTS for dim in dims_of(axis)):
                    continue
                why = Lock(parameter.node.label, parameter.node.op_type, TAKEN_APART)
                name = parameter.value.name
                found.setdefault(name, Group(name, {Dim(size, name, why): 1}, lock=why))
    return list(found.values())


def _ties(analysis: Analysis) -> dict[Dim, list[Tie]]:
    found: dict[Dim, list[Tie]] = {}
    for parameter in analysis.parameters.values():
        for number, block in enumerate(parameter.blocks):
            for position, axis in enumerate(block):
                for dim in dict.fromkeys(dims_of(axis)):
                    found.setdefault(dim, []).append(Tie(parameter, number, position))
    return found


def _carriers(analysis: Analysis) -> dict[Dim, str]:
    """For each dim of known size, the first value that has it on an axis."""
    found: dict[Dim, str] = {}
    for value, axes in analysis.axes.items():
        for axis in axes or ():
            for dim in dims_of(axis):
                if dim.size is not None and dim.size > 1:
                    found.setdefault(dim, value.name)
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


def _refuse_unmatched(
    analysis: Analysis, ties: dict[Dim, list[Tie]], patterns: Sequence[str]
) -> None:
    """Raise SecateurError for a pattern that is the name of no node and no parameter."""
    names = {node.label for node in analysis.model.all_nodes()}
    names |= {value.name for value in analysis.model.graph.initializers.values()}
    for places in ties.values():
        for tie in places:
            names |= {tie.parameter.value.name, tie.parameter.node.label}
    for pattern in patterns:
        refuse_unmatched(pattern, names)


def _lock_ignored(ties: dict[Dim, list[Tie]], patterns: Sequence[str]) -> None:
    for dim, places in ties.items():
        names = {n for t in places for n in (t.parameter.value.name, t.parameter.node.label)}
        for pattern in patterns:
            if dim.lock is None and any(matches(n, pattern) for n in names):
                dim.lock = Lock("", "", f"ignored by '{pattern}'")
