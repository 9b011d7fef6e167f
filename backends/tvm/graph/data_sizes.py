"""Sizes that data decide: numbers that a run reads from tensors, and what follows from them.

NonZero and the like count their results; a Slice, TopK or Range is told by an operand. Either is a
`datum`, a symbol whose value a run reads from a tensor as soon as that is computed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import TensorProto

from ....ir.graph import Dimension, Node, Value, normalize_domain
from ....ir.model import Model
from ....ir.symbolic import expressions as e
from ....ir.symbolic.analysis import Admitted, SizeAnalysis
from ....ir.symbolic.expressions import Atom, Size, datum
from ....ir.symbolic.facts import Contents, Shape
from ....ir.symbolic.ranges import ANY, Range
from ....ir.symbolic.registry import contents_rules
from ....ir.symbolic.spatial import scales_at
from .loop_sizes import Kept, LoopAnalysis, forget_results
from .loops import LoopBody, is_branching, stacks_rows
from .told import COUNTED, TOLD

SCALED = ("Resize", "Upsample")
"""Operators that compute the sizes of their results of scales."""

_MOVERS = ("Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that let the elements of their first operand be as they are."""

SATURATES = "saturates"
"""What a datum is `of` that is cut off at the largest size instead of refused."""

_UNKNOWN = ("unknown", "long")
"""Parts of sizes of which nothing is known."""

_READ_TYPES = (TensorProto.INT64, TensorProto.INT32)

_READ = 8
"""Elements of a tensor that a run reads as numbers: a shape's."""


@dataclasses.dataclass(frozen=True)
class Element:
    """Where a datum comes from: an element of a value, or how many results a node has."""

    source: Value | Node
    index: int
    name: str
    """What `--size` calls it."""


