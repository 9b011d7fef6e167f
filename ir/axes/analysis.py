"""Infers the axes of every value of a graph by running each operator's rule once.

A rule (see `ir/ops/`) reads its inputs' axes through a `NodeAxes`, unifies and locks,
and sets its outputs' axes. Every *use* of a constant has axes of its own, so that
weights shared by unrelated nodes don't tie those nodes together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from ..errors import SecateurError
from ..graph import Graph, Model, Node, Use, Value
from ..tensor import Tensor
from . import dims
from .balance import Family, settle
from .contents import CONTENT_LIMIT, Content, content_of, depends_on_axes, evaluate_all
from .dims import ONE, Axis, Lock

Axes = tuple[Axis, ...]
Rule = Callable[["NodeAxes"], None]


class Opaque(Exception):  # noqa: N818 - a rule's answer, not an error
    """Raised by a rule that can't describe its node: all of its axes are locked."""


@dataclass
class Parameter:
    """The axes of one use of a constant.

    `blocks` are equal parts along the first axis, each with axes of its own; there is
    more than one only where a grouped operator may keep other indices in each group.
    """

    use: Use
    value: Value
    tensor: Tensor
    blocks: list[Axes]

    @property
    def node(self) -> Node:
        assert isinstance(self.use.user, Node)
        return self.use.user


@dataclass
class Analysis:
    """Axes of all values of a model's main graph, and what pruning them has to rewrite."""

    model: Model
    axes: dict[Value, Axes | None] = field(default_factory=dict)
    contents: dict[Value, Content] = field(default_factory=dict)
    parameters: dict[Use, Parameter] = field(default_factory=dict)
    families: list[Family] = field(default_factory=list)
    views: dict[Value, Axes] = field(default_factory=dict)
    """Axes of constants that are only cut into parts: their uses share them."""
    rewrites: list[Callable[[Any], None]] = field(default_factory=list)
    unruled: list[tuple[Node, str]] = field(default_factory=list)
    prune_normalized: bool = False

    def all_axes(self) -> list[Axis]:
        """Every axis of every value and parameter."""
        found = [axis for axes in self.axes.values() if axes for axis in axes]
        for parameter in self.parameters.values():
            found.extend(axis for block in parameter.blocks for axis in block)
        return found


