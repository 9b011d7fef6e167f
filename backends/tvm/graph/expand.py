"""Operators that other operators define, replaced by their definitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TypeProto

from ....ir.errors import ModelError, UnsupportedError
from ....ir.graph import Attribute, Node, Value, normalize_domain
from ....ir.infer import blamed, infer_shapes
from ....ir.model import Model
from ....ir.onnx_io import from_proto
from ....passes.inline import InlineFunctions
from . import definitions

EXPANDED = frozenset(
    {
        "Attention",
        "CausalConvWithState",
        "LinearAttention",
        "NegativeLogLikelihoodLoss",
        "RotaryEmbedding",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SwiGLU",
    }
)

_OPSET = 17
"""The operator set of definitions in models that import none."""

_ROUNDS = 32
"""How deep definitions may use each other, or wait for each other's sizes."""


@dataclasses.dataclass(frozen=True)
class RequiredRange:
    """What an operator requires of an operand: low <= number < high plus the sizes of `axes`."""

    label: str
    op_type: str
    low: int
    high: int
    axes: tuple[tuple[Value, int], ...] = ()


def expand_definitions(model: Model) -> None:
    """Put the definitions of operators that aren't the standard's in place, where they have one.

    So that whatever follows axes, samples and sizes meets standard operators. Those that can't
    be defined stay as they are; `expand` says why.
    """
    if any(_is_defined(n) for g in model.graph.all_graphs() for n in g.nodes):
        if "" not in model.opsets:  # a model of another domain's operators alone
            model.extra.opset_import.append(onnx.helper.make_opsetid("", _OPSET))
        infer_shapes(model)
        _inline(model, {}, {}, _is_defined)


def undefined(model: Model) -> list[str]:
    """Why nodes keep operators that definitions exist for, but none for their forms."""
    reasons = []
    for node in filter(_is_defined, model.all_nodes()):
        try:
            with blamed(node, model, definitions.define):
                definitions.define(node, model)
        except (definitions.Declined, definitions.NotReady):
            continue  # left to a rule, or to sizes that follow from others
        except UnsupportedError as error:
            reasons.append(str(error))
    return reasons


def expand_quantized(model: Model) -> None:
    """As `expand_definitions`, of quantized operators alone, as QLinearConv.

    They become QuantizeLinear and DequantizeLinear around float operators, or
    DynamicQuantizeLinear and integer ones.
    """

    def is_wanted(node: Node) -> bool:
        return _is_defined(node) and (
            node.op_type.startswith("QLinear") or node.op_type in _QUANTIZED
        )

    if any(is_wanted(node) for node in model.all_nodes()):
        infer_shapes(model)
        _inline(model, {}, {}, is_wanted)


_QUANTIZED = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm"}


def expand(model: Model, refused: dict[Node, str], bounds: dict[Value, RequiredRange]) -> bool:
    """Inline the definitions of the `EXPANDED` operators and of others'; whether there were any.

    What an operator requires of its operands and its definition doesn't is added to `bounds`.
    Nodes stay, with the reason in `refused`, where the standard's definition means
    something else at the model's opset.
    """
    return _inline(model, refused, bounds, lambda n: _is_defined(n) or _is_expanded(n))


def _inline(
    model: Model,
    refused: dict[Node, str],
    bounds: dict[Value, RequiredRange],
    wanted: Callable[[Node], bool],
) -> bool:
    """Inline in rounds, since definitions use each other, and tell sizes to those after them."""
    declined: set[Node] = set()
    for number in range(_ROUNDS):
        waiting: dict[Node, str] = {}
        nodes = [
            n
            for g in model.graph.all_graphs()
            for n in g.nodes
            if wanted(n) and n not in refused and n not in declined
        ]
        for node in nodes:
            try:
                with blamed(node, model, _add_function):
                    bound = _bound(node)
                    _add_function(model, node)
                if bound is not None:
                    bounds[bound[0]] = bound[1]
            except definitions.Declined:
                declined.add(node)
            except definitions.NotReady as error:
                waiting[node] = str(error)
            except UnsupportedError as error:
                refused[node] = str(error)
        if not any(n.overload for n in nodes):
            refused.update(waiting)
            return number > 0
        InlineFunctions().run(model)
        infer_shapes(model)
    return True


def _bound(node: Node) -> tuple[Value, RequiredRange] | None:
    """The operand of a node whose numbers must lie in a range, and that range."""
    if normalize_domain(node.domain):
        return None
    if node.op_type == "RotaryEmbedding":  # positions in the tables of sines and cosines
        value, sizes = node.input(3), [(node.input(1), 0)]
    elif node.op_type == "Attention":  # how many keys count
        value, sizes = node.input(6), [(node.input(1), -2), (node.input(4), -2)]
    else:
        return None
    if value is None:
        return None
    axes = tuple((operand, axis) for operand, axis in sizes if operand is not None)
    return value, RequiredRange(node.label, node.op_type, 0, int(node.op_type == "Attention"), axes)


def _is_defined(node: Node) -> bool:
    key = normalize_domain(node.domain), node.op_type
    return key in definitions.DEFINITIONS and not node.overload


def _is_expanded(node: Node) -> bool:
    return normalize_domain(node.domain) == "" and node.op_type in EXPANDED


