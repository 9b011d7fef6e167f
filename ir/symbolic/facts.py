"""What a rule may ask of the values that a node reads, and how it says that a node is misfit."""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from ..graph import Node, Value
from ..model import Model
from .expressions import (
    Expression,
    Size,
    is_nonnegative,
    leaves,
    mentions,
    range_of,
    unknown,
)
from .ranges import ANY, NATURAL, Range

Shape = tuple[Size, ...]

Contents = npt.NDArray[Any]
"""The elements of a small tensor of integers or truth values, each a `Size`."""

LIMIT = 1024
"""Elements up to which a tensor is followed: shapes, and tables of them, are short."""

HEAVIEST = 256
"""Weight of an expression above which nothing is computed with it: sizes in models are short."""

LARGEST_SCALE = 2.0**20
"""Scales that are greater lead from no size to one that a tensor has."""

INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)

EXACT: dict[int, int] = {TensorProto.FLOAT: 2**24, TensorProto.DOUBLE: 2**53}
"""Whole numbers up to which a type of floats holds each."""

_COUNTER = itertools.count()
"""Numbers of unknown sizes, unique over all analyses so that names never meet again."""


class Misfit(Exception):  # noqa: N818 - a rule's answer, not an error
    """Raised by a rule whose node breaks its operator's definition: nothing is known of it."""


class Facts:
    """What rules ask of the values that a node reads."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @cached_property
    def opset(self) -> int:
        return self.model.opset

    # Whoever runs the rules knows the values.

    def shape(self, value: Value | None) -> Shape | None:
        """The shape, in which unknown sizes are symbols of their own; None without a rank."""
        raise NotImplementedError

    def contents(self, value: Value | None) -> Contents | None:
        """The elements of a small integer tensor; None where nothing is known of them."""
        raise NotImplementedError

    # What follows from that.

    def elements(self, value: Value | None) -> list[Size] | None:
        """The elements of a vector, or of a scalar as a vector of one."""
        found = self.contents(value)
        return None if found is None or found.ndim > 1 else list(found.ravel())

    def integers(self, value: Value | None) -> list[int] | None:
        """The same where all of them are numbers."""
        found = self.elements(value)
        if found is None or not all(isinstance(x, int) for x in found):
            return None
        return [x for x in found if isinstance(x, int)]

    def numbers(self, value: Value | None) -> list[float] | None:
        """The elements of a short constant vector of floating-point numbers."""
        tensor = self.model.constant(value)
        if tensor is None or len(tensor.shape) != 1 or tensor.size > LIMIT or tensor.is_sparse:
            return None
        array = tensor.numpy()
        return [float(x) for x in array] if array.dtype.kind == "f" else None

    def whole_numbers(self, value: Value | None) -> list[Size] | None:
        """The elements, also where they are floats that sizes were cast to, or whole constants.

        Floats hold sizes exactly up to `EXACT`, which `within` has to find out of each.
        """
        found = self.elements(value)
        if found is not None or value is None or value.dtype not in EXACT:
            return found
        tensor, node = self.model.constant(value), value.producer
        if tensor is not None:
            array = tensor.numpy() if tensor.size <= LIMIT and not tensor.is_sparse else None
            if (
                array is None
                or array.ndim > 1
                or not np.all(np.abs(array) <= EXACT[TensorProto.FLOAT])
            ):
                return None
            whole = [int(x) for x in array.ravel()]
            return list(whole) if whole == array.ravel().tolist() else None
        if node is None or node.op_type != "Cast":
            return None
        sizes = self.elements(node.input(0))
        most = EXACT[value.dtype]
        exact = sizes is not None and all(is_size(s) and self.within(s, most) for s in sizes)
        return sizes if exact else None

    def axes(self, node: Node) -> list[int] | None:
        """The `axes` attribute, or input 1 in newer opsets."""
        axes = node.get("axes")
        return list(axes) if axes is not None else self.integers(node.input(1))

    def slice_bounds(self, node: Node) -> list[tuple[int, Size, Size, Size]] | None:
        """(axis, start, end, step) of every sliced axis; axes are not negative."""
        shape = self.shape(node.input(0))
        steps: list[Size] | None = None
        if "starts" in node.attributes:
            starts, ends, axes = node.get("starts"), node.get("ends", []), node.get("axes")
        else:
            starts, ends = self.elements(node.input(1)), self.elements(node.input(2))
            axes, steps = self.integers(node.input(3)), self.elements(node.input(4))
            if (axes is None and node.input(3)) or (steps is None and node.input(4)):
                return None
        if shape is None or starts is None or ends is None:
            return None
        axes = axes if axes is not None else list(range(len(starts)))
        steps = steps if steps is not None else [1] * len(starts)
        places = [position(axis, len(shape)) for axis in axes]
        if not len(places) == len(starts) == len(ends) == len(steps):
            raise Misfit("as many starts, ends, axes and steps")
        return list(zip(places, starts, ends, steps, strict=True))

    def counted(self, node: Node, most: Size) -> Size:
        """How many results the data lead a node to, at most so many."""
        return self.unknown(Range(0, range_of(most).high))

    def computed(self, node: Node, axis: int, most: Size | None = None) -> Size:
        """The size of an axis of a node's result that it computes of data, at most so large."""
        return self.unknown(Range(0, None if most is None else range_of(most).high))

    def as_size(self, element: Size, most: Size | None = None) -> Size:
        """A computed number as a size, at most so large; unknown if it may be none."""
        return element if is_size(element) else self.unknown()

    def uncertain(self, size: Size, most: Size | None = None) -> Size:
        """What stands for a size, at most so large, that only a run can compute."""
        return self.unknown()

    def within(self, size: Size, most: int) -> bool:
        """Whether a size is at most so large in each run that isn't refused."""
        high = range_of(size).high
        return high is not None and high <= most

    def unknown(self, range: Range = NATURAL) -> Expression:
        """A size, or with another range a number, about which nothing is known."""
        return unknown(next(_COUNTER), range)


