"""The intermediate representation: models, graphs, nodes and values with def-use chains.

A `Graph` owns `Node`s in execution order; a model (`model.py`) owns graphs. Nodes read
and define `Value`s; every value knows its producer and its uses, also those inside
subgraphs, so that a rewrite never searches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from onnx import (
    AttributeProto,
    GraphProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
)

from .tensor import Tensor

Dimension = int | str | None
"""A size: known, symbolic (by name), or unknown."""


class Use(NamedTuple):
    """One consumption of a value: input `position` of a node, or output of a graph."""

    user: Node | Graph
    position: int


class Value:
    """A named edge of the graph: a node's output, a graph input or an initializer.

    `type` is the ONNX type or None where unknown; it is replaced, never changed in
    place. `const` holds an initializer's
    tensor. `info` is the value's entry among a graph's inputs, outputs or
    value_info as read (doc string, metadata, denotations); None where it had none.
    """

    __slots__ = (
        "_shape",
        "_shape_type",
        "const",
        "info",
        "is_input",
        "name",
        "output_index",
        "producer",
        "type",
        "uses",
    )

    def __init__(
        self,
        name: str,
        type: TypeProto | None = None,
        *,
        const: Tensor | None = None,
        info: ValueInfoProto | None = None,
    ) -> None:
        self.name = name
        self.type = type
        self.const = const
        self.info = info
        self.is_input = False
        self.producer: Node | None = None
        self.output_index = 0
        self.uses: dict[Use, None] = {}
        self._shape: tuple[Dimension, ...] | None = None
        self._shape_type: TypeProto | None = None  # the type that `_shape` was read from

    @property
    def dtype(self) -> int:
        """`TensorProto.DataType` of a tensor, else UNDEFINED."""
        if self.const is not None:
            return self.const.dtype
        tensor = tensor_type(self.type)
        return TensorProto.UNDEFINED if tensor is None else int(tensor.elem_type)

    @property
    def shape(self) -> tuple[Dimension, ...] | None:
        """Sizes of the axes; None where even the rank is unknown."""
        if self.const is not None:
            return self.const.shape
        if self._shape_type is not self.type:
            self._shape, self._shape_type = type_shape(self.type), self.type
        return self._shape if self.type is not None else None

    @property
    def rank(self) -> int | None:
        shape = self.shape
        return None if shape is None else len(shape)

    def set_tensor_type(self, dtype: int, shape: Sequence[Dimension] | None) -> None:
        self._shape = None if shape is None else tuple(shape)
        self._shape_type = self.type = make_tensor_type(dtype, shape)

    @property
    def users(self) -> list[Node]:
        """Nodes that read this value, each once, in order of registration."""
        return list(dict.fromkeys(u.user for u in self.uses if isinstance(u.user, Node)))

    @property
    def is_graph_output(self) -> bool:
        return any(isinstance(u.user, Graph) for u in self.uses)

    def can_be_replaced_by(self, other: Value) -> bool:
        """Whether `replace_uses(other)` keeps the names of all graph outputs.

        An output's name is part of the model's interface, so a value that is an
        output gives way only to a node's result of the same graph that can take
        its name over.
        """
        if not self.is_graph_output:
            return True
        return (
            other.producer is not None
            and self.producer is not None
            and other.producer.graph is self.producer.graph
            and not other.is_graph_output
        )

    def replace_uses(self, other: Value) -> None:
        """Let everything that reads this value, graph outputs included, read `other`.

        Where this value is a graph output, `other` takes over its name.
        """
        if other is self:
            return
        if self.is_graph_output:
            if not self.can_be_replaced_by(other):
                raise ValueError(f"graph output '{self.name}' can't be replaced by '{other.name}'")
            self.name, other.name = other.name, self.name
            self.info, other.info = other.info, self.info
        for user, index in list(self.uses):
            if isinstance(user, Node):
                user.set_input(index, other)
            else:
                user.set_output(index, other)

    def __repr__(self) -> str:
        return f"Value({self.name!r})"


class Attribute:
    """A node's attribute. `proto` holds everything but subgraphs, which are in `graphs`.

    `tensor` is set where the attribute's tensor has external data.
    """

    __slots__ = ("graphs", "proto", "tensor")

    def __init__(
        self, proto: AttributeProto, graphs: Sequence[Graph] = (), tensor: Tensor | None = None
    ) -> None:
        self.proto = proto
        self.graphs = tuple(graphs)
        self.tensor = tensor

    @classmethod
    def of(cls, name: str, value: Any, type: int | None = None) -> Attribute:
        """An attribute of a Python value: int, float, str, bytes, list, Tensor or Graph."""
        if isinstance(value, Graph):
            return cls(AttributeProto(name=name, type=AttributeProto.GRAPH), [value])
        if isinstance(value, Tensor):
            value = value.to_proto("")
        return cls(helper.make_attribute(name, value, attr_type=type))

    @property
    def value(self) -> Any:
        """The Python value; strings decoded, lists of numbers as lists, graphs as Graph."""
        kind = self.proto.type
        if kind == AttributeProto.GRAPH:
            return self.graphs[0]
        if kind == AttributeProto.GRAPHS:
            return list(self.graphs)
        value = helper.get_attribute_value(self.proto)
        if kind == AttributeProto.STRING:
            return value.decode("utf-8", "surrogateescape")
        if kind == AttributeProto.STRINGS:
            return [v.decode("utf-8", "surrogateescape") for v in value]
        if kind in (AttributeProto.INTS, AttributeProto.FLOATS):
            return list(value)
        return value


class Inference(NamedTuple):
    """What is noted at a node whose results' types are inferred (inferred.py).

    `basis` is what they were inferred from and what they are. `is_proven` says whether
    inference from the operands alone gives them; None where that wasn't asked.
    """

    basis: tuple[object, ...]
    is_proven: bool | None


class Node:
    """One operation. Inputs and outputs may hold None where ONNX allows an empty name."""

    __slots__ = (
        "_inputs",
        "attributes",
        "domain",
        "extra",
        "graph",
        "inference",
        "name",
        "op_type",
        "outputs",
        "overload",
    )

    def __init__(
        self,
        op_type: str,
        inputs: Iterable[Value | None],
        outputs: Iterable[Value | None],
        attributes: dict[str, Attribute] | None = None,
        *,
        domain: str = "",
        name: str = "",
        overload: str = "",
        extra: NodeProto | None = None,
    ) -> None:
        self.op_type = op_type
        self.domain = domain
        self.overload = overload
        self.name = name
        self.attributes = attributes if attributes is not None else {}
        self.extra = extra
        self.graph: Graph | None = None
        self.inference: Inference | None = None
        self._inputs: list[Value | None] = list(inputs)
        for index, value in enumerate(self._inputs):
            if value is not None:
                value.uses[Use(self, index)] = None
        self.outputs: tuple[Value | None, ...] = tuple(outputs)
        for index, value in enumerate(self.outputs):
            if value is not None:
                value.producer = self
                value.output_index = index

    @property
    def inputs(self) -> tuple[Value | None, ...]:
        return tuple(self._inputs)

    def input(self, index: int) -> Value | None:
        """Input `index`, or None where it is omitted or empty."""
        return self._inputs[index] if index < len(self._inputs) else None

    def output(self, index: int) -> Value | None:
        return self.outputs[index] if index < len(self.outputs) else None

    def set_input(self, index: int, value: Value | None) -> None:
        """Make input `index` read `value`; the def-use chains follow.

        Appends omitted inputs where `index` is past the end.
        """
        while len(self._inputs) <= index:
            self._inputs.append(None)
        old = self._inputs[index]
        if old is not None:
            old.uses.pop(Use(self, index), None)
        self._inputs[index] = value
        if value is not None:
            value.uses[Use(self, index)] = None

    def set_inputs(self, values: Iterable[Value | None]) -> None:
        """Replace the whole input list."""
        self.detach_inputs()
        self._inputs = []
        for index, value in enumerate(list(values)):
            self._inputs.append(None)
            self.set_input(index, value)

    def detach_inputs(self) -> None:
        """Stop reading every input, subgraphs' captures included (before removal)."""
        for index in range(len(self._inputs)):
            self.set_input(index, None)
        for graph in self.subgraphs():
            graph.detach()

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or `default` where it is absent."""
        attribute = self.attributes.get(name)
        return default if attribute is None else attribute.value

    def set(self, name: str, value: Any, type: int | None = None) -> None:
        self.attributes[name] = Attribute.of(name, value, type)

    def subgraphs(self) -> list[Graph]:
        for attribute in self.attributes.values():
            if attribute.graphs:
                return [graph for a in self.attributes.values() for graph in a.graphs]
        return []

    @property
    def label(self) -> str:
        """How messages call this node: its name, or the output it defines."""
        if self.name:
            return self.name
        return next((v.name for v in self.outputs if v is not None), "?")

    def __repr__(self) -> str:
        ins = ", ".join("" if v is None else v.name for v in self._inputs)
        outs = ", ".join("" if v is None else v.name for v in self.outputs)
        return f"{outs} = {self.domain + '::' if self.domain else ''}{self.op_type}({ins})"


class Graph:
    """Nodes in execution order, with inputs, initializers and outputs.

    `value_info` lists, in order, the values whose type the file declares (and entries
    as read that name no value of this graph). `restated` has the entries of the lists
    "value_info" and "output" that declare a value in other words than its `info`, by list
    and name. `extra` holds the rest of the proto (doc string, quantization annotations,
    metadata).
    """

    def __init__(self, name: str = "", extra: GraphProto | None = None) -> None:
        self.name = name
        self.extra = extra
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.initializers: dict[str, Value] = {}
        self.parent: Node | None = None
        self.value_info: list[Value | ValueInfoProto] = []
        self.restated: dict[tuple[str, str], ValueInfoProto] = {}
        self._outputs: list[Value] = []

    @property
    def outputs(self) -> tuple[Value, ...]:
        return tuple(self._outputs)

    def add_input(self, value: Value) -> None:
        value.is_input = True
        self.inputs.append(value)

    def add_output(self, value: Value) -> None:
        self._outputs.append(value)
        value.uses[Use(self, len(self._outputs) - 1)] = None

    def set_output(self, index: int, value: Value) -> None:
        self._outputs[index].uses.pop(Use(self, index), None)
        self._outputs[index] = value
        value.uses[Use(self, index)] = None

    def replace_outputs(self, values: Iterable[Value]) -> None:
        """Make these the outputs, and no others."""
        for index, value in enumerate(self._outputs):
            value.uses.pop(Use(self, index), None)
        self._outputs = []
        for value in values:
            self.add_output(value)

    def add_node(self, node: Node) -> Node:
        """Append a node (call `sort` once afterwards where it belongs further up)."""
        node.graph = self
        self.nodes.append(node)
        return node

    def add_initializer(self, name: str, tensor: Tensor) -> Value:
        value = Value(name, make_tensor_type(tensor.dtype, tensor.shape), const=tensor)
        self.initializers[name] = value
        return value

    def make_initializer(self, value: Value, tensor: Tensor) -> None:
        """Let `value`, so far a node's output, be a constant of this graph.

        Its producer, if nothing else of it is read, is for the caller to remove.
        """
        node = value.producer
        if node is not None:
            node.outputs = tuple(None if v is value else v for v in node.outputs)
            value.producer = None
        value.const = tensor
        value.info = None
        value.type = make_tensor_type(tensor.dtype, tensor.shape)
        self.initializers[value.name] = value

    def remove_nodes(self, nodes: Iterable[Node]) -> None:
        """Remove nodes whose outputs nothing reads any more; linear in the graph."""
        dead = set(nodes)
        for node in dead:
            node.detach_inputs()
            node.graph = None
        self.nodes = [n for n in self.nodes if n not in dead]

    def detach(self) -> None:
        """Drop every use that this graph's nodes and outputs make of any value."""
        for node in self.nodes:
            node.detach_inputs()
        for index, value in enumerate(self._outputs):
            value.uses.pop(Use(self, index), None)

    def sort(self) -> None:
        """Stable topological sort: nodes move only where a definition must come first."""
        position = {node: i for i, node in enumerate(self.nodes)}
        done: set[Node] = set()
        order: list[Node] = []
        for root in self.nodes:
            stack: list[tuple[Node, Iterator[Node]]] = []
            if root not in done:
                done.add(root)
                stack.append((root, self._dependencies(root, position)))
            while stack:
                node, pending = stack[-1]
                for dependency in pending:
                    if dependency not in done:
                        done.add(dependency)
                        stack.append((dependency, self._dependencies(dependency, position)))
                        break
                else:
                    order.append(node)
                    stack.pop()
        self.nodes = order

    def _dependencies(self, node: Node, local: dict[Node, int]) -> Iterator[Node]:
        for value in node_reads(node):
            if value.producer is not None and value.producer in local:
                yield value.producer

    def all_nodes(self) -> Iterator[Node]:
        """This graph's nodes and, after each, those of its subgraphs."""
        for node in self.nodes:
            yield node
            for graph in node.subgraphs():
                yield from graph.all_nodes()

    def all_graphs(self) -> Iterator[Graph]:
        """This graph and every graph nested in it."""
        yield self
        for node in self.nodes:
            for graph in node.subgraphs():
                yield from graph.all_graphs()

    def values(self) -> Iterator[Value]:
        """Inputs, initializers and node outputs of this graph (not of its subgraphs)."""
        yield from self.inputs
        for value in self.initializers.values():
            if not value.is_input:
                yield value
        for node in self.nodes:
            for output in node.outputs:
                if output is not None:
                    yield output


