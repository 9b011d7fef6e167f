"""Sizes that a model leaves open: their names, what is admitted, and what follows from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ....ir.errors import SecateurError
from ....ir.graph import Dimension, Node, Value, tensor_type
from ....ir.model import Model
from ....ir.symbolic import expressions as e
from ....ir.symbolic.analysis import Admitted
from ....ir.symbolic.expressions import Atom, Expression, Size, atoms
from ....ir.symbolic.facts import Contents, Shape
from ....ir.symbolic.spatial import scales_of
from .data_sizes import (
    DataSizes,
    is_counted,
    is_told,
    may_be_decided,
    may_name_element,
    stated_sizes,
)
from .equal_sizes import EqualSizes, divided
from .least_sizes import raised
from .loop_sizes import Kept, LoopAnalysis, OpenLoop, forget_results
from .loops import is_branching
from .most import MOST

ANY_SIZE = Admitted(1, MOST, 1)
"""What is admitted of a size of which the user says nothing, and 0 where that is defined."""

_ADMITTED = re.compile(r"(?P<low>\d+)(\.\.(?P<high>\d+)?)?(:(?P<step>\d+))?")


def read_admitted(texts: Sequence[str]) -> dict[str, Admitted]:
    """What is admitted of open sizes, of texts as `seq=1..512`, `h=32..:32` or `batch=8`.

    Raises SecateurError for other texts, and for a name that is given twice.
    """
    found: dict[str, Admitted] = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        match = _ADMITTED.fullmatch(sizes)
        if not (name and equals and match) or len(sizes) > 64:
            raise SecateurError(f"--size {text}: no sizes, such as seq=1..512 or h=32..960:32")
        if name in found:
            raise SecateurError(f"--size {name}: given twice")
        low, step = int(match["low"]), int(match["step"] or 1)
        high = int(match["high"]) if match["high"] else None
        found[name] = Admitted(low, high if ".." in sizes else low, step)
    return found


def name_open_sizes(model: Model) -> list[str]:
    """Give each open size of the model's inputs a name, `input.axis` where it has none.

    Returns the names, in order.
    """
    names: dict[str, None] = {}
    taken = {size for v in model.graph.inputs for size in v.shape or () if isinstance(size, str)}
    for value in _given(model):
        shape = list(value.shape or ())
        for axis, size in enumerate(shape):
            if not isinstance(size, int) and not size:
                name = f"{value.name}.{axis}"
                while name in taken:
                    name += "'"
                taken.add(name)
                shape[axis] = name
        if value.shape is not None and tensor_type(value.type) is not None:
            value.set_tensor_type(value.dtype, shape)
        names |= dict.fromkeys(size for size in shape if isinstance(size, str))
    return list(names)


def check_admitted(model: Model, admitted: Mapping[str, Admitted]) -> None:
    """Raise SecateurError where sizes are admitted that the model doesn't have open."""
    names = name_open_sizes(model)
    for name, sizes in admitted.items():
        if name not in names and may_name_element(model, name):
            low, high, divisor = sizes
            if divisor != 1 or low > (MOST if high is None else high) or low > MOST:
                raise SecateurError(f"--size {name}: no numbers from {low} to {high} by {divisor}")
            continue
        if name not in names:
            known = ", ".join(f"'{n}'" for n in names) or "none"
            raise SecateurError(f"--size {name}: the model's open sizes are {known}")
        low, high, divisor = sizes
        most = MOST if high is None else high
        first = -(-low // divisor) * divisor
        if not (0 <= low <= most <= MOST and divisor >= 1 and first <= most):
            raise SecateurError(f"--size {name}: no size from {low} to {most} by {divisor}")


class OpenSizes:
    """The sizes of all values as expressions over those that inputs leave open.

    Sizes that a model can only run with if they are equal, since values of these sizes are
    combined element by element, are one: that one of them is 1 and broadcast in some runs only, is
    refused when the artifact runs. `required` are pairs that a run has to compare.
    """

    def __init__(self, analysis: LoopAnalysis, equal: EqualSizes | None = None) -> None:
        self._analysis = analysis
        self.model = analysis.model
        self.data = analysis.data if isinstance(analysis, DataSizes) else {}
        """Where what data decide comes from, in the order in which a run knows it."""
        order = analysis.order if isinstance(analysis, DataSizes) else {}
        self._equal = EqualSizes(analysis.pairs(), order) if equal is None else equal
        if equal is None:
            self._equal.limit(analysis.limits())
        self.required = self._equal.required
        self.loops, self.refused = analysis.loops, analysis.refused
        self.branches = analysis.branches

    def least(self, admitted: Mapping[str, Admitted]) -> dict[str, Admitted]:
        """What is admitted of symbols that begin at more than they might."""
        return raised(self._analysis, admitted)

    def bodies(self) -> list[OpenLoop]:
        """The bodies of loops, and branches, that are followed."""
        return self._analysis.bodies()

    def inside(self, loop: OpenLoop) -> OpenSizes:
        """Those of the body of a loop, or of a branch."""
        return OpenSizes(loop.analysis, self._equal)

    def resolved_steps(self, loop: OpenLoop) -> Size | None:
        """How many steps a loop makes, by the sizes that equal ones have in common."""
        return None if loop.steps is None else self._equal.resolved(loop.steps)

    def shape(self, value: Value | None) -> Shape | None:
        """The shape; None where the rank is unknown."""
        found = self._analysis.shape(value)
        return None if found is None else tuple(map(self._equal.resolved, found))

    def scales(self, node: Node) -> list[float | None] | None:
        """The scales that an operand of a Resize holds, None for those that only a run knows."""
        return scales_of(node, self._analysis)

    def contents(self, value: Value | None) -> Contents | None:
        """The elements of a short tensor of integers, where they follow from sizes."""
        found = self._analysis.contents(value)
        if found is None:
            return found
        result = np.empty(found.shape, object)
        for index, size in np.ndenumerate(found):
            result[index] = self._equal.resolved(size)
        return result


def follow_sizes(
    model: Model, admitted: Mapping[str, Admitted], *, declared: bool = False
) -> OpenSizes | None:
    """The sizes of all values as expressions over those that inputs leave open, and over those
    that data decide; None where there are none.

    Nothing that is declared of other values is believed: only what operators say. With `declared`
    data decide no size: the declared ones are meant. A size of which nothing is admitted may be
    0, too, where every operator that reads such a tensor makes one without elements of it; any
    other begins where what is computed has elements.
    """
    names, kept = name_open_sizes(model), Kept()
    found, given = _followed_from_0(model, names, admitted, kept, declared=declared)
    least = found.least(_bounded(names, given)) if found is not None else {}
    if not least:
        return found
    return _followed(model, names, {**given, **least}, kept, declared=declared)


def _followed_from_0(
    model: Model,
    names: Sequence[str],
    admitted: Mapping[str, Admitted],
    kept: Kept,
    *,
    declared: bool,
) -> tuple[OpenSizes | None, Mapping[str, Admitted]]:
    """As `follow_sizes`, but for where sizes begin that aren't 0; and what is admitted."""
    found = _followed(model, names, admitted, kept, declared=declared)
    free = {_symbol(name): name for name in names if name not in admitted}
    if found is None or not free:
        return found, admitted
    needed = set(_read_of_none(found, set(free)))
    while True:
        free = {symbol: name for symbol, name in free.items() if symbol not in needed}
        given = {**admitted, **{name: ANY_SIZE._replace(low=0) for name in free.values()}}
        tried = _followed(model, names, given, kept, declared=declared)
        assert tried is not None
        needed = set(_told_apart(found, tried, set(free)))
        if not needed:
            return tried, given


def _followed(
    model: Model,
    names: Sequence[str],
    admitted: Mapping[str, Admitted],
    kept: Kept,
    *,
    declared: bool,
) -> OpenSizes | None:
    """As `follow_sizes`, of what is admitted and of any other size from 1 on."""
    bounded, stated = _bounded(names, admitted), stated_sizes(model)
    found: LoopAnalysis | None = None
    if names:
        found = _analysed(model, bounded, kept)
        also = divided(found.pairs(), bounded)
        if also:
            bounded |= also
            found = _analysed(model, bounded, kept)
    others = {name: sizes for name, sizes in admitted.items() if name not in bounded}
    named: dict[str, None] = {}
    if not declared and may_be_decided(model, found):
        types = [(value, value.type) for value in model.graph.values()]
        decided = _decided(model, bounded, others, kept, stated)
        if decided.decides():
            found, named = decided, decided.named()
        else:
            for value, type_ in types:
                value.type = type_
    for name in others.keys() - named.keys():
        read = f"; of {', '.join(named)} they do" if named else ""
        raise SecateurError(f"--size {name}: no sizes follow from what '{name}' holds{read}")
    return None if found is None else OpenSizes(found)


def data_decide(model: Model, admitted: Mapping[str, Admitted]) -> bool:
    """Whether data decide sizes of a model (unchanged)."""
    nodes = [node for graph in model.graph.all_graphs() for node in graph.nodes]
    if not any(is_told(model, n) or is_counted(n) or is_branching(n) for n in nodes):
        return False
    work = model.clone()
    bounded = _bounded(name_open_sizes(work), admitted)
    kept, stated = Kept(), stated_sizes(work)
    shapes = _analysed(work, bounded, kept) if bounded else None
    if not may_be_decided(work, shapes):
        return False
    others = {name: sizes for name, sizes in admitted.items() if name not in bounded}
    return _decided(work, bounded, others, kept, stated).decides()


def _bounded(names: Sequence[str], admitted: Mapping[str, Admitted]) -> dict[str, Admitted]:
    """What is admitted of open sizes, none of them above the largest."""
    given = {name: admitted.get(name, ANY_SIZE) for name in names}
    return {n: a if a.high is not None else a._replace(high=MOST) for n, a in given.items()}


def _decided(
    model: Model,
    bounded: Mapping[str, Admitted],
    others: Mapping[str, Admitted],
    kept: Kept,
    stated: Mapping[Node, Sequence[Dimension]],
) -> DataSizes:
    """Sizes with those that data decide; `others` are admitted of elements that a run reads."""
    roots: dict[Value, None] = {}
    while True:
        analysis = DataSizes(model, bounded, roots, others, kept, stated)
        _run(analysis)
        new = analysis.new_roots()
        if not new:
            return analysis
        roots = {**roots, **dict.fromkeys(new)}


def _analysed(model: Model, admitted: Mapping[str, Admitted], kept: Kept) -> LoopAnalysis:
    analysis = LoopAnalysis(model, admitted, kept=kept)
    _run(analysis)
    return analysis


def _run(analysis: LoopAnalysis) -> None:
    forget_results(analysis.model)
    analysis.run()


def _given(model: Model) -> list[Value]:
    """The inputs that callers give."""
    return [v for v in model.graph.inputs if model.constant(v) is None]


# --- sizes of 0 ------------------------------------------------------------------------------


def sizes_of_none(sizes: OpenSizes, node: Node) -> Iterator[Size]:
    """Sizes of a node's operands without which its results still have elements, where nothing
    says that they are more than 0."""
    if node.op_type in ("Shape", "Size"):
        return
    results = [sizes.shape(v) for v in node.outputs if v is not None and v.uses]
    whole = [e.multiply(*shape) for shape in results if shape is not None]
    for value in node.inputs:
        for size in sizes.shape(value) or ():
            if any(e.divide_exactly(each, size) is None for each in whole):
                yield size


def _read_of_none(sizes: OpenSizes, symbols: set[Atom]) -> Iterator[Atom]:
    """Symbols that have to be 1 or more, since an operator reads elements along them, or divides
    by them, and its results don't have them."""
    for value, node in _values(sizes):
        for atom in atoms([*(sizes.shape(value) or ()), *_elements(sizes, value)]):
            if atom.op in _DIVISIONS:
                yield from _those(atom.operands[1:], symbols)
        if node is not None and node.op_type not in ("Concat", "Slice"):
            yield from _those(sizes_of_none(sizes, node), symbols)
    for body in sizes.bodies():
        yield from _read_of_none(sizes.inside(body), symbols)


_DIVISIONS = ("div", "floor", "mod")


def _told_apart(before: OpenSizes, after: OpenSizes, symbols: set[Atom]) -> Iterator[Atom]:
    """Symbols with which sizes are other expressions where they may be 0: what is known only of
    sizes from 1 on."""
    if before.refused.keys() != after.refused.keys():
        yield from symbols
        return
    for value, node in _values(before):
        for a, b in zip(_followed_of(before, value), _followed_of(after, value), strict=False):
            if a == b or e.mentions(a, "unknown", "step"):
                continue
            found = [] if e.mentions(b, "unknown") else list(_those([a, b], symbols))
            read = node.inputs if node is not None else ()
            operands = (size for v in read for size in _followed_of(before, v))
            yield from found or _those(operands, symbols)
    for own, other in zip(before.bodies(), after.bodies(), strict=True):
        if own.body is other.body:
            yield from _told_apart(before.inside(own), after.inside(other), symbols)


def _values(sizes: OpenSizes) -> Iterator[tuple[Value, Node | None]]:
    """All values of a model, with the nodes that make them."""
    for value in sizes.model.graph.values():
        yield value, value.producer


def _followed_of(sizes: OpenSizes, value: Value | None) -> list[Size]:
    """Sizes and elements of a value."""
    return [*(sizes.shape(value) or ()), *_elements(sizes, value)]


def _elements(sizes: OpenSizes, value: Value | None) -> list[Size]:
    found = sizes.contents(value)
    return [] if found is None else list(found.flat)


def _those(sizes: Iterable[Size], symbols: set[Atom]) -> Iterator[Atom]:
    """Symbols that sizes are made of."""
    yield from (atom for atom in atoms(sizes) if atom in symbols)


def _symbol(name: str) -> Atom:
    found = e.symbol(name)
    assert isinstance(found, Expression)
    assert found.atom is not None
    return found.atom
