"""Shape and type inference for the whole model, without reading its weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper

from . import inference_faults, pooled_shapes
from .collection import paused_garbage_collection
from .element_count import element_count
from .elements import forget_names_of_elements
from .errors import MISFITS, ModelError, RuleError, UnsupportedError
from .graph import Graph, Node, Value, normalize_domain, tensor_type, type_shape
from .inferred import ComputedSizes, is_fresh, is_static, note_inference
from .model import Model
from .onnx_io import to_proto_without_weights
from .ops import Trait, operators, with_trait
from .stand_ins import add_stand_ins, all_nodes, replaced
from .tensor import Tensor

VALUE_LIMIT = 4096
"""Constants of at most this many elements take part in shape propagation by value."""

_VECTOR_LIMIT = 2**20
"""Longest vector whose elements, themselves unknown, propagation by value may look at."""

_REFUSALS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)
"""What ONNX's inference raises for nodes that break their operator's rules."""


def infer_shapes(model: Model) -> None:
    """Fill in `Value.type` wherever ONNX's inference (with data propagation) finds it.

    Known types are kept where inference says less. Raises ModelError, naming the
    node, where the model contradicts itself. Only nodes that have changed since the last
    time are looked at, as long as these are few.
    """
    with paused_garbage_collection():
        if infer_changed(model):
            return
        found, corrected = _infer_right(to_proto_without_weights(model, VALUE_LIMIT))
        _take_graph_types(model.graph, found.graph, corrected)
        forget_names_of_elements(model, found.graph)
        versions = model.opsets
        for graph in model.graph.all_graphs():
            for node in graph.nodes:
                note_inference(node, model, versions, is_proven=None)


_FEW = 16
"""Nodes about which ONNX is asked one by one in any graph; in large ones a sixteenth of all,
since asking about one takes as long as ten of a whole model."""


def infer_changed(
    model: Model, resolve: Callable[[Node, Value, TypeProto], None] | None = None
) -> bool:
    """Infer the results of the nodes that have changed since the model was inferred.

    False where that takes inference of the whole model: it never ran, much has changed, or
    something that only it follows. `resolve` is called for what is found of a value.
    """
    if all(node.inference is None for node in model.graph.nodes):
        return False
    operators()  # with the stand-ins that packages bring along
    foreign, versions, sizes = replaced(), model.opsets, ComputedSizes(model)
    left = max(_FEW, len(model.graph.nodes) // 16)
    for node in model.graph.nodes:
        if is_fresh(node, versions):
            continue
        if sizes.confirms(node):
            note_inference(node, model, versions, is_proven=True)
            continue
        left -= 1
        if left < 0 or node.op_type in foreign or not _is_inferred_alone(node, model):
            return False
        known = sizes.known(node)
        found = infer_node(model, node, known or {})
        for value, type in zip(node.outputs, found, strict=True):
            if value is not None and type is not None and resolve is not None:
                resolve(node, value, type)
            if value is not None:
                _take_type(value, type)
        if known is None and not all(map(is_static, node.outputs)):
            return False  # propagation by value knows more of symbols
        node.inference = None
        pairs = [(v, t) for v, t in zip(node.outputs, found, strict=True) if v is not None]
        if not any(type is not None and contradict(value.type, type) for value, type in pairs):
            is_proven = all(covers(type, value) for value, type in pairs)
            note_inference(node, model, versions, is_proven=is_proven)
    return True


def _is_inferred_alone(node: Node, model: Model) -> bool:
    if node.subgraphs() or (node.domain, node.op_type, node.overload) in model.functions:
        return False
    values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.type is not None]
    return all(tensor_type(value.type) is not None for value in values)


def contradict(claim: TypeProto | None, found: TypeProto) -> bool:
    """Whether a declared type excludes an inferred one; a size of 0 counts as left open."""
    if claim is None:
        return False
    kinds = {claim.WhichOneof("value"), found.WhichOneof("value")} - {None}
    if len(kinds) > 1:
        return True
    declared, inferred = tensor_type(claim), tensor_type(found)
    if declared is None or inferred is None:
        return False
    types = (declared.elem_type, inferred.elem_type)
    if TensorProto.UNDEFINED not in types and types[0] != types[1]:
        return True
    claimed, known = type_shape(claim), type_shape(found)
    if claimed is None or known is None:
        return False
    sizes = zip(claimed, known, strict=False)
    differ = any(isinstance(a, int) and isinstance(b, int) and a and a != b for a, b in sizes)
    return differ or len(claimed) != len(known)


def covers(found: TypeProto | None, value: Value | None) -> bool:
    """Whether an inferred type says all that is known of a value."""
    claimed = None if value is None else type_shape(value.type)
    if claimed is None:
        return True
    known = type_shape(found)
    return known is not None and all(
        isinstance(size, int) or not isinstance(claim, int)
        for size, claim in zip(known, claimed, strict=False)
    )


def infer_proto(proto: ModelProto) -> ModelProto:
    """A model with the types that inference finds, stand-ins where ONNX knows no operator."""
    return _infer_right(proto)[0]


def _infer_right(proto: ModelProto) -> tuple[ModelProto, set[str]]:
    """A model with its types, and the names whose shapes are others than ONNX's inference says."""
    found = _infer_whole(proto)
    corrected: set[str] = set()
    if not any(pooled_shapes.may_differ(node) for node in all_nodes(proto.graph)):
        return found, corrected
    proto = _copy(proto)
    while (wrong := pooled_shapes.correct(proto, found)) is not None:
        corrected |= wrong
        found = _infer_whole(proto)
    return found, corrected


