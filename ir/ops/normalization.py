"""Normalizations. Removing an index of an axis that statistics are taken over changes the
result, so such axes are locked unless the caller asks for pruning them (`prune_normalized`);
statistics are then those of the kept indices."""

from __future__ import annotations

from ..axes import dims
from ..axes.dims import ONE, Axis
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from .elementwise import broadcast
from .records import MICROSOFT, Trait, rule
from .reduction import normalized

STATISTICS = "normalization over this axis"


@rule("BatchNormalization", traits=Trait.SAME_SHAPE | Trait.WEIGHTED)
def batch_normalization(r: NodeAxes) -> None:
    if r.get("training_mode", 0) or len([v for v in r.node.outputs if v is not None]) > 1:
        raise Opaque("training mode")
    axes = r.axes(0)
    channels = axes[1] if len(axes) > 1 else ONE
    for index in range(1, 5):
        _tie_vector(r, index, channels)
    r.set(axes)


@rule("InstanceNormalization", traits=Trait.SAME_SHAPE | Trait.WEIGHTED)
def instance_normalization(r: NodeAxes) -> None:
    axes = r.axes(0)
    r.lock_all(axes[2:], STATISTICS)
    for index in (1, 2):
        _tie_vector(r, index, axes[1])
    r.set(axes)


@rule("GroupNormalization", traits=Trait.SAME_SHAPE | Trait.WEIGHTED)
def group_normalization(r: NodeAxes) -> None:
    _group_normalization(r, "num_groups", channel_axis=1)


@rule("GroupNorm", domain=MICROSOFT)
def contrib_group_norm(r: NodeAxes) -> None:
    last = r.get("channels_last", 1)
    _group_normalization(r, "groups", channel_axis=-1 if last else 1)


def _group_normalization(r: NodeAxes, attribute: str, channel_axis: int) -> None:
    """Channels are groups times members; whole groups can go, members can't."""
    axes = r.axes(0)
    position = normalized(channel_axis, len(axes))
    channels, count = axes[position], int(r.get(attribute, 0))
    size = dims.axis_size(channels)
    if size is None or count < 1 or size % count:
        raise Opaque(f"{size} channels don't make {count} groups")
    groups = r.fresh(count, "groups")
    members = (
        r.fresh(size // count, "members")
        if r.analysis.prune_normalized
        else r.literal(size // count, STATISTICS)
    )
    r.unify(channels, dims.product([groups, members]))
    for index in (1, 2):
        parameter = r.axes(index)
        per_group = len(parameter) == 1 and dims.axis_size(parameter[0]) == count != size
        _tie_vector(r, index, groups if per_group else channels)
    r.lock_all([a for i, a in enumerate(axes) if i not in (0, position)], STATISTICS)
    r.rewrite(lambda rewriter: r.node.set(attribute, rewriter.size(groups)))
    r.set(axes)


@rule(
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    traits=Trait.SAME_SHAPE | Trait.WEIGHTED,
)
@rule("LayerNormalization", "SimplifiedLayerNormalization", domain=MICROSOFT)
def layer_normalization(r: NodeAxes) -> None:
    axes = r.axes(0)
    axis = normalized(r.get("axis", -1), len(axes))
    _normalize(r, axes[axis:], (0,))
    for index in (1, 2):
        if r.has(index):
            broadcast(r, [axes, r.axes(index)])
    r.set(axes)
    statistics = axes[:axis] + (ONE,) * (len(axes) - axis)
    for output in (1, 2):
        r.set(statistics, output)


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(r: NodeAxes) -> None:
    """input + skip (+ bias), normalized over the last axis; outputs 0 and 3 are full size."""
    axes = broadcast(r, [r.axes(0), r.axes(1)])
    _normalize(r, axes[-1:], (0, 1))
    for index in range(2, len(r.node.inputs)):
        if r.has(index):
            broadcast(r, [axes, r.axes(index)])
    r.set(axes)
    r.set(axes, 3)
    for output in (1, 2):
        r.set((*axes[:-1], ONE), output)


def _normalize(r: NodeAxes, axes: Axes, operands: tuple[int, ...]) -> None:
    if not r.analysis.prune_normalized:
        r.lock_all(axes, STATISTICS)
    for axis in axes:
        r.contract(axis, *operands)


@rule("LpNormalization", traits=Trait.SAME_SHAPE | Trait.ZERO_AT_ZERO)
def lp_normalization(r: NodeAxes) -> None:
    axes = r.axes(0)
    r.lock(axes[normalized(r.get("axis", -1), len(axes))], STATISTICS)
    r.set(axes)


@rule("LRN", traits=Trait.SAME_SHAPE | Trait.ZERO_AT_ZERO)
def local_response_normalization(r: NodeAxes) -> None:
    axes = r.axes(0)
    r.lock(axes[1], "normalization over neighbouring channels")
    r.set(axes)


@rule("MeanVarianceNormalization", traits=Trait.SAME_SHAPE | Trait.ZERO_AT_ZERO)
def mean_variance_normalization(r: NodeAxes) -> None:
    axes = r.axes(0)
    over = [normalized(a, len(axes)) for a in r.get("axes", [0, 2, 3])]
    r.lock_all([axes[i] for i in over], STATISTICS)
    r.set(axes)


def _tie_vector(r: NodeAxes, index: int, axis: Axis) -> None:
    """Tie a per-channel vector to an axis."""
    vector = r.axes(index)
    if len(vector) != 1:
        raise Opaque(f"input {index} has rank {len(vector)} instead of 1")
    r.unify(vector[0], axis)
