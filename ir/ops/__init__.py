"""What secateur knows of each operator, one family per file (see `records`)."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

from ..graph import Node, normalize_domain
from ..plugins import plugins
from .records import Macs, Operator, Rule, Trait, table

FAMILIES = (
    "attention",
    "control",
    "convolution",
    "elementwise",
    "indexing",
    "internal",
    "layout",
    "matmul",
    "normalization",
    "quantized",
    "recurrent",
    "reduction",
    "shapes",
    "signal",
    "spatial",
    "unruled",
)


def operator(op_type: str, domain: str = "", version: int | None = None) -> Operator | None:
    """The record of an operator in a version, by default the newest; None where there is none."""
    found = operators().get((domain, op_type), ())
    return next((o for o in found if version is None or o.holds_in(version)), None)


def operator_of(node: Node, version: int | None = None) -> Operator | None:
    """The record of a node's operator."""
    return operator(node.op_type, normalize_domain(node.domain), version)


def traits(node: Node) -> Trait:
    """The traits of a node's operator; none where it is unknown."""
    found = operator_of(node)
    return Trait.NONE if found is None else found.traits


@functools.cache
def with_trait(trait: Trait, domain: str = "") -> frozenset[str]:
    """The operators of a domain that have any of these traits, in any version."""
    return frozenset(
        op_type
        for (of, op_type), records in operators().items()
        if of == domain and any(trait & o.traits for o in records)
    )


@functools.cache
def operators() -> dict[tuple[str, str], list[Operator]]:
    """All records by domain and operator type, later versions first."""
    for family in FAMILIES:
        import_module(f".{family}", __name__)
    plugins("operators", ModuleType)
    return table


__all__ = [
    "Macs",
    "Operator",
    "Rule",
    "Trait",
    "operator",
    "operator_of",
    "operators",
    "traits",
    "with_trait",
]