def node_reads(node: Node) -> Iterator[Value]:
    """Values that a node reads itself or captures in its subgraphs."""
    for value in node.inputs:
        if value is not None:
            yield value
    for graph in node.subgraphs():
        for inner in graph.nodes:
            yield from node_reads(inner)
        yield from graph.outputs


def outer_reads(node: Node) -> list[Value]:
    """Values that a node reads, its subgraphs' captures included, their own values not."""
    own: set[Value] = set()
    for graph in node.subgraphs():
        for inner in graph.all_graphs():
            own.update(inner.values())
    return [v for v in node_reads(node) if v not in own]


def tensor_type(
    type: TypeProto | None,
) -> TypeProto.Tensor | TypeProto.SparseTensor | None:
    """The `TypeProto.Tensor` (or sparse tensor) part of a type, or None."""
    if type is None:
        return None
    if type.HasField("tensor_type"):
        return type.tensor_type
    if type.HasField("sparse_tensor_type"):
        return type.sparse_tensor_type
    return None


def make_tensor_type(dtype: int, shape: Sequence[Dimension] | None) -> TypeProto:
    """The type of a tensor; `shape` is None where even the rank is unknown.

    Equal types may be one object: types are replaced, never changed in place.
    """
    return _make_tensor_type(dtype, None if shape is None else tuple(shape))


@lru_cache(maxsize=4096)
def _make_tensor_type(dtype: int, shape: tuple[Dimension, ...] | None) -> TypeProto:
    type = TypeProto()
    tensor = type.tensor_type
    tensor.elem_type = dtype
    if shape is not None:
        sizes = tensor.shape
        sizes.SetInParent()  # rank 0 is known, too
        for size in shape:
            dim = sizes.dim.add()
            if isinstance(size, str):
                dim.dim_param = size
            elif size is not None:
                dim.dim_value = size
    return type


def type_shape(type: TypeProto | None) -> tuple[Dimension, ...] | None:
    """The shape in a tensor's type; None where even the rank is unknown."""
    tensor = tensor_type(type)
    if tensor is None or not tensor.HasField("shape"):
        return None
    return tuple(
        int(d.dim_value) if d.HasField("dim_value") else (d.dim_param or None)
        for d in tensor.shape.dim
    )


def normalize_domain(domain: str) -> str:
    """A domain's canonical spelling: the standard one is '', also written 'ai.onnx'."""
    return "" if domain == "ai.onnx" else domain
