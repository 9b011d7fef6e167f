"""Sizes in and around loops whose number of steps inputs give.

The body is analysed as a model of its own, whose inputs have the sizes that the graph around it
says. States keep their shapes from step to step; one that grows is refused when it is lowered.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping

from ....ir.errors import UnsupportedError
from ....ir.graph import Dimension, Graph, Node, Value, tensor_type
from ....ir.model import Model
from ....ir.symbolic import expressions as e
from ....ir.symbolic.analysis import Admitted, SizeAnalysis
from ....ir.symbolic.contents import elementwise
from ....ir.symbolic.expressions import Atom, Expression, Size
from ....ir.symbolic.facts import INTEGERS, Contents, Shape, is_size, unknown_elements
from ....ir.symbolic.ranges import Range
from .equal_sizes import Pair, required_equal
from .loops import LoopBody, extract_body, extract_branch, is_branching, is_loop, is_read
from .most import upper_bound
from .prepare import Prepared, choose_branches, prepare_body

_FOLLOWED = 16
"""Elements of a state up to which it is asked how they change from step to step."""

_STEPS = itertools.count()
"""Numbers of loops: their steps never meet in one expression."""


@dataclasses.dataclass
class OpenLoop:
    """A loop with its body prepared and followed, or a branch; `steps` is how many it makes, None
    where that is no size, `tested` whether data may end it before."""

    body: LoopBody
    prepared: Prepared
    analysis: LoopAnalysis
    steps: Size | None
    tested: bool


Kept = dict[Node | Graph, tuple[LoopBody, Prepared]]
"""Bodies that were prepared before, of loops by the node, of branches by the graph."""


class LoopAnalysis(SizeAnalysis):
    """As `SizeAnalysis`, through the bodies of loops, and through branches that a run chooses, too.

    `known` are sizes that names stand for, `contents` elements of inputs; `kept` are bodies that
    another analysis of the model prepared.
    """

    def __init__(
        self,
        model: Model,
        admitted: Mapping[str, Admitted],
        known: Mapping[str, Size] | None = None,
        contents: Mapping[Value, Contents] | None = None,
        kept: Kept | None = None,
    ) -> None:
        super().__init__(model, admitted)
        self.take(known or {}, contents or {})
        self.kept = kept if kept is not None else {}
        self.loops: dict[Node, OpenLoop] = {}
        self.branches: dict[Node, tuple[OpenLoop, OpenLoop]] = {}
        self.refused: dict[Node, str] = {}
        self.equal: list[Pair] = []
        self._limits: dict[tuple[Size, int], None] = {}

    def take(self, known: Mapping[str, Size], contents: Mapping[Value, Contents]) -> None:
        """Know what names stand for, and elements of inputs."""
        for name, size in known.items():
            self._sizes[name] = size
            if isinstance(size, Expression):
                self._names.setdefault(size, name)
        self._contents.update(contents)

    def run(self) -> None:
        """As `SizeAnalysis.run`; names that inputs declare are those of sizes in bodies, too."""
        for value in self.model.graph.inputs:
            self.shape(value)
        super().run()

    def pairs(self) -> list[Pair]:
        """Sizes that have to be equal, here and in bodies."""
        found = [*required_equal(self), *self.equal]
        for loop in self.bodies():
            found += loop.analysis.pairs()
        return found

    def limits(self) -> list[tuple[Size, int]]:
        """Sizes and the most that they may be in a run, here and in bodies."""
        found = list(self._limits)
        for loop in self.bodies():
            found += loop.analysis.limits()
        return found

    def within(self, size: Size, most: int) -> bool:
        if not super().within(size, most):
            self._limits[size, most] = None
        return True

    def bodies(self) -> list[OpenLoop]:
        """The bodies of loops and the branches that are followed here."""
        branches = (branch for both in self.branches.values() for branch in both)
        return [*self.loops.values(), *branches]

    def _visit(self, node: Node) -> None:
        if is_branching(node) and node.graph is self.model.graph:
            try:
                self._visit_branches(node)
            except UnsupportedError as error:
                self.refused[node] = str(error)
            return
        if not is_loop(node) or node.graph is not self.model.graph:
            super()._visit(node)
            return
        try:
            loop = self.loops[node] = self._follow(node)
        except UnsupportedError as error:
            self.refused[node] = str(error)
            return
        body, inner = loop.body, loop.analysis
        for result, initial in zip(body.results, body.initial, strict=True):
            self._define(result, initial.dtype, self.shape(initial))
        if not any(rows.whole is not None and is_read(rows.whole) for rows in body.made):
            return
        loop.steps = self._as_size(loop.steps)
        count = loop.steps
        if count is not None and loop.tested:
            count = self.counted(node, count)
        for rows in body.made:
            output = body.model.graph.outputs[rows.place]
            shape = inner.shape(output)
            if shape is not None and any(map(inner.is_own, shape)):
                self.refused[node] = (
                    f"node '{node.label}' ({node.op_type}): data of each step decide the size of a "
                    f"row of result {rows.place - len(body.initial) + len(body.results)}"
                )
                return
            if count is None or shape is None:
                continue
            axis = rows.axis + len(shape) + 1 if rows.axis < 0 else rows.axis
            self._define(rows.whole, output.dtype, (*shape[:axis], count, *shape[axis:]))

    def _as_size(self, steps: Size | None) -> Size | None:
        """A number of steps as one of rows: none where it is less than 0."""
        if steps is None or is_size(steps):
            return steps
        return self.uncertain(e.maximum(steps, 0))

    def _visit_branches(self, node: Node) -> None:
        """Sizes of the results of an If: those of both branches, or one that a run reads of the
        branch that it makes."""
        yes, no = (self._follow_branch(node, name) for name in ("then_branch", "else_branch"))
        where, place = f"node '{node.label}' (If)", 0
        for index, result in enumerate(node.outputs):
            values = [branch.body.model.graph.outputs[index] for branch in (yes, no)]
            first, second = yes.analysis.shape(values[0]), no.analysis.shape(values[1])
            if first is None or second is None:
                raise UnsupportedError(
                    f"{where}: a run decides it, and its branches give sequences, or tensors of "
                    "unknown rank; --input-value fixes an input"
                )
            if len(first) != len(second):
                raise UnsupportedError(
                    f"{where}: a run decides it, and its branches give tensors of {len(first)} and "
                    f"{len(second)} axes; --input-value fixes an input"
                )
            if values[0].dtype != values[1].dtype:
                raise UnsupportedError(f"{where}: its branches give tensors of other types")
            sizes: list[Size] = []
            for axis, (a, b) in enumerate(zip(first, second, strict=True)):
                if a == b and not yes.analysis.is_own(a) and not no.analysis.is_own(b):
                    sizes.append(a)
                    continue
                bounds = [upper_bound(a), upper_bound(b)]
                known = [bound for bound in bounds if bound is not None]
                most = e.maximum(*known) if len(known) == len(bounds) else None
                name = node.label if result is None else result.name
                sizes.append(self.chosen(node, place + axis, f"{name}.{axis}", most))
            place += len(sizes)
            self._define(result, values[0].dtype, tuple(sizes))
        self.branches[node] = yes, no

    def chosen(self, node: Node, place: int, name: str, most: Size | None) -> Size:
        """A size of a result of an If, at a place among those of all, at most so large."""
        return self.unknown()

    def is_own(self, size: Size) -> bool:
        """Whether data of each run of the body that is analysed decide a size."""
        return False

    def inside(
        self,
        body: LoopBody,
        known: Mapping[str, Size],
        contents: Mapping[Value, Contents],
        kept: Kept,
    ) -> LoopAnalysis:
        """The analysis of a body."""
        forget_results(body.model)
        analysis = LoopAnalysis(body.model, self._admitted, known, contents, kept)
        analysis.run()
        return analysis

    def _define(self, value: Value | None, dtype: int, shape: Shape | None) -> None:
        if value is None or shape is None:
            return
        if value.type is None:
            value.set_tensor_type(dtype, None)
        self._take_shape(value, shape)

    def _follow_branch(self, node: Node, name: str) -> OpenLoop:
        graph: Graph = node.get(name)
        if graph not in self.kept:
            body = extract_branch(self.model, node, name, self._named_shape)
            self.kept[graph] = body, prepare_body(body.model)
        body, prepared = self.kept[graph]
        inside = self._inside(body)
        analysis = inside.analysis({})
        while choose_branches(body.model, prepared.refused):
            analysis = inside.analysis({})
        return OpenLoop(body, prepared, analysis, None, False)

    def _inside(self, body: LoopBody) -> _Inside:
        """What is known of the inputs of a body."""
        known: dict[str, Size] = {}
        for inner, shape in zip(body.model.graph.inputs, self._shapes_inside(body), strict=True):
            pairs = zip(inner.shape or (), shape, strict=True)
            known.update((name, size) for name, size in pairs if isinstance(name, str))
        first = len(body.initial) + len(body.read)
        captured = zip(body.model.graph.inputs[first:], body.captured, strict=True)
        return _Inside(
            body,
            self.inside,
            known,
            {i: found for i, o in captured if (found := self.contents(o)) is not None},
        )

    def _follow(self, node: Node) -> OpenLoop:
        if node not in self.kept:
            body = extract_body(self.model, node, self._named_shape)
            self.kept[node] = body, prepare_body(body.model)
        body, prepared = self.kept[node]
        inside = self._inside(body)
        step = e.single(Atom(f"step({next(_STEPS)})", Range(0, None), "step"))
        moving = self._moving(inside, step)
        analysis = inside.analysis(moving)
        while choose_branches(body.model, prepared.refused):
            analysis = inside.analysis(moving)
        steps, tested = self._steps(body, analysis, step)
        return OpenLoop(body, prepared, analysis, steps, tested)

    def _moving(self, inside: _Inside, step: Size) -> dict[Value, Contents]:
        """The elements of states that each step moves by the same number, if at all."""
        body = inside.body
        states = dict(zip(body.model.graph.inputs, body.initial, strict=False))
        asked: dict[Value, Contents] = {}
        for inner, outer in states.items():
            first = self.contents(outer)
            if inner.dtype in INTEGERS and first is not None and 0 < first.size <= _FOLLOWED:
                asked[inner] = unknown_elements(first.size).reshape(first.shape)
        if not asked:
            return {}
        analysis = inside.analysis(asked)
        found: dict[Value, Contents] = {}
        for index, (inner, outer) in enumerate(states.items()):
            after, first = analysis.contents(body.model.graph.outputs[index]), self.contents(outer)
            if inner not in asked or after is None or first is None:
                continue
            if after.shape != first.shape:
                continue
            moves = elementwise(e.subtract, after, asked[inner])
            if all(isinstance(move, int) for move in moves.flat):
                found[inner] = elementwise(lambda a, d: e.add(a, e.multiply(d, step)), first, moves)
        return found

    def _steps(
        self, body: LoopBody, analysis: LoopAnalysis, step: Size
    ) -> tuple[Size | None, bool]:
        """How many steps a loop makes, if that is a size; whether data may end it before."""
        if body.read:
            sizes = [(self.shape(rows.whole) or ())[rows.axis] for rows in body.read]
            self.equal += [(sizes[0], size) for size in sizes[1:] if size != sizes[0]]
            return sizes[0], False
        steps = None if body.limit is None else self._number(body.limit)
        if body.limit is not None and steps is None:
            return None, True
        first = 1 if body.condition is None else self._number(body.condition)
        keep = analysis._number(body.model.graph.outputs[-1])
        if first is None or keep is None:
            return steps, True
        if first == 0:
            return 0, False
        ends = _end(keep, step)
        if first != 1 or ends is None:
            return steps, True
        if steps is None and not ends:
            raise UnsupportedError(f"node '{body.node.label}' (Loop): it never ends")
        for end in ends:
            most = e.maximum(end, 1)
            steps = most if steps is None else e.minimum(steps, most)
        return steps, False

    def _number(self, value: Value) -> Size | None:
        found = self.elements(value)
        return found[0] if found is not None and len(found) == 1 else None

    def _named_shape(self, value: Value) -> tuple[Dimension, ...] | None:
        shape = self.shape(value)
        if shape is None:
            return None
        return tuple(s if isinstance(s, int) else self._name(s) for s in shape)

    def _shapes_inside(self, body: LoopBody) -> list[Shape]:
        """The shapes of the body's inputs."""
        shapes = [self.shape(value) or () for value in body.initial]
        for rows in body.read:
            whole = self.shape(rows.whole) or ()
            shapes.append((*whole[: rows.axis], *whole[rows.axis + 1 :]))
        return [*shapes, *(self.shape(value) or () for value in body.captured)]


