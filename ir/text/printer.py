"""Models as text.

Constants of more than `max_elements` elements are left out (`...`) unless everything is
asked for; the text then parses back to an equal model. Not in the text: doc strings
and metadata of nodes and values, quantization annotations, denotations.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from onnx import AttributeProto, StringStringEntryProto, TensorProto, TypeProto

from ..graph import Attribute, Dimension, Graph, Node, Value, type_shape
from ..model import Function, Model
from ..tensor import Array, Tensor
from .tokens import TYPE_NAMES, name, quote, value_name

MAX_ELEMENTS = 16
"""Elements up to which constants are written out by default."""

_READABLE = 1024
"""Elements up to which they are written as numbers rather than as bytes."""


def print_model(model: Model, max_elements: int | None = MAX_ELEMENTS) -> str:
    """The whole model; `max_elements=None` writes every constant out."""
    writer = _TextWriter(max_elements)
    parts = [_header(model), *writer.graph(model.graph, "graph")]
    for function in model.functions.values():
        parts += ["", *writer.function(function)]
    return "\n".join(parts) + "\n"


def print_graph(graph: Graph, max_elements: int | None = MAX_ELEMENTS) -> str:
    """One graph."""
    return "\n".join(_TextWriter(max_elements).graph(graph, "graph")) + "\n"


def print_node(node: Node) -> str:
    """One node on one line, its subgraphs left out."""
    return next(iter(_TextWriter(MAX_ELEMENTS).node(node, bodies=False)))


def print_neighbourhood(node: Node, radius: int = 1) -> str:
    """The nodes of its graph that lie within `radius` edges of a node, which `>` marks."""
    near = {node}
    for _ in range(radius):
        near |= {n for other in near for n in _neighbours(other)}
    graph = node.graph
    writer = _TextWriter(MAX_ELEMENTS)
    lines: list[str] = []
    constants: dict[str, Value] = {}
    for other in graph.nodes if graph is not None else [node]:
        if other in near:
            constants |= {v.name: v for v in other.inputs if v is not None and v.const}
            mark = "> " if other is node else "  "
            lines += [mark + line for line in writer.node(other, bodies=False)]
    return "\n".join([*(f"  {writer.constant(v)}" for v in constants.values()), *lines]) + "\n"


def _neighbours(node: Node) -> Iterator[Node]:
    for value in node.inputs:
        if value is not None and value.producer is not None:
            yield value.producer
    for value in node.outputs:
        if value is not None:
            yield from (n for n in value.users if n.graph is node.graph)


def _header(model: Model) -> str:
    extra = model.extra
    fields = [f"ir_version = {extra.ir_version}"]
    opsets = (f"{quote(o.domain)} = {o.version}" for o in extra.opset_import)
    fields.append(f"opset = [{', '.join(opsets)}]")
    for field in ("producer_name", "producer_version", "domain", "doc_string"):
        if extra.HasField(field):
            fields.append(f"{field} = {quote(getattr(extra, field))}")
    if extra.HasField("model_version"):
        fields.append(f"model_version = {extra.model_version}")
    if extra.metadata_props:
        fields.append(f"metadata = [{_entries(extra.metadata_props)}]")
    return f"model <{', '.join(fields)}>"


def _entries(properties: Iterable[StringStringEntryProto]) -> str:
    return ", ".join(f"{quote(p.key)} = {quote(p.value)}" for p in properties)


class _TextWriter:
    """Writes a model's parts as lines of the text form."""

    def __init__(self, max_elements: int | None) -> None:
        self.max_elements = max_elements

    def graph(self, graph: Graph, keyword: str) -> list[str]:
        inputs = ", ".join(typed(v) for v in graph.inputs)
        outputs = ", ".join(typed(v) for v in graph.outputs)
        header = f"{keyword} {name(graph.name)} ({inputs}) -> ({outputs}) {{"
        lines = [header, *self._body(graph)]
        return [*lines, "}"]

    def function(self, function: Function) -> list[str]:
        extra, graph = function.extra, function.graph
        label = f"{quote(extra.domain)}::{name(extra.name)}"
        if extra.overload:
            label += f"::{name(extra.overload)}"
        attributes = [name(a) for a in extra.attribute]
        attributes += [self.attribute(a.name, Attribute(a)) for a in extra.attribute_proto]
        opsets = ", ".join(f"{quote(o.domain)} = {o.version}" for o in extra.opset_import)
        inputs = ", ".join(value_name(v.name) for v in graph.inputs)
        outputs = ", ".join(value_name(v.name) for v in graph.outputs)
        header = f"function {label} <{', '.join(attributes)}> opset [{opsets}]"
        return [f"{header} ({inputs}) -> ({outputs}) {{", *self._body(graph), "}"]

    def _body(self, graph: Graph) -> list[str]:
        lines = [f"  {self.constant(v)}" for v in graph.initializers.values()]
        for node in graph.nodes:
            lines += [f"  {line}" for line in self.node(node)]
        return lines

    def constant(self, value: Value) -> str:
        assert value.const is not None
        return f"const {value_name(value.name)}: {self.tensor(value.const)}"

    def tensor(self, tensor: Tensor) -> str:
        """Type and elements: `float[2] = [1.0, 2.0]`."""
        kind = "sparse " if tensor.is_sparse else ""
        shape = ", ".join(map(str, tensor.shape))
        text = f"{kind}{TYPE_NAMES[tensor.dtype]}[{shape}] = "
        if self.max_elements is not None and tensor.size > self.max_elements:
            return text + "..."
        if tensor.is_sparse:
            data = tensor.to_sparse_proto("").SerializeToString(deterministic=True)
            return text + f"base64 {quote(base64.b64encode(data).decode())}"
        array = tensor.numpy()
        if tensor.dtype in _WRITTEN_OUT and tensor.size <= _READABLE:
            return text + _nested(array)
        if tensor.dtype == TensorProto.STRING:
            return text + _nested_strings(array)
        data = tensor.embedded("").raw_data
        if not data:
            data = Tensor.from_array(array, tensor.dtype).to_proto("").raw_data
        return text + f"base64 {quote(base64.b64encode(data).decode())}"

    def node(self, node: Node, *, bodies: bool = True) -> list[str]:
        outputs = ", ".join("_" if v is None else value_name(v.name) for v in node.outputs)
        operator = f"{quote(node.domain)}::" if node.domain else ""
        operator += name(node.op_type) + (f"::{name(node.overload)}" if node.overload else "")
        label = f" @{name(node.name)}" if node.name else ""
        inputs = ", ".join("_" if v is None else value_name(v.name) for v in node.inputs)
        text = f"{outputs} = {operator}{label}({inputs})"
        if node.attributes:
            shown = [self.attribute(key, a, bodies=bodies) for key, a in node.attributes.items()]
            text += f" {{{', '.join(shown)}}}"
        types = [type_text(None if v is None else v.type) for v in node.outputs]
        if any(t != "?" for t in types):
            text += f" : {types[0] if len(types) == 1 else '(' + ', '.join(types) + ')'}"
        return text.split("\n")

    def attribute(self, key: str, attribute: Attribute, *, bodies: bool = True) -> str:
        return f"{name(key)} = {self._attribute_value(attribute, bodies)}"

    def _attribute_value(self, attribute: Attribute, bodies: bool) -> str:
        proto, kind = attribute.proto, attribute.proto.type
        if proto.ref_attr_name:
            return f"@{name(proto.ref_attr_name)}: {_kind_name(kind)}"
        if kind == AttributeProto.GRAPH:
            return self._subgraph(attribute.graphs[0], bodies)
        if kind == AttributeProto.GRAPHS:
            return f"graphs [{', '.join(self._subgraph(g, bodies) for g in attribute.graphs)}]"
        if kind == AttributeProto.TENSOR:
            return f"tensor {self.tensor(attribute.tensor or Tensor.from_proto(proto.t))}"
        if kind == AttributeProto.TENSORS:
            shown = ", ".join(self.tensor(Tensor.from_proto(t)) for t in proto.tensors)
            return f"tensors [{shown}]"
        if kind == AttributeProto.SPARSE_TENSOR:
            return f"tensor {self.tensor(Tensor.from_sparse(proto.sparse_tensor))}"
        if kind == AttributeProto.TYPE_PROTO:
            return f"type {type_text(proto.tp)}"
        if kind in (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.STRING):
            return _literal(kind, attribute.value)
        single = _SINGLE.get(kind)
        if single is None:
            data = base64.b64encode(proto.SerializeToString(deterministic=True)).decode()
            return f"proto {quote(data)}"
        values = attribute.value
        if not values:
            return f"empty {_kind_name(kind)}"
        return f"[{', '.join(_literal(single, v) for v in values)}]"

    def _subgraph(self, graph: Graph, bodies: bool) -> str:
        if not bodies:
            return f"graph {name(graph.name)} ..."
        lines = self.graph(graph, "graph")
        return "\n".join([lines[0], *(f"  {line}" for line in lines[1:])])