class DataSizes(LoopAnalysis):
    """The sizes of all values over those of the inputs and over what a run reads.

    `roots` are values whose elements are read, `bounds` what is admitted of what runs read, by
    name. `data` says where each datum comes from, and `order` in which a run knows them and those
    of bodies; `known` are those that `bounds` leave one number, which runs compare. Where data
    decide the size of an axis that is `declared` to stay as it is, it does, or the run ends.
    """

    def __init__(
        self,
        model: Model,
        admitted: Mapping[str, Admitted],
        roots: Mapping[Value, None],
        bounds: Mapping[str, Admitted],
        kept: Kept | None = None,
        declared: Mapping[Node, Sequence[Dimension]] | None = None,
    ) -> None:
        super().__init__(model, admitted, kept=kept)
        self._roots, self._bounds, self._stated = roots, bounds, declared or {}
        self._made: dict[Value, Contents] = {}
        self._within = ""
        self.order: dict[Atom, int] = {}
        self.data: dict[Atom, Element] = {}
        self.known: dict[str, None] = {}

    def counted(self, node: Node, most: Size) -> Size:
        if node.graph is not self.model.graph:
            return super().counted(node, most)
        name = _first_result(node).name
        return e.checked(self._datum("count", Element(node, 0, name)), most)

    def computed(self, node: Node, axis: int, most: Size | None = None) -> Size:
        if node.graph is not self.model.graph:
            return super().computed(node, axis, most)
        element = Element(node, axis, f"{_first_result(node).name}.{axis}")
        stated, own = self._stated.get(node), self.shape(node.input(0))
        bounds = self._bounds_of(element.name)
        if bounds.low is not None and bounds.low == bounds.high:
            self.known[element.name] = None
            return bounds.low
        if stated is not None and own is not None and len(stated) == len(own):
            size = stated[axis]
            if isinstance(size, int) and size == own[axis]:
                return size
        return e.checked(self._datum("size", element), most)

    def chosen(self, node: Node, place: int, name: str, most: Size | None) -> Size:
        return e.checked(self._datum("size", Element(node, place, name)), most)

    def as_size(self, element: Size, most: Size | None = None) -> Size:
        return e.checked(element, most) if self._is_read(element) else super().as_size(element)

    def uncertain(self, size: Size, most: Size | None = None) -> Size:
        return e.checked(size, most) if self._is_read(size) else self.unknown()

    def contents(self, value: Value | None) -> Contents | None:
        found = super().contents(value)
        if found is not None or value is None or value not in self._roots:
            return found
        if value not in self._made:
            self._made[value] = self._read(value)
        return self._made[value]

    def _is_read(self, size: Size) -> bool:
        return e.mentions(size, "data") and not e.mentions(size, *_UNKNOWN)

    def _read(self, value: Value) -> Contents:
        shape = tuple(size for size in value.shape or () if isinstance(size, int))
        found = np.empty(shape, object)
        for index in range(found.size):
            name = value.name if found.size == 1 else f"{value.name}.{index}"
            of = SATURATES if self._only_bounds(value) else None
            found.flat[index] = self._datum("value", Element(value, index, name), of)
        return found

    def _bounds_of(self, name: str) -> Range:
        given = self._bounds.get(name)
        return ANY if given is None else Range(given.low, given.high)

    def _only_bounds(self, value: Value) -> bool:
        """Whether the elements of a value say nothing but where slices begin and end that go
        forward: what is further off than any size is as good as the largest."""
        return all(self._takes_bounds(node, value) for node in value.users)

    def _takes_bounds(self, node: Node, value: Value) -> bool:
        places = {index for index, own in enumerate(node.inputs) if own is value}
        if not _is_standard(node):
            return False
        if node.op_type == "Slice":
            steps = self.model.constant(node.input(4))
            forward = node.input(4) is None or (
                steps is not None and bool((steps.numpy() > 0).all())
            )
            return forward and places <= {1, 2}
        moves = node.op_type == "Concat" or (node.op_type in _MOVERS and places == {0})
        return moves and all(self._only_bounds(v) for v in node.outputs if v is not None)

    def _datum(self, kind: str, element: Element, of: object = None) -> Size:
        name = _shown(f"{self._within}{element.name}")
        made = datum(f"{kind}({name})", self._bounds_of(element.name), of)
        atom = made.atom
        assert atom is not None
        self.data.setdefault(atom, element)
        self.order.setdefault(atom, len(self.order))
        return made

    def inside(
        self,
        body: LoopBody,
        known: Mapping[str, Size],
        contents: Mapping[Value, Contents],
        kept: Kept,
    ) -> DataSizes:
        roots: dict[Value, None] = {}
        while True:
            forget_results(body.model)
            analysis = DataSizes(body.model, self._admitted, roots, self._bounds, kept)
            analysis.enter(self, f"{self._within}{body.model.graph.name}/", known, contents)
            analysis.run()
            new = analysis.new_roots()
            if not new:
                return analysis
            roots = {**roots, **dict.fromkeys(new)}

    def enter(
        self,
        outer: DataSizes,
        within: str,
        known: Mapping[str, Size],
        contents: Mapping[Value, Contents],
    ) -> None:
        """Be the analysis of a body in a graph that is analysed."""
        self.take(known, contents)
        self._within, self.order = within, outer.order

    def is_own(self, size: Size) -> bool:
        return any(leaf in self.data for leaf in e.leaves(size))

    def analyses(self) -> Iterator[DataSizes]:
        """This one and those of all bodies."""
        yield self
        for body in self.bodies():
            if isinstance(body.analysis, DataSizes):
                yield from body.analysis.analyses()

    def decides(self) -> bool:
        """Whether data decide any size, here or in bodies."""
        return any(each.data or each.known for each in self.analyses())

    def named(self) -> dict[str, None]:
        """What `--size` may bound, by name."""
        found: dict[str, None] = {}
        for each in self.analyses():
            found |= {**each.known, **{element.name: None for element in each.data.values()}}
        return found

    def new_roots(self) -> list[Value]:
        """Values that decide sizes of which nothing is known yet, and that a run can read."""
        found: dict[Value, None] = {}
        for node in self.model.graph.nodes:
            for value in told_by(self.model, node):
                if value.dtype in _READ_TYPES:
                    found |= dict.fromkeys(self._undecided(value))
        return [value for value in found if value not in self._roots]

    def _undecided(self, value: Value) -> Iterator[Value]:
        contents = super().contents(value)
        if contents is not None and not any(e.mentions(x, *_UNKNOWN) for x in contents.flat):
            return
        node = value.producer
        if node is not None and node.op_type in contents_rules() and _is_standard(node):
            own = [v for v in node.inputs if v is not None and v not in self._roots]
            found = [root for v in own if _may_be_read(v) for root in self._undecided(v)]
            if found:
                yield from found
                return
        if _may_be_read(value):
            yield value


