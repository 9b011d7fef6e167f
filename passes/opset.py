"""Another version of the standard operator set: node by node, through onnx's converter."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable

import onnx
import onnx.inliner
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    defs,
    helper,
    version_converter,
)

from ..ir.errors import UnsupportedError
from ..ir.graph import Graph, Node, Value, normalize_domain
from ..ir.infer import infer_node, infer_shapes
from ..ir.model import Model
from ..ir.onnx_io import from_proto, node_to_proto
from ..ir.signature import at, type_string
from .base import Context, Pass, PassResult
from .initializers import SEPARATE_SINCE, separate_initializers
from .inline import InlineFunctions
from .opset_rules import (
    broadcasts,
    constant_as_initializer,
    convert_resize,
    count_axes_from_front,
    crosses,
    flattening_softmax,
    inputs_to_attributes,
    sliced_shape,
)

_EMBEDDED_ELEMENTS = 4096
"""Constants up to this size are shown to the converter, which may depend on them."""

_OLDEST_IR = 4
"""IR version below which initializers would have to be inputs too."""


@dataclasses.dataclass(frozen=True)
class ConvertOpset(Pass):
    """Express the model in version `version` of the standard operator set.

    Nodes whose operator is the same in both versions stay untouched; the others are
    what `opset_rules` or onnx's version converter makes of them, or, where the version
    lacks their operator, the function that defines it. Raises UnsupportedError, naming the
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
            _convert_graph(model, graph, self.version) for graph in list(model.graph.all_graphs())
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
    result = min(before, lowered) if model.opset < source else max(before, needed)
    if result >= SEPARATE_SINCE:
        separate_initializers(model)
    model.extra.ir_version = result


def _convert_graph(model: Model, graph: Graph, target: int) -> int:
    graph.nodes, count = _convert_nodes(model, graph, graph.nodes, target)
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
    if any(crosses(node.op_type, version, source, target) for version in range(low + 1, high + 1)):
        return False
    if low < 8 <= high and broadcasts(node):
        return False
    chain = [schemas[version] for version in sorted(schemas)]
    return all(_agree(node, a, b) for a, b in itertools.pairwise(chain))


def _agree(node: Node, older: defs.OpSchema, newer: defs.OpSchema) -> bool:
    """Whether two versions treat a node alike: ONNX adds, with defaults that change nothing.

    What the node uses must be in both: inputs by position, attributes by name, and the
    defaults of those it leaves out.
    """
    if older.deprecated or newer.deprecated:
        return False
    used = len(node.inputs)
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
    return suits(node, older) and suits(node, newer)


def suits(node: Node, schema: defs.OpSchema) -> bool:
    """Whether a version takes a node's inputs and outputs: how many, and of what types."""
    count = len(node.inputs)
    if not schema.min_input <= count <= schema.max_input or len(node.outputs) > schema.max_output:
        return False
    single = defs.OpSchema.FormalParameterOption.Single
    for value, formal in zip(node.inputs, schema.inputs, strict=False):
        if value is None and formal.option == single:
            return False
    return _takes(node, schema)


def _takes(node: Node, schema: defs.OpSchema) -> bool:
    """Whether the element types of a node are among those of a version."""
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            kind = None if value is None else type_string(value)
            if kind is not None and kind not in formal[min(index, len(formal) - 1)].types:
                return False
    return True


def _convert_nodes(
    model: Model, graph: Graph, nodes: Iterable[Node], target: int
) -> tuple[list[Node], int]:
    """The nodes as they are written in the target's operator set, and how many changed."""
    order: list[Node] = []
    count = 0
    for node in nodes:
        standard = normalize_domain(node.domain) == ""
        if standard and target < 11:
            count_axes_from_front(node)
        if not standard or _is_same(node, model.opset, target):
            order.append(node)
            continue
        order += _convert_node(model, graph, node, target)
        count += 1
    return order, count


