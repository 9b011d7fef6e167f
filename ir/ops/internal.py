"""Operators inside the compiler, which no model has."""

from __future__ import annotations

from ..axes.node_axes import NodeAxes
from ..stand_ins import BLOCK_PRODUCT, REQUIRE, TREE_SUMS
from .records import Trait, rule


@rule(REQUIRE[1], domain=REQUIRE[0], traits=Trait.SAME_SHAPE)
def require(r: NodeAxes) -> None:
    """The first operand, where all others hold: truth values of its first axes, or single ones."""
    axes = r.axes(0)
    for index in range(1, len(r.node.inputs)):
        for own, other in zip(axes, r.axes(index), strict=False):
            r.unify(own, other)
    r.set(axes)


@rule(TREE_SUMS[1], domain=TREE_SUMS[0])
def tree_sums(r: NodeAxes) -> None:
    """Rows are independent of each other."""
    rows, features = r.axes(0)
    r.lock(features, "trees name features by number")
    r.set((rows, r.literal(int(r.get("targets", 1)), "targets of trees")))


@rule(BLOCK_PRODUCT[1], domain=BLOCK_PRODUCT[0])
def block_product(r: NodeAxes) -> None:
    """Rows are independent of each other."""
    *rows, depth = r.axes(0)
    r.lock(depth, "its weights are packed in blocks")
    columns, *_ = r.axes(1)
    r.lock(columns, "its weights are packed in blocks")
    r.set((*rows, columns))
