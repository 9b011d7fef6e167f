"""What rules ask of sizes: which values have a shape, and which of them is the first."""

from __future__ import annotations

from collections import deque

from ...ir.graph import Graph, Node, Value, tensor_type
from ...ir.model import Model
from ...ir.symbolic.analysis import SizeAnalysis
from ...ir.symbolic.facts import Shape


class KnownSizes(SizeAnalysis):
    """The sizes of a model as it was when the analysis ran, kept true while it is rewritten.

    `is_stale` is set by whoever finds that the model has changed too much since,
    `has_declared` where a value took over a shape of which less was known, from the
    declaration of a graph output.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.is_stale = False
        self.has_declared = False
        self._alike: dict[tuple[object, ...], deque[Value]] = {}
        self._places: dict[Value, int] = {}
        self._wanted_shapes: set[tuple[Graph | None, Shape]] = set()

    def note(self, graph: Graph, value: Value) -> None:
        shape = self.shape(value)
        self._places[value] = len(self._places)
        if shape is not None and tensor_type(value.type) is not None:
            self._alike.setdefault((graph, shape), deque()).append(value)
        if value.producer is not None and value in self._contents:
            self._alike.setdefault(self._key(value, graph), deque()).append(value)

    def first_of_shape(self, value: Value, node: Node) -> Value | None:
        """The first value of `node`'s graph with the same shape, if it precedes `value`."""
        shape = self.shape(value)
        if shape is None:
            return None
        self._wanted_shapes.add((node.graph, shape))
        return self._first((node.graph, shape), value)

    def first_with_elements(self, value: Value, node: Node) -> Value | None:
        """The first value with the same elements, shape and type, if it precedes `value`."""
        if self._contents.get(value) is None:
            return None
        return self._first(self._key(value, node.graph), value)

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
        if old in self._contents:
            self._contents.setdefault(new, self._contents[old])

    def _key(self, value: Value, graph: Graph | None) -> tuple[object, ...]:
        found = self._contents[value]
        if found is None:
            return ()
        return (graph, value.dtype, found.shape, *found.flat)

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


def _is_alive(value: Value) -> bool:
    return value.is_input or (value.producer is not None and value.producer.graph is not None)
