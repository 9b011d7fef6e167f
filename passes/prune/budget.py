"""What a model costs when dims keep only some of their indices."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...ir.axes.dims import Axis, Dim, Term, axis_size, dims_of, resolve
from ...ir.axes.facts import Analysis, Axes
from ...ir.cost import UNKNOWN_SHAPE, ShapeOf, count, known_shape
from ...ir.graph import Node, Use, Value
from ...ir.ops import operator_of

Counts = Mapping[Dim, int]
"""Kept indices of the dims that lose some."""


class Length:
    """The size of an axis as a function of kept counts; parts of unknown size count as 1.

    What some dims change is found from the terms that have them, however wide the axis is.
    """

    def __init__(self, axis: Axis) -> None:
        self._terms = resolve(axis)
        self._by_dim: dict[Dim, list[int]] = defaultdict(list)
        for index, term in enumerate(self._terms):
            for dim in dict.fromkeys(dims_of((term,))):
                self._by_dim[dim].append(index)
        self._sizes = [_term_size(term, {}) for term in self._terms]
        self.full = sum(self._sizes)
        """Size with nothing removed."""

    @property
    def dims(self) -> Collection[Dim]:
        """What the axis consists of."""
        return self._by_dim.keys()

    def __call__(self, kept: Counts) -> int:
        few, many = sorted((kept, self._by_dim), key=len)
        touched = {i for dim in few if dim in many for i in self._by_dim[dim]}
        return self.full - sum(self._sizes[i] - _term_size(self._terms[i], kept) for i in touched)


def _term_size(term: Term, kept: Counts) -> int:
    size = 1
    for dim in term:
        if dim.binding is not None:
            size *= sum(_term_size(part, kept) for part in resolve(dim.binding))
        else:
            size *= kept.get(dim, 1 if dim.size is None else dim.size)
    return size


@dataclass(frozen=True)
class Scaled:
    """An axis that changes; `factor` stands for its parts of unknown size."""

    length: Length
    factor: float


Shape = tuple[int | Scaled, ...]
"""An axis as a number where pruning can't change its size, else as itself."""


class KernelCost(Protocol):
    """What the kernels of one node cost: whoever compiles models knows.

    `node` is the node's label; `values` names the values of the model whose sizes count.
    """

    @property
    def node(self) -> str: ...

    @property
    def values(self) -> Sequence[str]: ...

    def cost(
        self,
        sizes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
        weights: tuple[int, ...] | None,
        /,
    ) -> int:
        """Nanoseconds (or what stands for them) where values change from some shapes to others.

        `weights` is then the shape of the node's weights, where they are constant.
        """


