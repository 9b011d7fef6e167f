"""Regions: where a channel may be scaled without changing what a model computes.

A region is a set of values and one dim that they share, as far as positive factors of the
dim's indices pass from value to value: through activations that are linear on either side
of zero, additions, concatenations, pooling and movement. Layers bound it. Those that write it
(producers) divide their weights by a factor, those that read it (consumers) multiply theirs.
The axes analysis says which axis of which constant that is, whatever lies in between.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...ir.axes.dims import Axis, Dim, dims_of, resolve
from ...ir.axes.facts import Analysis
from ...ir.graph import Node, Use, Value, normalize_domain, outer_reads
from ...ir.model import Model
from ...ir.ops import Trait, traits
from ..linear.contraction import Contraction
from ..linear.find import find_layer
from ..linear.layers import ConvolutionLayer

Key = tuple[Value, Dim]


@dataclass(frozen=True)
class ChannelAxis:
    """Where the constant of a use has a dim: which of its axes, and what that is made of."""

    use: Use
    axis: int
    parts: Axis


@dataclass
class Region:
    """Values with dims in common; constants to divide and to multiply.

    `reads` are the values that consumers read, `summands` those that sums do. Dims that meet in
    one of the former, as those of concatenated branches, share its step, and so a region; their
    channels follow one another.
    """

    dims: list[Dim]
    values: list[Value] = field(default_factory=list)
    producers: dict[ChannelAxis, None] = field(default_factory=dict)
    consumers: dict[ChannelAxis, None] = field(default_factory=dict)
    reads: dict[Value, None] = field(default_factory=dict)
    summands: dict[Value, None] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(dim.size or 0 for dim in self.dims)

    def positions(self, axis: Axis) -> NDArray[np.int64]:
        """For each element along an axis the channel that it belongs to, or -1."""
        found = np.full(sum(_count(term) for term in resolve(axis)), -1)
        offset = 0
        for dim in self.dims:
            own = _positions(axis, dim)
            found = np.where(own >= 0, own + offset, found)
            offset += dim.size or 0
        return found

    def merge(self, other: Region) -> None:
        """Take in another region."""
        self.dims += other.dims
        self.values += other.values
        self.producers.update(other.producers)
        self.consumers.update(other.consumers)
        self.reads.update(other.reads)
        self.summands.update(other.summands)


def find_regions(analysis: Analysis) -> list[Region]:
    """All regions that have producers and consumers, in the order of the graph."""
    finder = _Finder(analysis)
    for node in analysis.model.graph.nodes:
        finder.visit(node)
    return list(finder.regions())


def _positions(axis: Axis, dim: Dim) -> NDArray[np.int64]:
    """For each element along an axis the index of `dim` that it belongs to, or -1."""
    parts = []
    for term in resolve(axis):
        if dim in term:
            inner = _count(term[term.index(dim) + 1 :])
            parts.append(np.arange(_count(term)) // inner % (dim.size or 1))
        else:
            parts.append(np.full(_count(term), -1))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _count(term: Sequence[Dim]) -> int:
    return math.prod(dim.size or 0 for dim in term)


def axis_of(axes: Iterable[Axis], dim: Dim, among: Container[int] | None = None) -> int | None:
    """Which of the axes, or of some of them, has a dim."""
    places = (i for i, axis in enumerate(axes) if dim in dims_of(axis))
    return next((i for i in places if among is None or i in among), None)


def _sides(layer: ConvolutionLayer | Contraction) -> tuple[set[int], set[int]]:
    """Axes of a layer's weights that its input has, and those that its output has."""
    if isinstance(layer, ConvolutionLayer):
        grouped = layer.groups > 1
        if layer.transposed:
            return {0}, {0, 1} if grouped else {1}
        return ({0} if grouped else {1}), {0}
    labelling = layer.labelling
    both = set(labelling.groups)
    ins, outs = {*both, *labelling.inner}, {*both, *labelling.outer}
    weights = list(enumerate(labelling.weights))
    return {i for i, x in weights if x in ins}, {i for i, x in weights if x in outs}


_SUMS = {"Add", "Concat", "Max", "Min", "Sub", "Sum"}
"""Where all operands have the channels and the same factors, so does the result."""

_NORMALIZATIONS = {
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
}
"""Constants that a normalization multiplies its result by and adds to it."""


