"""Equal constants stored once, equal computations done once."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from onnx import AttributeProto, defs

from ...ir.graph import Graph, Node, Value, normalize_domain
from ...ir.model import Model
from ...ir.schemas import is_deterministic
from ...ir.tensor import Array, FileRegion, Tensor, element_bits
from .rewriter import declares_more

_WINDOWS = 8
_WINDOW = 32
"""Runs of elements, and their length, compared first: large constants are hardly read."""

_PIECE = 2**22
"""Bytes compared at a time, so that constants in files don't pile up in memory."""


def merge_constants(model: Model) -> list[Value]:
    """Let every reader of an initializer read the first one equal to it.

    Returns that first one for each initializer that went.

    Initializers that callers may override, and those that are graph outputs, stay.
    Initializers of subgraphs merge with those of the graphs around them.
    """
    seen: dict[tuple[object, ...], list[Value]] = defaultdict(list)
    return _merge_in(model, model.graph, seen)


def _merge_in(
    model: Model, graph: Graph, seen: dict[tuple[object, ...], list[Value]]
) -> list[Value]:
    merged: list[Value] = []
    added: list[tuple[tuple[object, ...], Value]] = []
    for value in list(graph.initializers.values()):
        tensor = model.constant(value)
        if tensor is None or tensor.is_sparse or value.is_graph_output or not value.uses:
            continue
        key: tuple[object, ...] = (tensor.dtype, tensor.shape, _sample(tensor))
        twin = next((v for v in seen[key] if v.const and _same(v.const, tensor)), None)
        if twin is None:
            seen[key].append(value)
            added.append((key, value))
            continue
        value.replace_uses(twin)
        if not value.is_input:
            del graph.initializers[value.name]
        merged.append(twin)
    for node in graph.nodes:
        for body in node.subgraphs():
            merged += _merge_in(model, body, seen)
    if graph is not model.graph:
        for place, value in added:  # not visible outside
            seen[place].remove(value)
    return merged


