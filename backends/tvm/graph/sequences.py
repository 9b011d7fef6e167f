"""Sequences and optionals inside a graph: which tensors they hold is known without running."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from ....ir.errors import ModelError
from ....ir.graph import Node, Value, normalize_domain, tensor_type
from ....ir.infer import blamed
from ....ir.model import Model
from ....ir.tensor import Tensor
from .unroll import Unroller


@dataclasses.dataclass(frozen=True)
class Held:
    """What a value that is no tensor holds: the elements of a sequence, the tensor of an
    optional, or, where `is_absent`, nothing, since the optional is empty."""

    elements: tuple[Value, ...]
    is_sequence: bool = True
    is_absent: bool = False


def resolve_sequences(model: Model) -> bool:
    """Replace what reads sequences by operators on their elements; whether anything changed.

    Sequences that come from outside, or whose positions only a run tells, stay.
    """
    return _Resolver(model).run()


def held_tensors(model: Model) -> dict[Value, Held]:
    """What those values hold that are sequences or optionals yet when the rest is resolved."""
    resolver = _Resolver(model)
    resolver.resolve(node for node in model.graph.nodes if node.op_type in _HOLDERS)
    return resolver.held


class _Resolver:
    """Knows which tensors each sequence or optional value holds, node by node."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.held: dict[Value, Held] = {}
        self.nodes: list[Node] = []
        self.changed = False

    def resolve(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            rule = RULES.get(node.op_type) if normalize_domain(node.domain) == "" else None
            is_resolved = False
            if rule is not None:
                with blamed(node, self.model, rule):
                    is_resolved = rule(self, node)
            if not is_resolved:
                self.nodes.append(node)

    def run(self) -> bool:
        graph = self.model.graph
        self.resolve(graph.nodes)
        if self.changed:
            graph.nodes = self.nodes
            for node in self.nodes:
                node.graph = graph
            _drop_unread(self.model)
        return self.changed

    # --- pieces ---

    def elements(self, node: Node) -> list[Value] | None:
        """Those of the sequence that a node reads; None where they aren't known."""
        value = node.input(0)
        held = None if value is None else self.held.get(value)
        return None if held is None or not held.is_sequence else list(held.elements)

    def position(self, node: Node, index: int, count: int) -> int | None:
        """A position in a sequence of `count` places; None where only a run tells it."""
        value = node.input(index)
        if value is None:
            return count
        tensor = self.model.constant(value)
        if tensor is None:
            return None
        at = int(tensor.numpy().reshape(()))
        return at + count if at < 0 else at

    def constant(self, node: Node, array: object) -> Value:
        name = self.model.fresh_name(f"{node.label}/constant")
        return self.model.graph.add_initializer(name, Tensor.from_array(np.asarray(array)))

    def add(self, node: Node, op_type: str, inputs: Sequence[Value | None], count: int = 1,
            **attributes: object) -> list[Value]:  # fmt: skip
        results = [Value(self.model.fresh_name(f"{node.label}/{op_type}")) for _ in range(count)]
        made = Node(op_type, inputs, results)
        for name, value in attributes.items():
            made.set(name, value)
        self.nodes.append(made)
        return results

    def along(self, node: Node, op_type: str, value: Value, axis: int) -> Value:
        """Squeeze or Unsqueeze one axis."""
        if self.model.opset < 13:
            return self.add(node, op_type, [value], axes=[axis])[0]
        axes = self.constant(node, np.asarray([axis], np.int64))
        return self.add(node, op_type, [value, axes])[0]

    def construct(self, elements: list[Value], results: Sequence[Value | None]) -> None:
        """Add a sequence of these tensors."""
        made = Node("SequenceConstruct" if elements else "SequenceEmpty", elements, results)
        type_ = None if results[0] is None else results[0].type
        if not elements and type_ is not None:
            made.set("dtype", int(type_.sequence_type.elem_type.tensor_type.elem_type) or 1)
        self.hold(made, elements)
        self.nodes.append(made)

    def define(self, node: Node, value: Value) -> bool:
        """Let the node's output be a tensor."""
        result = node.output(0)
        node.detach_inputs()
        if result is not None:
            self.nodes.append(Node("Identity", [value], [result]))
        self.changed = True
        return True

    def hold(self, node: Node, held: Held | Sequence[Value]) -> bool:
        """Note what the node's output holds. The node stays until nothing reads it."""
        result = node.output(0)
        if result is not None:
            self.held[result] = held if isinstance(held, Held) else Held(tuple(held))
        return False


def _construct(r: _Resolver, node: Node) -> bool:
    return r.hold(node, [v for v in node.inputs if v is not None])


def _empty(r: _Resolver, node: Node) -> bool:
    return r.hold(node, [])


def _insert(r: _Resolver, node: Node) -> bool:
    elements, new = r.elements(node), node.input(1)
    if elements is None or new is None:
        return False
    at = r.position(node, 2, len(elements))
    if at is None:
        return False
    return r.hold(node, [*elements[:at], new, *elements[at:]])


def _erase(r: _Resolver, node: Node) -> bool:
    elements = r.elements(node)
    if not elements:
        return False
    at = r.position(node, 1, len(elements))
    if at is None:
        return False
    if node.input(1) is None:
        at = len(elements) - 1
    return r.hold(node, [*elements[:at], *elements[at + 1 :]])


def _at(r: _Resolver, node: Node) -> bool:
    elements = r.elements(node)
    if elements is None:
        return False
    at = r.position(node, 1, len(elements))
    if at is None:
        return False
    if not 0 <= at < len(elements):
        raise ModelError(f"node '{node.label}' (SequenceAt): no element {at}")
    return r.define(node, elements[at])


def _length(r: _Resolver, node: Node) -> bool:
    elements = r.elements(node)
    if elements is None:
        return False
    return r.define(node, r.constant(node, np.asarray(len(elements), np.int64)))


def _identity(r: _Resolver, node: Node) -> bool:
    value = node.input(0)
    held = None if value is None else r.held.get(value)
    return False if held is None else r.hold(node, held)


def _concat(r: _Resolver, node: Node) -> bool:
    elements = r.elements(node)
    result = node.output(0)
    if not elements or result is None:
        return False
    axis = int(node.get("axis"))
    rank = elements[0].rank
    stacked = bool(node.get("new_axis", 0))
    if rank is None:
        return False
    if stacked:
        axis %= rank + 1
        elements = [r.along(node, "Unsqueeze", v, axis) for v in elements]
    return r.define(node, r.add(node, "Concat", elements, axis=axis)[0])


def _split(r: _Resolver, node: Node) -> bool:
    x = node.input(0)
    if x is None or x.shape is None:
        return False
    axis = int(node.get("axis", 0)) % len(x.shape)
    size = x.shape[axis]
    if not isinstance(size, int):
        return False
    scalar = True
    if node.input(1) is None:
        sizes = [1] * size
    else:
        tensor = r.model.constant(node.input(1))
        if tensor is None:
            return _split_by(r, node, x, axis)
        given = tensor.numpy()
        scalar = given.ndim == 0
        if scalar:
            step = int(given)
            sizes = [min(step, size - i) for i in range(0, size, step)]
        else:
            sizes = [int(s) for s in given]
    if r.model.opset < 13:
        parts = r.add(node, "Split", [x], len(sizes), axis=axis, split=sizes)
    else:
        lengths = r.constant(node, np.asarray(sizes, np.int64))
        parts = r.add(node, "Split", [x, lengths], len(sizes), axis=axis)
    if node.input(1) is None and not node.get("keepdims", 1):
        parts = [r.along(node, "Squeeze", p, axis) for p in parts]
    return _define_sequence(r, node, parts)


def _split_by(r: _Resolver, node: Node, x: Value, axis: int) -> bool:
    """The parts of SplitToSequence whose sizes only a run tells, where their number is known."""
    sizes = node.input(1)
    count = sizes.shape[0] if sizes is not None and sizes.shape else None
    if not isinstance(count, int) or r.model.opset < 13:
        return False
    return _define_sequence(r, node, r.add(node, "Split", [x, sizes], count, axis=axis))


def _define_sequence(r: _Resolver, node: Node, parts: list[Value]) -> bool:
    node.detach_inputs()
    r.changed = True
    # What reads the sequence is resolved in this run or never: keep its definition.
    r.construct(parts, node.outputs)
    return True


def _optional(r: _Resolver, node: Node) -> bool:
    value = node.input(0)
    if value is None:
        return r.hold(node, Held((), False, True))
    return r.hold(node, r.held.get(value, Held((value,), False)))


def _has_element(r: _Resolver, node: Node) -> bool:
    value = node.input(0)
    if value is None:
        return r.define(node, r.constant(node, np.asarray(False)))
    if value in r.held:
        return r.define(node, r.constant(node, np.asarray(not r.held[value].is_absent)))
    if tensor_type(value.type) is not None:
        return r.define(node, r.constant(node, np.asarray(True)))
    return False


def _get_element(r: _Resolver, node: Node) -> bool:
    value = node.input(0)
    if value is None:
        return False
    held = r.held.get(value)
    if held is None:
        return r.define(node, value) if tensor_type(value.type) is not None else False
    if held.is_absent:
        return False
    if held.is_sequence:
        return _define_sequence(r, node, list(held.elements))
    return r.define(node, held.elements[0])


def _choose(r: _Resolver, node: Node) -> bool:
    """An If that a run decides, where both branches give sequences of as many tensors of the
    same shapes: both are computed, then each tensor chosen."""
    if all(v is None or tensor_type(v.type) is not None for v in node.outputs):
        return False  # unrolling chooses tensors
    results = []
    trial = _Resolver(r.model)
    trial.held = dict(r.held)
    for branch in (node.get("then_branch"), node.get("else_branch")):
        work = Unroller(r.model, node, branch)
        outputs = work.step([])
        trial.resolve(work.made)
        results.append([trial.held.get(v, Held((v,), False)) for v in outputs])
    pairs = list(zip(node.outputs, *results, strict=True))
    if not all(_alike(yes, no) for _, yes, no in pairs):
        for made in trial.nodes:
            made.detach_inputs()
        return False
    r.nodes += trial.nodes
    condition = node.input(0)
    node.detach_inputs()
    node.graph = None
    for result, yes, no in pairs:
        if result is None:
            continue
        both = zip(yes.elements, no.elements, strict=True)
        chosen = [r.add(node, "Where", [condition, a, b])[0] for a, b in both]
        if yes.is_sequence:
            r.construct(chosen, [result])
        else:
            r.nodes.append(Node("Identity", chosen, [result]))
    r.changed = True
    return True


def _alike(a: Held, b: Held) -> bool:
    """Whether two values hold tensors of the same types and known shapes."""
    if a.is_absent or b.is_absent or a.is_sequence != b.is_sequence:
        return False
    if len(a.elements) != len(b.elements):
        return False
    return all(
        x.dtype == y.dtype
        and x.shape is not None
        and x.shape == y.shape
        and all(isinstance(size, int) for size in x.shape)
        for x, y in zip(a.elements, b.elements, strict=True)
    )


RULES = {
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "ConcatFromSequence": _concat,
    "SplitToSequence": _split,
    "Identity": _identity,
    "If": _choose,
    "Optional": _optional,
    "OptionalHasElement": _has_element,
    "OptionalGetElement": _get_element,
}

_HOLDERS = frozenset(
    [
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceInsert",
        "SequenceErase",
        "Optional",
        "Identity",
    ]
)
"""Operators that only note what their results hold."""


def _drop_unread(model: Model) -> None:
    """Remove makers of sequences that nothing reads any more."""
    graph = model.graph
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        unread = all(v is None or not v.uses for v in node.outputs)
        if unread and node.op_type in _HOLDERS:
            node.detach_inputs()
            node.graph = None
            continue
        kept.append(node)
    graph.nodes = kept[::-1]
