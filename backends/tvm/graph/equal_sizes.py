"""Sizes that a model can only run with if they are equal, as one expression.

A U-Net joins an image with its own half, doubled: `n` with `2 * (n // 2)`. So `n` is a multiple
of 2 in every run, and with that the sizes are the same expression. Others are made one by solving
for a part of one of them, and are compared when the artifact runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ....ir.graph import Node
from ....ir.symbolic import expressions as e
from ....ir.symbolic.analysis import Admitted, SizeAnalysis
from ....ir.symbolic.expressions import Atom, Expression, Size, atoms
from ....ir.symbolic.shapes import has_rest

Pair = tuple[Size, Size]

_TRIED = 512
"""Sizes of a symbol that are tried to find what it has to be a multiple of."""


def required_equal(analysis: SizeAnalysis) -> list[Pair]:
    """Different sizes of values that are combined element by element, multiplied as matrices, or
    joined along others."""
    pairs: dict[Pair, None] = {}
    for value in analysis.model.graph.values():
        for atom in atoms(analysis.shape(value) or ()):
            if atom.op == "broadcast":
                pairs[atom.operands[0], atom.operands[1]] = None
    for node in analysis.model.graph.nodes:
        if node.op_type == "Concat":
            pairs |= dict.fromkeys(_joined(analysis, node))
        elif node.op_type == "Split":
            pairs |= dict.fromkeys(_parts(analysis, node))
        elif node.op_type in ("MatMul", "Gemm"):
            pairs |= dict.fromkeys(_depths(analysis, node))
    return list(pairs)


def _joined(analysis: SizeAnalysis, node: Node) -> Iterator[Pair]:
    shapes = [s for v in node.inputs if (s := analysis.shape(v)) is not None]
    if len({len(s) for s in shapes}) != 1:
        return
    axis = node.get("axis", 1) % max(1, len(shapes[0]))
    for index, sizes in enumerate(zip(*shapes, strict=True)):
        if index != axis:
            yield from ((sizes[0], size) for size in sizes[1:] if size != sizes[0])


def _depths(analysis: SizeAnalysis, node: Node) -> Iterator[Pair]:
    """Along what a product of matrices sums."""
    a, b = analysis.shape(node.input(0)), analysis.shape(node.input(1))
    if not a or not b:
        return
    depth = a[-2 if node.get("transA", 0) else -1]
    other = b[-1 if len(b) == 1 or node.get("transB", 0) else -2]
    if depth != other:
        yield depth, other


def _parts(analysis: SizeAnalysis, node: Node) -> Iterator[Pair]:
    """The whole, and the equal parts of it, where a Split has no sizes and nothing is left over."""
    whole, part = analysis.shape(node.input(0)), analysis.shape(node.output(0))
    if has_rest(node) or node.input(1) is not None or node.get("split") or not whole or not part:
        return
    axis = node.get("axis", 0) % len(whole)
    every = e.multiply(part[axis], len(node.outputs))
    if every != whole[axis]:
        yield whole[axis], every


def divided(pairs: Sequence[Pair], admitted: Mapping[str, Admitted]) -> dict[str, Admitted]:
    """What is admitted of symbols that pairs make multiples of a number, with that number.

    Only where every other size would be refused.
    """
    found: dict[str, Admitted] = {}
    for name, own in admitted.items():
        symbol = e.symbol(name)
        key = symbol.atom if isinstance(symbol, Expression) else None
        if key is None or own.low == own.high:
            continue
        about = [p for p in pairs if _only(key, p)]
        if not about:
            continue
        most = _TRIED if own.high is None else min(_TRIED, own.high)
        tried = [n for n in range(own.divisor, most + 1, own.divisor) if n >= own.low]
        tried = [n for n in tried if all(_at(n, size) > 0 for p in about for size in p)]
        equal = [n for n in tried if all(_at(n, a) == _at(n, b) for a, b in about)]
        divisor = equal[1] - equal[0] if len(equal) > 1 else 1
        if equal == [n for n in tried if n % divisor == 0] != tried:
            found[name] = own._replace(divisor=divisor)
    return found


def _only(symbol: Atom, sizes: Sequence[Size]) -> bool:
    """Whether sizes depend on a symbol and on nothing else."""
    return {leaf for size in sizes for leaf in e.leaves(size)} == {symbol}


def _at(number: int, size: Size) -> int:
    found = e.substitute(size, lambda _: number)
    return found if isinstance(found, int) else 0


class EqualSizes:
    """One expression for sizes that are equal in every run; `required` are those of which the
    artifact has to find out, the others follow from what inputs have. `order` is that of what a run
    reads."""

    def __init__(self, pairs: Iterable[Pair], order: Mapping[Atom, int]) -> None:
        self._known: dict[Atom, Size] = {}
        self._order = order
        self.required: list[Pair] = []
        for a, b in pairs:
            self._unify(self.resolved(a), self.resolved(b))

    def limit(self, limits: Iterable[tuple[Size, int]]) -> None:
        """Let runs find out that sizes are at most so large."""
        for size, most in limits:
            own = self.resolved(size)
            self.required.append((own, e.minimum(own, most)))

    def resolved(self, size: Size) -> Size:
        """The size with everything replaced of which another expression is known."""
        if isinstance(size, int) or self._known.keys().isdisjoint(atoms([size])):
            return size
        parts = (
            e.multiply(factor, *map(self._resolved, monomial))
            for monomial, factor in size.terms.items()
        )
        return e.add(*parts)

    def _resolved(self, atom: Atom) -> Size:
        if atom in self._known:
            return self.resolved(self._known[atom])
        if not atom.operands:
            return e.single(atom)
        return e.FUNCTIONS[atom.op](*map(self.resolved, atom.operands))

    def _unify(self, a: Size, b: Size) -> None:
        if a == b or any(e.mentions(size, "unknown", "long") for size in (a, b)):
            return
        if e.mentions(a, "data") or e.mentions(b, "data"):
            self._require(a, b)
            return
        for symbol, other in ((b, a), (a, b)):
            own = symbol.atom if isinstance(symbol, Expression) else None
            if own is not None and not own.op and own not in e.leaves(other):
                self._known[own] = other
                return
        difference = e.subtract(a, b)
        for monomial, factor in e.terms_of(difference).items():
            if len(monomial) != 1 or abs(factor) != 1 or monomial[0].op != "floor":
                continue
            own = monomial[0]
            other = e.subtract(e.single(own), e.multiply(difference, factor))
            if own not in atoms([other]):
                self.required.append((e.single(own), other))
                self._known[own] = other
                return

    def _require(self, a: Size, b: Size) -> None:
        """Compare sizes that data decide; one that a run knows later is the other from then on."""
        self.required.append((a, b))
        for own, other in ((a, b), (b, a)):
            atom = own.atom if isinstance(own, Expression) else None
            if atom is None or atom.op != "checked" or atom in atoms([other]):
                continue
            if self._place(other) <= self._place(own):
                self._known[atom] = other
                return

    def _place(self, size: Size) -> int:
        """When a run knows a size, as a place in the order of what it reads."""
        return max((self._order.get(leaf, -1) for leaf in e.leaves(size)), default=-1)