_SINGLE: dict[int, AttributeProto.AttributeType] = {
    AttributeProto.INTS: AttributeProto.INT,
    AttributeProto.FLOATS: AttributeProto.FLOAT,
    AttributeProto.STRINGS: AttributeProto.STRING,
}

_WRITTEN_OUT = frozenset(
    {
        TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL,
        TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
        TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
    }
)  # fmt: skip
"""Element types whose values are written as numbers; the others are written as bytes."""


def typed(value: Value) -> str:
    """`%x: float[N, 3]`, without the type where it is unknown."""
    text = type_text(value.type)
    return value_name(value.name) if text == "?" else f"{value_name(value.name)}: {text}"


def type_text(type_: TypeProto | None) -> str:
    """A type as written: `float[N, ?, 3]`, `float[*]` without a rank, `seq(int64[])`, `?`."""
    kind = None if type_ is None else type_.WhichOneof("value")
    if type_ is None or kind is None:
        return "?"
    if kind in ("tensor_type", "sparse_tensor_type"):
        number = getattr(type_, kind).elem_type
        prefix = "sparse " if kind == "sparse_tensor_type" else ""
        return f"{prefix}{TYPE_NAMES.get(number, 'undefined')}[{_shape(type_)}]"
    if kind == "sequence_type":
        return f"seq({type_text(type_.sequence_type.elem_type)})"
    if kind == "optional_type":
        return f"optional({type_text(type_.optional_type.elem_type)})"
    if kind == "map_type":
        key = TYPE_NAMES.get(type_.map_type.key_type, "undefined")
        return f"map({key}, {type_text(type_.map_type.value_type)})"
    return "?"


