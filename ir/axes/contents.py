"""Small integer tensors by content: what a shape computation says about axes.

A *content* is an object array whose elements are ints, `Size` expressions over axes,
or None where nothing is known. Shape, Gather, Concat, Mul and the like compute with
contents, so that a Reshape knows which of its target's elements follow a pruned axis
by themselves and which have to be rewritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from .dims import Axis, axis_size
from .selection import Selection

Element = Union[int, "Size", None]
Content = npt.NDArray[Any]

CONTENT_LIMIT = 1024
"""Elements above which an integer tensor isn't followed by content."""

SIZE_LIMIT = 256
"""Operations above which a size isn't followed."""


@dataclass(frozen=True, eq=False)
class Size:
    """An integer that depends on the sizes of axes.

    `axis` for the size of an axis itself, else `compute` applied to `arguments`.
    """

    axis: Axis | None = None
    compute: Callable[..., int] | None = None
    arguments: tuple[Element, ...] = ()

    def value(self, selection: Selection | None = None) -> int | None:
        """The integer under a selection (None: nothing removed), or None if unknown."""
        if self.axis is not None:
            return axis_size(self.axis) if selection is None else selection.size(self.axis)
        values = [evaluate(a, selection) for a in self.arguments]
        if any(v is None for v in values):
            return None
        assert self.compute is not None
        try:
            return self.compute(*values)
        except ZeroDivisionError:
            return None

    @property
    def operations(self) -> int:
        """How many computations of sizes it takes, those in common counted each time."""
        return 1 + sum(a.operations for a in self.arguments if isinstance(a, Size))

    def axes(self) -> list[Axis]:
        """The axes whose sizes it depends on."""
        if self.axis is not None:
            return [self.axis]
        return [axis for a in self.arguments if isinstance(a, Size) for axis in a.axes()]


def evaluate(element: Element, selection: Selection | None = None) -> int | None:
    """An element as a number, None where it is unknown."""
    return element.value(selection) if isinstance(element, Size) else element


def evaluate_all(content: Content, selection: Selection | None = None) -> list[int | None]:
    return [evaluate(e, selection) for e in content.ravel()]


def content_of(array: npt.NDArray[Any]) -> Content | None:
    """The content of a constant, None where it isn't a small integer or bool tensor."""
    if array.dtype.kind not in "iub" or array.size > CONTENT_LIMIT:
        return None
    content = np.empty(array.size, object)
    content[:] = [int(x) for x in array.ravel()]
    return content.reshape(array.shape)


def shape_content(axes: tuple[Axis, ...]) -> Content:
    """The content of `Shape` of a value with these axes."""
    content = np.empty(len(axes), object)
    for index, axis in enumerate(axes):
        content[index] = 1 if axis == ((),) else Size(axis)
    return content


def apply_elementwise(compute: Callable[..., int], *operands: Content) -> Content:
    """Broadcast `compute` over contents."""

    def element(*arguments: Element) -> Element:
        if compute is choose and isinstance(arguments[0], int):
            return arguments[1] if arguments[0] else arguments[2]
        if any(isinstance(a, Size) for a in arguments):
            return Size(compute=compute, arguments=arguments)
        if any(a is None for a in arguments):
            return None
        try:
            return compute(*arguments)
        except ZeroDivisionError:
            return None

    return np.asarray(np.frompyfunc(element, len(operands), 1)(*operands), object)


def is_small(content: Content) -> bool:
    """Whether all elements take few computations, so that they can be followed."""
    return all(e.operations <= SIZE_LIMIT for e in content.ravel() if isinstance(e, Size))


def depends_on_axes(content: Content) -> list[Axis]:
    return [axis for e in content.ravel() if isinstance(e, Size) for axis in e.axes()]


def truncated_divide(a: int, b: int) -> int:
    """Integer division as ONNX's Div: towards zero."""
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def multiply_all(*factors: int) -> int:
    return math.prod(factors)


def equal(a: int, b: int) -> int:
    return int(a == b)


def greater(a: int, b: int) -> int:
    return int(a > b)


def less(a: int, b: int) -> int:
    return int(a < b)


def choose(condition: int, a: int, b: int) -> int:
    """Where."""
    return a if condition else b
