"""Facts of operators' ONNX schemas, cached since passes ask for them at every node."""

from __future__ import annotations

from functools import cache

from onnx import defs

from .ops import Trait, operator


@cache
def is_deterministic(op_type: str, domain: str, version: int) -> bool:
    """Whether a standard operator's results depend on its inputs and attributes only.

    False for unknown operators and for those with subgraphs.
    """
    if domain not in ("", "ai.onnx.ml") or not defs.has(op_type, version, domain):
        return False
    attributes = defs.get_schema(op_type, version, domain).attributes.values()
    known = operator(op_type, domain)
    if known is None or any(a.type == defs.OpSchema.AttrType.GRAPH for a in attributes):
        return False
    return Trait.RANDOM not in known.traits


@cache
def input_names(op_type: str, domain: str, version: int) -> tuple[str, ...]:
    """What an operator of an operator set calls its inputs; none where it isn't known."""
    if not defs.has(op_type, version, domain):
        return ()
    return tuple(given.name for given in defs.get_schema(op_type, version, domain).inputs)