class _Finder:
    """Joins values node by node; what can't be scaled is pinned."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        self._model: Model = analysis.model
        self._parents: dict[Key, Key] = {}
        self._pinned: set[Key] = set()
        self._producers: dict[Key, dict[ChannelAxis, None]] = {}
        self._consumers: dict[Key, dict[ChannelAxis, None]] = {}
        self._reads: dict[Key, dict[Value, None]] = {}
        self._summands: dict[Key, dict[Value, None]] = {}
        graph = self._model.graph
        for value in (*graph.inputs, *graph.outputs):
            self._pin(value)

    def regions(self) -> Iterator[Region]:
        found: dict[Key, Region] = {}
        pinned = {self._root(key) for key in self._pinned}
        for key in list(self._parents):
            root = self._root(key)
            value, dim = key
            if root in pinned or dim.lock is not None or dim.size is None or dim.size < 2:
                continue
            region = found.setdefault(root, Region([dim]))
            region.values.append(value)
            region.producers.update(self._producers.get(key, {}))
            region.consumers.update(self._consumers.get(key, {}))
            region.reads.update(self._reads.get(key, {}))
            region.summands.update(self._summands.get(key, {}))
        whole: list[Region] = []
        for region in found.values():
            if not region.producers or not region.consumers:
                continue
            for other in [one for one in whole if one.reads.keys() & region.reads.keys()]:
                whole.remove(other)
                other.merge(region)
                region = other
            whole.append(region)
        yield from whole

    def visit(self, node: Node) -> None:
        """Join, bound or pin the dims of a node's inputs and outputs."""
        kind = node.op_type if normalize_domain(node.domain) == "" else ""
        outputs = [v for v in node.outputs if v is not None]
        layer = find_layer(self._model, node)
        if node.subgraphs() or not outputs:
            self._pin_all(node)
        elif isinstance(layer, ConvolutionLayer | Contraction):
            self._layer(node, layer)
        elif kind in _NORMALIZATIONS:
            self._pin(node.input(0))
            self._written(node, _NORMALIZATIONS[kind])
        elif kind == "Pad":
            self._pad(node)
        elif kind in _SUMS:
            self._sum(node)
        elif kind in ("Mul", "Div"):
            self._product(node)
        elif self._carries(node) or (kind == "Clip" and self._clips_at_zero(node)):
            self._pass(node)
        else:
            self._pin_all(node)

    # --- kinds of nodes ---

    def _layer(self, node: Node, layer: ConvolutionLayer | Contraction) -> None:
        """Weights end a region on one side and begin one on the other."""
        place = layer.position
        source = node.input(0 if place == 1 else 1)
        result = node.output(0)
        weights = self._axes_of_constant(node, place)
        if weights is None or len(layer.stored.uses) > 1 or source is None or result is None:
            self._pin_all(node)
            return
        ins, outs = _sides(layer)
        for dim in self._dims(source):
            axis = axis_of(weights, dim, ins)
            if axis is None:  # rows that are carried along, as of tokens
                self._pin_key(source, dim)
                continue
            key = self._add(source, dim)
            self._consumers.setdefault(key, {})[
                ChannelAxis(Use(node, place), axis, weights[axis])
            ] = None
            self._reads.setdefault(key, {})[source] = None
        for dim in self._dims(result):
            if axis_of(weights, dim, outs) is None:
                self._pin_key(result, dim)
        self._written(node, (place, 2) if node.input(2) is not None else (place,), {place: outs})

    def _written(
        self, node: Node, places: Iterable[int], among: Mapping[int, Container[int]] | None = None
    ) -> None:
        """Let a node's constants, by `among` some of their axes, be producers of its result."""
        result = node.output(0)
        if result is None:
            return
        for dim in self._dims(result):
            key = self._add(result, dim)
            for place in places:
                if node.input(place) is None:
                    continue
                axes = self._axes_of_constant(node, place)
                sides = (among or {}).get(place)
                axis = axis_of(axes, dim, sides) if axes is not None else None
                if axes is None or axis is None or self._shared(node, place):
                    self._pinned.add(key)
                else:
                    made = ChannelAxis(Use(node, place), axis, axes[axis])
                    self._producers.setdefault(key, {})[made] = None

    def _carries(self, node: Node) -> bool:
        """Whether factors of the first operand are the result's, whatever the others are."""
        known = traits(node)
        others = all(v is None or self._constant(v) for v in node.inputs[1:])
        return Trait.HOMOGENEOUS in known and (
            others or not known & (Trait.INDEXES | Trait.BROADCASTS)
        )

    def _pass(self, node: Node) -> None:
        """The first operand's factors are the results', which must have all of its channels.

        Of what a Slice or Split drops nothing is left to be scaled.
        """
        source = node.input(0)
        results = [v for v in node.outputs if v is not None]
        if source is None or self._constant(source):
            self._pin_all(node)
            return
        for dim in self._dims(source):
            first = self._add(source, dim)
            there = [v for v in results if dim in self._dims(v)]
            if len(there) < len(results) and not self._cuts(node, source, dim):
                self._pinned.add(first)
            for value in there:
                self._join(first, self._add(value, dim))
        for value in results:
            for dim in self._dims(value):
                if dim not in self._dims(source):
                    self._pin_key(value, dim)

    def _cuts(self, node: Node, source: Value, dim: Dim) -> bool:
        """Whether a node only cuts the axis of a dim, and its results have parts of it."""
        axes = self._analysis.axes.get(source) or ()
        place = axis_of(axes, dim)
        if node.op_type not in ("Slice", "Split") or place is None:
            return False
        whole = set(dims_of(axes[place]))
        for value in (v for v in node.outputs if v is not None):
            parts = self._analysis.axes.get(value)
            if parts is None or len(parts) != len(axes) or not set(dims_of(parts[place])) <= whole:
                return False
        return True

    def _sum(self, node: Node) -> None:
        result = node.output(0)
        if result is None:
            return
        for dim in self._dims(result):
            key = self._add(result, dim)
            along = node.op_type == "Concat" and self._concatenates(node, dim)
            for place, value in enumerate(node.inputs):
                if value is None:
                    continue
                if self._constant(value):
                    axes = self._axes_of_constant(node, place)
                    axis = axis_of(axes, dim) if axes is not None else None
                    if axes is not None and axis is not None and not self._shared(node, place):
                        made = ChannelAxis(Use(node, place), axis, axes[axis])
                        self._producers.setdefault(key, {})[made] = None
                    elif not along:
                        self._pinned.add(key)
                elif dim in self._dims(value):
                    self._join(key, self._add(value, dim))
                    self._summands.setdefault(key, {})[value] = None
                elif not along:
                    self._pinned.add(key)
        for value in (v for v in node.inputs if v is not None):
            for dim in self._dims(value):
                if dim not in self._dims(result):
                    self._pin_key(value, dim)

    def _concatenates(self, node: Node, dim: Dim) -> bool:
        """Whether a Concat's operands lie one behind the other along a dim's axis."""
        result = node.output(0)
        axes = self._analysis.axes.get(result) if result is not None else None
        place = int(node.get("axis", 0))
        return bool(axes) and axis_of(axes or (), dim) == place % len(axes or ())

    def _product(self, node: Node) -> None:
        """One operand carries the factors, the other keeps its values."""
        first, second = node.input(0), node.input(1)
        result = node.output(0)
        if first is None or second is None or result is None or first is second:
            self._pin_all(node)
            return
        constants = [self._constant(first), self._constant(second)]
        carrier = first
        if constants == [True, False] or (self._gates(first) and not constants[1]):
            carrier = second
        other = second if carrier is first else first
        if node.op_type == "Div" and carrier is second:
            self._pin_all(node)
            return
        self._pin(other)
        for dim in self._dims(result):
            if dim in self._dims(carrier):
                self._join(self._add(carrier, dim), self._add(result, dim))
            else:
                self._pin_key(result, dim)
        for dim in self._dims(carrier):
            if dim not in self._dims(result):
                self._pin_key(carrier, dim)

    def _gates(self, value: Value) -> bool:
        """Whether a value has a scale of its own, as what Sigmoid and Softmax put out."""
        known = Trait.NONE if value.producer is None else traits(value.producer)
        return Trait.SAME_SHAPE in known and not known & (Trait.HOMOGENEOUS | Trait.WEIGHTED)

    def _pad(self, node: Node) -> None:
        fill = self._model.constant(node.input(2))
        is_zero = node.input(2) is None or (fill is not None and not fill.numpy().any())
        if node.get("value", 0.0) or (node.get("mode", "constant") == "constant" and not is_zero):
            self._pin_all(node)
        else:
            self._pass(node)

    def _clips_at_zero(self, node: Node) -> bool:
        """Whether a Clip is a Relu; other bounds hold for all channels alike."""
        low, high = self._model.constant(node.input(1)), self._model.constant(node.input(2))
        if node.input(1) is None or low is None or low.numpy().any():
            return False
        no_bound = node.input(2) is None and "max" not in node.attributes
        return no_bound or (high is not None and bool(np.isposinf(high.numpy()).all()))

    # --- keys ---

    def _constant(self, value: Value | None) -> bool:
        return self._analysis.is_fixed(value)

    def _dims(self, value: Value | None) -> list[Dim]:
        axes = self._analysis.axes.get(value) if value is not None else None
        return list(dict.fromkeys(dim for axis in axes or () for dim in dims_of(axis)))

    def _axes_of_constant(self, node: Node, place: int) -> tuple[Axis, ...] | None:
        """Of one use of a constant; None where groups have axes of their own."""
        parameter = self._analysis.parameters.get(Use(node, place))
        if parameter is None or len(parameter.blocks) != 1:
            return None
        return tuple(parameter.blocks[0])

    def _shared(self, node: Node, place: int) -> bool:
        value = node.input(place)
        return value is None or len(value.uses) > 1 or self._model.constant(value) is None

    def _add(self, value: Value, dim: Dim) -> Key:
        key = (value, dim)
        self._parents.setdefault(key, key)
        axes = self._analysis.axes.get(value) or ()
        place = axis_of(axes, dim)
        if place is None or not any(dim in term for term in resolve(axes[place])):
            self._pinned.add(key)  # within a sum that is multiplied: not a plain factor
        return key

    def _pin_key(self, value: Value, dim: Dim) -> None:
        self._pinned.add(self._add(value, dim))

    def _pin(self, value: Value | None) -> None:
        for dim in self._dims(value):
            assert value is not None
            self._pin_key(value, dim)

    def _pin_all(self, node: Node) -> None:
        for value in (*outer_reads(node), *node.outputs):
            self._pin(value)

    def _root(self, key: Key) -> Key:
        while self._parents[key] != key:
            self._parents[key] = self._parents[self._parents[key]]
            key = self._parents[key]
        return key

    def _join(self, first: Key, second: Key) -> None:
        self._parents[self._root(second)] = self._root(first)
