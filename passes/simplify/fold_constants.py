"""Constant folding: what no input can change is computed once, by ONNX Runtime."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from onnx import TensorProto, defs

from ...ir.graph import Attribute, Graph, Model, Node, Value, normalize_domain
from ...ir.infer import infer_shapes
from ...ir.tensor import Array, Tensor, storage_bytes
from ..base import Context, Note, Pass, PassResult
from .dead import remove_dead_nodes, remove_unused_initializers
from .evaluate import EXCHANGED_TYPES, ConstantGraph, evaluate
from .initializers import separate_initializers
from .shapes import static_shape

_BOUNDED_RESULT = frozenset({"Compress", "NonMaxSuppression", "NonZero", "StringSplit", "Unique"})
"""Operators whose result's size only a run tells, but which is of the order of their inputs."""


@dataclasses.dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes that depend on constants only by their results.

    Constant nodes become initializers, Shape and Size of values of known shape
    constants. A result of more than `size_limit` bytes that is larger than the
    constants it replaces is left to be computed at run time, and noted. Operators with
    random results, and DequantizeLinear (folding it would undo a quantization), stay.
    """

    size_limit: int = 64 * 2**20

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        """Fold the main graph and its subgraphs; function bodies stay as they are."""
        folded = lift_constants(model)
        notes: dict[Node, Note] = {}
        while (progress := _Round(model, self.size_limit, notes).run()) > 0:
            folded += progress
            remove_dead_nodes(model)
        remove_unused_initializers(model)
        left = [note for node, note in notes.items() if node.graph is not None]
        return PassResult(folded > 0, {"folded": folded}, left)


def lift_constants(model: Model) -> int:
    """Turn Constant nodes of the main graph and its subgraphs into initializers; how many.

    One that defines a graph output stays, since an output is a node's result.
    """
    lifted = int(separate_initializers(model))
    for graph in model.graph.all_graphs():
        dead: list[Node] = []
        for node in graph.nodes:
            if node.op_type != "Constant" or normalize_domain(node.domain) != "":
                continue
            value = node.output(0)
            tensor = model.constant(value)
            if value is None or tensor is None or value.is_graph_output:
                continue
            graph.make_initializer(value, tensor)
            dead.append(node)
        graph.remove_nodes(dead)
        lifted += len(dead)
    return lifted


class _Round:
    """One round of folding: everything whose size is known before it is computed."""

    def __init__(self, model: Model, size_limit: int, notes: dict[Node, Note]) -> None:
        self.model = model
        self.size_limit = size_limit
        self.notes = notes
        self.outputs = _ConstantOutputs()

    def run(self) -> int:
        """Fold; the number of values that became constants."""
        infer_shapes(self.model)
        count = self._fold_shapes()
        nodes = self._candidates()
        ready = self._ready(nodes) if nodes else []
        inside = set(ready)
        wanted = [
            value
            for node in ready
            for value in node.outputs
            if value is not None and any(use.user not in inside for use in value.uses)
        ]
        for value, array in evaluate(self.model, ready, wanted).items():
            self._store(value, array)
            count += 1
        self.outputs.place()
        return count

    def _fold_shapes(self) -> int:
        """Store the results of Shape and Size where the operand's shape is known."""
        count = 0
        for graph in self.model.graph.all_graphs():
            for node in graph.nodes:
                result = _known_shape(node)
                output = node.output(0)
                if result is not None and output is not None and output.uses:
                    self._store(output, result)
                    count += 1
        return count

    def _candidates(self) -> list[Node]:
        """Foldable nodes in execution order: deterministic, with constant inputs."""
        found: list[Node] = []
        inside: set[Node] = set()
        for node in self.model.graph.all_nodes():
            if not _may_fold(node, self.model):
                continue
            if all(v is None or v.producer in inside or self._is_constant(v) for v in node.inputs):
                found.append(node)
                inside.add(node)
        return found

    def _is_constant(self, value: Value) -> bool:
        tensor = self.model.constant(value)
        # A sparse tensor's shape is no evidence that its elements fit in memory.
        return tensor is not None and not (tensor.is_sparse and tensor.nbytes > self.size_limit)

    def _ready(self, nodes: list[Node]) -> list[Node]:
        """Those candidates whose results are known to be small enough."""
        shadow = ConstantGraph(self.model, nodes)
        shadow.infer()
        ready: list[Node] = []
        held: set[Node] = set()
        for node in nodes:
            if any(v is not None and v.producer in held for v in node.inputs):
                held.add(node)
            elif self._is_small(node, shadow) and self._is_defined(node):
                ready.append(node)
            else:
                held.add(node)
        return ready

    def _is_small(self, node: Node, shadow: ConstantGraph) -> bool:
        freed = sum(_size(shadow.copy_of(v)) or 0 for v in node.inputs if v and len(v.uses) == 1)
        for value in node.outputs:
            if value is None or node.op_type in _BOUNDED_RESULT:
                continue
            copy = shadow.copy_of(value)
            if copy.dtype and copy.dtype not in EXCHANGED_TYPES:
                return False
            size = _size(copy)
            if size is None:
                return False
            if size > max(self.size_limit, freed):
                reason = (
                    f"its constant result of {size} bytes is over the limit of {self.size_limit}"
                )
                self.notes[node] = Note.at(node, reason)
                return False
        return True

    def _is_defined(self, node: Node) -> bool:
        """Whether an integer division can be computed: some CPUs trap where it can't."""
        if node.op_type not in ("Div", "Mod"):
            return True
        tensors = [self.model.constant(v) for v in node.inputs]
        if any(t is None for t in tensors):
            return all(v is not None and v.dtype in _FLOATS for v in node.inputs)
        dividend, divisor = (t.numpy() for t in tensors if t is not None)
        if divisor.dtype.kind not in "iu":
            return True
        lowest = np.iinfo(dividend.dtype).min
        overflow = bool((divisor == -1).any()) and bool((dividend == lowest).any())
        return bool((divisor != 0).all()) and not (lowest < 0 and overflow)

    def _store(self, value: Value, array: Array) -> None:
        node = value.producer
        assert node is not None
        assert node.graph is not None
        text = value.dtype == TensorProto.STRING or array.dtype == object
        tensor = Tensor.from_array(array, TensorProto.STRING if text else None)
        if value.is_graph_output:
            self.outputs.add(value, tensor)
        else:
            node.graph.make_initializer(value, tensor)


