"""A bridge to onnx-graphsurgeon: hand a model to the library's users and take it back.

The library is an editor, not a file format: it keeps no metadata, quantization
annotations, optional types, unused initializers, overloads or denotations, and it can't
export over 2 GB. So only graphs cross the bridge, weights as references to the tensors
here, and what the library does not keep comes back from the model that was handed out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import AttributeProto, ModelProto, TensorProto, TypeProto, helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, dtype_to_onnx
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.ir.tensor import LazyValues

from .copying import Copier
from .errors import ModelError
from .graph import Attribute, Graph, Node, Value, make_tensor_type
from .model import Function, Model
from .onnx_io import from_proto, to_proto_headers
from .tensor import Tensor

_KEPT_ATTRIBUTES = (
    AttributeProto.GRAPHS,
    AttributeProto.SPARSE_TENSOR,
    AttributeProto.SPARSE_TENSORS,
    AttributeProto.TENSORS,
    AttributeProto.TYPE_PROTO,
    AttributeProto.TYPE_PROTOS,
)
"""Attribute types that graphsurgeon drops; they come back with the node."""


class _Held(LazyValues):  # type: ignore[misc]
    """Elements of a tensor of ours, read when graphsurgeon's user asks for them."""

    def __init__(self, tensor: Tensor, attribute: Attribute | None = None) -> None:
        self.held = tensor
        self.attribute = attribute
        self.shape = list(tensor.shape)
        self.dtype = helper.tensor_dtype_to_np_dtype(tensor.dtype)
        self.nbytes = tensor.nbytes

    @property
    def tensor(self) -> TensorProto:
        """For graphsurgeon's own exporter."""
        proto = TensorProto()
        proto.CopyFrom(self.held.embedded(""))
        return proto

    def load(self) -> np.ndarray[Any, Any]:
        return np.array(self.held.numpy())


def to_graphsurgeon(model: Model) -> gs.Graph:
    """The model's graph for onnx-graphsurgeon; weights are not copied until they are read.

    Model-local functions stay behind: their calls are nodes like any other.
    """
    graph = gs.import_onnx(to_proto_headers(model))
    graph.functions = []
    _hold(graph, model.graph)
    return graph


def from_graphsurgeon(graph: gs.Graph, original: Model | None = None) -> Model:
    """The model of an edited graph.

    `original`, the model that `to_graphsurgeon` was given, contributes what graphsurgeon
    doesn't keep. Neither is changed. Raises ModelError where the graph is malformed.
    """
    extra = _extra(graph, original)
    functions = [] if original is None else _functions(original)
    if original is None:
        proto = ModelProto()
        proto.functions.extend(OnnxExporter.export_function(f) for f in graph.functions)
        functions = list(from_proto(proto).functions.values())
    main = _Importer(graph, None if original is None else original.graph, None).run()
    path = None if original is None else original.path
    model = Model(main, extra, functions, path)
    if original is not None:
        _restore_initializers(model, original)
    return model


def _hold(graph: gs.Graph, source: Graph) -> None:
    """Let constants refer to the tensors they stand for."""
    for tensor in graph.tensors().values():
        value = source.initializers.get(tensor.name)
        if isinstance(tensor, gs.Constant) and value is not None and value.const is not None:
            tensor._values = _Held(value.const)
    for node, ours in zip(graph.nodes, source.nodes, strict=True):
        for key, attribute in node.attrs.items():
            if isinstance(attribute, gs.Graph):
                _hold(attribute, ours.attributes[key].graphs[0])
            elif isinstance(attribute, gs.Constant):
                known = ours.attributes[key]
                tensor = known.tensor or Tensor.from_proto(known.proto.t)
                attribute._values = _Held(tensor, known)


def _extra(graph: gs.Graph, original: Model | None) -> ModelProto:
    extra = ModelProto()
    if original is not None:
        extra.CopyFrom(original.extra)
    else:
        extra.ir_version = graph.ir_version or 10
        extra.producer_name = graph.producer_name or ""
        extra.producer_version = graph.producer_version or ""
    known = {o.domain: o for o in extra.opset_import}
    for entry in graph.import_domains or [helper.make_opsetid("", graph.opset)]:
        known.setdefault(entry.domain, entry)
        known[entry.domain].version = entry.version
    standard = known.get("") or known.get("ai.onnx")
    if standard is not None and graph.opset is not None:
        standard.version = graph.opset
    used = {node.domain or "" for inner in _graphs(graph) for node in inner.nodes}
    for domain in sorted(used - known.keys() - {"ai.onnx"}):
        known[domain] = helper.make_opsetid(domain, 1)
    entries = list(known.values())
    del extra.opset_import[:]
    extra.opset_import.extend(entries)
    return extra