class NodeAxes:
    """What a rule sees: one node, its inputs' axes, and the means to relate them."""

    def __init__(self, analysis: Analysis, node: Node) -> None:
        self.analysis = analysis
        self.node = node
        self.consumed: set[int] = set()
        self.visited: set[int] = set()
        self.follows_bodies = False

    # Reading -------------------------------------------------------------------

    @property
    def opset(self) -> int:
        return self.analysis.model.opsets.get(self.node.domain, 1)

    def get(self, name: str, default: Any = None) -> Any:
        return self.node.get(name, default)

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return self.node.input(index) is not None

    def constant(self, index: int) -> npt.NDArray[Any] | None:
        """Elements of input `index` where it is a constant, else None."""
        tensor = self.analysis.model.constant(self.node.input(index))
        return None if tensor is None else tensor.numpy()

    def maybe_axes(self, index: int) -> Axes | None:
        """Axes of input `index`; None where its rank isn't known or it isn't given."""
        value = self.node.input(index)
        self.visited.add(index)
        if value is None:
            return None
        tensor = self.analysis.model.constant(value)
        if tensor is None:
            return self.analysis.axes.get(value)
        use = Use(self.node, index)
        parameter = self.analysis.parameters.get(use)
        if parameter is None:
            axes = self.analysis.views.get(value)
            if axes is None:
                axes = tuple(dims.fresh(size, value.name) for size in tensor.shape)
            if len(value.uses) > 1 and all(_is_view(u.user) for u in value.uses):
                self.analysis.views[value] = axes
            parameter = Parameter(use, value, tensor, [axes])
            self.analysis.parameters[use] = parameter
        return parameter.blocks[0]

    def axes(self, index: int) -> Axes:
        """Axes of input `index`; without a known rank the node is opaque."""
        axes = self.maybe_axes(index)
        if axes is None:
            raise Opaque(f"the rank of input {index} is not known")
        return axes

    def set_blocks(self, index: int, blocks: list[Axes]) -> None:
        """Give the parts of a constant input axes of their own (see `Parameter`)."""
        self.axes(index)
        self.analysis.parameters[Use(self.node, index)].blocks = blocks

    def is_parameter(self, index: int) -> bool:
        """Whether input `index` is a constant."""
        return self.analysis.model.constant(self.node.input(index)) is not None

    def content(self, index: int) -> Content | None:
        """Content of an integer input that the rule reads as numbers, not as data."""
        value = self.node.input(index)
        if value is None:
            return None
        self.consumed.add(index)
        return content_of_value(self.analysis, value)

    def knows_content(self) -> bool:
        """Whether all inputs are small integer tensors of which something is known."""
        inputs = [v for v in self.node.inputs if v is not None]
        return all(content_of_value(self.analysis, v) is not None for v in inputs)

    def out_shape(self, index: int = 0) -> tuple[int | str | None, ...] | None:
        value = self.node.output(index)
        return None if value is None else value.shape

    def body(self, graph: Graph, inputs: Sequence[Axes] = ()) -> list[Axes]:
        """Analyze a subgraph whose inputs have the given axes; returns its outputs' axes."""
        self.follows_bodies = True
        for value, axes in zip(graph.inputs, inputs, strict=True):
            self.analysis.axes[value] = axes
        _analyze_graph(self.analysis, graph)
        outputs = []
        for value in graph.outputs:
            axes_of = self.analysis.axes.get(value)
            if self.analysis.model.constant(value) is not None:
                axes_of = _literal_axes(value, self.why("a constant result of a subgraph"))
            if axes_of is None:
                raise Opaque(f"the rank of the subgraph's output '{value.name}' is not known")
            _freeze(self.analysis, None, value, self.why("computes with sizes of axes"))
            outputs.append(axes_of)
        return outputs

    # Relating ------------------------------------------------------------------

    def why(self, reason: str, *, structural: bool = False) -> Lock:
        return Lock(self.node.label, self.node.op_type, reason, structural)

    def fresh(self, size: int | None, label: str = "") -> Axis:
        """An axis of a new dim; of unknown size it is locked."""
        if size is None:
            return self.literal(None, "its size is known only at run time")
        return dims.fresh(size, f"{self.node.label}{'.' if label else ''}{label}")

    def literal(self, size: int | None, reason: str) -> Axis:
        """An axis that the operator itself fixes (gates, blocks, padding)."""
        return dims.literal(size, self.why(reason, structural=True))

    def unify(self, a: Axis, b: Axis, reason: str = "axes that have to match don't align") -> None:
        if a is not b and not dims.unify(a, b, self.why(reason)):
            raise Opaque(f"sizes {dims.axis_size(a)} and {dims.axis_size(b)} have to be equal")

    def unify_all(self, a: Axes, b: Axes) -> None:
        if len(a) != len(b):
            raise Opaque(f"ranks {len(a)} and {len(b)} have to be equal")
        for x, y in zip(a, b, strict=True):
            self.unify(x, y)

    def lock(self, axis: Axis, reason: str, *, structural: bool = False) -> None:
        dims.lock(axis, self.why(reason, structural=structural))

    def lock_all(self, axes: Sequence[Axis], reason: str) -> None:
        for axis in axes:
            self.lock(axis, reason)

    def balance(self, members: Sequence[Axis], reason: str) -> None:
        """Require that every member loses equally many elements."""
        self.analysis.families.append(Family(tuple(members), self.why(reason)))

    # Results -------------------------------------------------------------------

    def set(self, axes: Axes, index: int = 0) -> None:
        """Set the axes of output `index`."""
        value = self.node.output(index)
        if value is not None:
            self.analysis.axes[value] = axes

    def set_content(self, content: Content, index: int = 0) -> None:
        value = self.node.output(index)
        if value is not None and content.size <= CONTENT_LIMIT:
            self.analysis.contents[value] = content

    def expect(self, index: int, content: Content, required: Sequence[Axis | int | None]) -> None:
        """Keep the elements of an integer input at sizes of axes, numbers, or anything."""
        self.rewrite(lambda rewriter: rewriter.match(self.node, index, content, required))

    def numbers(self, index: int) -> list[int] | None:
        """An integer input as numbers known now, which pruning won't change; else None."""
        content = self.content(index)
        if content is None:
            return None
        values = [v for v in evaluate_all(content) if v is not None]
        if len(values) != content.size:
            return None
        self.expect(index, content, values)
        return values

    def rewrite(self, action: Callable[[Any], None]) -> None:
        """Register what applying a selection has to change in this node.

        `action` gets a `Rewriter` (passes/prune/apply.py).
        """
        self.analysis.rewrites.append(action)


def _is_view(user: Node | Graph) -> bool:
    return isinstance(user, Node) and user.op_type in ("Slice", "Split")


