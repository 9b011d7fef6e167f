"""Constant folding: what no input can change is computed once, by ONNX Runtime."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from ...ir.graph import Attribute, Graph, Node, Value, make_tensor_type, normalize_domain
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.ops import Trait, operator_of, traits
from ...ir.schemas import is_deterministic
from ...ir.tensor import FLOAT_TYPES, Array, Tensor, storage_bytes
from ..base import Context, Note, Pass, PassResult
from ..initializers import separate_initializers
from .dead import remove_dead_nodes, remove_unused_initializers
from .evaluate import EXCHANGED_TYPES, ConstantGraph, evaluate
from .kernels import KERNELS, compute
from .shapes import static_shape


@dataclasses.dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes that depend on constants only by their results.

    Constant nodes become initializers, Shape and Size of values of known shape
    constants. A result of more than `size_limit` bytes (`weight_limit` where it is the
    weight of a convolution or product, which other passes need as a constant) that is
    larger than the constants it replaces is left to be computed at run time, and noted.
    Operators with random results, and DequantizeLinear (folding it would undo a
    quantization), stay.
    """

    size_limit: int = 2**24
    weight_limit: int = 2**29

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        """Fold the main graph and its subgraphs; function bodies stay as they are."""
        infer_shapes(model)
        folded, notes = fold_constants(model, Limits(self.size_limit, self.weight_limit))
        return PassResult(folded > 0, {"folded": folded}, notes)


def fold_constants(model: Model, limits: Limits) -> tuple[int, list[Note]]:
    """Fold a model whose shapes are inferred; how many values, and what was too large."""
    folded = lift_constants(model)
    notes: dict[Node, Note] = {}
    again = True
    while again:
        count, again = _Round(model, limits, notes).run()
        folded += count
    remove_unused_initializers(model)
    return folded, [note for node, note in notes.items() if node.graph is not None]


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


class Limits(NamedTuple):
    """Bytes that a folded result may have: any, and one that is a weight."""

    any: int
    weight: int

    def allow(self, value: Value, size: int) -> bool:
        return size <= (self.weight if _is_weight(value) else self.any)


def _is_weight(value: Value) -> bool:
    return all(
        isinstance(user, Node) and _multiplies(user) and position > 0
        for user, position in value.uses
    )


def _multiplies(node: Node) -> bool:
    record = operator_of(node)
    return record is not None and record.macs is not None


