"""What a rule may ask for when the axes of its node lose indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from ..graph import Node
from ..symbolic.facts import Contents
from .dims import Axis
from .selection import Indices, Selection


class Rewriting(Protocol):
    """A selection of indices being applied to a model; whoever applies it implements this."""

    @property
    def selection(self) -> Selection: ...

    def size(self, axis: Axis) -> int:
        """How many indices of an axis are kept."""

    def indices(self, axis: Axis) -> Indices | None:
        """The kept indices of an axis; None where all are."""

    def changes(self, *axes: Axis) -> bool:
        """Whether any of the axes loses an index."""

    def set_constant(
        self, node: Node, index: int, array: npt.NDArray[Any], dtype: int | None = None
    ) -> None:
        """Let input `index` of a node read a new constant; other readers keep the old one."""

    def match(
        self, node: Node, index: int, content: Contents, required: Sequence[Axis | int | None]
    ) -> None:
        """Make the elements of an integer input what they have to be under the selection.

        Each is the size of an axis, a number, or None where any will do; `content` is what
        the elements say.
        """

    def match_attribute(
        self, node: Node, name: str, content: Contents, required: Sequence[Axis | int | None]
    ) -> None:
        """The same for an attribute."""


Rewrite = Callable[[Rewriting], None]
"""Changes one node for a selection."""