def _infer_whole(proto: ModelProto) -> ModelProto:
    operators()  # with the stand-ins that packages bring along
    foreign = replaced()
    if any(node.op_type in foreign for node in all_nodes(proto.graph)):
        copy = _copy(proto)
        if add_stand_ins(copy):
            with contextlib.suppress(ModelError):  # maybe of the stand-ins' own making
                return _infer(copy)
    return _infer(proto)


def _copy(proto: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def _infer(proto: ModelProto) -> ModelProto:
    for info in (*proto.graph.input, *proto.graph.value_info):
        _hide_length(info.type)
    for info in (*proto.graph.value_info, *proto.graph.output):
        _hide_zeros(info.type)
    for node in all_nodes(proto.graph):
        _say_default(node)
    try:
        for node in all_nodes(proto.graph):
            inference_faults.check_node(node)
        is_partial = inference_faults.hide(proto)
        found = _infer_shown(proto)
        while is_partial and inference_faults.show_typed(found):
            found = _infer_shown(found)
    except _REFUSALS as error:
        raise ModelError(f"shape inference: {_first_line(error)}") from None
    if is_partial:
        inference_faults.show_all(found)
    return found


def _infer_shown(proto: ModelProto) -> ModelProto:
    return onnx.shape_inference.infer_shapes(
        proto,
        check_type=_has_type_rules(proto),
        strict_mode=False,
        data_prop=not (_builds_long_vectors(proto) or _makes_long_vectors(proto)),
    )


def _say_default(node: NodeProto) -> None:
    """STFT is one-sided where it doesn't say so; ONNX's inference takes it for the opposite."""
    if node.op_type == "STFT" and not any(a.name == "onesided" for a in node.attribute):
        node.attribute.append(helper.make_attribute("onesided", 1))


def _has_type_rules(proto: ModelProto) -> bool:
    """Whether models keep to the types that operators declare.

    Before opset 9 exporters wrote Constants of integers, which that operator then did
    not allow for, and which every runtime takes.
    """
    versions = [o.version for o in proto.opset_import if normalize_domain(o.domain) == ""]
    return all(version >= 9 for version in versions)


def _hide_length(type: TypeProto) -> None:
    """Let a very long vector have an unknown length for propagation by value, which would
    set up an element for each: a file of a few bytes may declare any length."""
    sizes = type.tensor_type.shape.dim
    if len(sizes) == 1 and sizes[0].dim_value > _VECTOR_LIMIT:
        sizes[0].Clear()


def _hide_zeros(type: TypeProto) -> None:
    """Let sizes declared as 0 be found anew: some exporters write 0 for what they don't know."""
    for size in type.tensor_type.shape.dim:
        if size.HasField("dim_value") and size.dim_value == 0:
            size.Clear()


def _makes_long_vectors(proto: ModelProto) -> bool:
    """Whether inference without propagation finds vectors past the limit.

    Propagation would set up an element for each where an operator reads them.
    """
    infos = (*proto.graph.input, *proto.graph.value_info)
    sizes = [d.dim_value for info in infos for d in info.type.tensor_type.shape.dim]
    sizes += [d for tensor in proto.graph.initializer for d in tensor.dims]
    enlarging = with_trait(Trait.ENLARGES)
    if max(sizes, default=0) <= _VECTOR_LIMIT and not any(
        node.op_type in enlarging for node in all_nodes(proto.graph)
    ):
        return False
    found = onnx.shape_inference.infer_shapes(
        proto, check_type=_has_type_rules(proto), strict_mode=False, data_prop=False
    )
    return _has_long_vectors(found.graph)


def _has_long_vectors(graph: onnx.GraphProto) -> bool:
    bodies = [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    shapes = [info.type.tensor_type.shape.dim for info in (*graph.value_info, *graph.output)]
    return any(len(s) == 1 and s[0].dim_value > _VECTOR_LIMIT for s in shapes) or any(
        map(_has_long_vectors, bodies)
    )


def _builds_long_vectors(proto: ModelProto) -> bool:
    """Whether propagation by value would build vectors past the limit.

    Concat is what makes them longer; sixty of them that read their operand twice would
    fill any memory. Lengths are bounded from above, by the longest operand elsewhere.
    """
    bodies = [proto.graph.node, *(function.node for function in proto.functions)]
    if not any(node.op_type == "Concat" for body in bodies for node in body):
        return False
    lengths = {t.name: _length(t) for t in proto.graph.initializer}
    for info in (*proto.graph.input, *proto.graph.value_info):
        sizes = info.type.tensor_type.shape.dim
        if len(sizes) == 1:
            lengths[info.name] = sizes[0].dim_value
    return any(_exceeds(body, dict(lengths)) for body in bodies)


def _length(tensor: TensorProto) -> int:
    """The number of elements, no further than past the limit."""
    count = element_count(tensor.dims, _VECTOR_LIMIT)
    return _VECTOR_LIMIT + 1 if count is None else count


def _exceeds(nodes: Iterable[NodeProto], lengths: dict[str, int]) -> bool:
    for node in nodes:
        known = [lengths[name] for name in node.input if name in lengths]
        if node.op_type == "Concat":
            found = sum(known) if len(known) == len(node.input) else 0
        elif node.op_type == "Constant":
            found = max((_length(a.t) for a in node.attribute if a.HasField("t")), default=0)
        else:
            found = max(known, default=1) if node.op_type in _PROPAGATING else 0
        if found > _VECTOR_LIMIT:
            return True
        if found:
            lengths.update(dict.fromkeys(node.output, found))
        for attribute in node.attribute:
            if attribute.HasField("g") and _exceeds(attribute.g.node, lengths):
                return True
    return False


_PROPAGATING = frozenset(
    schema.name
    for schema in onnx.defs.get_all_schemas_with_history()
    if schema.has_data_propagation_function
)


def infer_node(
    model: Model, node: Node, known: Mapping[Value, Tensor] = MappingProxyType({})
) -> list[TypeProto | None]:
    """The types of one node's outputs, from the types of its inputs and small constants.

    `known` are constants besides the model's. Nothing is changed. None where ONNX's
    inference finds nothing or knows no such operator, and for every output of a node with
    subgraphs.
    """
    try:
        return _infer_node(model, node, known)
    except _REFUSALS:
        return [None] * len(node.outputs)


def _infer_node(
    model: Model, node: Node, known: Mapping[Value, Tensor] = MappingProxyType({})
) -> list[TypeProto | None]:
    """As `infer_node`; raises one of `_REFUSALS` where the node breaks its operator's rules."""
    nothing: list[TypeProto | None] = [None] * len(node.outputs)
    domain = normalize_domain(node.domain)
    version = model.opsets.get(domain, 0)
    if node.subgraphs() or not onnx.defs.has(node.op_type, version, domain):
        return nothing
    names = {v: f"v{i}" for i, v in enumerate(dict.fromkeys((*node.inputs, *node.outputs))) if v}
    proto = NodeProto(op_type=node.op_type, domain=node.domain)
    proto.input.extend("" if v is None else names[v] for v in node.inputs)
    proto.output.extend("" if v is None else names[v] for v in node.outputs)
    proto.attribute.extend(a.proto for a in node.attributes.values())
    _say_default(proto)
    inference_faults.check_node(proto)
    read = [v for v in dict.fromkeys(node.inputs) if v is not None]
    if any(v.type is None for v in read) or inference_faults.lacks_operand(proto):
        return nothing
    constants = ((v, known.get(v) or model.constant(v)) for v in read)
    schema = onnx.defs.get_schema(node.op_type, version, domain)
    found = onnx.shape_inference.infer_node_outputs(
        schema,
        proto,
        {names[v]: v.type for v in read if v.type is not None},
        {
            names[v]: t.embedded(names[v])
            for v, t in constants
            if t is not None and t.size <= VALUE_LIMIT and not t.is_sparse
        },
        opset_imports=list(model.extra.opset_import),
    )
    shaped = [type.tensor_type.HasField("shape") for type in found.values()]
    if schema.has_function and not (shaped and all(shaped)):  # type: ignore[attr-defined]
        found |= _by_definition(
            model, proto, {names[v]: v.type for v in read if v.type is not None}
        )
    if pooled_shapes.may_differ(proto) and read:
        for type in found.values():
            pooled_shapes.correct_type(proto, read[0].type, type)
    return [None if v is None else found.get(names[v]) for v in node.outputs]


def _by_definition(
    model: Model, node: NodeProto, inputs: Mapping[str, TypeProto]
) -> dict[str, TypeProto]:
    """What inference finds of a node's results in the operator's definition by other operators."""
    graph = onnx.GraphProto(name="node", node=[node])
    graph.input.extend(onnx.ValueInfoProto(name=name, type=type) for name, type in inputs.items())
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
    proto = ModelProto(ir_version=8, graph=graph, opset_import=model.extra.opset_import)
    return inferred_types(onnx.shape_inference.infer_shapes(proto).graph)


def inferred_types(proto: onnx.GraphProto) -> dict[str, TypeProto]:
    """The types of a graph's results, as inference left them, by name."""
    infos = (*proto.value_info, *proto.output)
    return {info.name: info.type for info in infos if info.HasField("type")}


@contextlib.contextmanager
def blamed(node: Node, model: Model, rule: Callable[..., Any]) -> Iterator[None]:
    """Raise an error that names the node where a rule of its operator fails on it."""
    try:
        yield
    except MISFITS as error:
        raise misfit(node, error, model, rule) from error


def misfit(
    node: Node, error: Exception, model: Model, rule: Callable[..., Any]
) -> UnsupportedError | RuleError:
    """The error for a node that a rule of its operator failed on.

    Where ONNX refuses the node, in its words. Sizes and indices that lead nowhere are taken for
    the node's own, too; any other error is a mistake of the rule.
    """
    reason = refusal(model, node)
    if reason is None and not isinstance(error, (ArithmeticError, IndexError, ValueError)):
        return RuleError.of(node.label, node.op_type, rule, error)
    reason = reason or f"its attributes or operands don't fit together ({error})"
    return UnsupportedError(f"node '{node.label}' ({node.op_type}): {reason}")


def refusal(model: Model, node: Node) -> str | None:
    """Why ONNX's inference refuses a node with the types that its inputs have, if it does."""
    try:
        _infer_node(model, node)
    except _REFUSALS as error:
        return _first_line(error)
    return None


def _take_graph_types(graph: Graph, proto: onnx.GraphProto, corrected: set[str]) -> None:
    """Let values have inferred types; those of `corrected` names instead of what they have."""
    types = inferred_types(proto)
    for node, node_proto in zip(graph.nodes, proto.node, strict=True):
        for value in node.outputs:
            if value is None:
                continue
            found = types.get(value.name)
            if value.name in corrected and type_shape(found) is not None:
                value.type = found
            _take_type(value, found)
        bodies = node.subgraphs()
        if not bodies:
            continue
        inferred = [
            body
            for attribute in node_proto.attribute
            for body in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
        ]
        for inner, body in zip(bodies, inferred, strict=False):
            _take_graph_types(inner, body, corrected)


def _take_type(value: Value, found: TypeProto | None) -> None:
    if found is None:
        return
    if value.type is None or _knows_more(found, value.type):
        value.type = found


def _knows_more(new: TypeProto, old: TypeProto) -> bool:
    """Whether `new` gives a rank or a size that `old` lacks; a size of 0 counts as lacking."""
    new_tensor, old_tensor = tensor_type(new), tensor_type(old)
    if new_tensor is None or old_tensor is None:
        return old.WhichOneof("value") is None
    if not new_tensor.HasField("shape"):
        return False
    if not old_tensor.HasField("shape"):
        return True
    if len(new_tensor.shape.dim) != len(old_tensor.shape.dim):
        return False
    return any(
        n.WhichOneof("value") is not None and not o.dim_value and n != o
        for n, o in zip(new_tensor.shape.dim, old_tensor.shape.dim, strict=True)
    )


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