def _convert_node(model: Model, graph: Graph, node: Node, target: int) -> list[Node]:
    where = at(node)
    source = model.opset
    if convert_resize(model, graph, node, target):
        return [node]
    known = defs.has(node.op_type, target) and not defs.get_schema(node.op_type, target).deprecated
    if node.subgraphs():
        raise UnsupportedError(f"{where}: it has subgraphs and differs in operator set {target}")
    if not known:
        return _expand(model, graph, node, target)
    if crosses(node.op_type, 13, target, source) and target < 13:
        return flattening_softmax(model, node)
    if target < source and inputs_to_attributes(model, node, target, suits):
        return [node]
    if node.op_type == "Constant" and constant_as_initializer(model, graph, node):
        return []
    if node.op_type == "Shape" and target < 15 and {"start", "end"} & set(node.attributes):
        return _convert_nodes(model, graph, sliced_shape(model, graph, node), target)[0]
    lone = _LoneNode(model, node, source)
    try:
        converted = version_converter.convert_version(lone.proto, target)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter raises a family of unrelated types
        raise UnsupportedError(
            f"{where}: can't be expressed in operator set {target} ({_reason(error)})"
        ) from None
    return lone.splice(converted, graph)


def _expand(model: Model, graph: Graph, node: Node, target: int) -> list[Node]:
    """An operator that the target lacks by the function that defines it, if there is one."""
    lone = _LoneNode(model, node, model.opset, values=False)
    _write_defaults(lone.proto.graph.node[0], model.opset)
    try:
        expanded = onnx.inliner.inline_selected_functions(
            lone.proto, [("", node.op_type)], inline_schema_functions=True
        )
    except Exception:  # as for the converter
        expanded = lone.proto
    stays = any(inner.op_type == node.op_type for inner in expanded.graph.node)
    if stays or any(a.HasField("g") for inner in expanded.graph.node for a in inner.attribute):
        raise UnsupportedError(f"{at(node)}: the operator is not in operator set {target}")
    nodes = lone.splice(expanded, graph)
    for inner in nodes:
        for value, found in zip(inner.outputs, infer_node(model, inner), strict=True):
            if value is not None and value.type is None:
                value.type = found
    try:
        return _convert_nodes(model, graph, nodes, target)[0]
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{at(node)}: the operator is not in operator set {target}, and neither is what "
            f"defines it: {error}"
        ) from None


def _write_defaults(node: NodeProto, version: int) -> None:
    """Give the attributes that a node leaves out, which the inliner forgets."""
    given = {attribute.name for attribute in node.attribute}
    for name, formal in defs.get_schema(node.op_type, version).attributes.items():
        if name not in given and formal.default_value.type != AttributeProto.UNDEFINED:
            node.attribute.append(formal.default_value)


def _reason(error: Exception) -> str:
    """What the converter says, without the place in its source."""
    text = " ".join(str(error).split())
    return re.sub(r"^\S+:\d+: (\w+: )?(Assertion `[^`']*[`'] failed: )?", "", text)[:200]


class _LoneNode:
    """A model of one node, for the converter, and the way back.

    With `values` it holds small constants that the node reads, else their types only.
    """

    def __init__(self, model: Model, node: Node, opset: int, *, values: bool = True) -> None:
        self.model = model
        self.node = node
        self.names: dict[str, Value] = {}
        graph = GraphProto(name="lone")
        read = [v for v in node.inputs if v is not None]
        for value in dict.fromkeys(read):
            self.names[value.name] = value
            tensor = model.constant(value)
            small = tensor is not None and tensor.size <= _EMBEDDED_ELEMENTS
            if values and tensor is not None and small and not tensor.is_sparse:
                graph.initializer.append(tensor.embedded(value.name))
            else:
                graph.input.add(name=value.name).type.CopyFrom(_type_of(value, node))
        for output in node.outputs:
            if output is not None:
                self.names[output.name] = output
                graph.output.add(name=output.name).type.CopyFrom(_type_of(output, node))
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
            for body in made[-1].subgraphs():
                body.parent = made[-1]
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


def _type_of(value: Value, node: Node) -> onnx.TypeProto:
    if value.type is not None:
        return value.type
    raise UnsupportedError(
        f"{at(node)}: can't be converted, as the type of '{value.name}' is not known"
    )
