"""Tables of what is known of operators, filled by the families' modules."""

from __future__ import annotations

from collections.abc import Callable

from ..axes.node_axes import NodeAxes
from ..graph import Node, Value

Rule = Callable[[NodeAxes], None]
RuleTable = dict[tuple[str, str], Rule]
ShapeOf = Callable[[Value | None], tuple[int, ...]]
Macs = Callable[[Node, ShapeOf], int]

MICROSOFT = "com.microsoft"

rule_table: RuleTable = {}
macs_table: dict[tuple[str, str], Macs] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register the axes rule of some operators of a domain."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            if (domain, op_type) in rule_table:
                raise ValueError(f"{domain}::{op_type} has two axes rules")
            rule_table[domain, op_type] = function
        return function

    return register


def macs(*op_types: str, domain: str = "") -> Callable[[Macs], Macs]:
    """Register how many multiply-accumulates some operators take."""

    def register(function: Macs) -> Macs:
        for op_type in op_types:
            macs_table[domain, op_type] = function
        return function

    return register
