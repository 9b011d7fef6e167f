"""Local rewriting to a fixed point: rules by operator, applied from one worklist.

A rule looks at one node and its neighbourhood and either rewrites it and returns
True, or changes nothing and returns False. The rewriter keeps the bookkeeping:
what a rewrite touches is looked at again, nodes whose results nobody reads vanish at
once (so that "read only once" is exact while rules run), and node lists are rebuilt
once at the end, so that a run is linear in the graph and its rewrites.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TypeProto

from ...ir.errors import MISFITS
from ...ir.graph import Attribute, Graph, Node, Value, normalize_domain
from ...ir.infer import misfit
from ...ir.model import Model
from ...ir.tensor import Array, Tensor
from ..base import Note
from ..initializers import separate_initializers
from .known_sizes import KnownSizes

_MANY_READERS = 64

FURTHEST = 16
"""Most nodes in a row that a rule looks at below the node it is applied to."""

Rule = Callable[[Node, "Rewriter"], bool]


class RuleSet:
    """Rules for operators of the standard domain, by operator type."""

    def __init__(self) -> None:
        self._rules: dict[str, list[Rule]] = {}

    def on(self, *op_types: str) -> Callable[[Rule], Rule]:
        """Decorator: try the rule on nodes of these operators."""

        def register(rule: Rule) -> Rule:
            for op_type in op_types:
                self._rules.setdefault(op_type, []).append(rule)
            return rule

        return register

    def find(self, node: Node) -> Sequence[Rule]:
        return self._rules.get(node.op_type, ()) if normalize_domain(node.domain) == "" else ()

    def __add__(self, other: RuleSet) -> RuleSet:
        both = RuleSet()
        for source in (self, other):
            for op_type, rules in source._rules.items():
                both._rules.setdefault(op_type, []).extend(rules)
        return both


log = logging.getLogger(__name__)


class Rewriter:
    """Applies `rules` to the main graph and its subgraphs until none matches.

    Bodies of model-local functions are left alone: what their attributes refer to is
    known only at their calls. `analysis` is what is known of sizes when the run begins;
    `allow_contrib` lets rules use ONNX Runtime's own operators.
    """

    def __init__(
        self,
        model: Model,
        rules: RuleSet,
        analysis: KnownSizes | None = None,
        *,
        allow_contrib: bool = False,
    ) -> None:
        self.model = model
        self.allow_contrib = allow_contrib
        self.opset = model.opset
        self.analysis = analysis if analysis is not None else KnownSizes(model)
        self.applied: Counter[str] = Counter()
        self.notes: list[Note] = []
        self._rules = rules
        self._queue: deque[Node] = deque()
        self._queued: set[Node] = set()
        self._before: dict[Node, list[Node]] = {}
        self._made: set[Node] = set()
        self._changed_graphs: set[Graph] = set()
        self._constants: dict[Value, Tensor | None] = {}

    def run(self, around: Iterable[Value] | None = None) -> bool:
        """Rewrite until nothing matches any more; whether anything did.

        Looks at all nodes, or first at those that define or read the values `around`
        and at those whose rules may look down to there.
        """
        if around is None:
            for graph in self.model.graph.all_graphs():
                for node in graph.nodes:
                    self.visit(node)
        for value in dict.fromkeys(around or ()):
            for near in (value.producer, *value.users, *_above(value)):
                if near is not None:
                    self.visit(near)
        while self._queue:
            node = self._queue.popleft()
            self._queued.discard(node)
            self._apply_rules(node)
        for node in self._made:
            if node.graph is not None and node.outputs[0] is not None:
                self.analysis.note_new(node.outputs[0], node)
        for graph in self._changed_graphs:
            self._rebuild(graph)
        return bool(self.applied)

    def _apply_rules(self, node: Node) -> None:
        for rule in self._rules.find(node):
            if node.graph is None:
                break
            try:
                applies = rule(node, self)
            except MISFITS as error:
                raise misfit(node, error, self.model, rule) from error
            if applies:
                log.debug("%s (%s): %s", node.label, node.op_type, rule.__name__)
                self.applied[rule.__name__] += 1
                self.visit(node)

    # --- looking -------------------------------------------------------------------

    def tensor(self, value: Value | None) -> Tensor | None:
        """The dense constant that `value` is in every run, or None."""
        if value is None:
            return None
        if value not in self._constants:
            tensor = self.model.constant(value)
            self._constants[value] = None if tensor is None or tensor.is_sparse else tensor
        return self._constants[value]

    def array(self, value: Value | None, max_elements: int | None = None) -> Array | None:
        """Elements of a constant of at most `max_elements` elements, or None."""
        tensor = self.tensor(value)
        if tensor is None or (max_elements is not None and tensor.size > max_elements):
            return None
        return tensor.numpy()

    def ints(self, value: Value | None) -> list[int] | None:
        """Elements of a small integer constant as a flat list, or None."""
        array = self.array(value, 4096)
        if array is None or array.dtype.kind not in "iu":
            return None
        return [int(x) for x in array.reshape(-1)]

    def scalar(self, value: Value | None) -> float | None:
        """The number in a constant of one element, or None."""
        array = self.array(value, 1)
        if array is None or array.size != 1 or array.dtype.kind not in "fiu":
            return None
        return float(array.reshape(-1)[0])

    # --- changing ------------------------------------------------------------------

    def visit(self, node: Node) -> None:
        """Look at `node` (again) before the run ends."""
        if node not in self._queued and node.graph is not None:
            self._queued.add(node)
            self._queue.append(node)

    def _visit_readers(self, value: Value) -> None:
        """Look at the readers of a value that gained or lost some.

        Where there are many no rule about all of them applies, and going through them
        for each that comes or goes would take the square of their number.
        """
        if len(value.uses) <= _MANY_READERS:
            for user in value.users:
                self.visit(user)

    def replace(self, old: Value, new: Value) -> bool:
        """Let all readers of `old` read `new`, and drop what only `old` needed.

        False, with nothing changed, where that would lose a graph output's name.
        """
        if old is new or not old.can_be_replaced_by(new):
            return False
        if old.is_graph_output or new.type is None:
            if declares_more(old, new):
                self.analysis.is_stale = self.analysis.has_declared = True
            new.type = old.type if old.type is not None else new.type
        readers = old.users
        old.replace_uses(new)
        self._take_over_names(old, new)
        for reader in readers:
            self.visit(reader)
        self._visit_readers(new)
        if new.producer is not None:
            self.visit(new.producer)
        if old.producer is not None:
            self.remove_if_unused(old.producer)
        return True

    def forward(self, node: Node, old: Value, new: Value) -> bool:
        """As `replace`; an Identity keeps a graph output's name where that is in the way."""
        if not old.can_be_replaced_by(new):
            new = self.add(node, "Identity", [new], type=old.type)
        return self.replace(old, new)

    def _take_over_names(self, old: Value, new: Value) -> None:
        """Let a node made in this run be called what the node in whose place it is was."""
        made, gone = new.producer, old.producer
        if made is None or gone is None or made not in self._made:
            return
        self._made.discard(made)
        self.analysis.inherit(new, old)
        if gone.name:
            made.name, gone.name = gone.name, made.name
        if not new.is_graph_output:  # else the names have changed hands already
            new.name, old.name = old.name, new.name

    def remove_if_unused(self, node: Node) -> None:
        """Remove `node`, and what only it read, where nobody reads its outputs."""
        pending = [node]
        while pending:
            dead = pending.pop()
            if dead.graph is None or any(v is not None and v.uses for v in dead.outputs):
                continue
            read = list(_reads(dead))
            self._changed_graphs.add(dead.graph)
            _disown(dead)
            for value in read:
                if value.producer is not None:
                    pending.append(value.producer)
                    self.visit(value.producer)
                if len(value.uses) == 1:
                    for user in value.users:
                        self.visit(user)

    def set_input(self, node: Node, index: int, value: Value | None) -> None:
        """Let `node` read another value at `index`; what the old one needed may vanish."""
        old = node.input(index)
        node.set_input(index, value)
        self.visit(node)
        if old is not None and old.producer is not None:
            self.remove_if_unused(old.producer)
        if old is not None:
            self._visit_readers(old)

    def set_inputs(self, node: Node, values: Iterable[Value | None]) -> None:
        """Replace all inputs of `node`."""
        old = [v for v in node.inputs if v is not None]
        node.set_inputs(values)
        self.visit(node)
        for value in old:
            if value.producer is not None:
                self.remove_if_unused(value.producer)
            self._visit_readers(value)

    def add(
        self,
        anchor: Node,
        op_type: str,
        inputs: Sequence[Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        type: TypeProto | None = None,
        hint: str = "",
        domain: str = "",
    ) -> Value:
        """A new node with one output, placed before `anchor`; returns the output."""
        assert anchor.graph is not None
        name = self.model.fresh_name(hint or anchor.label)
        value = Value(self.model.fresh_name(f"{name}_output"), type)
        made = {
            key: item if isinstance(item, Attribute) else Attribute.of(key, item)
            for key, item in (attributes or {}).items()
        }
        node = Node(op_type, inputs, [value], made, domain=domain, name=name)
        if domain and domain not in self.model.opsets:
            self.model.extra.opset_import.add(domain=domain, version=1)
        node.graph = anchor.graph
        for body in node.subgraphs():
            body.parent = node
        self._before.setdefault(anchor, []).append(node)
        self._changed_graphs.add(anchor.graph)
        self._made.add(node)
        self.visit(node)
        return value

    def constant(self, anchor: Node, array: npt.ArrayLike, hint: str = "") -> Value:
        """A new initializer of the graph that `anchor` lies in."""
        assert anchor.graph is not None
        separate_initializers(self.model)
        name = self.model.fresh_name(hint or f"{anchor.label}_constant")
        return anchor.graph.add_initializer(name, Tensor.from_array(np.asarray(array)))

    def make_constant(self, value: Value, array: npt.ArrayLike) -> None:
        """Let a node's output, which is no graph output, be a constant of the same name."""
        node = value.producer
        assert node is not None
        assert node.graph is not None
        separate_initializers(self.model)
        node.graph.make_initializer(value, Tensor.from_array(np.asarray(array)))
        self._constants.pop(value, None)
        for user in value.users:
            self.visit(user)
        self.remove_if_unused(node)

    def set_constant(self, node: Node, index: int, array: npt.ArrayLike, hint: str = "") -> None:
        """Let `node` read `array` at `index`; an initializer that only it reads keeps its name."""
        separate_initializers(self.model)
        old = node.input(index)
        graph = node.graph
        assert graph is not None
        owned = old is not None and len(old.uses) == 1 and graph.initializers.get(old.name) is old
        if old is None or not owned or old.is_input:
            name = hint or (old.name if old is not None else f"{node.label}_{index}")
            self.set_input(node, index, self.constant(node, array, name))
            return
        graph.make_initializer(old, Tensor.from_array(np.asarray(array)))
        self._constants.pop(old, None)
        self.visit(node)

    # --- finishing -----------------------------------------------------------------

    def _rebuild(self, graph: Graph) -> None:
        """The node list without removed nodes and with added ones before their anchors."""
        order: list[Node] = []
        for listed in graph.nodes:
            stack = [(listed, False)]
            while stack:
                node, expanded = stack.pop()
                if expanded or node not in self._before:
                    if node.graph is graph:
                        order.append(node)
                    continue
                stack.append((node, True))
                stack.extend((n, False) for n in reversed(self._before[node]))
        graph.nodes = order


def declares_more(a: Value, b: Value) -> bool:
    """Whether a rank or number in the shape of `a` is not in that of `b`."""
    if a.shape is None or b.shape is None:
        return a.shape is not None
    return len(a.shape) == len(b.shape) and any(
        isinstance(x, int) and not isinstance(y, int) for x, y in zip(a.shape, b.shape, strict=True)
    )


def only_reader(value: Value) -> Node | None:
    """The one node that reads `value`, once, in the graph that defines it; else None."""
    if len(value.uses) != 1:
        return None
    ((user, _),) = value.uses
    if not isinstance(user, Node) or value.producer is None:
        return None
    return user if user.graph is value.producer.graph else None


def producer(value: Value | None, *op_types: str) -> Node | None:
    """The standard-domain node of one of these types that defines `value`, or None."""
    node = None if value is None else value.producer
    if node is None or node.op_type not in op_types or normalize_domain(node.domain) != "":
        return None
    return node


def _above(value: Value) -> list[Node]:
    """Nodes from which values that have one reader each lead down to `value`."""
    found: list[Node] = []
    level = [value.producer] if value.producer is not None else []
    for _ in range(FURTHEST):
        level = [
            source.producer
            for node in level
            for source in node.inputs
            if source is not None and source.producer is not None and len(source.uses) == 1
        ]
        found += level
        if not level:
            break
    return found


def _reads(node: Node) -> Iterator[Value]:
    """What a node reads, captures of its subgraphs included, before it is removed."""
    yield from (v for v in node.inputs if v is not None)
    for graph in node.subgraphs():
        for inner in graph.nodes:
            yield from _reads(inner)
        yield from graph.outputs


def _disown(node: Node) -> None:
    node.detach_inputs()
    node.graph = None
    for graph in node.subgraphs():
        for inner in graph.all_nodes():
            inner.graph = None