def _add_function(model: Model, node: Node) -> None:
    """Give the model a function of its own for this node."""
    if _is_defined(node):
        function = definitions.define(node, model)
        node.attributes.clear()  # the definition has them
        scores, result = node.input(0), node.outputs[0]
        if node.op_type == "ZipMap" and scores is not None and result is not None:
            result.set_tensor_type(scores.dtype, (None, None))  # it isn't a map
    else:
        function = _standard(model, node)
    node.overload = model.fresh_name(f"{node.label}/definition")
    node.domain = ""
    function.name, function.domain, function.overload = node.op_type, "", node.overload
    wanted = [i for i, v in enumerate(node.outputs) if v is not None]
    outputs = [function.output[i] for i in wanted]
    node.outputs = tuple(node.outputs[i] for i in wanted)
    del function.output[:]
    function.output.extend(outputs)  # its body defines no others
    del function.opset_import[:]
    function.opset_import.extend(
        e for e in model.extra.opset_import if normalize_domain(e.domain) == ""
    )
    carrier = ModelProto(ir_version=10, functions=[function], graph=onnx.GraphProto(name="none"))
    carrier.opset_import.extend(model.extra.opset_import)
    for found in from_proto(carrier).functions.values():
        model.functions[found.key] = found


def _standard(model: Model, node: Node) -> FunctionProto:
    if not onnx.defs.has(node.op_type, model.opset, ""):
        raise UnsupportedError(
            f"node '{node.label}' ({node.op_type}): opset {model.opset} has no such operator"
        )
    schema = onnx.defs.get_schema(node.op_type, model.opset, "")
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.type:
            node.attributes[name] = Attribute(attribute.default_value)
    function = _definition(model, node, schema)
    _check_versions(model, node, function)
    return function


def _definition(model: Model, node: Node, schema: Any) -> FunctionProto:
    """The schema's definition for the model's operator set; onnx's types leave those out."""
    versions = [*schema.function_opset_versions, *schema.context_dependent_function_opset_versions]
    usable = [v for v in versions if v <= model.opset]
    if not usable:
        raise UnsupportedError(
            f"node '{node.label}' ({node.op_type}): no definition for opset {model.opset}"
        )
    version = max(usable)
    if version in schema.function_opset_versions:
        data: bytes = schema.get_function_with_opset_version(version)
    else:
        types = [_type_of(v, node).SerializeToString() for v in node.inputs]
        data = schema.get_context_dependent_function_with_opset_version(
            version, _proto(node).SerializeToString(), types
        )
    definition: FunctionProto = FunctionProto.FromString(data)
    if any(value is not None for value in node.outputs[len(definition.output) :]):
        raise UnsupportedError(
            f"node '{node.label}' ({node.op_type}): the standard has no definition for this form"
        )
    return definition


def _type_of(operand: Value | None, node: Node) -> TypeProto:
    if operand is None:
        return TypeProto()
    if operand.type is None or operand.type.WhichOneof("value") is None:
        raise UnsupportedError(
            f"node '{node.label}' ({node.op_type}): the type of '{operand.name}' is unknown"
        )
    return operand.type


def _proto(node: Node) -> NodeProto:
    proto = NodeProto(op_type=node.op_type, name=node.name)
    proto.input.extend("" if v is None else v.name for v in node.inputs)
    proto.output.extend("" if v is None else v.name for v in node.outputs)
    for attribute in node.attributes.values():
        if attribute.graphs:
            proto.attribute.append(_graph_attribute(attribute))
        else:
            proto.attribute.append(attribute.proto)
    return proto


def _graph_attribute(attribute: Attribute) -> onnx.AttributeProto:
    from ....ir.onnx_io import to_proto

    proto = onnx.AttributeProto(name=attribute.proto.name, type=onnx.AttributeProto.GRAPH)
    proto.g.CopyFrom(to_proto(Model(attribute.graphs[0], ModelProto())).graph)
    return proto


def _check_versions(model: Model, node: Node, function: FunctionProto) -> None:
    """Whether every operator of the definition means the same at the model's opset."""
    imported = {normalize_domain(o.domain): int(o.version) for o in function.opset_import}
    for inner in function.node:
        domain = normalize_domain(inner.domain)
        if domain != "" or imported.get("") is None:
            continue
        try:
            own = onnx.defs.get_schema(inner.op_type, imported[""], "").since_version
            model_version = onnx.defs.get_schema(inner.op_type, model.opset, "").since_version
        except onnx.defs.SchemaError as error:
            raise ModelError(f"node '{node.label}' ({node.op_type}): {error}") from None
        if own != model_version and not _same_meaning(inner, own, model_version):
            raise UnsupportedError(
                f"node '{node.label}' ({node.op_type}): its definition uses {inner.op_type} of "
                f"opset {imported['']}, the model is of opset {model.opset}"
            )


_CHANGED = {
    "ReduceMax": 18, "ReduceMean": 18, "ReduceMin": 18, "ReduceL2": 18, "ReduceProd": 18,
    "ReduceSum": 13, "Split": 13, "Squeeze": 13, "Unsqueeze": 13, "Softmax": 13,
    "LogSoftmax": 13, "Clip": 11, "Slice": 10, "Pad": 11, "TopK": 10, "GroupNormalization": 21,
}  # fmt: skip
"""The last version of each operator that changed what its nodes mean, not just types."""


def _same_meaning(node: NodeProto, first: int, second: int) -> bool:
    """Whether between two versions only types were added, or what the node doesn't use."""
    changed = _CHANGED.get(node.op_type, 0)
    if node.op_type.startswith("Reduce") and len(node.input) == 1:
        over_all = all(a.name != "axes" for a in node.attribute)
        changed = 0 if over_all else changed  # the axes became an input
    return min(first, second) >= max(changed, 13)
