"""What an analysis finds out: axes of values, contents, parameters, what is to be rewritten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto

from ..graph import Graph, Node, Use, Value
from ..model import Model
from ..symbolic.facts import Contents, constant_contents
from ..tensor import Tensor
from . import dims
from .balance import Family
from .dims import Axis, Lock
from .rewriting import Rewrite, Rewriting
from .sizes import AxisSizes, axes_of_all, evaluate_all

Axes = tuple[Axis, ...]


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


@dataclass(frozen=True)
class Expectation:
    """The elements of a shape and what each has to be: an axis's size, a number, or anything."""

    content: Contents
    required: Sequence[Axis | int | None]
    why: Lock


@dataclass
class Analysis:
    """Axes of all values of a model's main graph, and what pruning them has to rewrite."""

    model: Model
    axes: dict[Value, Axes | None] = field(default_factory=dict)
    contents: dict[Value, Contents] = field(default_factory=dict)
    sizes: AxisSizes = field(default_factory=AxisSizes)
    parameters: dict[Use, Parameter] = field(default_factory=dict)
    families: list[Family] = field(default_factory=list)
    views: dict[Value, Axes] = field(default_factory=dict)
    """Axes of constants that are only cut into parts: their uses share them."""
    fixed: set[Value] = field(default_factory=set)
    """Values computed from constants only: at removed indices they needn't be zero."""
    lasting: set[Value] = field(default_factory=set)
    """Values that may be other than zero where all channels that they depend on are zero."""
    stiff: list[Node] = field(default_factory=list)
    """Nodes of constants only that lock axes, which folding them would free."""
    expected: list[Expectation] = field(default_factory=list)
    """What computed sizes have to be."""
    rewrites: list[Rewrite] = field(default_factory=list)
    unruled: list[tuple[Node, str]] = field(default_factory=list)
    prune_normalized: bool = False
    follow: Callable[[Graph], None] = lambda graph: None
    """Runs the rules of a subgraph's nodes."""
    watch: Callable[[Any, str | None], None] | None = None
    """Called after every node with its `NodeAxes`, and with why it is opaque, if it is."""

    def is_fixed(self, value: Value | None) -> bool:
        """Whether no input of the model has a part in a value's elements."""
        return value is None or value in self.fixed or self.model.constant(value) is not None

    def all_axes(self) -> list[Axis]:
        """Every axis of every value and parameter."""
        found = [axis for axes in self.axes.values() if axes for axis in axes]
        for parameter in self.parameters.values():
            found.extend(axis for block in parameter.blocks for axis in block)
        return found


def contents_of_value(analysis: Analysis, value: Value) -> Contents | None:
    """Elements of a value: computed by a rule, or of a small integer constant."""
    found = analysis.contents.get(value)
    return constant_contents(analysis.model, value) if found is None else found


def literal_axes(value: Value, why: Lock, symbols: dict[str, Axis] | None = None) -> Axes | None:
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


def freeze(analysis: Analysis, use: Use | None, value: Value, why: Lock) -> None:
    """Keep the elements of a value as they are: an operator reads them as data, not as sizes.

    Where all elements are known before the model runs, pruning replaces the use by a constant
    if it would change them; otherwise the axes that the elements depend on are locked.
    """
    content = analysis.contents.get(value)
    if content is None:
        return
    axes = [axis for axis in axes_of_all(content) if not dims.is_locked(axis)]
    if not axes:
        return
    known = evaluate_all(content)
    if use is None or any(x is None for x in known) or value.dtype == TensorProto.UNDEFINED:
        for axis in axes:
            dims.lock(axis, why)
        return
    frozen = np.array(known, np.int64).reshape(content.shape)

    def replace(rewriter: Rewriting) -> None:
        if evaluate_all(content, rewriter.selection) != known:
            assert isinstance(use.user, Node)
            rewriter.set_constant(use.user, use.position, frozen, value.dtype)

    analysis.rewrites.append(replace)
