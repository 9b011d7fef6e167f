"""The verifier: whether a model keeps the rules that ONNX and the IR's own chains set.

`verify` runs after every pass. It is linear in the graph, reads no weights, and its
errors name the node. The rules are those of the ONNX IR specification, "Graphs" and
"Nodes"; operator signatures are checked by `signature.py`.
"""

from __future__ import annotations

from onnx import TensorProto

from .calls import check_calls
from .errors import ModelError
from .graph import Graph, Node, Use, Value, normalize_domain, tensor_type
from .model import Model
from .signature import Signatures, at


def verify(model: Model) -> None:
    """Raise ModelError, naming the node or value, where `model` is not well formed.

    Finds values used before their definition or never defined, duplicate names,
    broken def-use chains, wrong numbers of inputs and outputs, unknown, missing and
    mistyped attributes, operators of a domain that the model doesn't import, and
    element types that clash with the operator's signature or with one another, and
    functions that call themselves or expand without bound.
    """
    _check_imports(model)
    check_calls(model)
    _GraphVerifier(model.graph, Signatures(model)).run()
    for function in model.functions.values():
        _GraphVerifier(function.graph, Signatures(model, function)).run()


def _check_imports(model: Model) -> None:
    seen: set[str] = set()
    for entry in model.extra.opset_import:
        domain = normalize_domain(entry.domain)
        if domain in seen:
            raise ModelError(f"operator set '{domain or 'ai.onnx'}' is imported twice")
        seen.add(domain)


class _GraphVerifier:
    """Checks one graph and those nested in it; `around` is the graph that captures see."""

    def __init__(
        self, graph: Graph, signatures: Signatures, around: _GraphVerifier | None = None
    ) -> None:
        self.graph = graph
        self.signatures = signatures
        self.around = around
        self.defined: dict[str, Value] = {}

    def run(self) -> None:
        self._check_inputs_and_initializers()
        for node in self.graph.nodes:
            if node.graph is not self.graph:
                raise ModelError(f"{at(node)}: does not belong to the graph that lists it")
            for index, value in enumerate(node.inputs):
                if value is not None:
                    self._check_read(node, index, value)
            for body in node.subgraphs():
                if body.parent is not node:
                    raise ModelError(f"{at(node)}: a subgraph belongs to another node")
                _GraphVerifier(body, self.signatures, self).run()
            self.signatures.check(node)
            for index, value in enumerate(node.outputs):
                if value is not None:
                    self._check_definition(node, index, value)
        self._check_outputs()

    def find(self, name: str) -> Value | None:
        """The value of that name that a node at this point sees."""
        scope: _GraphVerifier | None = self
        while scope is not None:
            if name in scope.defined:
                return scope.defined[name]
            scope = scope.around
        return None

    def _check_inputs_and_initializers(self) -> None:
        for value in self.graph.inputs:
            if value.producer is not None:
                raise ModelError(
                    f"graph input '{value.name}' is also defined by {at(value.producer)}"
                )
            self._define(value, "graph input")
        for name, value in self.graph.initializers.items():
            if value.name != name:
                raise ModelError(f"initializer '{value.name}' is filed under the name '{name}'")
            if value.const is None or value.producer is not None:
                raise ModelError(f"initializer '{name}' is not a constant")
            _check_declaration(value)
            if not value.is_input:
                self._define(value, "initializer")

    def _define(self, value: Value, where: str) -> None:
        if not value.name:
            raise ModelError(f"{where}: a value has no name")
        if value.name in self.defined:
            raise ModelError(f"{where}: value '{value.name}' is defined twice")
        self.defined[value.name] = value

    def _check_read(self, node: Node, index: int, value: Value) -> None:
        if Use(node, index) not in value.uses:
            raise ModelError(f"{at(node)}: '{value.name}' lacks its use as input {index}")
        if self.find(value.name) is not value:
            raise ModelError(f"{at(node)}: {self._why_not_visible(value)}")

    def _check_definition(self, node: Node, index: int, value: Value) -> None:
        if value.producer is not node or value.output_index != index:
            raise ModelError(f"{at(node)}: output '{value.name}' has another producer")
        for use in value.uses:
            if isinstance(use.user, Node) and use.user.graph is None:
                raise ModelError(f"{at(node)}: the removed {at(use.user)} still reads its output")
        self._define(value, at(node))

    def _check_outputs(self) -> None:
        for index, value in enumerate(self.graph.outputs):
            if Use(self.graph, index) not in value.uses:
                raise ModelError(f"graph output '{value.name}' lacks its use")
            if self.find(value.name) is not value:
                raise ModelError(f"graph output: {self._why_not_visible(value)}")

    def _why_not_visible(self, value: Value) -> str:
        if self.find(value.name) is not None:
            return f"'{value.name}' is the name of another value here"
        scope: _GraphVerifier | None = self
        while scope is not None:
            if any(value is other for other in scope.graph.values()):
                return f"'{value.name}' is used before it is defined"
            scope = scope.around
        return f"'{value.name}' is not defined by anything"


def _check_declaration(value: Value) -> None:
    """Whether an initializer's tensor has the element type and shape declared for it."""
    declared = tensor_type(value.type)
    tensor = value.const
    assert tensor is not None
    if declared is None:
        return
    if declared.elem_type not in (TensorProto.UNDEFINED, tensor.dtype):
        name = TensorProto.DataType.Name
        raise ModelError(
            f"initializer '{value.name}' holds {name(tensor.dtype)}, "
            f"but is declared as {name(declared.elem_type)}"
        )
    if declared.HasField("shape"):
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in declared.shape.dim]
        if len(sizes) != len(tensor.shape) or any(
            s not in (None, n) for s, n in zip(sizes, tensor.shape, strict=True)
        ):
            raise ModelError(
                f"initializer '{value.name}' has shape {list(tensor.shape)}, "
                f"but is declared as {sizes}"
            )
