"""One record for each operator: what is known of it, and what other parts read of that.

The families' modules fill the table. Where versions of an operator differ in more than a
rule can tell from its node, each range of versions has a record of its own.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

from ..axes.node_axes import NodeAxes
from ..graph import Node, Value

Rule = Callable[[NodeAxes], None]
"""Relates the axes of a node's operands and results."""

ShapeOf = Callable[[Value | None], tuple[int, ...]]
Macs = Callable[[Node, ShapeOf], int]
"""The multiply-accumulates of a node, from the shapes of its values."""

MICROSOFT = "com.microsoft"
ML = "ai.onnx.ml"


class Trait(enum.Flag):
    """Properties that hold for every node of an operator, whatever its attributes."""

    NONE = 0

    SAME_SHAPE = enum.auto()
    """The first result has the shape of the first operand."""
    POINTWISE = enum.auto()
    """Each element of the result is a function of the element at the same place of the first
    operand, and of scalars."""
    BROADCASTS = enum.auto()
    """Each element of the result is a function of the elements at the same place of all
    operands, broadcast."""
    MOVES = enum.auto()
    """Every element of a result is an element of the first operand."""

    IN_ORDER = enum.auto()
    """The result has the elements of the first operand, in their order, in another shape."""

    NON_NEGATIVE = enum.auto()
    """No element of the first result is below zero."""

    ZERO_AT_ZERO = enum.auto()
    """The result is zero where all operands are."""
    ZERO_AT_ANY_ZERO = enum.auto()
    """The result is zero where any operand is."""
    ZERO_AT_FIRST_ZERO = enum.auto()
    """The result is zero where the first operand is and the others aren't."""

    HOMOGENEOUS = enum.auto()
    """With a positive factor on the first operand the first result has that factor; the same
    with one for each index of an axis that both have."""
    LINEAR = enum.auto()
    """The first result is linear in the first operand, and what happens along an axis that both
    have is the same for each index: to mix them before is to mix them behind. Of what draws at
    random this holds where it draws nothing."""

    WEIGHTED = enum.auto()
    """Weights make the channels of the result, and may make them zero."""
    INNER_AXES = enum.auto()
    """Computes values with axes that neither operands nor results show."""
    STATEFUL = enum.auto()
    """Works step by step, and carries a state from one step to the next."""

    INDEXES = enum.auto()
    """Elements of an operand say where others are read or written."""
    COUNTED = enum.auto()
    """Only a run tells the size of a result; it is of the order of the operands'."""
    ENLARGES = enum.auto()
    """A result may be far larger than all operands."""
    RANDOM = enum.auto()
    """Results may differ from run to run."""


_IMPLIED = {  # what implies others is before them
    Trait.POINTWISE: Trait.SAME_SHAPE,
    Trait.IN_ORDER: Trait.MOVES | Trait.LINEAR,
    Trait.MOVES: Trait.HOMOGENEOUS,
    Trait.LINEAR: Trait.HOMOGENEOUS,
    Trait.HOMOGENEOUS: Trait.ZERO_AT_ZERO,
    Trait.ZERO_AT_ANY_ZERO: Trait.ZERO_AT_ZERO,
}


@dataclasses.dataclass
class Operator:
    """What is known of an operator in the versions `since` to before `until`.

    `axes` is its axes rule, or why it has none. Without `macs` it takes no
    multiply-accumulates.
    """

    domain: str
    op_type: str
    axes: Rule | str
    traits: Trait = Trait.NONE
    macs: Macs | None = None
    since: int = 1
    until: int | None = None

    def holds_in(self, version: int) -> bool:
        return self.since <= version and (self.until is None or version < self.until)


table: dict[tuple[str, str], list[Operator]] = {}
"""All records by domain and operator type, later versions first."""


def rule(
    *op_types: str,
    domain: str = "",
    traits: Trait = Trait.NONE,
    since: int = 1,
    until: int | None = None,
) -> Callable[[Rule], Rule]:
    """Record operators that share an axes rule and traits."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            add(Operator(domain, op_type, function, traits, since=since, until=until))
        return function

    return register


def without_rule(
    because: str, *op_types: str, domain: str = "", traits: Trait = Trait.NONE
) -> None:
    """Record operators whose axes are not followed: all that they read and write is locked."""
    for op_type in op_types:
        add(Operator(domain, op_type, because, traits))


def add(operator: Operator) -> None:
    """Add a record to the table. Raises ValueError where versions have two."""
    for trait, implied in _IMPLIED.items():
        if trait in operator.traits:
            operator.traits |= implied
    records = table.setdefault((operator.domain, operator.op_type), [])
    for other in records:
        first, second = sorted((operator, other), key=lambda o: o.since)
        if first.until is None or first.until > second.since:
            raise ValueError(f"{operator.domain}::{operator.op_type} has two records")
    records.append(operator)
    records.sort(key=lambda o: -o.since)


def macs(*op_types: str, domain: str = "") -> Callable[[Macs], Macs]:
    """State how many multiply-accumulates operators take, which have records."""

    def register(function: Macs) -> Macs:
        for op_type in op_types:
            for record in table[domain, op_type]:
                record.macs = function
        return function

    return register
