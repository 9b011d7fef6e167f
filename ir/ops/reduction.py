"""Reductions, and operators that rank or scan along an axis."""

from __future__ import annotations

from ..axes.dims import ONE
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from .records import Trait, rule

ADDITIVE = ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare")
"""Reductions for which a removed index and one that is zero give the same result.

At removed indices values that inputs have a part in are zero, constants aren't.
"""


def normalized(axis: int, rank: int) -> int:
    """A possibly negative axis number as a position."""
    if not -rank <= axis < rank:
        raise Opaque(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank


def reduced_axes(r: NodeAxes, rank: int, position: int = 1) -> set[int]:
    """Axes from the attribute `axes` or, in newer opsets, from an input."""
    axes = r.get("axes")
    if axes is None and r.has(position):
        axes = r.numbers(position)
        if axes is None:
            raise Opaque("the axes are known only at run time")
    if axes is None or len(axes) == 0:
        return set() if r.get("noop_with_empty_axes", 0) else set(range(rank))
    return {normalized(a, rank) for a in axes}


@rule("ReduceSum", "ReduceMax", "ReduceMean", "ReduceMin", traits=Trait.HOMOGENEOUS)
@rule("ReduceL1", "ReduceL2", traits=Trait.HOMOGENEOUS | Trait.NON_NEGATIVE)
@rule("ReduceSumSquare", traits=Trait.ZERO_AT_ZERO | Trait.NON_NEGATIVE)
@rule("ReduceProd", traits=Trait.ZERO_AT_ZERO)
@rule("ReduceLogSum", "ReduceLogSumExp")
def reduce(r: NodeAxes) -> None:
    axes = r.axes(0)
    reduced = reduced_axes(r, len(axes))
    is_statistic = r.node.op_type == "ReduceMean" and r.analysis.prune_normalized
    if r.node.op_type not in ADDITIVE and not is_statistic:
        r.lock_all([axes[i] for i in reduced], f"{r.node.op_type} over this axis")
    for i in reduced:
        r.contract(axes[i], 0)
    if r.node.input(0) in r.analysis.lasting:
        why = f"{r.node.op_type} over this axis of what isn't zero for channels that are zero"
        r.lock_all([axes[i] for i in reduced], why)
    keep = r.get("keepdims", 1)
    r.set(tuple(ONE if i in reduced else a for i, a in enumerate(axes) if keep or i not in reduced))


@rule("ArgMax", "ArgMin", traits=Trait.NON_NEGATIVE)
def arg_reduce(r: NodeAxes) -> None:
    axes = r.axes(0)
    axis = normalized(r.get("axis", 0), len(axes))
    r.lock(axes[axis], "the result is an index into this axis")
    r.set(_without(axes, axis, bool(r.get("keepdims", 1))))


def _without(axes: Axes, axis: int, keep: bool) -> Axes:
    return axes[:axis] + ((ONE,) if keep else ()) + axes[axis + 1 :]


@rule("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss", traits=Trait.INDEXES)
def loss(r: NodeAxes) -> None:
    """Each label says which class counts at its place; reduced are all places together."""
    axes, labels = r.axes(0), r.axes(1)
    places = (axes[0], *axes[2:])
    if len(places) != len(labels):
        raise Opaque(f"ranks {len(axes)} and {len(labels)} don't fit")
    r.unify_all(places, labels)
    r.lock(axes[1], "classes are chosen by labels")
    if r.has(2):
        r.unify(r.axes(2)[0], axes[1])
    if r.get("reduction", "mean") == "none":
        r.set(places)
    else:
        r.lock_all(places, "all losses are reduced to one number")
        r.set(())
    if len(r.node.outputs) > 1:
        r.set(axes, 1)


@rule("TopK")
def top_k(r: NodeAxes) -> None:
    axes = r.axes(0)
    axis = normalized(r.get("axis", -1), len(axes))
    r.lock(axes[axis], "elements are ranked along this axis")
    shape = r.out_shape()
    size = shape[axis] if shape is not None else None
    kept = r.literal(size if isinstance(size, int) else None, "the k largest elements")
    for output in (0, 1):
        r.set((*axes[:axis], kept, *axes[axis + 1 :]), output)


@rule("CumSum", "CumProd", traits=Trait.SAME_SHAPE | Trait.ZERO_AT_ZERO)
def cumulative(r: NodeAxes) -> None:
    axes = r.axes(0)
    axis = r.numbers(1)
    locked = axes if axis is None else (axes[normalized(axis[0], len(axes))],)
    r.lock_all(locked, "elements along this axis accumulate")
    r.set(axes)


@rule("LogSoftmax", traits=Trait.SAME_SHAPE)
@rule("Hardmax", "Softmax", traits=Trait.SAME_SHAPE | Trait.NON_NEGATIVE)
def softmax(r: NodeAxes) -> None:
    axes = r.axes(0)
    if r.opset >= 13:
        over = [normalized(r.get("axis", -1), len(axes))]
    else:  # everything from `axis` on is one axis
        over = list(range(normalized(r.get("axis", 1), len(axes)), len(axes)))
    r.lock_all([axes[i] for i in over], f"{r.node.op_type} over this axis")
    r.set(axes)
