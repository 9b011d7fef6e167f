"""What a model costs when dims keep only some of their indices."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...ir.axes.dims import Axis, Dim, axis_size, dims_of, resolve
from ...ir.axes.facts import Analysis, Axes
from ...ir.cost import UNKNOWN_SHAPE, ShapeOf, count, known_shape
from ...ir.graph import Node, Use, Value
from ...ir.ops import operator_of

Counts = Mapping[Dim, int]
"""Kept indices of the dims that lose some."""


@dataclass(frozen=True)
class Scaled:
    """An axis that changes; `factor` stands for its parts of unknown size."""

    axis: Axis
    factor: float


Shape = tuple[int | Scaled, ...]
"""Sizes where nothing can change them, else axes."""


class CostModel:
    """MACs or parameters of an analyzed model as a function of kept counts.

    A sum of items (a node's MACs, a constant's elements); each knows the dims that it
    depends on, so that what a single dim saves is found without counting everything.
    """

    def __init__(
        self,
        analysis: Analysis,
        kind: str,
        *,
        shape_of: ShapeOf = known_shape,
        locked: bool = False,
    ) -> None:
        """`kind` is "macs" or "parameters"; `locked` also follows dims that are locked.

        `shape_of` gives the sizes of values of which the axes don't tell them.
        """
        self._locked = locked
        self._shape_of = shape_of
        self._items: list[Callable[[_Sizes], int]] = []
        self._by_dim: dict[Dim, list[int]] = defaultdict(list)
        if kind == "macs":
            self._add_nodes(analysis)
        else:
            self._add_parameters(analysis)
        whole = _Sizes({})
        self._full = [item(whole) for item in self._items]
        self.full = sum(self._full)
        """Cost with nothing removed."""

    def cost(self, kept: Counts) -> int:
        """Total cost when the given dims keep the given numbers of indices."""
        return self.full - self.saving(kept)

    def saving(self, kept: Counts) -> int:
        """How much less that is than with nothing removed."""
        sizes = _Sizes(kept)
        touched = dict.fromkeys(i for dim in kept for i in self._by_dim.get(dim, ()))
        return sum(self._full[i] - self._items[i](sizes) for i in touched)

    def _add(self, item: Callable[[_Sizes], int], axes: set[Axis]) -> None:
        for dim in {d for axis in axes for d in dims_of(axis) if self._follows(d)}:
            self._by_dim[dim].append(len(self._items))
        self._items.append(item)

    def _add_nodes(self, analysis: Analysis) -> None:
        for node in analysis.model.graph.all_nodes():
            record = operator_of(node)
            rule = None if record is None else record.macs
            if rule is None:
                continue
            axes = _node_axes(analysis, node)
            shapes = {v: self._sizes_or_axes(v, found) for v, found in axes.items()}

            def item(
                sizes: _Sizes,
                node: Node = node,
                shapes: dict[Value, Shape] = shapes,
                rule: Callable[..., int] = rule,
            ) -> int:
                return rule(node, lambda value: sizes.shape(value, shapes, self._shape_of))

            self._add(item, {axis for found in axes.values() for axis in found})

    def _follows(self, dim: Dim) -> bool:
        return dim.size is not None if self._locked else dim.lock is None

    def _sizes_or_axes(self, value: Value, axes: Axes) -> Shape:
        """The sizes of axes that nothing can change (unknown: 1), else the axes.

        Shape inference may know sizes that the axes don't.
        """
        inferred = self._shape_of(value)
        if inferred is None or len(inferred) != len(axes):
            inferred = (1,) * len(axes)
        found: list[int | Scaled] = []
        for axis, known in zip(axes, inferred, strict=True):
            size = axis_size(axis)
            if any(self._follows(dim) for dim in dims_of(axis)):
                counted = _Sizes({}).size(axis)
                found.append(Scaled(resolve(axis), 1 if size is not None else known / counted))
            else:
                found.append(known if size is None else size)
        return tuple(found)

    def _add_parameters(self, analysis: Analysis) -> None:
        """Each constant once, and once more for each way in which its uses cut it."""
        constants = shared_constants(analysis)
        rest = count(analysis.model).parameters - sum(c.elements for c in constants)
        self._add(lambda sizes: rest, set())
        for constant in constants:
            axes = {axis for blocks in constant.variants for block in blocks for axis in block}
            self._add(constant.needed, axes)


@dataclass(frozen=True)
class SharedConstant:
    """A constant and the ways in which nodes that read it cut it, each once.

    `stays` tells that something, a graph output for one, needs it whole.
    """

    value: Value
    elements: int
    variants: tuple[tuple[Axes, ...], ...]
    stays: bool

    def needed(self, sizes: _Sizes) -> int:
        """Elements of it and of its parts that are needed at the sizes."""
        needed = [sum(sizes.elements(block) for block in blocks) for blocks in self.variants]
        cut = sum(n for n in needed if n != self.elements)
        whole = self.stays or self.elements in needed
        return cut + (self.elements if whole else 0)

    def growth(self, kept: Counts) -> int:
        """Elements that are needed besides those that it has."""
        return self.needed(_Sizes(kept)) - self.elements


def shared_constants(analysis: Analysis) -> list[SharedConstant]:
    """All constants whose axes are followed, as nodes share them."""
    variants: dict[Value, dict[tuple[Axes, ...], None]] = defaultdict(dict)
    elements: dict[Value, int] = {}
    tracked: Counter[Value] = Counter()
    for parameter in analysis.parameters.values():
        blocks = tuple(tuple(resolve(a) for a in block) for block in parameter.blocks)
        variants[parameter.value][blocks] = None
        elements[parameter.value] = parameter.tensor.size
        tracked[parameter.value] += 1
    return [
        SharedConstant(value, elements[value], tuple(uses), tracked[value] < len(value.uses))
        for value, uses in variants.items()
    ]


class _Sizes:
    """Sizes of axes under kept counts; axes of unknown size count as 1."""

    def __init__(self, kept: Counts) -> None:
        self._kept = kept
        self._known: dict[Axis, int] = {}

    def size(self, axis: Axis) -> int:
        known = self._known.get(axis)
        if known is None:
            known = self._known[axis] = sum(self._term(term) for term in resolve(axis))
        return known

    def shape(
        self, value: Value | None, shapes: dict[Value, Shape], shape_of: ShapeOf
    ) -> tuple[int, ...]:
        known = shapes.get(value) if value is not None else None
        if known is None:
            return shape_of(value) or UNKNOWN_SHAPE
        return tuple(
            s if isinstance(s, int) else round(s.factor * self.size(s.axis)) for s in known
        )

    def elements(self, axes: Axes) -> int:
        return math.prod(self.size(axis) for axis in axes)

    def _term(self, term: tuple[Dim, ...]) -> int:
        size = 1
        for dim in term:
            if dim.binding is not None:
                size *= self.size(dim.binding)
            else:
                size *= self._kept.get(dim, 1 if dim.size is None else dim.size)
        return size


def _node_axes(analysis: Analysis, node: Node) -> dict[Value, Axes]:
    """Axes of a node's values as its cost rule sees them; grouped weights by whole shape."""
    found: dict[Value, Axes] = {}
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        parameter = analysis.parameters.get(Use(node, index))
        if parameter is not None and not parameter.blocks[0]:
            found[value] = ()
        elif parameter is not None:
            rows = tuple(term for block in parameter.blocks for term in block[0])
            found[value] = (rows, *parameter.blocks[0][1:])
        else:
            _add_axes(analysis, value, found)
    for output in node.outputs:
        if output is not None:
            _add_axes(analysis, output, found)
    return found


def _add_axes(analysis: Analysis, value: Value, found: dict[Value, Axes]) -> None:
    axes = analysis.axes.get(value)
    if axes is not None:
        found[value] = axes