class _ConstantOutputs:
    """Constant nodes for graph outputs, which must stay results of nodes."""

    def __init__(self) -> None:
        self._made: dict[Graph, dict[Node, list[Node]]] = {}

    def add(self, value: Value, tensor: Tensor) -> None:
        old = value.producer
        assert old is not None
        assert old.graph is not None
        old.outputs = tuple(None if v is value else v for v in old.outputs)
        new = Node("Constant", [], [value], {"value": Attribute.of("value", tensor)}, name=old.name)
        new.graph = old.graph
        self._made.setdefault(old.graph, {}).setdefault(old, []).append(new)

    def place(self) -> None:
        """List the new nodes where those stand whose results they replace."""
        for graph, made in self._made.items():
            graph.nodes = [n for old in graph.nodes for n in (*made.get(old, ()), old)]


_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def _may_fold(node: Node, model: Model) -> bool:
    """Whether an operator's result depends on its inputs only, and folding it is wanted."""
    domain = normalize_domain(node.domain)
    if domain not in ("", "ai.onnx.ml") or node.op_type in ("Constant", "DequantizeLinear"):
        return False
    if node.subgraphs() or (node.domain, node.op_type, node.overload) in model.functions:
        return False
    version = model.opsets.get(domain, 0)
    if not defs.has(node.op_type, version, domain):
        return False
    schema = defs.get_schema(node.op_type, version, domain)
    return not schema.non_deterministic  # type: ignore[attr-defined]


def _known_shape(node: Node) -> Array | None:
    """The result of Shape or Size, where the operand's shape is known."""
    if node.op_type not in ("Shape", "Size") or normalize_domain(node.domain) != "":
        return None
    shape = static_shape(node.input(0))
    if shape is None:
        return None
    if node.op_type == "Size":
        return np.array(math.prod(shape), np.int64)
    return np.array(shape[node.get("start", 0) : node.get("end", len(shape))], np.int64)


def _size(value: Value) -> int | None:
    """Storage bytes of a tensor of known shape."""
    shape = static_shape(value)
    return None if shape is None or not value.dtype else storage_bytes(value.dtype, shape)
