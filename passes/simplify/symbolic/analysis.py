"""One walk over a model that finds symbolic shapes and the elements of shape tensors."""

from __future__ import annotations

from collections import deque

from ....ir.errors import MISFITS
from ....ir.graph import Graph, Node, Value, normalize_domain, tensor_type, type_shape
from ....ir.infer import infer_node
from ....ir.model import Model
from . import shapes, spatial, values
from .expression import Expression, Size
from .facts import INTEGERS, LIMIT, Facts, Shape

Elements = tuple[Size, ...]

_SHAPE_RULES = shapes.RULES | spatial.RULES


class Analysis(Facts):
    """Shapes of all values and elements of small integer tensors, as expressions.

    `run` also writes what it finds into `Value.type`, sizes that are expressions as
    symbols named by their text, so that equal sizes have equal names. `is_stale` is set
    by whoever finds that the model has changed too much since, `has_declared` where a value
    took over a shape of which less was known, from the declaration of a graph output.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.is_stale = False
        self.has_declared = False
        self._alike: dict[tuple[object, ...], deque[Value]] = {}
        self._places: dict[Value, int] = {}
        self._wanted_shapes: set[tuple[Graph | None, Shape]] = set()
        self._improved: set[Value] = set()

    def run(self) -> None:
        """Visit every node of the main graph and its subgraphs, in execution order."""
        self._walk(self._model.graph)

    def _walk(self, graph: Graph) -> None:
        for value in graph.inputs:
            self._note_shape(graph, value)
        for node in graph.nodes:
            # In a loop a name may stand for another size in each iteration.
            iterated = node.op_type in ("Loop", "Scan", "SequenceMap")
            self._loops += iterated
            for body in node.subgraphs():
                self._walk(body)
            self._loops -= iterated
            if normalize_domain(node.domain) == "":
                self._visit(node)
            for output in node.outputs:
                if output is not None:
                    self._note_shape(graph, output)

    def _note_shape(self, graph: Graph, value: Value) -> None:
        shape = self.shape(value)
        self._places[value] = len(self._places)
        if shape is not None and tensor_type(value.type) is not None:
            self._alike.setdefault((graph, shape), deque()).append(value)

    def leaves_open(self) -> bool:
        """Whether a result has no rank, or a size that doesn't follow from the inputs' sizes."""
        known = {s for v in self._model.graph.inputs for s in v.shape or ()}
        return any(
            tensor_type(value.type) is not None and not self._is_known(value, known)
            for graph in self._model.graph.all_graphs()
            for node in graph.nodes
            for value in node.outputs
            if value is not None
        )

    def _is_known(self, value: Value, known: set[int | str | None]) -> bool:
        shape = self.shape(value)
        return shape is not None and all(
            isinstance(s, int) or all(name in known for name in s.symbols()) for s in shape
        )

    # --- what rewrites ask ---------------------------------------------------------

    def first_of_shape(self, value: Value, node: Node) -> Value | None:
        """The first value of `node`'s graph with the same shape, if it precedes `value`."""
        shape = self.shape(value)
        if shape is None:
            return None
        self._wanted_shapes.add((node.graph, shape))
        return self._first((node.graph, shape), value)

    def first_with_elements(self, value: Value, node: Node) -> Value | None:
        """The first value with the same elements, rank and type, if it precedes `value`."""
        found = self._elements.get(value)
        if found is None:
            return None
        return self._first((node.graph, value.dtype, value.rank, tuple(found)), value)

    def note_new(self, value: Value, node: Node) -> None:
        """Tell of a value, made since `run`, that took no other's place.

        Where it might be the first of a shape that was asked for, only a new analysis
        knows whether it is.
        """
        self.is_stale |= (node.graph, self.shape(value)) in self._wanted_shapes

    def inherit(self, new: Value, old: Value) -> None:
        """Let a new value, put where `old` was, have what is known of that."""
        if old in self._places:
            self._places.setdefault(new, self._places[old])
        if old in self._elements:
            self._elements.setdefault(new, self._elements[old])

    def _first(self, key: tuple[object, ...], value: Value) -> Value | None:
        alike = self._alike.get(key)
        while alike and not _is_alive(alike[0]):
            alike.popleft()
        if not alike or alike[0] is value:
            return None
        if value not in self._places:
            self.is_stale = True  # where it stands is not known
            return None
        return alike[0] if self._places[alike[0]] < self._places[value] else None

    # --- finding -------------------------------------------------------------------

    def _visit(self, node: Node) -> None:
        rule = _SHAPE_RULES.get(node.op_type)
        try:
            found = rule(node, self) if rule is not None else []
        except MISFITS:
            found = []
        for value, shape in zip(node.outputs, found, strict=False):
            if value is not None and shape is not None:
                self._take_shape(value, shape)
        if (not found or None in found) and self._may_learn(node):
            self._infer(node)
        self._find_elements(node)

    def _find_elements(self, node: Node) -> None:
        rule = values.RULES.get(node.op_type)
        output = node.output(0)
        if rule is None or output is None or output.dtype not in INTEGERS:
            return
        rank = output.rank
        if rank is None or rank > 1:
            return
        try:
            found = rule(node, self)
        except MISFITS:
            return
        if found is not None and len(found) <= LIMIT:
            self._elements[output] = found
            key: tuple[object, ...] = (node.graph, output.dtype, rank, tuple(found))
            self._alike.setdefault(key, deque()).append(output)

    def _may_learn(self, node: Node) -> bool:
        """Whether ONNX's inference could find more than it did with what is known now."""
        if any(v in self._improved for v in node.inputs if v is not None):
            return True
        # An input may have got its shape from a graph output that was put in its place.
        is_open = any(v is not None and v.shape is None for v in node.outputs)
        return is_open and all(v is None or v.shape is not None for v in node.inputs)

    def _infer(self, node: Node) -> None:
        """Ask ONNX's own inference about one node."""
        for value, type_ in zip(node.outputs, infer_node(self._model, node), strict=False):
            tensor = tensor_type(type_)
            if value is None or tensor is None:
                continue
            if value.type is None:
                value.type = type_
            if tensor.HasField("shape"):
                found = type_shape(type_) or ()
                self._take_shape(
                    value, tuple(s if isinstance(s, int) else self._named(s) for s in found)
                )

    def _take_shape(self, value: Value, shape: Shape) -> None:
        """Keep the more precise of what the rule and the declaration say of each size."""
        declared = self._declared(value)
        if declared is not None and len(declared) == len(shape):
            shape = tuple(
                d if isinstance(d, int) or (_is_vague(s) and not shapes.is_unknown(d)) else s
                for s, d in zip(shape, declared, strict=True)
            )
        self._shapes[value] = shape
        names = tuple(s if isinstance(s, int) else self._name(s) for s in shape)
        if value.type is None or value.shape == names:
            return
        if declared is None or names != tuple(map(_as_name, declared)):
            self._improved.add(value)
        value.set_tensor_type(value.dtype, names)

    def _name(self, size: Expression) -> str:
        self._expressions.setdefault(size.text, size)
        return size.text


def _is_alive(value: Value) -> bool:
    return value.is_input or (value.producer is not None and value.producer.graph is not None)


def _as_name(size: Size) -> int | str:
    return size if isinstance(size, int) else size.text


def _is_vague(size: Size) -> bool:
    """Whether a size holds anything that is unknown."""
    return isinstance(size, Expression) and any(
        atom.op in ("long", "unknown") or any(_is_vague(x) for x in atom.operands)
        for monomial in size.terms
        for atom in monomial
    )
