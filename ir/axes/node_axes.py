"""What a rule sees: one node, its inputs' axes, and the means to relate them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from ..graph import Graph, Node, Use
from ..symbolic.expressions import Size
from ..symbolic.facts import LIMIT, Contents
from . import dims
from .balance import Family
from .dims import Axis, Lock
from .facts import Analysis, Axes, Expectation, Parameter, contents_of_value, freeze, literal_axes
from .rewriting import Rewrite
from .sizes import evaluate_all


class Opaque(Exception):  # noqa: N818 - a rule's answer, not an error
    """Raised by a rule that can't describe its node: all of its axes are locked."""


class NodeAxes:
    """What a rule sees: one node, its inputs' axes, and the means to relate them."""

    def __init__(self, analysis: Analysis, node: Node) -> None:
        self.analysis = analysis
        self.node = node
        self.consumed: set[int] = set()
        self.visited: set[int] = set()
        self.measured: set[int] = set()
        self.contracted: list[Axis] = []
        self.expectations: list[tuple[int, Expectation]] = []
        self.demanded: dict[int, list[int]] = {}
        """Inputs whose numbers have to stay as they are now."""
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

    def is_fixed(self, *inputs: int) -> bool:
        """Whether all of these inputs are computed from constants only."""
        return all(self.analysis.is_fixed(self.node.input(i)) for i in inputs)

    def content(self, index: int) -> Contents | None:
        """Content of an integer input that the rule reads as numbers, not as data."""
        if self.node.input(index) is not None:
            self.consumed.add(index)
        return self.peek(index)

    def peek(self, index: int) -> Contents | None:
        """The same of an input that the result may be `follow`ed from."""
        value = self.node.input(index)
        return None if value is None else contents_of_value(self.analysis, value)

    def measure(self, index: int) -> None:
        """State that the operator reads nothing of input `index` but its type and shape."""
        self.consumed.add(index)
        self.visited.add(index)
        self.measured.add(index)

    def size(self, axis: Axis) -> Size:
        """The size of an axis, whatever is going to be removed from it."""
        return self.analysis.sizes.of(axis)

    def out_shape(self, index: int = 0) -> tuple[int | str | None, ...] | None:
        value = self.node.output(index)
        return None if value is None else value.shape

    def body(self, graph: Graph, inputs: Sequence[Axes] = ()) -> list[Axes]:
        """Analyze a subgraph whose inputs have the given axes; returns its outputs' axes."""
        self.follows_bodies = True
        fixed = self.is_fixed(*range(len(self.node.inputs)))
        for value, axes in zip(graph.inputs, inputs, strict=True):
            self.analysis.axes[value] = axes
            if fixed:
                self.analysis.fixed.add(value)
        self.analysis.follow(graph)
        outputs = []
        for value in graph.outputs:
            axes_of = self.analysis.axes.get(value)
            if self.analysis.model.constant(value) is not None:
                axes_of = literal_axes(value, self.why("a constant result of a subgraph"))
            if axes_of is None:
                raise Opaque(f"the rank of the subgraph's output '{value.name}' is not known")
            freeze(self.analysis, None, value, self.why("computes with sizes of axes"))
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
        """An axis that never loses an index: its size or its elements are data."""
        return dims.literal(size, self.why(reason))

    def factor(self, size: int | None, reason: str) -> Axis:
        """An axis that the operator itself fixes, as gates and the positions in a block."""
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

    def contract(self, axis: Axis, *operands: int) -> None:
        """Operands are multiplied and summed along an axis.

        An index can go where one of them is zero there, as values that inputs have a part
        in are; of constants nothing is zero, and the sum would be another one.
        """
        self.contracted.append(axis)
        if self.is_fixed(*operands):
            self.lock(axis, "what is summed along this axis is constant")

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

    def follow(self, content: Contents, index: int = 0) -> bool:
        """Set the content of output `index`, which says all that the inputs' contents do.

        Returns whether it is small enough; else what the inputs say is frozen.
        """
        value = self.node.output(index)
        if value is None or content.size > LIMIT:
            return False
        self.consumed.update(range(len(self.node.inputs)))
        self.analysis.contents[value] = content
        return True

    def expect(self, index: int, content: Contents, required: Sequence[Axis | int | None]) -> None:
        """Keep the elements of an integer input at sizes of axes, numbers, or anything.

        Axes are locked where an element can't be kept at what is required.
        """
        why = self.why("a size computed at run time can't be kept in step")
        expectation = Expectation(content, required, why)
        self.expectations.append((index, expectation))
        self.analysis.expected.append(expectation)
        self.rewrite(lambda rewriter: rewriter.match(self.node, index, content, required))

    def expect_attribute(
        self, name: str, content: Contents, required: Sequence[Axis | int | None]
    ) -> None:
        """The same for an attribute."""
        self.rewrite(lambda rewriter: rewriter.match_attribute(self.node, name, content, required))

    def numbers(self, index: int) -> list[int] | None:
        """An integer input as numbers known now, which pruning won't change; else None."""
        content = self.content(index)
        if content is None:
            return None
        values = [v for v in evaluate_all(content) if v is not None]
        if len(values) != content.size:
            self.consumed.discard(index)
            return None
        self.expect(index, content, values)
        self.demanded[index] = values
        return values

    def rewrite(self, action: Rewrite) -> None:
        """Register what applying a selection has to change in this node."""
        self.analysis.rewrites.append(action)


def _is_view(user: Node | Graph) -> bool:
    return isinstance(user, Node) and user.op_type in ("Slice", "Split")
