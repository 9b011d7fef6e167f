"""Decision trees: each row walks down every tree, by tables that compilation has checked."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import tirx

from .....ir.stand_ins import TREE_SUMS
from ...graph.definitions.trees import MODES
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from .base import (
    Array,
    OperatorCall,
    all_of,
    any_of,
    cell,
    equal,
    index_of,
    limited,
    nest,
    number,
    rule,
    select,
)

_COMPARE: dict[str, Callable[[Expr, Expr], Expr]] = {
    "BRANCH_LEQ": lambda x, y: x <= y,
    "BRANCH_LT": lambda x, y: x < y,
    "BRANCH_GTE": lambda x, y: x >= y,
    "BRANCH_GT": lambda x, y: x > y,
    "BRANCH_EQ": equal,
    "BRANCH_NEQ": lambda x, y: any_of(x < y, x > y, tirx.isnan(x), tirx.isnan(y)),
}


@rule(TREE_SUMS[1], domain=TREE_SUMS[0])
def tree_sums(call: OperatorCall) -> None:
    """Inputs: rows of features; of each node feature, mode, split, successors, and whether NaN
    takes the first; of each tree root and depth; of each leaf the first contribution and their
    number; targets and weights of contributions.
    """
    targets, aggregate = int(call.node.get("targets", 1)), str(call.node.get("aggregate", "SUM"))
    modes, missing = call.known(2, "its modes"), call.known(6, "its missing values")
    used = sorted({int(m) for m in np.unique(modes) if m >= 0})
    tracks = bool(missing.any())
    start = {"MIN": math.inf, "MAX": -math.inf}.get(aggregate, 0.0)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, feature, mode, split, yes, no, tracked, roots, depths, first, count, *pairs = xs
        target, weight = pairs
        y, dtype = ys[0], ys[0].dtype
        contributions = min(target.size, weight.size)

        def goes(node: Expr, value: Expr) -> Expr:
            """Whether a row takes a node's first successor."""
            bound = split.at(node)
            holds: Expr = False
            for code in used:
                own = _COMPARE[MODES[code]](value, bound)
                holds = any_of(
                    holds, own if len(used) == 1 else all_of(equal(mode.at(node), code), own)
                )
            if not tracks:
                return holds
            return any_of(holds, all_of(tirx.isnan(value), equal(tracked.at(node), 1)))

        with k.loop(x.shape[0], "row") as row:
            with nest(k, (targets,), "t") as (t,):
                y.store(number(start, dtype), (row, t))
            with k.loop(roots.size, "tree") as tree:
                place = cell(k, "int32", roots.at(tree), "node")
                with k.loop(depths.at(tree), "step"):
                    node = limited(k, place.get(), 0, feature.size)
                    value = x[row, feature.at(node)]
                    place.set(select(goes(node, value), yes.at(node), no.at(node)))
                leaf = limited(k, place.get(), 0, feature.size)
                with k.loop(count.at(leaf), "c") as c:
                    at = limited(k, first.at(leaf) + c, 0, contributions)
                    own = index_of(target.at(at))
                    y.store(_joined(aggregate, y[row, own], weight.at(at)), (row, own))
            with nest(k, (targets,), "f") as (t,):
                y.store(_finished(aggregate, y[row, t], roots.size, start, dtype), (row, t))

    call.loops(body, key=(tuple(used), tracks))


def _joined(aggregate: str, total: Expr, weight: Expr) -> Expr:
    if aggregate == "MIN":
        return tirx.min(total, weight)
    return tirx.max(total, weight) if aggregate == "MAX" else total + weight


def _finished(aggregate: str, total: Expr, trees: int, start: float, dtype: str) -> Expr:
    """What a target's sum becomes; nothing came to one that has its first value."""
    if aggregate == "AVERAGE":
        return total / number(trees, dtype)
    if aggregate == "SUM":
        return total
    return select(equal(total, number(start, dtype)), number(0, dtype), total)
