"""Weights computed from constants in a way that ties axes down, folded before pruning.

Weight normalization divides a weight by its norm over all input channels, all of which the
norm needs even when some are removed. Once the quotient is a constant, nothing is tied.
"""

from __future__ import annotations

from ...ir.axes.facts import Analysis
from ...ir.copying import Copier
from ...ir.dependencies.analysis import analyze
from ...ir.errors import SecateurError
from ...ir.graph import Graph, Node, Value, node_reads, normalize_domain
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.schemas import is_deterministic
from ...ir.tensor import Array, Tensor, storage_bytes
from ..initializers import SEPARATE_SINCE, separate_initializers

SIZE_LIMIT = 2**29
"""Bytes of a weight above which it stays computed, and its axes locked."""


def analyze_folded(model: Model, *, prune_normalized: bool = False) -> Analysis:
    """Analyze a model after folding what locks axes in weights computed from constants."""
    analysis = analyze(model, prune_normalized=prune_normalized)
    if analysis.stiff and _fold(model, analysis):
        infer_shapes(model)
        analysis = analyze(model, prune_normalized=prune_normalized)
    return analysis


def _fold(model: Model, analysis: Analysis) -> bool:
    """Make constants of the values that nodes which lock axes lead to; whether any was."""
    affected: set[Node] = set()
    wanted: dict[Value, list[Node]] = {}
    stiff = set(analysis.stiff)
    for node in model.graph.nodes:
        outputs = [v for v in node.outputs if v is not None]
        if not outputs or not all(v in analysis.fixed for v in outputs):
            continue
        if node in stiff or any(v.producer in affected for v in node_reads(node)):
            affected.add(node)
            for value in outputs:
                if any(not _is_fixed(analysis, use.user) for use in value.uses):
                    needed = _needed(model, value)
                    if needed is not None:
                        wanted[value] = needed
    found = _compute(model, wanted)
    if not found:
        return False
    separate_initializers(model)
    for value, array in found.items():
        model.graph.make_initializer(value, Tensor.from_array(array, value.dtype))
    _remove_unread(model, {node for value in found for node in wanted[value]})
    return True


def _is_fixed(analysis: Analysis, user: Node | Graph) -> bool:
    return isinstance(user, Node) and all(v in analysis.fixed for v in user.outputs if v)


def _needed(model: Model, value: Value) -> list[Node] | None:
    """The nodes that compute a value, in order; None where it isn't to be folded.

    A quantized weight stays quantized, so nothing behind DequantizeLinear is folded.
    """
    shape = value.shape
    sizes = [s for s in shape or () if isinstance(s, int)]
    if value.is_graph_output or shape is None or len(sizes) != len(shape) or not value.dtype:
        return None
    if storage_bytes(value.dtype, sizes) > SIZE_LIMIT:
        return None
    needed: dict[Node, None] = {}
    stack = [value]
    while stack:
        current = stack.pop()
        node = current.producer
        if model.constant(current) is not None or node in needed:
            continue
        if node is None or node.graph is not model.graph or not _may_fold(model, node):
            return None
        needed[node] = None
        stack.extend(_operands(node))
    return list(needed)


def _operands(node: Node) -> list[Value]:
    """What a node reads from outside of its bodies."""
    bodies = [inner for graph in node.subgraphs() for inner in graph.all_graphs()]
    defined = {v for body in bodies for v in body.values()}
    return [v for v in node_reads(node) if v not in defined]


def _may_fold(model: Model, node: Node) -> bool:
    for inner in (node, *(n for graph in node.subgraphs() for n in graph.all_nodes())):
        domain = normalize_domain(inner.domain)
        if (
            inner.op_type == "DequantizeLinear"
            or (inner.domain, inner.op_type, inner.overload) in model.functions
            or not (
                inner.subgraphs()
                or is_deterministic(inner.op_type, domain, model.opsets.get(domain, 0))
            )
        ):
            return False
    return True


def _compute(model: Model, wanted: dict[Value, list[Node]]) -> dict[Value, Array]:
    """The elements of values, each by the nodes that it needs, as far as they run."""
    try:
        return _run(model, wanted) if wanted else {}
    except SecateurError:
        if len(wanted) == 1:
            return {}
    found: dict[Value, Array] = {}
    for value, needed in wanted.items():
        found.update(_compute(model, {value: needed}))
    return found


def _run(model: Model, wanted: dict[Value, list[Node]]) -> dict[Value, Array]:
    needed = {node for nodes in wanted.values() for node in nodes}
    graph, copier = Graph("weights"), Copier()
    for node in [n for n in model.graph.nodes if n in needed]:
        for value in _operands(node):
            tensor = model.constant(value)
            if value not in copier.mapping and tensor is not None:
                copier.mapping[value] = graph.add_initializer(value.name, tensor)
        graph.add_node(copier.node(node))
    names = {}
    for value in wanted:
        copy = copier.mapping[value]
        assert copy is not None
        graph.add_output(copy)
        names[value] = copy.name
    extra = type(model.extra)()
    extra.CopyFrom(model.extra)
    extra.ir_version = max(extra.ir_version, SEPARATE_SINCE)
    results = Session(Model(graph, extra, path=model.path), optimize=False, trial=True).run({})
    return {value: results[name] for value, name in names.items()}


def _remove_unread(model: Model, nodes: set[Node]) -> None:
    """Remove those of the nodes that nothing reads any more."""
    dead: list[Node] = []
    for node in reversed([n for n in model.graph.nodes if n in nodes]):
        if not any(v is not None and v.uses for v in node.outputs):
            node.detach_inputs()
            dead.append(node)
    model.graph.remove_nodes(dead)