def content_of_value(analysis: Analysis, value: Value) -> Content | None:
    """Content of a value: computed by a rule, or of a small integer constant."""
    found = analysis.contents.get(value)
    if found is not None:
        return found
    tensor = analysis.model.constant(value)
    if tensor is None or tensor.size > CONTENT_LIMIT or tensor.dtype == TensorProto.STRING:
        return None
    return content_of(tensor.numpy())


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
            analysis.axes[value] = _literal_axes(value, why, symbols)
    _analyze_graph(analysis, graph)
    for value in graph.outputs:
        why = Lock(value.name, "graph output", "the model's interface")
        for axis in analysis.axes.get(value) or ():
            dims.lock(axis, why)
        _freeze(analysis, None, value, why)
    _lock_intractable(analysis)
    settle(analysis.families)
    return analysis


def _analyze_graph(analysis: Analysis, graph: Graph) -> None:
    from ..ops import rules

    table = rules()
    for node in graph.nodes:
        _analyze_node(analysis, node, table)


def _lock_intractable(analysis: Analysis) -> None:
    """Lock what is mixed with unknown sizes in a way that no mask can describe."""
    for value, axes in analysis.axes.items():
        for axis in axes or ():
            if dims.axis_size(axis) is None and dims.around_unknown(axis) is None:
                dims.lock(axis, Lock(value.name, "", "mixed with sizes known only at run time"))


def _literal_axes(value: Value, why: Lock, symbols: dict[str, Axis] | None = None) -> Axes | None:
    """Locked axes of a value's shape; sizes that share a name (`symbols`) are one."""
    shape = value.shape
    if shape is None:
        return None
    axes = []
    for size in shape:
        if isinstance(size, str) and symbols is not None:
            axes.append(symbols.setdefault(size, dims.literal(None, why)))
        else:
            axes.append(dims.literal(size if isinstance(size, int) else None, why))
    return tuple(axes)


def _analyze_node(analysis: Analysis, node: Node, table: dict[tuple[str, str], Rule]) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    rule = table.get((domain, node.op_type))
    view = NodeAxes(analysis, node)
    try:
        if rule is None:
            raise Opaque("no axes rule for this operator")
        rule(view)
        _check_outputs(view)
        if node.subgraphs() and not view.follows_bodies:
            raise Opaque("subgraphs of this operator are not followed")
    except Opaque as reason:
        _lock_node(analysis, node, str(reason))
        return
    except (ValueError, IndexError, KeyError, TypeError, SecateurError) as error:
        _lock_node(analysis, node, f"attributes or inputs don't fit the operator ({error})")
        return
    for index, value in enumerate(node.inputs):
        if value is not None and index not in view.visited:
            whole = view.why("reads this input as a whole", structural=True)
            for axis in analysis.axes.get(value) or ():
                dims.lock(axis, whole)
        if value is not None and index not in view.consumed:
            _freeze(analysis, Use(node, index), value, view.why("computes with sizes of axes"))


def _check_outputs(view: NodeAxes) -> None:
    """Outputs must have the rank and sizes that shape inference found."""
    for index, value in enumerate(view.node.outputs):
        if value is None:
            continue
        if value not in view.analysis.axes:
            why = view.why("this output of the operator is not followed")
            view.analysis.axes[value] = _literal_axes(value, why)
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
    for value in _reads(node):
        for axis in analysis.axes.get(value) or ():
            dims.lock(axis, why)
        _freeze(analysis, None, value, why)
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
            analysis.axes[output] = _literal_axes(output, why)
            analysis.contents.pop(output, None)


def _reads(node: Node) -> list[Value]:
    from ..graph import node_reads

    return list(node_reads(node))


def _freeze(analysis: Analysis, use: Use | None, value: Value, why: Lock) -> None:
    """A content leaves shape arithmetic: what it says must not change.

    Where all of it is known now, the use is replaced by a constant when it would
    change; otherwise the axes that it depends on are locked.
    """
    content = analysis.contents.get(value)
    if content is None:
        return
    axes = [axis for axis in depends_on_axes(content) if not dims.is_locked(axis)]
    if not axes:
        return
    known = evaluate_all(content)
    if use is None or any(x is None for x in known) or value.dtype == TensorProto.UNDEFINED:
        for axis in axes:
            dims.lock(axis, why)
        return
    frozen = np.array(known, np.int64).reshape(content.shape)

    def replace(rewriter: Any) -> None:
        if evaluate_all(content, rewriter.selection) != known:
            rewriter.set_constant(use.user, use.position, frozen, value.dtype)

    analysis.rewrites.append(replace)


def graph_of(node: Node) -> Graph:
    assert node.graph is not None
    return node.graph


__all__ = [
    "ONE",
    "Analysis",
    "Axes",
    "NodeAxes",
    "Opaque",
    "Parameter",
    "Rule",
    "analyze",
]
