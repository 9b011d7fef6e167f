"""ONNX files and protos in and out, without loss: what nobody changed comes back identical.

Reading wraps protos instead of copying elements; external data stays memory-mapped.
Writing is atomic: a file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import google.protobuf.message
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
)

from .calls import check_calls
from .errors import ModelError, SecateurError
from .external import ExternalData
from .files import check_replaceable, open_regular
from .graph import Attribute, Graph, Node, Value
from .info import check_text, import_once, read_declaration
from .model import Function, Model
from .scratch import replace_together, scratch_folder
from .tensor import Tensor
from .unknown_fields import copy_unknown_fields, has_unknown_fields, varint


def load(path: str | os.PathLike[str]) -> Model:
    """Read an ONNX file. Weights in external files stay on disk until they are used.

    Raises ModelError where the file is missing, is not an ONNX model, or refers to
    external data that is missing, too short or outside the model's folder.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            _check_size(path, os.fstat(file.fileno()).st_size)
            first = file.read(1)
            if not first or first[0] < 8:  # a field's number, which is not 0, and its type
                raise ModelError(f"{path}: not an ONNX model")
            data = first + file.read()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from None
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except google.protobuf.message.DecodeError:
        raise ModelError(
            f"{path}: not an ONNX model, or one that is truncated or nested too deeply"
        ) from None
    del data  # the proto holds a copy
    if not proto.ir_version or not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{path}: not an ONNX model (no graph with outputs in it)")
    try:
        return from_proto(proto, path)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _check_size(path: Path, size: int) -> None:
    if size > _MOST_BYTES:
        raise ModelError(
            f"{path}: not an ONNX model: {size:,} bytes, and one message holds less than 2 GiB "
            "(larger weights lie in files of their own)"
        )


_MOST_BYTES = 2**31 - 1
"""Bytes that a protobuf message can have."""


def from_proto(proto: ModelProto, path: Path | None = None) -> Model:
    """Build the IR of a model proto, which must not be changed afterwards."""
    check_text(*(o.domain for o in proto.opset_import))
    base_dir = path.parent if path is not None else None
    functions = [_read_function(f, base_dir) for f in proto.functions]
    seen: set[tuple[str, str, str]] = set()
    for function in functions:
        check_text(*function.key, *(o.domain for o in function.extra.opset_import))
        if function.key in seen:
            raise ModelError(f"function '{function.extra.name}' is defined twice")
        seen.add(function.key)
    graph = _GraphReader(proto.graph, {}, base_dir).read()
    model = Model(graph, _model_extra(proto), functions, path)
    check_calls(model)
    return model


def to_proto(model: Model) -> ModelProto:
    """The model as a proto. Unchanged external tensors still refer to their files."""
    return _write_model(model, _Embedded())


def to_proto_without_weights(model: Model, keep_elements: int) -> ModelProto:
    """The model for tools that need types only: larger initializers become inputs of the main
    graph, or what a body declares.

    Initializers of at most `keep_elements` elements keep their values, since shapes
    may be computed from them.
    """

    return _write_model(model, _TypesOnly(keep_elements, set(model.graph.initializers.values())))


def to_proto_headers(model: Model) -> ModelProto:
    """The model as a proto whose dense initializers have a type and a shape, but no data."""
    return _write_model(model, _Headers())


def proto_bytes(model: Model) -> int:
    """Bytes of the serialized `to_proto(model)`, which is not made: weights aren't copied."""
    sizes = _Sizes(model.graph)
    proto = _write_model(model, sizes)
    graph = proto.graph.ByteSize()
    return int(proto.ByteSize()) - _field_bytes(graph) + _field_bytes(graph + sizes.bytes)


