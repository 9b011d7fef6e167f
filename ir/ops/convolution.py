"""Convolutions: x[N, I, ...] * w[O, I, ...] -> y[N, O, ...], grouped, depthwise, transposed."""

from __future__ import annotations

import math

from ..axes import dims
from ..axes.dims import ONE, Axis
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from ..graph import Node
from .records import MICROSOFT, ShapeOf, Trait, macs, rule

KERNEL = "positions in a kernel are not independent"
SPATIAL = "a window slides over this axis"


@rule("Conv", traits=Trait.WEIGHTED)
@rule("FusedConv", domain=MICROSOFT)
def conv(r: NodeAxes) -> None:
    convolution(r, x=0, w=1, bias=2)
    if r.has(3):  # FusedConv adds a residual
        y = r.analysis.axes[r.node.outputs[0]]  # type: ignore[index]
        assert y is not None
        r.unify_all(r.axes(3), y)


@rule("DeformConv", traits=Trait.WEIGHTED | Trait.INDEXES)
def deform_conv(r: NodeAxes) -> None:
    """A convolution at positions moved by offsets, which all channels share."""
    if r.get("offset_group", 1) != 1:
        raise Opaque("offsets of their own for groups of channels")
    r.lock_all(r.axes(0)[2:], SPATIAL)
    for index in (2, 4):
        if r.has(index):
            r.unify(r.axes(index)[0], r.axes(0)[0])
            r.lock_all(r.axes(index)[1:], "offsets and masks of kernel positions")
    convolution(r, x=0, w=1, bias=3)


@rule("ConvInteger", traits=Trait.WEIGHTED)
def conv_integer(r: NodeAxes) -> None:
    convolution(r, x=0, w=1, bias=None, per_channel=(3,))


@rule("QLinearConv", traits=Trait.WEIGHTED)
def qlinear_conv(r: NodeAxes) -> None:
    convolution(r, x=0, w=3, bias=8, per_channel=(4, 5))