class _Round:
    """One round of folding: everything whose size is known before it is computed."""

    def __init__(self, model: Model, limits: Limits, notes: dict[Node, Note]) -> None:
        self.model = model
        self.limits = limits
        self.notes = notes
        self.opsets = model.opsets
        self.outputs = _ConstantOutputs()

    def run(self) -> tuple[int, bool]:
        """Fold; how many values became constants, and whether there may be more.

        One walk folds all that numpy computes. What a session computed may let numpy,
        and the session, go on from there.
        """
        candidates: list[Node] = []
        held: set[Node] = set()
        count = 0
        for node in self.model.graph.all_nodes():
            if not node.outputs:
                continue
            result = self._compute(node)
            if result is not None:
                count += 1
                self._store(result[0], result[1])
            elif self._is_candidate(node, held):
                candidates.append(node)
                held.add(node)
        if count:
            self.outputs.place()
            remove_dead_nodes(self.model)
        candidates = [node for node in candidates if node.graph is not None]
        computed = self._run_candidates(candidates) if candidates else 0
        return count + computed, computed > 0

    def _compute(self, node: Node) -> tuple[Value, Array] | None:
        """The output and its elements, where no session is needed for them."""
        output = node.output(0)
        if output is None or not output.uses:
            return None
        if node.op_type in ("Shape", "Size"):
            found = _known_shape(node) if self._may_fold(node) else None
            return None if found is None else (output, found)
        if node.op_type not in KERNELS:
            return None
        if not all(v is None or self._is_constant(v) for v in node.inputs):
            return None
        if not self._may_fold(node):
            return None
        tensors = [self.model.constant(v) for v in node.inputs]
        array = compute(node, [None if t is None else t.numpy() for t in tensors])
        if array is None:
            return None
        freed = sum(
            t.nbytes for t, v in zip(tensors, node.inputs, strict=True) if t and _is_only_use(v)
        )
        return (output, array) if self._fits(node, output, array.nbytes, freed) else None

    def _run_candidates(self, nodes: list[Node]) -> int:
        """Compute what numpy could not, in a session of ONNX Runtime."""
        ready = self._ready(nodes)
        inside = set(ready)
        wanted = [
            value
            for node in ready
            for value in node.outputs
            if value is not None and any(use.user not in inside for use in value.uses)
        ]
        found = evaluate(self.model, ready, wanted)
        self.outputs = _ConstantOutputs()
        for value, array in found.items():
            self._store(value, array)
        self.outputs.place()
        remove_dead_nodes(self.model)
        return len(found)

    def _may_fold(self, node: Node) -> bool:
        """Whether a node's result depends on its inputs only, and folding it is wanted."""
        domain = normalize_domain(node.domain)
        if self.opsets.get("", 1) < _CONSTANT_OF_ALL_TYPES and any(
            v is not None and v.is_graph_output and v.dtype not in FLOAT_TYPES for v in node.outputs
        ):
            return False
        return (
            is_deterministic(node.op_type, domain, self.opsets.get(domain, 0))
            and node.op_type not in ("Constant", "DequantizeLinear")
            and (node.domain, node.op_type, node.overload) not in self.model.functions
        )

    def _is_candidate(self, node: Node, held: set[Node]) -> bool:
        for value in node.inputs:
            if value is not None and value.producer not in held and not self._is_constant(value):
                return False
        return self._may_fold(node)

    def _fits(self, node: Node, output: Value, size: int, freed: int) -> bool:
        if size <= freed or self.limits.allow(output, size):
            return True
        limit = self.limits.any
        reason = f"its constant result of {size} bytes is over the limit of {limit}"
        self.notes[node] = Note.at(node, reason)
        return False

    def _is_constant(self, value: Value) -> bool:
        tensor = self.model.constant(value)
        # A sparse tensor's shape is no evidence that its elements fit in memory.
        return tensor is not None and not (tensor.is_sparse and tensor.nbytes > self.limits.any)

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
        freed = sum(_size(shadow.copy_of(v)) or 0 for v in node.inputs if v and _is_only_use(v))
        for value in node.outputs:
            if value is None or Trait.COUNTED in traits(node):
                continue
            copy = shadow.copy_of(value)
            if copy.dtype and copy.dtype not in EXCHANGED_TYPES:
                return False
            size = _size(copy)
            if size is None:
                return False
            if not self._fits(node, value, size, freed):
                return False
        return True

    def _is_defined(self, node: Node) -> bool:
        """Whether an integer division can be computed: some CPUs trap where it can't."""
        if node.op_type not in ("Div", "Mod"):
            return True
        tensors = [self.model.constant(v) for v in node.inputs]
        if any(t is None for t in tensors):
            return all(v is not None and v.dtype in FLOAT_TYPES for v in node.inputs)
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
        value.type = make_tensor_type(tensor.dtype, tensor.shape)
        self._made.setdefault(old.graph, {}).setdefault(old, []).append(new)

    def place(self) -> None:
        """List the new nodes where those stand whose results they replace."""
        for graph, made in self._made.items():
            graph.nodes = [n for old in graph.nodes for n in (*made.get(old, ()), old)]


_CONSTANT_OF_ALL_TYPES = 9
"""Opset since which Constant gives integers too, which as a graph output need such a node."""


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


def _is_only_use(value: Value | None) -> bool:
    return value is not None and len(value.uses) == 1


def _size(value: Value) -> int | None:
    """Storage bytes of a tensor of known shape."""
    shape = static_shape(value)
    return None if shape is None or not value.dtype else storage_bytes(value.dtype, shape)
