"""What secateur knows of each operator, one family per file: axes rule and cost.

A rule is a function of a `NodeAxes`; a cost a function of a node and of the shapes of
its values. Both are found by (domain, operator type) and read the node's opset where
versions differ.
"""

from __future__ import annotations

import functools
from importlib import import_module

from .registry import Macs, Rule, RuleTable, macs_table, rule_table

FAMILIES = (
    "attention",
    "control",
    "convolution",
    "elementwise",
    "indexing",
    "layout",
    "matmul",
    "normalization",
    "quantized",
    "recurrent",
    "reduction",
    "shapes",
    "signal",
    "spatial",
)


@functools.cache
def rules() -> RuleTable:
    """All axes rules by (domain, operator type)."""
    _load()
    return rule_table


@functools.cache
def macs() -> dict[tuple[str, str], Macs]:
    """All multiply-accumulate counts by (domain, operator type)."""
    _load()
    return macs_table


def _load() -> None:
    for family in FAMILIES:
        import_module(f".{family}", __name__)


__all__ = ["Macs", "Rule", "macs", "rules"]
