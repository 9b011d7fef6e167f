"""Another version of the standard operator set: node by node, through onnx's converter."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, defs, helper, version_converter

from ..ir.errors import UnsupportedError
from ..ir.graph import Graph, Node, Value, normalize_domain
from ..ir.infer import infer_shapes
from ..ir.model import Model
from ..ir.onnx_io import from_proto, node_to_proto
from ..ir.signature import type_string
from ..ir.tensor import Tensor
from .base import Context, Pass, PassResult
from .inline import InlineFunctions

_EMBEDDED_ELEMENTS = 4096
"""Constants up to this size are shown to the converter, which may depend on them."""

_OLDEST_IR = 4
"""IR version below which initializers would have to be inputs too."""


@dataclasses.dataclass(frozen=True)
class ConvertOpset(Pass):
    """Express the model in version `version` of the standard operator set.

    Nodes whose operator is the same in both versions stay untouched; the others are
    what onnx's version converter makes of them. Raises UnsupportedError, naming the
    node, where it knows no way.
    """

    version: int

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        source = model.opset
        if not 1 <= self.version <= defs.onnx_opset_version():
            raise UnsupportedError(
                f"there is no operator set {self.version}; the newest is "
                f"{defs.onnx_opset_version()}"
            )
        if source == self.version:
            return PassResult(False, {"converted": 0})
        notes = InlineFunctions().run(model).notes if model.functions else []
        if model.functions:
            raise UnsupportedError(f"can't convert: {notes[0]}" if notes else "can't inline")
        infer_shapes(model)
        count = sum(
            _convert_graph(model, graph, source, self.version)
            for graph in list(model.graph.all_graphs())
        )
        for entry in model.extra.opset_import:
            if normalize_domain(entry.domain) == "":
                entry.version = self.version
        _set_ir_version(model, source)
        return PassResult(True, {"converted": count})


def _set_ir_version(model: Model, source: int) -> None:
    """The oldest IR version that goes with the operator sets, never newer than need be."""
    needed = helper.find_min_ir_version_for(list(model.extra.opset_import), ignore_unknown=True)
    before = int(model.extra.ir_version)
    lowered = max(_OLDEST_IR, needed) if model.opset < source else before
    model.extra.ir_version = min(before, lowered) if model.opset < source else max(before, needed)


def _convert_graph(model: Model, graph: Graph, source: int, target: int) -> int:
    count = 0
    order: list[Node] = []
    for node in graph.nodes:
        if normalize_domain(node.domain) != "" or _is_same(node, source, target):
            order.append(node)
            continue
        order += _convert_node(model, graph, node, source, target)
        count += 1
    graph.nodes = order
    return count


def _is_same(node: Node, source: int, target: int) -> bool:
    """Whether the node means the same, unchanged, in all versions from one to the other."""
    if not defs.has(node.op_type, source) or not defs.has(node.op_type, target):
        return False
    low, high = sorted((source, target))
    schemas: dict[int, defs.OpSchema] = {}
    for version in range(low, high + 1):
        schema = defs.get_schema(node.op_type, version)
        schemas[schema.since_version] = schema
    if len(schemas) == 1:
        return True
    crossed = _MEANING_CHANGED.get(node.op_type)
    if crossed is not None and low < crossed <= high:
        return False
    chain = [schemas[version] for version in sorted(schemas)]
    return all(_agree(node, a, b) for a, b in itertools.pairwise(chain))


_MEANING_CHANGED = {
    "GridSample": 20,
    "Hardmax": 13,
    "LogSoftmax": 13,
    "Mod": 28,
    "Softmax": 13,
    "Split": 18,
}
"""Versions that gave an operator another meaning without another signature."""


def _agree(node: Node, older: defs.OpSchema, newer: defs.OpSchema) -> bool:
    """Whether two versions treat a node alike: ONNX adds, with defaults that change nothing.

    What the node uses must be in both: inputs by position, attributes by name, and the
    defaults of those it leaves out.
    """
    if older.deprecated or newer.deprecated:
        return False
    used = len(node.inputs)
    if not older.min_input <= used <= older.max_input or len(node.outputs) > older.max_output:
        return False
    single = defs.OpSchema.FormalParameterOption.Single
    for value, *formal in zip(node.inputs, older.inputs, newer.inputs, strict=False):
        if value is None and any(p.option == single for p in formal):
            return False
    names = [[p.name for p in s.inputs][:used] for s in (older, newer)]
    variadic = older.max_input > len(older.inputs)
    if not variadic and len(names[0]) != len(names[1]):
        return False
    if set(node.attributes) - set(older.attributes) or set(node.attributes) - set(newer.attributes):
        return False
    for name in set(older.attributes) - set(node.attributes):
        after = newer.attributes.get(name)
        if after is None or older.attributes[name].default_value != after.default_value:
            return False
    return _takes(node, older) and _takes(node, newer)


def _takes(node: Node, schema: defs.OpSchema) -> bool:
    """Whether the element types of a node are among those of a version."""
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            kind = None if value is None else type_string(value)
            if kind is not None and kind not in formal[min(index, len(formal) - 1)].types:
                return False
    return True


def _convert_node(model: Model, graph: Graph, node: Node, source: int, target: int) -> list[Node]:
    where = f"node '{node.label}' ({node.op_type})"
    if node.op_type in ("Resize", "Upsample") and _convert_resize(model, graph, node, target):
        return [node]
    if not defs.has(node.op_type, target):
        raise UnsupportedError(f"{where}: the operator is not in operator set {target}")
    if node.subgraphs():
        raise UnsupportedError(f"{where}: it has subgraphs and differs in operator set {target}")
    if target < source and _axes_to_attribute(model, node, target):
        return [node]
    if _MEANING_CHANGED.get(node.op_type) == 13 and target < 13 <= source:
        return _flattening_softmax(model, node)
    lone = _LoneNode(model, node, source)
    try:
        converted = version_converter.convert_version(lone.proto, target)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter raises a family of unrelated types
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedError(
            f"{where}: can't be expressed in operator set {target} ({reason})"
        ) from None
    return lone.splice(converted, graph)


def _axes_to_attribute(model: Model, node: Node, target: int) -> bool:
    """Constant axes, an input in newer versions, as the attribute that they were before."""
    schema = defs.get_schema(node.op_type, target)
    if len(node.inputs) != 2 or "axes" not in schema.attributes or schema.max_input != 1:
        return False
    axes = model.constant(node.inputs[1])
    source = node.inputs[0]
    if node.inputs[1] is not None and axes is None:
        return False
    if axes is None or axes.size == 0:
        if node.get("noop_with_empty_axes", 0):
            return False
    else:
        node.set("axes", [int(axis) for axis in axes.numpy().reshape(-1)])
    node.attributes.pop("noop_with_empty_axes", None)
    node.set_inputs([source])
    return set(node.attributes) <= set(schema.attributes) and _takes(node, schema)


def _flattening_softmax(model: Model, node: Node) -> list[Node]:
    """Softmax and its kin before version 13, over all axes from `axis` on: so, over the last."""
    source, output = node.inputs[0], node.outputs[0]
    rank = None if source is None else source.rank
    graph = node.graph
    if source is None or output is None or not rank or graph is None:
        raise UnsupportedError(f"node '{node.label}' ({node.op_type}): its rank is not known")
    axis = node.get("axis", -1) % rank
    node.set("axis", rank - 1)
    if axis == rank - 1:
        return [node]
    order = list(range(rank))
    order[axis], order[-1] = order[-1], order[axis]
    moved = Value(model.fresh_name(f"{node.label}_transposed"))
    normal = Value(model.fresh_name(f"{node.label}_normalized"))
    first = Node("Transpose", [source], [moved])
    middle = Node(node.op_type, [moved], [normal], node.attributes, name=node.name)
    last = Node("Transpose", [normal], [output])
    for made in (first, last):
        made.set("perm", order)
    node.detach_inputs()
    node.graph = None
    for made in (first, middle, last):
        made.graph = graph
    return [first, middle, last]


def _convert_resize(model: Model, graph: Graph, node: Node, target: int) -> bool:
    """What onnx's converter gets wrong: Upsample and Resize 10 as later Resize, and 13 as 11.

    Until version 10 coordinates were asymmetric and rounded down; version 11 wants a
    region of interest, even if an empty one.
    """
    if model.opset <= 10 and target >= 11:
        scales = node.input(1)
        if scales is None:
            name = model.fresh_name(f"{node.label}_scales")
            numbers = np.array(node.get("scales", []), np.float32)
            scales = graph.add_initializer(name, Tensor.from_array(numbers))
        node.op_type = "Resize"
        node.attributes.pop("scales", None)
        node.set("coordinate_transformation_mode", "asymmetric")
        node.set("nearest_mode", "floor")
        node.set_inputs([node.inputs[0], _empty_roi(model, graph, node), scales])
        return True
    if target in (11, 12) and model.opset in range(13, 18) and node.op_type == "Resize":
        if node.input(1) is None:
            node.set_input(1, _empty_roi(model, graph, node))
        if node.input(2) is None:
            name = model.fresh_name(f"{node.label}_scales")
            node.set_input(2, graph.add_initializer(name, _NOTHING))
        return True
    return False


_NOTHING = Tensor.from_array(np.zeros(0, np.float32))


def _empty_roi(model: Model, graph: Graph, node: Node) -> Value:
    return graph.add_initializer(model.fresh_name(f"{node.label}_roi"), _NOTHING)


class _LoneNode:
    """A model of one node, for the converter, and the way back."""

    def __init__(self, model: Model, node: Node, opset: int) -> None:
        self.model = model
        self.node = node
        self.names: dict[str, Value] = {}
        graph = GraphProto(name="lone")
        read = [v for v in node.inputs if v is not None]
        for value in dict.fromkeys(read):
            self.names[value.name] = value
            tensor = model.constant(value)
            if tensor is not None and tensor.size <= _EMBEDDED_ELEMENTS and not tensor.is_sparse:
                graph.initializer.append(tensor.embedded(value.name))
            else:
                graph.input.add(name=value.name).type.CopyFrom(_type_of(value))
        for output in node.outputs:
            if output is not None:
                self.names[output.name] = output
                graph.output.add(name=output.name).type.CopyFrom(_type_of(output))
        graph.node.append(node_to_proto(node))
        self.proto = ModelProto(ir_version=_OLDEST_IR, graph=graph)
        self.proto.opset_import.add(domain="", version=opset)

    def splice(self, converted: ModelProto, graph: Graph) -> list[Node]:
        """The converted nodes, reading and defining what the node did."""
        result = from_proto(converted).graph
        values: dict[Value, Value] = {}
        for value in result.values():
            known = self.names.get(value.name)
            if known is not None:
                values[value] = known
        made: list[Node] = []
        for inner in result.nodes:
            inputs = [None if v is None else self._read(v, values, graph) for v in inner.inputs]
            outputs = [None if v is None else self._defined(v, values) for v in inner.outputs]
            made.append(Node(inner.op_type, inputs, outputs, dict(inner.attributes)))
            made[-1].graph = graph
        self.node.detach_inputs()
        self.node.graph = None
        last = made[-1]
        last.name, last.extra = self.node.name, self.node.extra
        return made

    def _read(self, value: Value, values: dict[Value, Value], graph: Graph) -> Value:
        if value not in values:
            assert value.const is not None
            name = self.model.fresh_name(f"{self.node.label}_{value.name}")
            values[value] = graph.add_initializer(name, value.const)
        return values[value]

    def _defined(self, value: Value, values: dict[Value, Value]) -> Value:
        if value not in values:
            name = self.model.fresh_name(f"{self.node.label}_{value.name}")
            values[value] = Value(name, value.type)
        return values[value]


def _type_of(value: Value) -> onnx.TypeProto:
    if value.type is not None:
        return value.type
    raise UnsupportedError(f"value '{value.name}': its type is not known, so it can't be converted")
