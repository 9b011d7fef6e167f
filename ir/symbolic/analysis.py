"""One walk over a model that finds symbolic shapes and the elements of shape tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..graph import Graph, Node, Value, tensor_type, type_shape
from ..infer import infer_node
from ..model import Model
from . import expressions as e
from .expressions import Expression, Size, bounded, symbol
from .facts import HEAVIEST, LIMIT, Contents, Facts, Shape, constant_contents
from .registry import find_contents, find_shapes, may_have_rules


class Admitted(NamedTuple):
    """The sizes that a symbol may have."""

    low: int = 0
    high: int | None = None
    divisor: int = 1


class SizeAnalysis(Facts):
    """Shapes of all values and elements of small integer tensors, as expressions.

    `run` also writes what it finds into `Value.type`, sizes that are expressions as
    symbols named by their text, so that equal sizes have equal names. `admitted` says which
    sizes the model's own symbols may have.
    """

    def __init__(self, model: Model, admitted: Mapping[str, Admitted] | None = None) -> None:
        super().__init__(model)
        self._admitted = admitted if admitted is not None else {}
        self._shapes: dict[Value, Shape | None] = {}
        self._contents: dict[Value, Contents | None] = {}
        self._sizes: dict[str, Size] = {}
        self._names: dict[Size, str] = {}
        self._improved: set[Value] = set()
        self._loops = 0

    def run(self) -> None:
        """Visit every node of the main graph and its subgraphs, in execution order."""
        self._walk(self.model.graph)

    def _walk(self, graph: Graph) -> None:
        for value in graph.inputs:
            self.note(graph, value)
        for node in graph.nodes:
            # In a loop a name may stand for another size in each iteration.
            iterated = node.op_type in ("Loop", "Scan", "SequenceMap")
            self._loops += iterated
            for body in node.subgraphs():
                self._walk(body)
            self._loops -= iterated
            if may_have_rules(node):
                self._visit(node)
            for output in node.outputs:
                if output is not None:
                    self.note(graph, output)

    def note(self, graph: Graph, value: Value) -> None:
        """Called for every value, once all is found of it."""

    # --- what is known ---------------------------------------------------------------------

    def shape(self, value: Value | None) -> Shape | None:
        if value is None:
            return None
        if value not in self._shapes:
            self._shapes[value] = self._declared(value)
        return self._shapes[value]

    def contents(self, value: Value | None) -> Contents | None:
        if value is None:
            return None
        if value not in self._contents:
            self._contents[value] = constant_contents(self.model, value)
        return self._contents[value]

    def leaves_open(self) -> bool:
        """Whether a result has no rank, or a size that doesn't follow from the inputs' sizes."""
        given = (size for v in self.model.graph.inputs for size in self.shape(v) or ())
        known = {leaf for size in given for leaf in e.leaves(size)}
        return any(
            tensor_type(value.type) is not None and not self._follows(value, known)
            for graph in self.model.graph.all_graphs()
            for node in graph.nodes
            for value in node.outputs
            if value is not None
        )

    def _follows(self, value: Value, known: set[e.Atom]) -> bool:
        shape = self.shape(value)
        return shape is not None and all(
            isinstance(s, int) or known.issuperset(e.leaves(s)) for s in shape
        )

    def _declared(self, value: Value) -> Shape | None:
        shape = value.shape
        if shape is None:
            return None
        return tuple(s if isinstance(s, int) else self._named(s) for s in shape)

    def _named(self, name: str | None) -> Size:
        if not name or (self._loops and name not in self._sizes):
            return self.unknown()
        if name not in self._sizes:
            self._sizes[name] = size = symbol(name, *self._admitted.get(name, Admitted()))
            self._names[size] = name
        return self._sizes[name]

    # --- finding ---------------------------------------------------------------------------

    def _visit(self, node: Node) -> None:
        found = find_shapes(node, self)
        for value, shape in zip(node.outputs, found, strict=False):
            if value is not None and shape is not None:
                self._take_shape(value, shape)
        if (len(found) < len(node.outputs) or None in found) and self._may_learn(node):
            self._infer(node)
        self._find_contents(node)

    def _find_contents(self, node: Node) -> None:
        for value, found in zip(node.outputs, find_contents(node, self), strict=False):
            if value is None or found is None or found.size > LIMIT:
                continue
            for index, element in enumerate(found.flat):
                if isinstance(element, Expression):
                    light = bounded(element, HEAVIEST)
                    if light is not element:
                        found = found.copy()
                        found.flat[index] = light
            self._contents[value] = found

    def _may_learn(self, node: Node) -> bool:
        """Whether ONNX's inference could find more than it did with what is known now."""
        if any(v in self._improved for v in node.inputs if v is not None):
            return True
        # An input may have got its shape from a graph output that was put in its place.
        is_open = any(v is not None and v.shape is None for v in node.outputs)
        return is_open and all(v is None or v.shape is not None for v in node.inputs)

    def _infer(self, node: Node) -> None:
        """Ask ONNX's own inference about one node."""
        for value, type_ in zip(node.outputs, infer_node(self.model, node), strict=False):
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
        if declared == shape:  # the usual case, and the quick one
            self._shapes[value] = shape
            return
        if declared is not None and len(declared) == len(shape):
            shape = tuple(
                d if isinstance(d, int) or (_is_vague(s) and not e.is_unknown(d)) else s
                for s, d in zip(shape, declared, strict=True)
            )
        shape = tuple(bounded(size, HEAVIEST) for size in shape)
        self._shapes[value] = shape
        names = tuple(s if isinstance(s, int) else self._name(s) for s in shape)
        if value.type is None or value.shape == names:
            return
        if declared != shape:
            self._improved.add(value)
        value.set_tensor_type(value.dtype, names)

    def _name(self, size: Expression) -> str:
        """What a size is called in types: one name for each expression."""
        if size not in self._names:
            name = size.text
            while name in self._sizes:
                name += "'"
            self._sizes[name], self._names[size] = size, name
        return self._names[size]


def _is_vague(size: Size) -> bool:
    """Whether a size holds anything that is unknown."""
    return e.mentions(size, "long", "unknown")