def told_by(model: Model, node: Node) -> list[Value]:
    """The operands of a node that tell it sizes."""
    if not _is_standard(node) or (node.op_type == "Loop" and not stacks_rows(node)):
        return []
    places = TOLD.get(node.op_type, ())
    if node.op_type in SCALED:  # a region of interest doesn't count
        places = (scales_at(node, model.opset), 3)
    found = [node.input(index) for index in places]
    return [value for value in found if value is not None]


def stated_sizes(model: Model) -> dict[Node, Sequence[Dimension]]:
    """What is declared of results whose sizes operators compute of scales."""
    found: dict[Node, Sequence[Dimension]] = {}
    for node in model.graph.nodes:
        result = node.output(0)
        if node.op_type in SCALED and result is not None and result.shape is not None:
            found[node] = result.shape
    return found


def is_told(model: Model, node: Node) -> bool:
    """Whether operands that no constant is tell a node sizes."""
    return any(model.constant(value) is None for value in told_by(model, node))


def is_counted(node: Node) -> bool:
    return (node.op_type in COUNTED and _is_standard(node)) or stacks_rows(node)


def may_be_decided(model: Model, shapes: SizeAnalysis | None) -> bool:
    """Whether data decide sizes of which nothing else is known, or an input's elements do.

    `shapes` are those known of models with open sizes; without, they have to be numbers. What
    bodies hold is not looked into.
    """
    bodies = (graph for graph in model.graph.all_graphs() if graph is not model.graph)
    nodes = (node for body in bodies for node in body.nodes)
    if any(is_told(model, n) or is_counted(n) or is_branching(n) for n in nodes):
        return True
    for node in model.graph.nodes:
        told = told_by(model, node)
        if any(value.is_input and model.constant(value) is None for value in told):
            return True
        is_one = (node.op_type in TOLD and _is_standard(node)) or is_counted(node)
        is_one = is_one or is_branching(node)
        if is_one and not all(_is_known(v, shapes) for v in node.outputs):
            return True
    return False


def _is_known(value: Value | None, shapes: SizeAnalysis | None) -> bool:
    if value is None:
        return True
    shape: Shape | tuple[int | str | None, ...] | None
    shape = value.shape if shapes is None else shapes.shape(value)
    if shape is None:
        return False
    if shapes is None:
        return all(isinstance(size, int) for size in shape)
    return not any(isinstance(s, e.Expression) and e.mentions(s, *_UNKNOWN) for s in shape)


def may_name_element(model: Model, name: str) -> bool:
    """Whether a name is that of a tensor of integers, of an element of one as `NAME.0`, or of what
    an operator counts."""
    whole, _, index = name.rpartition(".")
    names = {name, whole} if index.isdecimal() else {name}
    found = [value for value in model.graph.values() if value.name in names]
    makers = {v.producer.op_type for v in found if v.producer is not None}
    return bool(makers & {*COUNTED, *SCALED, "If"}) or any(v.dtype in _READ_TYPES for v in found)


def _first_result(node: Node) -> Value:
    return next(value for value in node.outputs if value is not None)


def _is_standard(node: Node) -> bool:
    return normalize_domain(node.domain) == ""


def _may_be_read(value: Value) -> bool:
    """Whether a value is a short tensor of integers whose number is known."""
    shape = value.shape
    if value.dtype not in _READ_TYPES or shape is None or len(shape) > 1:
        return False
    sizes = [size for size in shape if isinstance(size, int)]
    return len(sizes) == len(shape) and 1 <= math.prod(sizes) <= _READ


def _shown(name: str) -> str:
    """A value's name in the text of sizes; of a long or strange one a part and its digest."""
    if re.fullmatch(r"[\w./:\[\]-]{1,32}", name, re.ASCII):
        return name
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    return f"{re.sub(r'[^a-zA-Z0-9_]', '', name)[:16]}..{digest}"