def node_to_proto(node: Node) -> NodeProto:
    """One node as a proto."""
    proto = NodeProto()
    _write_node(node, proto, _Embedded())
    return proto


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model to a file, atomically.

    Constants that came from external files, or that together pass what a protobuf
    message holds, go to `<file>.data` beside it, one after the other: a model of any
    size is written without holding it in memory.
    """
    path = Path(path)
    target = path.with_name(path.name + ".data")
    with atomic_files(path, target) as (temporary, data):
        with ExternalData(model, data, target.name) as tensors:
            proto = _write_model(model, tensors)
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
    tensors.settle(target)


@contextlib.contextmanager
def atomic_files(*paths: Path) -> Iterator[list[Path]]:
    """Temporary names beside `paths`; those that exist at the end replace the targets.

    On an exception none of the targets is touched. Raises SecateurError where the
    folder can't be written.
    """
    folder = paths[0].parent
    for path in paths:
        try:
            check_replaceable(path)
        except OSError as error:
            raise SecateurError(f"{path}: can't write here ({error.strerror or error})") from None
    try:
        with scratch_folder(folder) as scratch:
            temporaries = [scratch / p.name for p in paths]
            yield temporaries
            pairs = zip(temporaries, paths, strict=True)
            replace_together([(new, target) for new, target in pairs if new.exists()])
    except OSError as error:
        raise SecateurError(f"{folder}: can't write here ({error.strerror or error})") from None


def _model_extra(proto: ModelProto) -> ModelProto:
    extra = ModelProto()
    for field, value in proto.ListFields():
        if field.name not in ("graph", "functions"):
            _copy_field(extra, field.name, value)
    copy_unknown_fields(proto, extra)
    import_once(extra)
    return extra


# --- reading ---------------------------------------------------------------------


_NODE_TEXTS = ("name", "domain", "overload")
_NODE_EXTRA = {"doc_string", "metadata_props", "device_configurations"}
_GRAPH_EXTRA = {"doc_string", "quantization_annotation", "metadata_props"}
_PLAIN_ATTRIBUTES = frozenset(
    {
        AttributeProto.FLOAT,
        AttributeProto.FLOATS,
        AttributeProto.INT,
        AttributeProto.INTS,
        AttributeProto.STRING,
        AttributeProto.STRINGS,
    }
)


class _GraphReader:
    """Makes a graph of a protobuf's, and the values that its nodes name."""

    def __init__(
        self,
        proto: GraphProto,
        outer: Mapping[str, Value],
        base_dir: Path | None,
    ) -> None:
        self.proto = proto
        self.base_dir = base_dir
        self.scope = _VisibleNames(outer)
        extra = GraphProto()
        for field, value in proto.ListFields():
            if field.name in _GRAPH_EXTRA or (field.name == "name" and not value):
                _copy_field(extra, field.name, value)
        copy_unknown_fields(proto, extra)
        check_text(proto.name)
        self.graph = Graph(proto.name, extra)

    def read(self) -> Graph:
        proto, graph = self.proto, self.graph
        value_info = [read_declaration(info) for info in proto.value_info]
        infos = {info.name: info for info in reversed(value_info)}
        for info in map(read_declaration, proto.input):
            if not info.name:
                raise ModelError(f"graph '{proto.name}': an input has no name")
            value = Value(info.name, info.type if info.HasField("type") else None, info=info)
            self._define(value)
            graph.add_input(value)
        for tensor in proto.initializer:
            self._add_initializer(tensor.name, Tensor.from_proto(tensor, self.base_dir), infos)
        for sparse in proto.sparse_initializer:
            self._add_initializer(sparse.values.name, Tensor.from_sparse(sparse), infos)
        for node in proto.node:
            self._read_node(node, infos)
        for info in map(read_declaration, proto.output):
            self._read_output(info)
        for info in value_info:
            self._read_value_info(info, infos)
        return graph

    def _read_output(self, info: ValueInfoProto) -> None:
        value = self.scope.find(info.name)
        if value is None:
            raise ModelError(f"graph output '{info.name}' is not defined by any node")
        own = self.scope.local.get(info.name) is value
        if own and (value.producer is not None or value.info is None):
            value.info = info
            if info.HasField("type"):
                value.type = info.type
            elif value.const is not None:
                value.type = None
        elif not own or value.info != info:
            self.graph.restated["output", info.name] = info
        self.graph.add_output(value)

    def _read_value_info(self, info: ValueInfoProto, first: Mapping[str, ValueInfoProto]) -> None:
        value = self.scope.local.get(info.name)
        if value is None or first[info.name] is not info:
            self.graph.value_info.append(info)
            return
        self.graph.value_info.append(value)
        if value.info is not info and value.info != info:
            self.graph.restated["value_info", info.name] = info

    def _define(self, value: Value) -> None:
        check_text(value.name)
        if value.name in self.scope.local:
            raise ModelError(f"value '{value.name}' is defined twice")
        self.scope.local[value.name] = value

    def _add_initializer(
        self, name: str, tensor: Tensor, infos: Mapping[str, ValueInfoProto]
    ) -> None:
        if name in self.graph.initializers:
            raise ModelError(f"initializer '{name}' is defined twice")
        value = self.scope.local.get(name)
        if value is None:
            value = self.graph.add_initializer(name, tensor)
            value.info = infos.get(name)
            if value.info is not None:
                value.type = value.info.type if value.info.HasField("type") else None
            self._define(value)
        else:
            value.const = tensor
            self.graph.initializers[name] = value

    def _read_node(self, proto: NodeProto, infos: Mapping[str, ValueInfoProto]) -> None:
        op_type, domain, label, overload = proto.op_type, proto.domain, proto.name, proto.overload
        check_text(op_type, domain, label, overload)
        if not op_type:
            raise ModelError(f"node '{label or next(iter(proto.output), '?')}' has no operator")
        find = self.scope.find
        inputs: list[Value | None] = []
        for name in proto.input:
            found = find(name) if name else None
            if name and found is None:
                check_text(name)
                raise ModelError(
                    f"node '{label or next(iter(proto.output), '?')}' ({op_type}) reads "
                    f"'{name}' before anything defines it"
                )
            inputs.append(found)
        attributes: dict[str, Attribute] = {}
        for attribute in proto.attribute:
            key = attribute.name
            check_text(key, attribute.ref_attr_name)
            if key in attributes:
                raise ModelError(f"node '{label}': attribute '{key}' is given twice")
            attributes[key] = self._read_attribute(attribute)
        outputs: list[Value | None] = []
        for name in proto.output:
            if not name:
                outputs.append(None)
                continue
            info = infos.get(name)
            value = Value(name, info.type if info is not None else None, info=info)
            self._define(value)
            outputs.append(value)
        node = Node(
            op_type,
            inputs,
            outputs,
            attributes,
            domain=domain,
            name=label,
            overload=overload,
            extra=_node_extra(proto),
        )
        for graph in node.subgraphs():
            graph.parent = node
        self.graph.add_node(node)

    def _read_attribute(self, proto: AttributeProto) -> Attribute:
        if proto.type in _PLAIN_ATTRIBUTES:
            return Attribute(proto)
        if proto.type == AttributeProto.TENSOR and not proto.ref_attr_name:
            tensor = Tensor.from_proto(proto.t, self.base_dir)
            return Attribute(proto, tensor=tensor if tensor.is_external else None)
        for inner in (*proto.tensors, proto.sparse_tensor.values, proto.sparse_tensor.indices):
            if inner.data_location == TensorProto.EXTERNAL:
                raise ModelError(f"attribute '{proto.name}': external data is not supported here")
        single, several = proto.type == AttributeProto.GRAPH, proto.type == AttributeProto.GRAPHS
        if proto.ref_attr_name:
            single = several = False
        if proto.HasField("g") != single or (proto.graphs and not several):
            raise ModelError(f"attribute '{proto.name}': its type does not fit its graphs")
        if not single and not several:
            return Attribute(proto)
        protos = [proto.g] if single else list(proto.graphs)
        graphs = [_GraphReader(g, self.scope, self.base_dir).read() for g in protos]
        rest = AttributeProto()
        for field, value in proto.ListFields():
            if field.name not in ("g", "graphs"):
                _copy_field(rest, field.name, value)
        copy_unknown_fields(proto, rest)
        return Attribute(rest, graphs)