def forget_results(model: Model) -> None:
    """Believe nothing that is declared of other values than inputs."""
    for node in model.graph.nodes:
        for value in node.outputs:
            if value is not None and tensor_type(value.type) is not None and value.dtype:
                value.set_tensor_type(value.dtype, None)


@dataclasses.dataclass
class _Inside:
    """What is known of the inputs of a body, whose nested bodies are prepared once."""

    body: LoopBody
    analyse: Callable[..., LoopAnalysis]
    known: Mapping[str, Size]
    contents: Mapping[Value, Contents]
    kept: Kept = dataclasses.field(default_factory=dict)

    def analysis(self, more: Mapping[Value, Contents]) -> LoopAnalysis:
        """What follows from that, and from more of the states."""
        return self.analyse(self.body, self.known, {**self.contents, **more}, self.kept)


def _end(keep: Size, step: Size) -> list[Size] | None:
    """Numbers of steps of which the least is how many a loop makes that goes on while `keep`
    holds, at least 1; None where that isn't such a condition."""
    if isinstance(keep, int):
        return [] if keep else [1]
    terms = e.terms_of(keep)
    if len(terms) == 1:
        ((monomial, factor),) = terms.items()
        ends = [_end_of(atom, step) for atom in monomial]
        return None if factor != 1 or None in ends else [end for end in ends if end is not None]
    other = e.subtract(1, keep)  # a <= b is 1 - (b < a)
    atom = other.atom if isinstance(other, Expression) else None
    if atom is None or atom.op != "less":
        return None
    a, b = atom.operands
    end = _while_less(b, e.add(a, 1), step)
    return None if end is None else [end]


def _end_of(atom: Atom, step: Size) -> Size | None:
    if atom.op != "less":
        return None
    a, b = atom.operands
    return _while_less(a, b, step)


def _while_less(a: Size, b: Size, step: Size) -> Size | None:
    """The number of steps of a loop that goes on while a < b, where that is step < n for an n."""
    last = e.add(e.subtract(b, a), step)
    if e.mentions(last, "step"):
        return None
    return e.add(last, 1)