def _shape(type_: TypeProto) -> str:
    shape = type_shape(type_)
    return "*" if shape is None else ", ".join(_size(size) for size in shape)


def _size(size: Dimension) -> str:
    if isinstance(size, str):
        plain = name(size)
        return quote(size) if plain[0].isdigit() else plain
    return "?" if size is None else str(size)


def _kind_name(kind: int) -> str:
    return str(AttributeProto.AttributeType.Name(kind)).lower()


def _literal(kind: AttributeProto.AttributeType | int, value: object) -> str:
    if kind == AttributeProto.INT:
        return str(value)
    if kind == AttributeProto.FLOAT:
        return str(np.float32(float(value)))  # type: ignore[arg-type]
    return quote(str(value))


def _nested(array: Array) -> str:
    if array.ndim == 0:
        if array.dtype.kind == "b":
            return str(bool(array)).lower()
        return str(array[()])
    return f"[{', '.join(_nested(x) for x in _rows(array))}]"


def _nested_strings(array: Array) -> str:
    if array.ndim == 0:
        item = array[()]
        text = item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else str(item)
        return quote(text)
    return f"[{', '.join(_nested_strings(x) for x in _rows(array))}]"


def _rows(array: Array) -> Sequence[Array]:
    return [array[i, ...] for i in range(len(array))]
