"""Infers the axes of every value of a graph by running each operator's rule once.

A rule (see `ir/ops/`) reads its inputs' axes through a `NodeAxes`, unifies and locks,
and sets its outputs' axes. Every *use* of a constant has axes of its own, so that
weights shared by unrelated nodes don't tie those nodes together.
"""

from __future__ import annotations

import functools

from ..axes import dims
from ..axes.balance import settle
from ..axes.contents import follow_contents
from ..axes.dims import Axis, Lock
from ..axes.facts import Analysis, Expectation, freeze, literal_axes
from ..axes.node_axes import NodeAxes, Opaque
from ..axes.sizes import axes_of, follows
from ..errors import MISFITS, RuleError, SecateurError
from ..graph import Graph, Node, Use, node_reads
from ..infer import misfit
from ..model import Model
from ..ops import operator_of
from ..tensor import FLOAT_TYPES
from .zeros import is_lasting


def analyze(model: Model, *, prune_normalized: bool = False) -> Analysis:
    """Axes of the main graph. Shapes must have been inferred (`infer_shapes`).

    `prune_normalized` frees axes that LayerNormalization and the like reduce over;
    statistics are then those of the kept indices.
    """
    analysis = Analysis(model, prune_normalized=prune_normalized)
    graph = model.graph
    symbols: dict[str, Axis] = {}
    for value in graph.inputs:
        if model.constant(value) is None:
            why = Lock(value.name, "graph input", "the model's interface")
            analysis.axes[value] = literal_axes(value, why, symbols)
    analysis.follow = functools.partial(analyze_graph, analysis)
    analysis.follow(graph)
    for value in graph.outputs:
        why = Lock(value.name, "graph output", "the model's interface")
        for axis in analysis.axes.get(value) or ():
            dims.lock(axis, why)
        freeze(analysis, None, value, why)
    _lock_intractable(analysis)
    for expectation in analysis.expected:
        _lock_unmet(expectation)
    settle(analysis.families)
    return analysis


def analyze_graph(analysis: Analysis, graph: Graph) -> None:
    """Run the rules of a graph's nodes, in order."""
    for node in graph.nodes:
        _analyze_node(analysis, node)


def _lock_intractable(analysis: Analysis) -> None:
    """Lock what is mixed with unknown sizes in a way that no mask can describe."""
    for value, axes in analysis.axes.items():
        for axis in axes or ():
            if dims.axis_size(axis) is None and dims.around_unknown(axis) is None:
                dims.lock(axis, Lock(value.name, "", "mixed with sizes known only at run time"))


def _lock_unmet(expectation: Expectation) -> None:
    """Lock what a computed size depends on where no rewrite makes it what it has to be."""
    for element, wanted in zip(expectation.content.ravel(), expectation.required, strict=True):
        depends = axes_of(element)
        if wanted is None:
            unmet = depends
        elif isinstance(wanted, int) or dims.axis_size(wanted) is not None:
            continue
        else:
            unmet = [] if follows(element, wanted) else [wanted, *depends]
        for axis in unmet:
            dims.lock(axis, expectation.why)


def _mark_fixed(analysis: Analysis, node: Node, consumed: set[int]) -> None:
    """Note what depends on constants only; inputs read as sizes don't count."""
    inner = {v for graph in node.subgraphs() for v in graph.inputs}
    sizes = {node.input(i) for i in consumed}
    if any(
        v not in sizes and v not in inner and not analysis.is_fixed(v) for v in node_reads(node)
    ):
        return
    outputs = [v for v in node.outputs if v is not None]
    analysis.fixed.update(outputs)
    axes = [axis for v in outputs for axis in analysis.axes.get(v) or ()]
    for index in range(len(node.inputs)):
        parameter = analysis.parameters.get(Use(node, index))
        axes += [axis for block in parameter.blocks for axis in block] if parameter else []
    is_float = any(v.dtype in FLOAT_TYPES for v in outputs)
    if is_float and any(dim.lock is not None for axis in axes for dim in dims.dims_of(axis)):
        analysis.stiff.append(node)


def _analyze_node(analysis: Analysis, node: Node) -> None:
    view = NodeAxes(analysis, node)
    failure = _run_rule(view)
    if failure is not None:
        _lock_node(analysis, node, failure)
    if node.op_type != "Constant":
        _mark_fixed(analysis, node, view.consumed)
        if is_lasting(analysis, node):
            analysis.lasting.update(v for v in node.outputs if v is not None)
    if analysis.watch is not None:
        analysis.watch(view, failure)


def _run_rule(view: NodeAxes) -> str | None:
    """Relate the axes of a node; why that can't be done, if it can't."""
    analysis, node = view.analysis, view.node
    record = operator_of(node, view.opset)
    try:
        if record is None:
            raise Opaque("no axes rule for this operator")
        if isinstance(record.axes, str):
            raise Opaque(f"no axes rule for this operator: {record.axes}")
        record.axes(view)
        _check_outputs(view)
        follow_contents(view)
        if node.subgraphs() and not view.follows_bodies:
            raise Opaque("subgraphs of this operator are not followed")
    except Opaque as reason:
        return str(reason)
    except MISFITS as error:
        assert record is not None
        assert callable(record.axes)
        failure = misfit(node, error, analysis.model, record.axes)
        if isinstance(failure, RuleError):
            raise failure from error
        return f"attributes or inputs don't fit the operator ({error})"
    except SecateurError as error:
        return f"attributes or inputs don't fit the operator ({error})"
    for index, value in enumerate(node.inputs):
        if value is not None and index not in view.visited:
            whole = view.why("reads this input as a whole")
            for axis in analysis.axes.get(value) or ():
                dims.lock(axis, whole)
        if value is not None and index not in view.consumed:
            freeze(analysis, Use(node, index), value, view.why("computes with sizes of axes"))
    return None


def _check_outputs(view: NodeAxes) -> None:
    """Outputs must have the rank and sizes that shape inference found."""
    for index, value in enumerate(view.node.outputs):
        if value is None:
            continue
        if value not in view.analysis.axes:
            why = view.why("this output of the operator is not followed")
            view.analysis.axes[value] = literal_axes(value, why)
            continue
        axes, shape = view.analysis.axes[value], value.shape
        if axes is None or shape is None:
            continue
        sizes = [dims.axis_size(axis) for axis in axes]
        clash = len(sizes) != len(shape) or any(
            isinstance(s, int) and size is not None and s != size
            for s, size in zip(shape, sizes, strict=False)
        )
        if clash:
            raise Opaque(f"output {index} has shape {list(shape)}, the rule says {sizes}")


def _lock_node(analysis: Analysis, node: Node, reason: str) -> None:
    """Nothing is known of the node: all that it reads and defines stays whole."""
    why = Lock(node.label, node.op_type, reason)
    analysis.unruled.append((node, reason))
    for value in node_reads(node):
        for axis in analysis.axes.get(value) or ():
            dims.lock(axis, why)
        freeze(analysis, None, value, why)
    for inner in (node, *(n for graph in node.subgraphs() for n in graph.all_nodes())):
        for index in range(len(inner.inputs)):
            parameter = analysis.parameters.get(Use(inner, index))
            for block in parameter.blocks if parameter else ():
                for axis in block:
                    dims.lock(axis, why)
    for output in node.outputs:
        if output is not None:
            for axis in analysis.axes.get(output) or ():
                dims.lock(axis, why)
            analysis.axes[output] = literal_axes(output, why)
            analysis.contents.pop(output, None)