class _VisibleNames(Mapping[str, Value]):
    """Names visible in a graph: its own, then those of the graphs around it."""

    def __init__(self, outer: Mapping[str, Value]) -> None:
        self.local: dict[str, Value] = {}
        self.outer = outer

    def find(self, name: str) -> Value | None:
        found = self.local.get(name)
        return found if found is not None else self.outer.get(name)

    def __getitem__(self, name: str) -> Value:
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self.local
        yield from self.outer

    def __len__(self) -> int:
        return len(self.local) + len(self.outer)


def _node_extra(proto: NodeProto) -> NodeProto | None:
    """What a node has besides its operation: doc string, metadata, device configurations.

    Explicitly empty strings (name, domain) count: they come back as they were.
    """
    empty = [f for f in _NODE_TEXTS if not getattr(proto, f) and proto.HasField(f)]
    described = proto.HasField("doc_string") or proto.metadata_props
    unknown = has_unknown_fields(proto)
    if not (empty or described or proto.device_configurations or unknown):
        return None
    extra = NodeProto()
    for field, content in proto.ListFields():
        if field.name in _NODE_EXTRA or field.name in empty:
            _copy_field(extra, field.name, content)
    if unknown:
        copy_unknown_fields(proto, extra)
    return extra


def _read_function(proto: FunctionProto, base_dir: Path | None) -> Function:
    body = GraphProto(name=proto.name)
    infos = {info.name: info for info in reversed(proto.value_info)}
    body.input.extend(infos.get(name) or ValueInfoProto(name=name) for name in proto.input)
    body.output.extend(infos.get(name) or ValueInfoProto(name=name) for name in proto.output)
    body.node.extend(proto.node)
    body.value_info.extend(proto.value_info)
    extra = FunctionProto()
    for field, value in proto.ListFields():
        if field.name not in ("node", "input", "output", "value_info"):
            _copy_field(extra, field.name, value)
    copy_unknown_fields(proto, extra)
    import_once(extra)
    return Function(_GraphReader(body, {}, base_dir).read(), extra)


