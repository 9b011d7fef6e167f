"""Copies of graphs: whole models, and function bodies put in place of calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import AttributeProto

from .graph import Attribute, Graph, Node, Value


class Copier:
    """Copies graphs and nodes; protos and tensors, never changed in place, are shared.

    `mapping` leads from every value copied so far to what stands for it in the copy
    (None: an omitted optional input). `rename` gives the copies' names; `attributes`
    are those that attributes of the copied nodes may refer to (`ref_attr_name`).
    """

    def __init__(
        self,
        mapping: dict[Value, Value | None] | None = None,
        rename: Callable[[str], str] | None = None,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> None:
        self.mapping = mapping if mapping is not None else {}
        self._rename = rename or (lambda name: name)
        self._attributes = attributes

    def graph(self, graph: Graph) -> Graph:
        """A copy of a graph with its inputs, initializers, nodes and outputs."""
        clone = Graph(graph.name, graph.extra)
        for value in graph.inputs:
            clone.add_input(self._value(value))
        for value in graph.initializers.values():
            copy = self.mapping.get(value) or self._value(value)
            clone.initializers[copy.name] = copy
        for node in graph.nodes:
            clone.add_node(self.node(node))
        for entry in graph.value_info:
            found = self.mapping.get(entry) if isinstance(entry, Value) else None
            clone.value_info.append(found or entry)
        clone.restated.update(graph.restated)
        for value in graph.outputs:
            output = self.mapping[value]
            assert output is not None
            clone.add_output(output)
        return clone

    def node(self, node: Node) -> Node:
        """A copy of a node that reads and defines what `mapping` says."""
        attributes = {}
        for name, attribute in node.attributes.items():
            resolved = self._attribute(name, attribute)
            if resolved is not None:
                attributes[name] = resolved
        copy = Node(
            node.op_type,
            [None if v is None else self.mapping[v] for v in node.inputs],
            [None if v is None else self.mapping.get(v) or self._value(v) for v in node.outputs],
            attributes,
            domain=node.domain,
            name=self._rename(node.name) if node.name else "",
            overload=node.overload,
            extra=node.extra,
        )
        copy.inference = node.inference
        for body in copy.subgraphs():
            body.parent = copy
        return copy

    def _value(self, value: Value) -> Value:
        name = self._rename(value.name)
        copy = Value(name, value.type, const=value.const, info=value.info)
        self.mapping[value] = copy
        return copy

    def _attribute(self, name: str, attribute: Attribute) -> Attribute | None:
        """The attribute itself, what it refers to, or None where that is not given."""
        reference = attribute.proto.ref_attr_name
        if reference and self._attributes is not None:
            given = self._attributes.get(reference)
            if given is None:
                return None
            proto = AttributeProto()
            proto.CopyFrom(given.proto)
            proto.name = name
            return Attribute(proto, given.graphs, given.tensor)
        return Attribute(
            attribute.proto, [self.graph(g) for g in attribute.graphs], attribute.tensor
        )
