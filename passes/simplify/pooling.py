"""Means over all spatial axes as what they are: global pooling."""

from __future__ import annotations

from onnx import TensorProto

from ...ir.graph import Node, Value
from .rewriter import Rewriter, RuleSet
from .shapes import integers

RULES = RuleSet()

_OF_NORMALIZATION = frozenset({"Add", "Div", "Mul", "Pow", "Sqrt", "Sub"})
"""Readers of a mean that make it part of a normalization, which has an operator of its own."""


@RULES.on("ReduceMean")
def pool_instead_of_mean(node: Node, rewriter: Rewriter) -> bool:
    """ReduceMean over the spatial axes of images is GlobalAveragePool.

    That has integer kernels, and says what it is. Without `keepdims` a mean stays, since
    pooling would need a reshape after it.
    """
    source, output = node.input(0), node.output(0)
    if source is None or output is None or source.dtype != TensorProto.FLOAT:
        return False
    axes, rank = integers(rewriter, node, "axes", 1), source.rank
    if rank is None or rank < 4 or not axes:
        return False
    if sorted(axis % rank for axis in axes) != list(range(2, rank)):
        return False
    if not node.get("keepdims", 1) or _is_of_normalization(output):
        return False
    new = rewriter.add(node, "GlobalAveragePool", [source], type=output.type, hint=node.name)
    return rewriter.replace(output, new)


def _is_of_normalization(mean: Value) -> bool:
    return any(user.op_type in _OF_NORMALIZATION for user in mean.users)