def _graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    yield graph
    yield from graph.subgraphs(recursive=True)


def _functions(original: Model) -> list[Function]:
    return [Function(Copier().graph(f.graph), f.extra) for f in original.functions.values()]


def _restore_initializers(model: Model, original: Model) -> None:
    """Bring back initializers that nothing read, and those that were inputs too."""
    graph = model.graph
    taken = {value.name for value in graph.values()}
    for name, value in original.graph.initializers.items():
        if value.const is not None and not value.uses and name not in taken:
            restored = graph.add_initializer(name, value.const)
            restored.info, restored.type = value.info, value.type
    order = {v.name: i for i, v in enumerate(original.graph.inputs)}
    for value in original.graph.inputs:
        ours = graph.initializers.get(value.name)
        if ours is not None and not ours.is_input:
            graph.add_input(ours)
    graph.inputs.sort(key=lambda v: order.get(v.name, len(order)))
    _order_initializers(graph, original.graph)


def _order_initializers(graph: Graph, original: Graph) -> None:
    """Known initializers in their old order, then new ones."""
    order = {name: i for i, name in enumerate(original.initializers)}
    known = sorted(graph.initializers.items(), key=lambda kv: order.get(kv[0], len(order)))
    graph.initializers = dict(known)


class _Importer:
    """Turns one graphsurgeon graph into one of ours, with the graph it came from."""

    def __init__(self, graph: gs.Graph, original: Graph | None, outer: _Importer | None) -> None:
        self.source = graph
        self.original = original
        self.outer = outer
        self.values: dict[int, Value] = {}
        self.graph = Graph(graph.name or "", None if original is None else original.extra)
        self.known = {} if original is None else {v.name: v for v in original.values()}
        nodes = [] if original is None else original.nodes
        self.nodes = {v.name: n for n in nodes for v in n.outputs if v is not None}

    def run(self) -> Graph:
        for tensor in self.source.inputs:
            self.graph.add_input(self._define(tensor))
        for node in self.source.nodes:
            for tensor in node.outputs:
                if not tensor.is_empty():
                    self._define(tensor)
        for node in self.source.nodes:
            self._node(node)
        for tensor in self.source.outputs:
            self.graph.add_output(self._find(tensor, "the graph's outputs"))
        self.graph.sort()
        if self.original is not None:
            _order_initializers(self.graph, self.original)
        self._value_info()
        return self.graph

    def _define(self, tensor: gs.Tensor) -> Value:
        if id(tensor) in self.values:
            raise ModelError(f"graphsurgeon tensor '{tensor.name}' is defined twice")
        value = Value(tensor.name, self._type(tensor))
        before = self.known.get(tensor.name)
        if before is not None:
            value.info = before.info
        self.values[id(tensor)] = value
        return value

    def _find(self, tensor: gs.Tensor, where: str) -> Value:
        scope: _Importer | None = self
        while scope is not None:
            if id(tensor) in scope.values:
                return scope.values[id(tensor)]
            scope = scope.outer
        if not isinstance(tensor, gs.Constant):
            raise ModelError(f"graphsurgeon tensor '{tensor.name}', in {where}, has no producer")
        value = self.graph.add_initializer(tensor.name, _tensor(tensor))
        before = self.known.get(tensor.name)
        if before is not None and before.const is value.const:
            value.info, value.type = before.info, before.type
        self.values[id(tensor)] = value
        return value

    def _type(self, tensor: gs.Tensor) -> TypeProto | None:
        """The type as graphsurgeon has it, or as it was where nobody changed that."""
        before = self.known.get(tensor.name)
        old = None if before is None else before.type
        if old is not None and (tensor.dtype, tensor.shape) in self._readings(tensor.name, old):
            return old
        if tensor.dtype is None or not isinstance(tensor.dtype, int | type | np.dtype):
            return old
        type_ = make_tensor_type(dtype_to_onnx(tensor.dtype), tensor.shape)
        kind = getattr(tensor, "type", "tensor_type")
        if kind == "sequence_type":
            return helper.make_sequence_type_proto(type_)
        if kind == "sparse_tensor_type":
            return helper.make_sparse_tensor_type_proto(dtype_to_onnx(tensor.dtype), tensor.shape)
        return type_

    def _readings(self, name: str, type_: TypeProto) -> list[tuple[object, object]]:
        """How graphsurgeon may have read the type of a value, which may be declared twice."""
        restated = {} if self.original is None else self.original.restated
        others = (restated.get((place, name)) for place in ("value_info", "output"))
        types = [type_, *(info.type for info in others if info is not None)]
        return [_as_graphsurgeon(name, one) for one in types]

    def _node(self, node: gs.Node) -> None:
        where = f"the inputs of node '{node.name}' ({node.op})"
        inputs = [None if t.is_empty() else self._find(t, where) for t in node.inputs]
        outputs = [None if t.is_empty() else self.values[id(t)] for t in node.outputs]
        before = next((self.nodes[t.name] for t in node.outputs if t.name in self.nodes), None)
        if before is not None and (before.op_type, before.domain) != (node.op, node.domain or ""):
            before = None
        made = Node(
            node.op,
            inputs,
            outputs,
            self._attributes(node, before),
            domain=node.domain or "",
            name=node.name or "",
            overload="" if before is None else before.overload,
            extra=None if before is None else before.extra,
        )
        for body in made.subgraphs():
            body.parent = made
        self.graph.add_node(made)

    def _attributes(self, node: gs.Node, before: Node | None) -> dict[str, Attribute]:
        old = {} if before is None else before.attributes
        made: dict[str, Attribute] = {}
        for key, item in node.attrs.items():
            if isinstance(item, gs.Graph):
                graphs = old[key].graphs if key in old else ()
                inner = _Importer(item, graphs[0] if graphs else None, self).run()
                proto = AttributeProto(name=key, type=AttributeProto.GRAPH)
                made[key] = Attribute(proto, [inner])
            elif isinstance(item, gs.Constant):
                held = item._values.attribute if isinstance(item._values, _Held) else None
                made[key] = held or Attribute.of(key, _tensor(item))
            else:
                (proto,) = OnnxExporter.export_attributes({key: item})
                same = key in old and _bare(old[key].proto) == proto
                made[key] = old[key] if same else Attribute(proto)
        for key, attribute in old.items():
            if attribute.proto.type in _KEPT_ATTRIBUTES and key not in made:
                made[key] = attribute
        return {key: made[key] for key in dict.fromkeys([*(k for k in old if k in made), *made])}

    def _value_info(self) -> None:
        """Declare the types of values: those that were declared, in order, then new ones."""
        inner = {v.name: v for v in self.graph.values()}
        if self.original is not None:
            self.graph.restated.update(self.original.restated)
        declared = [] if self.original is None else self.original.value_info
        for entry in declared:
            ours = inner.get(entry.name)
            if ours is not None and isinstance(entry, Value):
                self.graph.value_info.append(ours)
            elif not isinstance(entry, Value):
                self.graph.value_info.append(entry)
        outputs = set(self.graph.outputs)
        for name, value in inner.items():
            new = name not in self.known and value.const is None and value.type is not None
            if new and not value.is_input and value not in outputs:
                self.graph.value_info.append(value)


def _bare(proto: AttributeProto) -> AttributeProto:
    """An attribute without what graphsurgeon doesn't keep of it."""
    bare = AttributeProto()
    bare.CopyFrom(proto)
    bare.ClearField("doc_string")
    bare.DiscardUnknownFields()
    return bare


def _as_graphsurgeon(name: str, type_: TypeProto) -> tuple[object, object]:
    """How graphsurgeon sees the type of a value."""
    proto = helper.make_value_info(name, type_)
    seen = OnnxImporter.import_tensor(proto)
    return seen.dtype, seen.shape


def _tensor(constant: gs.Constant) -> Tensor:
    values = constant._values
    if isinstance(values, _Held):
        return values.held
    if isinstance(values, LazyValues):
        proto = values.tensor
        dense = isinstance(proto, TensorProto)
        return Tensor.from_proto(proto) if dense else Tensor.from_sparse(proto)
    if constant.export_dtype is not None:
        proto = OnnxExporter.export_tensor_proto(constant)
        return Tensor.from_proto(proto)
    return Tensor.from_array(constant.values)