class CostModel:
    """What an analyzed model costs as a function of kept counts.

    A sum of items (a node's MACs or time, a constant's elements); each knows the dims that it
    depends on, so that what a single dim saves is found without counting everything.
    """

    def __init__(
        self,
        analysis: Analysis,
        kind: str,
        *,
        shape_of: ShapeOf = known_shape,
        locked: bool = False,
        kernels: Sequence[KernelCost] = (),
    ) -> None:
        """`kind` is macs, parameters, bytes (of constants) or latency (what `kernels` cost).

        `locked` also follows dims that are locked. `shape_of` gives the sizes of values of
        which the axes don't tell them.
        """
        self._locked = locked
        self._shape_of = shape_of
        self._items: list[Callable[[Counts], int]] = []
        self._by_dim: dict[Dim, list[int]] = defaultdict(list)
        self._lengths = _Lengths()
        if kind == "macs":
            self._add_nodes(analysis)
        elif kind == "latency":
            self._add_kernels(analysis, kernels)
        else:
            self._add_constants(analysis, in_bytes=kind == "bytes")
        self._full = [item({}) for item in self._items]
        self.full = sum(self._full)
        """Cost with nothing removed."""

    def cost(self, kept: Counts) -> int:
        """Total cost when the given dims keep the given numbers of indices."""
        return self.full - self.saving(kept)

    def saving(self, kept: Counts) -> int:
        """How much less that is than with nothing removed."""
        touched = dict.fromkeys(i for dim in kept for i in self._by_dim.get(dim, ()))
        return sum(self._full[i] - self._items[i](kept) for i in touched)

    def _add(self, item: Callable[[Counts], int], dims: Iterable[Dim]) -> None:
        for dim in set(dims):
            if self._follows(dim):
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
                kept: Counts,
                node: Node = node,
                shapes: dict[Value, Shape] = shapes,
                rule: Callable[..., int] = rule,
            ) -> int:
                return rule(node, lambda value: self._shape(value, shapes, kept))

            sizes = itertools.chain(*shapes.values())
            self._add(item, (d for s in sizes if isinstance(s, Scaled) for d in s.length.dims))

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
            length = self._lengths(axis)
            if any(self._follows(dim) for dim in length.dims):
                found.append(Scaled(length, 1 if size is not None else known / length.full))
            else:
                found.append(known if size is None else size)
        return tuple(found)

    def _shape(
        self, value: Value | None, shapes: Mapping[Value, Shape], kept: Counts
    ) -> tuple[int, ...]:
        known = shapes.get(value) if value is not None else None
        if known is None:
            return self._shape_of(value) or UNKNOWN_SHAPE
        return tuple(s if isinstance(s, int) else round(s.factor * s.length(kept)) for s in known)

    def _add_constants(self, analysis: Analysis, *, in_bytes: bool) -> None:
        """Each constant once, and once more for each way in which its uses cut it."""
        whole = count(analysis.model)
        rest = whole.weight_bytes if in_bytes else whole.parameters
        for constant in shared_constants(analysis, self._lengths):
            unit = constant.item_bytes if in_bytes else 1
            rest -= constant.elements * unit

            def item(kept: Counts, constant: SharedConstant = constant, unit: int = unit) -> int:
                return unit * constant.needed(kept)

            self._add(item, constant.dims())
        self._add(lambda kept: rest, ())

    def _add_kernels(self, analysis: Analysis, kernels: Sequence[KernelCost]) -> None:
        values = {v.name: v for v in analysis.axes if v.const is None}
        nodes = {node.label: node for node in analysis.model.graph.all_nodes()}
        for kernel in kernels:
            lengths: dict[str, list[Length]] = {}
            for name in kernel.values:
                found = analysis.axes.get(values[name]) if name in values else None
                if found is not None:
                    lengths[name] = [self._lengths(axis) for axis in found]
            weights = self._weights(analysis, nodes.get(kernel.node))

            def item(
                kept: Counts,
                kernel: KernelCost = kernel,
                lengths: Mapping[str, list[Length]] = lengths,
                weights: list[Length] = weights,
            ) -> int:
                sizes = {
                    name: (tuple(length.full for length in own), _sizes(own, kept))
                    for name, own in lengths.items()
                }
                return kernel.cost(sizes, _sizes(weights, kept) if weights else None)

            every = itertools.chain(weights, *lengths.values())
            self._add(item, (dim for length in every for dim in length.dims))

    def _weights(self, analysis: Analysis, node: Node | None) -> list[Length]:
        """Of a node's second input, where that is a constant whose axes are followed."""
        if node is None or Use(node, 1) not in analysis.parameters:
            return []
        second = node.inputs[1]
        axes = _node_axes(analysis, node).get(second) if second is not None else None
        return [self._lengths(axis) for axis in axes or ()]


def _sizes(lengths: Sequence[Length], kept: Counts) -> tuple[int, ...]:
    return tuple(length(kept) for length in lengths)


@dataclass(frozen=True)
class SharedConstant:
    """A constant and the ways in which nodes that read it cut it, each once.

    Each way is blocks of lengths. `stays` tells that something, a graph output for one, needs
    it whole.
    """

    value: Value
    elements: int
    item_bytes: int
    variants: tuple[tuple[tuple[Length, ...], ...], ...]
    stays: bool

    def dims(self) -> Iterator[Dim]:
        """What its axes consist of, some of it more than once."""
        for blocks in self.variants:
            for block in blocks:
                for length in block:
                    yield from length.dims

    def needed(self, kept: Counts) -> int:
        """Elements of it and of its parts that are needed."""
        needed = [
            sum(math.prod(length(kept) for length in block) for block in blocks)
            for blocks in self.variants
        ]
        cut = sum(n for n in needed if n != self.elements)
        whole = self.stays or self.elements in needed
        return cut + (self.elements if whole else 0)

    def growth(self, kept: Counts) -> int:
        """Elements that are needed besides those that it has."""
        return self.needed(kept) - self.elements


def shared_constants(analysis: Analysis, lengths: _Lengths | None = None) -> list[SharedConstant]:
    """All constants whose axes are followed, as nodes share them."""
    lengths = _Lengths() if lengths is None else lengths
    variants: dict[Value, dict[tuple[tuple[Length, ...], ...], None]] = defaultdict(dict)
    sizes: dict[Value, tuple[int, int]] = {}
    tracked: Counter[Value] = Counter()
    for parameter in analysis.parameters.values():
        blocks = tuple(tuple(lengths(a) for a in block) for block in parameter.blocks)
        variants[parameter.value][blocks] = None
        tensor = parameter.tensor
        sizes[parameter.value] = tensor.size, tensor.nbytes // max(tensor.size, 1)
        tracked[parameter.value] += 1
    return [
        SharedConstant(value, *sizes[value], tuple(uses), tracked[value] < len(value.uses))
        for value, uses in variants.items()
    ]


class _Lengths:
    """The length of each axis, once."""

    def __init__(self) -> None:
        self._known: dict[Axis, Length] = {}

    def __call__(self, axis: Axis) -> Length:
        axis = resolve(axis)
        known = self._known.get(axis)
        if known is None:
            known = self._known[axis] = Length(axis)
        return known


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
