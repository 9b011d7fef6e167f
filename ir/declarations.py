"""Check the types that a model declares against those that inference finds.

A declared type (a graph output's, a value_info entry) is a claim: runtimes compute what the
operators say. ONNX's own inference keeps a declaration that contradicts it.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import GraphProto, TensorProto, TypeProto

from .collection import paused_garbage_collection
from .errors import ModelError
from .graph import Graph, Node, Value, tensor_type, type_shape
from .infer import (
    VALUE_LIMIT,
    contradict,
    covers,
    infer_changed,
    infer_node,
    infer_proto,
    infer_shapes,
    inferred_types,
)
from .inferred import note_inference
from .model import Model
from .onnx_io import to_proto_without_weights
from .pooled_shapes import may_differ
from .signature import at
from .stand_ins import all_nodes


def check_declarations(model: Model) -> set[Value]:
    """Raise ModelError, naming value and node, where a declaration contradicts inference.

    Returns the values of which the declaration says more than inference finds. Only nodes
    that have changed since the last time are looked at, as long as these are few.

    First everything is inferred from the inputs alone. Behind values of which that says
    less than their declaration, each node is inferred from the types declared for its
    operands, so that two declarations that exclude each other are found, too. Declarations
    behind pooling that repeat a mistake of ONNX's inference are corrected instead. Values
    get the static types that are found, so that later inference need not find them again.
    """
    if infer_changed(model, _compare):
        nodes = [node for graph in model.graph.all_graphs() for node in graph.nodes]
        if all(
            node.inference is not None and node.inference.is_proven is not None for node in nodes
        ):
            return {
                value
                for node in nodes
                for value in node.outputs
                if value is not None and not (node.inference and node.inference.is_proven)
            }
    with paused_garbage_collection():
        return _walk(model, _refuse)


def _compare(node: Node, value: Value, found: TypeProto) -> None:
    if contradict(value.type, found):
        _refuse(node, value, found)


def correct_declarations(model: Model) -> list[str]:
    """Let inferred shapes replace declared ones that contradict them, as ONNX Runtime does.

    Returns the corrections, in words. Raises ModelError where element types clash.
    """
    corrections: list[str] = []

    def correct(node: Node, value: Value, found: TypeProto) -> None:
        declared, inferred = tensor_type(value.type), tensor_type(found)
        if declared is None or inferred is None or declared.elem_type != inferred.elem_type:
            _refuse(node, value, found)
        corrections.append(_contradiction(node, value, found))
        value.type = found

    before = -1
    while before < len(corrections) < _CORRECTIONS:  # one may show that others are wrong
        before = len(corrections)
        _walk(model, correct)
        if len(corrections) > before:
            infer_shapes(model)
    return corrections


_CORRECTIONS = 1000
"""Number of corrections after which the rest is left."""

_Resolve = Callable[[Node, Value, TypeProto], None]


def _walk(model: Model, resolve: _Resolve) -> set[Value]:
    proto = to_proto_without_weights(model, VALUE_LIMIT)
    if any(may_differ(node) for node in all_nodes(proto.graph)):
        infer_shapes(model)
    _strip(proto.graph)
    checker = _Checker(model, resolve)
    checker.check(model.graph, infer_proto(proto).graph)
    return checker.claims


def _strip(graph: GraphProto) -> None:
    """Drop the declared types of all but inputs and of what no node makes, as the weights of bodies
    that are left out."""
    made = {name for node in graph.node for name in node.output}
    made |= {value.name for value in (*graph.input, *graph.initializer)}
    left = [info for info in graph.value_info if info.name not in made]
    del graph.value_info[:]
    graph.value_info.extend(left)
    for output in graph.output:
        output.ClearField("type")
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _strip(body)


class _Checker:
    """Walks the graphs; `claims` are values known by their declaration only.

    `resolve` is called for each declaration that contradicts what is found.
    """

    def __init__(self, model: Model, resolve: _Resolve) -> None:
        self.model = model
        self.resolve = resolve
        self.claims: set[Value] = set()
        self.versions = model.opsets
        self.names = {
            size for v in model.graph.inputs for size in v.shape or () if isinstance(size, str)
        }

    def check(self, graph: Graph, proto: GraphProto) -> None:
        types = inferred_types(proto)
        for node, node_proto in zip(graph.nodes, proto.node, strict=True):
            inferred = [
                body
                for attribute in node_proto.attribute
                for body in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
            ]
            for inner, body in zip(node.subgraphs(), inferred, strict=False):
                self.check(inner, body)
            follows_claims = not self.claims.isdisjoint(node.inputs)
            local = self._local_types(node)
            is_proven = True
            for value, found in zip(node.outputs, local, strict=True):
                if value is None:
                    continue
                whole = types.get(value.name)
                if found is None and self._take_type(value, whole):
                    continue
                for type in (whole, found):
                    if type is not None and contradict(value.type, type):
                        self.resolve(node, value, type)
                if not covers(whole, value):
                    self.claims.add(value)
                    is_proven = False
            if not follows_claims and all(map(self._is_settled, node.outputs)):
                note_inference(node, self.model, self.versions, is_proven=is_proven)

    def _local_types(self, node: Node) -> list[TypeProto | None]:
        if self.claims.isdisjoint(node.inputs):
            return [None] * len(node.outputs)
        return infer_node(self.model, node)

    def _is_settled(self, value: Value | None) -> bool:
        """Whether each size is a number, or one that an input of the model has by that name.

        Inference may find other sizes where 0 is declared.
        """
        if value is None:
            return True
        sizes = value.shape
        return (
            value.dtype != TensorProto.UNDEFINED
            and sizes is not None
            and all(isinstance(n, int) or n in self.names for n in sizes)
            and 0 not in sizes
        )

    def _take_type(self, value: Value, found: TypeProto | None) -> bool:
        """Let a value of which the file declares nothing have its type, where that is settled."""
        if value.type is not None or found is None or value.info is not None:
            return False
        if value.is_graph_output:
            return False
        value.type = found
        if not self._is_settled(value):
            value.type = None
        return value.type is not None


def _refuse(node: Node, value: Value, found: TypeProto) -> None:
    raise ModelError(f"{_contradiction(node, value, found)}; correct or remove the declaration")


def _contradiction(node: Node, value: Value, found: TypeProto) -> str:
    return (
        f"{at(node)}: output '{value.name}' is declared as {shown_type(value.type)}, but is "
        f"{shown_type(found)}"
    )


def shown_type(type: TypeProto | None) -> str:
    """A type as messages show it: `float[2, ?]`, or the kind of what is no tensor."""
    if type is not None and tensor_type(type) is None:
        return str(type.WhichOneof("value")).removesuffix("_type")
    tensor, shape = tensor_type(type), type_shape(type)
    kind = None if tensor is None else tensor.elem_type
    known = kind in TensorProto.DataType.values()
    name = TensorProto.DataType.Name(kind).lower() if known else "?"
    sizes = "" if shape is None else ", ".join("?" if s is None else str(s) for s in shape)
    return name if shape is None else f"{name}[{sizes}]"