def _sample(tensor: Tensor) -> bytes:
    """Elements from all over a constant; read from its file, since each would map pages."""
    region, item = tensor.region, element_bits(tensor.dtype) // 8
    last = tensor.size - _WINDOW
    starts = [last * i // (_WINDOWS - 1) for i in range(_WINDOWS)] if last > 0 else [0]
    if region is not None and tensor.nbytes == tensor.size * item:
        return b"".join(region.read(start * item, _WINDOW * item) for start in starts)
    flat = _flat(tensor)
    windows = [flat[start : start + _WINDOW] for start in starts]
    if flat.dtype == object:
        return repr([w.tolist() for w in windows]).encode()
    return b"".join(w.tobytes() for w in windows)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two constants of one type and shape have the same bits."""
    if a.region is not None and b.region is not None:
        return _same_region(a.region, b.region)
    x, y = _flat(a), _flat(b)
    if x.dtype == object:
        return bool(np.array_equal(x, y))
    step = max(1, _PIECE // max(1, x.itemsize))
    return all(
        x[i : i + step].tobytes() == y[i : i + step].tobytes() for i in range(0, x.size, step)
    )


def _same_region(a: FileRegion, b: FileRegion) -> bool:
    if (a.path, a.offset, a.length) == (b.path, b.offset, b.length):
        return True
    return a.length == b.length and all(
        a.read(i, _PIECE) == b.read(i, _PIECE) for i in range(0, a.length, _PIECE)
    )


def _flat(tensor: Tensor) -> Array:
    array = tensor.numpy()
    if array.flags.c_contiguous:
        return array.reshape(-1)
    if array.size and not any(array.strides):  # one element, stretched
        return np.broadcast_to(array[(0,) * array.ndim], array.size)
    return np.ascontiguousarray(array).reshape(-1)


def merge_computations(model: Model) -> tuple[list[Value], bool]:
    """Common subexpressions: nodes that compute what an earlier one did go.

    Returns the earlier one's results for each, and whether what an output declares now
    says more of a shape than was known. Nodes see what the graphs around theirs
    computed before. Random operators, nodes with subgraphs and operators outside the
    standard domains stay.
    """
    merger = _Merger(model)
    merger.run(model.graph, ())
    return merger.merged, merger.has_declared


class _Twins:
    """Nodes of one operator with the same inputs, by their attributes."""

    def __init__(self, first: Node) -> None:
        self.first: Node | None = first
        self.others: dict[frozenset[tuple[str, bytes]], Node] = {}


_Scope = dict[tuple[object, ...], _Twins]


class _Merger:
    """Merges equal nodes of a graph and of those in its nodes' bodies."""

    def __init__(self, model: Model) -> None:
        self.opsets = model.opsets
        self.merged: list[Value] = []
        self.has_declared = False

    def run(self, graph: Graph, outer: tuple[_Scope, ...]) -> None:
        """Merge in one graph; `outer` are the nodes of the graphs around it so far."""
        own: _Scope = {}
        scopes = (*outer, own)
        dead: list[Node] = []
        for node in graph.nodes:
            bodies = node.subgraphs()
            for body in bodies:
                self.run(body, scopes)
            domain = normalize_domain(node.domain)
            if bodies or not is_deterministic(node.op_type, domain, self.opsets.get(domain, 0)):
                continue
            key = (node.op_type, domain, len(node.outputs), *node.inputs)
            if any(self._merge(node, scope.get(key)) for scope in scopes):
                dead.append(node)
            elif key in own:
                own[key].others.setdefault(self._attributes(node), node)
            else:
                own[key] = _Twins(node)
        graph.remove_nodes(dead)

    def _merge(self, node: Node, twins: _Twins | None) -> bool:
        if twins is None:
            return False
        if twins.first is not None:  # attributes are compared only where inputs are equal
            twins.others[self._attributes(twins.first)] = twins.first
            twins.first = None
        twin = twins.others.get(self._attributes(node))
        if twin is None:
            return False
        pairs = zip(node.outputs, twin.outputs, strict=True)
        declared = any(_is_declared_otherwise(old, new) for old, new in pairs)
        if not _replace(node, twin):
            return False
        self.has_declared |= declared
        self.merged += [v for v in twin.outputs if v is not None]
        return True

    def _attributes(self, node: Node) -> frozenset[tuple[str, bytes]]:
        """Attributes in serialized form, without those that say what is the default."""
        domain = normalize_domain(node.domain)
        schema = defs.get_schema(node.op_type, self.opsets.get(domain, 0), domain)
        return frozenset(
            (name, a.proto.SerializeToString(deterministic=True))
            for name, a in node.attributes.items()
            if not _is_default(a.proto, schema.attributes.get(name))
        )


def _is_declared_otherwise(a: Value | None, b: Value | None) -> bool:
    """Whether one of two results has a shape of its own because it is a graph output."""
    if a is None or b is None or not (a.is_graph_output or b.is_graph_output):
        return False
    return declares_more(a, b) or declares_more(b, a)


def _replace(node: Node, twin: Node) -> bool:
    pairs = [(a, b) for a, b in zip(node.outputs, twin.outputs, strict=True) if a is not None]
    if not all(b is not None and a.can_be_replaced_by(b) for a, b in pairs):
        return False
    for old, new in pairs:
        assert new is not None
        if old.is_graph_output or new.type is None:
            new.type = old.type or new.type
        old.replace_uses(new)
    return True


def _is_default(attribute: AttributeProto, formal: defs.OpSchema.Attribute | None) -> bool:
    default = None if formal is None else formal.default_value
    if default is None or default.type == AttributeProto.UNDEFINED:
        return False
    return bool(default.type == attribute.type) and all(
        getattr(default, field) == getattr(attribute, field)
        for field in ("f", "i", "s", "floats", "ints", "strings")
    )