def is_size(element: Size) -> bool:
    """Whether a computed number may be taken for a size, not for a mark such as -1.

    Arithmetic of sizes is; a choice, or what nothing is known of, may be anything.
    """
    if isinstance(element, int):
        return element >= 0
    return is_nonnegative(element) or not (
        mentions(element, "choose", "equal", "less", "long")
        or any(leaf.range.low is None or leaf.range.low < 0 for leaf in leaves(element))
    )


def unknown_elements(count: int) -> Contents:
    """A vector of numbers about which nothing is known."""
    return vector([unknown(next(_COUNTER), ANY) for _ in range(count)])


def position(axis: int, rank: int) -> int:
    """A possibly negative axis as a position among `rank` ones."""
    if not -rank <= axis < rank:
        raise Misfit(f"axis {axis} of {rank}")
    return axis % rank


def contents_of(array: npt.NDArray[Any]) -> Contents | None:
    """The elements of a constant; None where it isn't a small tensor of integers or truths."""
    if array.dtype.kind not in "iub" or array.size > LIMIT:
        return None
    contents = np.empty(array.size, object)
    contents[:] = [int(x) for x in array.ravel()]
    return contents.reshape(array.shape)


def constant_contents(model: Model, value: Value) -> Contents | None:
    """The same of a value that is a constant in every run."""
    tensor = model.constant(value)
    if tensor is None or tensor.size > LIMIT or tensor.is_sparse:
        return None
    if tensor.dtype == TensorProto.STRING:
        return None
    return contents_of(tensor.numpy())


def vector(elements: list[Size] | tuple[Size, ...]) -> Contents:
    """Elements as a vector."""
    result = np.empty(len(elements), object)
    result[:] = elements
    return result


def scalar(element: Size) -> Contents:
    result = np.empty((), object)
    result[()] = element
    return result