def convolution(
    r: NodeAxes, x: int, w: int, bias: int | None, per_channel: tuple[int, ...] = ()
) -> None:
    """Relate the inputs at positions `x`, `w`, `bias` and those that have one entry per
    output channel (scales, zero points; scalars are left alone)."""
    data, weight = r.axes(x), r.axes(w)
    group = int(r.get("group", 1))
    if len(data) < 2 or len(data) != len(weight) or group < 1:
        raise Opaque(f"input of rank {len(data)}, weight of rank {len(weight)}, {group} groups")
    channels = dims.axis_size(data[1])
    out_channels = dims.axis_size(weight[0])
    if out_channels is None or out_channels % group:
        raise Opaque(f"{out_channels} output channels don't make {group} groups")
    for axis in weight[2:]:
        r.lock(axis, KERNEL, structural=True)
    if group < (channels or 0):
        r.contract(data[1], x, w)
    if group == 1:
        r.unify(data[1], weight[1])
        out = weight[0]
    elif channels == group:
        out = dims.product([data[1], r.fresh(out_channels // group, "multiplier")])
        r.unify(weight[0], out)
        _group_follows(r, data[1])
    else:
        out = _grouped(r, data[1], w, group, out_first=True)
    _per_channel(r, out, (bias, *per_channel))
    r.set((data[0], out, *_spatial(r, data, weight)))


@rule("ConvTranspose", traits=Trait.WEIGHTED)
def conv_transpose(r: NodeAxes) -> None:
    data, weight = r.axes(0), r.axes(1)
    group = int(r.get("group", 1))
    if len(data) < 2 or len(data) != len(weight) or group < 1:
        raise Opaque(f"input of rank {len(data)}, weight of rank {len(weight)}, {group} groups")
    for axis in weight[2:]:
        r.lock(axis, KERNEL, structural=True)
    if group < (dims.axis_size(data[1]) or 0):
        r.contract(data[1], 0, 1)
    if group == 1:
        r.unify(data[1], weight[0])
        out = weight[1]
    elif dims.axis_size(data[1]) == group:
        r.unify(data[1], weight[0])
        out = dims.product([data[1], weight[1]])
        _group_follows(r, data[1])
    else:
        out = _grouped(r, data[1], 1, group, out_first=False)
    _per_channel(r, out, (2,))
    r.set((data[0], out, *_spatial(r, data, weight)))


def _grouped(r: NodeAxes, channels: Axis, w: int, group: int, *, out_first: bool) -> Axis:
    """Tie a grouped weight; returns the axis of output channels.

    Each group may keep other indices, but all of them equally many.
    """
    weight = r.axes(w)
    size = dims.axis_size(channels)
    if size is None or size % group:
        raise Opaque(f"{size} channels don't make {group} groups")
    per_group = dims.axis_size(weight[1 if out_first else 0])
    expected = size // group if out_first else size
    if per_group != expected:
        raise Opaque(f"weight has {per_group} input channels where {expected} are needed")
    ins = dims.partition(channels, [size // group] * group)
    if out_first:
        outs = dims.partition(weight[0], [_size(weight[0]) // group] * group)
    else:
        outs = [r.fresh(_size(weight[1]), f"group{k}") for k in range(group)]
    if r.is_parameter(w):
        kernel = weight[2:]
        pairs = zip(outs, ins, strict=True)
        r.set_blocks(w, [((o, i) if out_first else (i, o)) + kernel for o, i in pairs])
    elif out_first:
        for part in ins:
            r.unify(part, weight[1])
    else:
        r.unify(channels, weight[0])
        for part in outs:
            r.unify(part, weight[1])
    r.balance(ins, "every group keeps as many input channels")
    r.balance(outs, "every group keeps as many output channels")
    return dims.concat(outs)


def _size(axis: Axis) -> int:
    size = dims.axis_size(axis)
    if size is None:
        raise Opaque("the size of a weight is not known")
    return size


def _group_follows(r: NodeAxes, channels: Axis) -> None:
    """Depthwise: the number of groups is the number of channels."""
    r.rewrite(lambda rewriter: r.node.set("group", rewriter.size(channels)))


def _per_channel(r: NodeAxes, channels: Axis, inputs: tuple[int | None, ...]) -> None:
    for index in inputs:
        if index is None or not r.has(index):
            continue
        axes = r.axes(index)
        if axes and axes != (ONE,):
            r.unify(axes[-1] if len(axes) == 1 else _opaque_rank(axes), channels)


def _opaque_rank(axes: Axes) -> Axis:
    raise Opaque(f"a per-channel input of rank {len(axes)}")


def _spatial(r: NodeAxes, data: Axes, weight: Axes) -> Axes:
    """Pointwise convolutions pass spatial axes through; others lock them."""
    pointwise = (
        all(axis == ONE for axis in weight[2:])
        and all(s == 1 for s in r.get("strides", [1]))
        and not any(r.get("pads", [0]))
        and not any(r.get("output_padding", [0]))
        and r.get("output_shape") is None
    )
    if pointwise:
        return data[2:]
    r.lock_all(data[2:], SPATIAL)
    shape = r.out_shape()
    sizes = shape[2:] if shape is not None else [None] * (len(data) - 2)
    return tuple(r.literal(s if isinstance(s, int) else None, SPATIAL) for s in sizes)


@macs("Conv", "ConvInteger", "DeformConv")
@macs("FusedConv", domain=MICROSOFT)
def conv_macs(node: Node, shape: ShapeOf) -> int:
    """Output elements times weights per output channel."""
    return math.prod(shape(node.output(0))) * math.prod(shape(node.input(1))[1:])


@macs("QLinearConv")
def qlinear_conv_macs(node: Node, shape: ShapeOf) -> int:
    return math.prod(shape(node.output(0))) * math.prod(shape(node.input(3))[1:])


@macs("ConvTranspose")
def conv_transpose_macs(node: Node, shape: ShapeOf) -> int:
    """Input elements times weights per input channel."""
    return math.prod(shape(node.input(0))) * math.prod(shape(node.input(1))[1:])
