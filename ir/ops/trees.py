"""Decision trees inside the compiler: rows are independent of each other."""

from __future__ import annotations

from ..axes.node_axes import NodeAxes
from ..stand_ins import TREE_SUMS
from .records import rule


@rule(TREE_SUMS[1], domain=TREE_SUMS[0])
def tree_sums(r: NodeAxes) -> None:
    rows, features = r.axes(0)
    r.lock(features, "trees name features by number")
    r.set((rows, r.literal(int(r.get("targets", 1)), "targets of trees")))
