"""The tables of rules, one per operator: what its results' shapes and elements are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import TypeVar

from onnx import TensorProto

from ..errors import RuleError, SecateurError
from ..graph import Node, normalize_domain
from ..stand_ins import INTERNAL
from .facts import INTEGERS, LIMIT, Contents, Facts, Misfit, Shape

ShapeRule = Callable[[Node, Facts], Sequence["Shape | None"]]
"""The shapes of a node's results; None for those of which nothing is known."""

ContentsRule = Callable[[Node, Facts], Sequence["Contents | None"]]
"""The elements of a node's results that are small integer tensors, likewise."""

_shape_rules: dict[str, ShapeRule] = {}
_contents_rules: dict[str, ContentsRule] = {}


def shape_rule(*op_types: str) -> Callable[[ShapeRule], ShapeRule]:
    """Register how some operators, the standard's or those inside the compiler, make shapes."""

    def register(function: ShapeRule) -> ShapeRule:
        _enter(_shape_rules, op_types, function)
        return function

    return register


def contents_rule(*op_types: str) -> Callable[[ContentsRule], ContentsRule]:
    """Register how some operators of the standard domain compute small integers."""

    def register(function: ContentsRule) -> ContentsRule:
        _enter(_contents_rules, op_types, function)
        return function

    return register


_Rule = TypeVar("_Rule")
_Found = TypeVar("_Found")


def _enter(table: dict[str, _Rule], op_types: Sequence[str], function: _Rule) -> None:
    for op_type in op_types:
        if op_type in table:
            raise ValueError(f"{op_type} has two rules")
        table[op_type] = function


@cache
def shape_rules() -> Mapping[str, ShapeRule]:
    """All shape rules by operator."""
    _load()
    return MappingProxyType(_shape_rules)


@cache
def contents_rules() -> Mapping[str, ContentsRule]:
    """All rules for elements by operator."""
    _load()
    return MappingProxyType(_contents_rules)


def _load() -> None:
    for module in ("contents", "products", "shapes", "spatial"):
        import_module(f".{module}", __package__)


def may_have_rules(node: Node) -> bool:
    """Whether the node's operator is the standard's, or one inside the compiler."""
    return normalize_domain(node.domain) in ("", INTERNAL)


def find_shapes(node: Node, facts: Facts) -> Sequence[Shape | None]:
    """What the operator's rule says of the shapes of a node's results; nothing without one."""
    return _apply(shape_rules(), node, facts)


def find_contents(node: Node, facts: Facts) -> Sequence[Contents | None]:
    """The same of their elements."""
    if node.op_type not in contents_rules() or not _may_hold_sizes(node):
        return ()
    return _apply(contents_rules(), node, facts)


def _may_hold_sizes(node: Node) -> bool:
    """Whether the first result is a small tensor of integers, as far as is known."""
    output = node.output(0)
    if output is None or output.dtype not in (*INTEGERS, TensorProto.UNDEFINED):
        return False
    return math.prod(size for size in output.shape or () if isinstance(size, int)) <= LIMIT


def _apply(
    table: Mapping[str, Callable[[Node, Facts], Sequence[_Found | None]]],
    node: Node,
    facts: Facts,
) -> Sequence[_Found | None]:
    rule = table.get(node.op_type) if may_have_rules(node) else None
    if rule is None:
        return ()
    try:
        return rule(node, facts)
    except Misfit:
        return ()
    except SecateurError:
        raise
    except Exception as error:
        raise RuleError.of(node.label, node.op_type, rule, error) from error
