"""Balanced choices: axes that may lose different indices, but equally many.

A grouped convolution needs the same count out of each group. Each such requirement is
a *family* of axes, and a linear equation over how many indices each dim loses. The
non-negative solutions form a cone; its extreme rays are the *moves*: the smallest sets
of indices that can go together. Mostly a move takes one index from each of a few dims;
where group boundaries cut across a concatenation it may take several from some.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .dims import Axis, Dim, Lock, dims_of, is_locked, lock, resolve

RAY_LIMIT = 512
"""Rays above which a system of equations isn't solved; its dims are locked."""

Move = dict[Dim, int]
"""How many indices of each dim go together."""

Equation = dict[Dim, int]
"""Coefficients of a linear form over removed counts that has to vanish."""


@dataclass(frozen=True)
class Family:
    """Axes that must lose equally many elements."""

    members: tuple[Axis, ...]
    why: Lock


def settle(families: Sequence[Family]) -> None:
    """Lock the dims that no balanced choice can remove an index of.

    A lock changes the equations that others were found with: until none is added.
    """
    left: set[Dim] | None = None
    while left != (free := _free_dims(families)):
        left = free
        for dim, why in _System(families).stuck().items():
            if dim.lock is None:
                dim.lock = why


def _free_dims(families: Sequence[Family]) -> set[Dim]:
    axes = (member for family in families for member in family.members)
    return {dim for axis in axes for dim in dims_of(axis) if dim.lock is None}


def moves(families: Sequence[Family], dims: Iterable[Dim]) -> list[Move]:
    """The moves that, over settled families, remove indices of the free ones of `dims`."""
    system = _System(families)
    free = [d for d in dims if d.lock is None]
    wanted = set(free)
    balanced = [m for m in system.moves if wanted.intersection(m)]
    covered = {d for m in balanced for d in m}
    return balanced + [{d: 1} for d in free if d not in covered]


class _System:
    """The equations of all families, solved."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._why: dict[Dim, Lock] = {}
        self._parent: dict[Dim, Dim] = {}
        equations = [e for family in families for e in self._equations(family)]
        equations = self._merge_equal(equations)
        self.moves = self._solve(equations)

    def stuck(self) -> dict[Dim, Lock]:
        """Constrained dims without a move, with the reason."""
        covered = {d for m in self.moves for d in m}
        return {d: why for d, why in self._why.items() if d not in covered}

    def _equations(self, family: Family) -> list[Equation]:
        """first member - other member = 0, for each other member."""
        forms = [_linear_form(member, family.why) for member in family.members]
        for form in forms:
            for dim in form:
                self._why.setdefault(dim, family.why)
        equations = []
        for form in forms[1:]:
            equation = dict(forms[0])
            for dim, weight in form.items():
                equation[dim] = equation.get(dim, 0) - weight
            equations.append(equation)
        return equations

    def _find(self, dim: Dim) -> Dim:
        root = dim
        while (parent := self._parent.get(root, root)) is not root:
            root = parent
        while self._parent.get(dim, dim) is not root:
            self._parent[dim], dim = root, self._parent[dim]
        return root

    def _reduced(self, equation: Equation) -> Equation:
        result: Equation = {}
        for dim, weight in equation.items():
            root = self._find(dim)
            result[root] = result.get(root, 0) + weight
        return {d: w for d, w in result.items() if w}

    def _merge_equal(self, equations: list[Equation]) -> list[Equation]:
        """Make one variable of dims that an equation says are equal, until none does."""
        while True:
            rest = []
            merged = False
            for equation in equations:
                reduced = self._reduced(equation)
                if len(reduced) == 2 and sum(reduced.values()) == 0:
                    a, b = reduced
                    self._parent[a] = b
                    merged = True
                elif reduced:
                    rest.append(reduced)
            equations = rest
            if not merged:
                return equations

    def _solve(self, equations: Sequence[Equation]) -> list[Move]:
        classes: dict[Dim, list[Dim]] = defaultdict(list)
        for dim in self._why:
            classes[self._find(dim)].append(dim)
        solved: list[Move] = []
        constrained = {d for e in equations for d in e}
        for component in _components(equations):
            solved.extend(_extreme_rays(component))
        solved.extend({root: 1} for root in classes if root not in constrained)
        return [{d: n for root, n in move.items() for d in classes[root]} for move in solved]


def _linear_form(axis: Axis, why: Lock) -> Equation:
    """Elements that an axis loses, by removed indices of each of its free dims.

    A product of two factors that may both shrink isn't linear: all but the largest are
    locked. Neither is a square.
    """
    form: Equation = {}
    for term in resolve(axis):
        free = [f for f in term if any(d.lock is None for d in dims_of(((f,),)))]
        if not free:
            continue
        kept = max(free, key=lambda f: f.size or 0)
        for factor in free:
            if factor is not kept or free.count(kept) > 1:
                lock(((factor,),), why)
        if is_locked(((kept,),)):
            continue
        weight = math.prod(f.size or 0 for f in term if f is not kept)
        inner = {kept: 1} if kept.binding is None else _linear_form(kept.binding, why)
        for dim, count in inner.items():
            form[dim] = form.get(dim, 0) + weight * count
    return form


def _components(equations: Sequence[Equation]) -> list[list[Equation]]:
    """Equations that share dims, together."""
    parent = list(range(len(equations)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[Dim, int] = {}
    for i, equation in enumerate(equations):
        for dim in equation:
            parent[find(i)] = find(seen.setdefault(dim, i))
    groups: dict[int, list[Equation]] = defaultdict(list)
    for i, equation in enumerate(equations):
        groups[find(i)].append(equation)
    return list(groups.values())


def _extreme_rays(equations: Sequence[Equation]) -> list[Move]:
    """Extreme rays of the non-negative solutions (double description, Motzkin 1953)."""
    rays: list[Move] = [{d: 1} for d in dict.fromkeys(d for e in equations for d in e)]
    for equation in equations:
        values = [sum(equation.get(d, 0) * n for d, n in ray.items()) for ray in rays]
        kept = [ray for ray, value in zip(rays, values, strict=True) if value == 0]
        up = [(r, v) for r, v in zip(rays, values, strict=True) if v > 0]
        down = [(r, -v) for r, v in zip(rays, values, strict=True) if v < 0]
        if len(up) * len(down) > RAY_LIMIT * RAY_LIMIT:
            return []
        kept += [_combine(p, vn, n, vp) for p, vp in up for n, vn in down]
        rays = _minimal(kept)
        if len(rays) > RAY_LIMIT:
            return []
    return rays


def _combine(a: Move, times_a: int, b: Move, times_b: int) -> Move:
    result = {d: n * times_a for d, n in a.items()}
    for dim, n in b.items():
        result[dim] = result.get(dim, 0) + n * times_b
    divisor = math.gcd(*result.values())
    return {d: n // divisor for d, n in result.items()}


def _minimal(rays: Sequence[Move]) -> list[Move]:
    """Rays whose support contains no other ray's."""
    result: list[Move] = []
    for ray in sorted(rays, key=len):
        support = ray.keys()
        if not any(other.keys() <= support for other in result):
            result.append(ray)
    return result