# --- writing ---------------------------------------------------------------------


class _TensorWriter(Protocol):
    """Writes constants: with their data, without, or into a file (`external.py`)."""

    def initializer(self, value: Value, tensor: Tensor, graph: GraphProto) -> None:
        """Write an initializer into a graph's proto."""

    def attribute(self, tensor: Tensor, name: str) -> TensorProto:
        """The proto of a tensor that an attribute holds."""


class _Embedded:
    """Constants as they are: in the proto, or in the files they came from."""

    def initializer(self, value: Value, tensor: Tensor, graph: GraphProto) -> None:
        if tensor.is_sparse:
            graph.sparse_initializer.append(tensor.to_sparse_proto(value.name))
        else:
            tensor.fill(graph.initializer.add(), value.name)

    def attribute(self, tensor: Tensor, name: str) -> TensorProto:
        return tensor.to_proto(name)


class _Headers(_Embedded):
    """Initializers without their data."""

    def initializer(self, value: Value, tensor: Tensor, graph: GraphProto) -> None:
        if tensor.is_sparse:
            super().initializer(value, tensor, graph)
        else:
            graph.initializer.append(tensor.header(value.name))


class _Sizes(_Embedded):
    """Counts the bytes of a main graph's dense initializers instead of writing them."""

    def __init__(self, graph: Graph) -> None:
        self.values = set(graph.initializers.values())
        self.bytes = 0

    def initializer(self, value: Value, tensor: Tensor, graph: GraphProto) -> None:
        if tensor.is_sparse or value not in self.values:
            super().initializer(value, tensor, graph)
        else:
            self.bytes += _field_bytes(tensor.proto_bytes(value.name))


def _field_bytes(size: int) -> int:
    """Bytes of a field that holds a message of `size` bytes, for field numbers below 16."""
    return 1 + len(varint(size)) + size


@dataclasses.dataclass
class _TypesOnly(_Embedded):
    """Initializers of more than `keep_elements` elements without data, smaller ones with theirs.

    Without data those of the main graph are inputs. Bodies have as many inputs as their node
    says: theirs are declared only.
    """

    keep_elements: int
    main: set[Value]

    def initializer(self, value: Value, tensor: Tensor, graph: GraphProto) -> None:
        if tensor.size <= self.keep_elements and not tensor.is_sparse:
            graph.initializer.append(tensor.embedded(value.name))
        elif not value.is_input:
            info = helper.make_tensor_value_info(value.name, tensor.dtype, tensor.shape)
            (graph.input if value in self.main else graph.value_info).append(info)


