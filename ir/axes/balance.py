"""Balanced choices: axes that may lose different indices, but equally many.

A grouped convolution needs the same count out of each group. Each requirement is a
*family* of axes. Once all axes are known, families are turned into *classes* of dims
that lose equally many indices each; a family that no such classes can keep in
balance is locked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .dims import Axis, Dim, Lock, dims_of, lock, resolve


@dataclass(frozen=True)
class Family:
    """Axes that must lose equally many elements."""

    members: tuple[Axis, ...]
    why: Lock


class CountClasses:
    """Union-find over dims that have to lose equally many indices."""

    def __init__(self) -> None:
        self._parent: dict[Dim, Dim] = {}

    def find(self, dim: Dim) -> Dim:
        root = dim
        while (parent := self._parent.get(root, root)) is not root:
            root = parent
        while self._parent.get(dim, dim) is not root:
            self._parent[dim], dim = root, self._parent[dim]
        return root

    def tie(self, a: Dim, b: Dim) -> None:
        a, b = self.find(a), self.find(b)
        if a is not b:
            self._parent[a] = b

    def classes(self, dims: Iterable[Dim]) -> list[list[Dim]]:
        """The classes among `dims`, in order of first appearance."""
        groups: dict[Dim, list[Dim]] = defaultdict(list)
        for dim in dims:
            groups[self.find(dim)].append(dim)
        return list(groups.values())


def settle_families(families: Sequence[Family]) -> None:
    """Lock whatever keeps a family from being balanced, until nothing changes."""
    while True:
        classes = CountClasses()
        changes = [_settle(family, classes) for family in families]
        if any(changes):
            continue
        if not _lock_mixed_classes(families, classes):
            return


def count_classes(families: Sequence[Family]) -> CountClasses:
    """Classes of free dims that settled families tie together."""
    classes = CountClasses()
    for family in families:
        _settle(family, classes)
    return classes


def _settle(family: Family, classes: CountClasses) -> bool:
    """Tie the k-th dims of equal weight over all members; True where dims were locked."""
    changed = False
    weighted: list[dict[int, list[Dim]]] = []
    for member in family.members:
        by_weight: dict[int, list[Dim]] = defaultdict(list)
        for term in resolve(member):
            free = [d for factor in term for d in dims_of(((factor,),)) if d.lock is None]
            if not free:
                continue
            if len(free) > 1 or free[0] not in term:
                # A product of two free dims has no fixed weight.
                for dim in free:
                    lock(((dim,),), family.why)
                changed = True
                continue
            weight = 1
            for factor in term:
                if factor is not free[0]:
                    assert factor.size is not None
                    weight *= factor.size
            by_weight[weight].append(free[0])
        weighted.append(by_weight)
    if changed:
        return True
    first = {weight: len(found) for weight, found in weighted[0].items()}
    if any({w: len(found) for w, found in other.items()} != first for other in weighted):
        for by_weight in weighted:
            for found in by_weight.values():
                for dim in found:
                    lock(((dim,),), family.why)
                    changed = True
        return changed
    for other in weighted[1:]:
        for weight, found in other.items():
            for a, b in zip(weighted[0][weight], found, strict=True):
                classes.tie(a, b)
    return False


def _lock_mixed_classes(families: Sequence[Family], classes: CountClasses) -> bool:
    """Lock classes some member of which is locked; True where anything was locked."""
    dims = dict.fromkeys(d for f in families for m in f.members for d in dims_of(m))
    changed = False
    for members in classes.classes(dims):
        why = next((d.lock for d in members if d.lock is not None), None)
        if why is None or len(members) == 1:
            continue
        for dim in members:
            if dim.lock is None:
                dim.lock = why
                changed = True
    return changed