def _write_model(model: Model, tensors: _TensorWriter) -> ModelProto:
    proto = ModelProto()
    proto.CopyFrom(model.extra)
    _write_graph(model.graph, proto.graph, tensors)
    for function in model.functions.values():
        _write_function(function, proto.functions.add(), tensors)
    return proto


def _write_graph(graph: Graph, proto: GraphProto, tensors: _TensorWriter) -> None:
    if graph.extra is not None:
        proto.CopyFrom(graph.extra)
    if graph.name:
        proto.name = graph.name
    for value in graph.inputs:
        _write_info(value, graph, "input", proto.input.add())
    for value in graph.initializers.values():
        assert value.const is not None
        tensors.initializer(value, value.const, proto)
    for node in graph.nodes:
        _write_node(node, proto.node.add(), tensors)
    _write_value_info(graph, proto)
    for value in graph.outputs:
        _write_info(value, graph, "output", proto.output.add())


def _write_value_info(graph: Graph, proto: GraphProto | FunctionProto) -> None:
    for entry in graph.value_info:
        if isinstance(entry, ValueInfoProto):
            proto.value_info.append(entry)
        elif _is_defined(entry, graph):
            _write_info(entry, graph, "value_info", proto.value_info.add())


def _is_defined(value: Value, graph: Graph) -> bool:
    if value.producer is not None:
        return value.producer.graph is graph
    return value.is_input or graph.initializers.get(value.name) is value


def _write_info(value: Value, graph: Graph, place: str, proto: ValueInfoProto) -> None:
    """Write what a graph's list `place` declares of a value.

    Types as read stay, even where they differ between lists or are missing; one that
    replaced them is written everywhere.
    """
    restated = [graph.restated.get((p, value.name)) for p in ("value_info", "output")]
    words = graph.restated.get((place, value.name), value.info)
    if words is not None:
        proto.CopyFrom(words)
    proto.name = value.name
    read = [info for info in (value.info, *restated) if info is not None]
    if value.type is not None and all(value.type is not info.type for info in read):
        proto.type.CopyFrom(value.type)


def _write_node(node: Node, proto: NodeProto, tensors: _TensorWriter) -> None:
    if node.extra is not None:
        proto.CopyFrom(node.extra)
    proto.op_type = node.op_type
    if node.name:
        proto.name = node.name
    if node.domain:
        proto.domain = node.domain
    if node.overload:
        proto.overload = node.overload
    proto.input.extend("" if v is None else v.name for v in node.inputs)
    proto.output.extend("" if v is None else v.name for v in node.outputs)
    for attribute in node.attributes.values():
        target = proto.attribute.add()
        target.CopyFrom(attribute.proto)
        if attribute.tensor is not None:
            target.t.CopyFrom(tensors.attribute(attribute.tensor, target.t.name))
        if attribute.proto.type == AttributeProto.GRAPH and attribute.graphs:
            _write_graph(attribute.graphs[0], target.g, tensors)
        else:
            for graph in attribute.graphs:
                _write_graph(graph, target.graphs.add(), tensors)


def _write_function(function: Function, proto: FunctionProto, tensors: _TensorWriter) -> None:
    proto.CopyFrom(function.extra)
    graph = function.graph
    proto.input.extend(v.name for v in graph.inputs)
    proto.output.extend(v.name for v in graph.outputs)
    for node in graph.nodes:
        _write_node(node, proto.node.add(), tensors)
    _write_value_info(graph, proto)


def _copy_field(target: google.protobuf.message.Message, name: str, value: object) -> None:
    """Set one field of a proto from another proto's field of the same name."""
    current = getattr(target, name)
    if hasattr(current, "MergeFrom"):
        current.MergeFrom(value)
        return
    try:
        setattr(target, name, value)
    except UnicodeDecodeError:
        raise ModelError(f"the {name} {value!r} is not UTF-8 text") from None
