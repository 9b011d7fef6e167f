"""Pooling, resizing and other operators that mix positions but not channels."""

from __future__ import annotations

import math

from ..axes import dims
from ..axes.dims import ONE
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from ..axes.sizes import evaluate, is_size_of
from .convolution import SPATIAL
from .records import MICROSOFT, Trait, rule
from .reduction import normalized
from .shapes import axis_of_size


def windowed(r: NodeAxes, axes: Axes, spatial: slice = slice(2, None)) -> Axes:
    """Lock spatial axes; the result has those of the inferred output shape."""
    r.lock_all(axes[spatial], SPATIAL)
    shape = r.out_shape()
    sizes = shape if shape is not None and len(shape) == len(axes) else (None,) * len(axes)
    new = tuple(r.literal(s if isinstance(s, int) else None, SPATIAL) for s in sizes)
    positions = range(*spatial.indices(len(axes)))
    return tuple(new[i] if i in positions else axis for i, axis in enumerate(axes))


@rule("AveragePool", traits=Trait.LINEAR)
@rule("LpPool", traits=Trait.HOMOGENEOUS | Trait.NON_NEGATIVE)
def pool(r: NodeAxes) -> None:
    r.set(windowed(r, r.axes(0)))


@rule("MaxPool", traits=Trait.HOMOGENEOUS)
def max_pool(r: NodeAxes) -> None:
    axes = r.axes(0)
    indices = r.node.output(1)
    if indices is not None and indices.uses:
        raise Opaque("the second output holds indices into the whole input")
    r.set(windowed(r, axes))


@rule("GlobalAveragePool", traits=Trait.LINEAR)
@rule("GlobalMaxPool", traits=Trait.HOMOGENEOUS)
@rule("GlobalLpPool", traits=Trait.HOMOGENEOUS | Trait.NON_NEGATIVE)
def global_pool(r: NodeAxes) -> None:
    axes = r.axes(0)
    r.lock_all(axes[2:], SPATIAL)
    r.set(axes[:2] + (ONE,) * (len(axes) - 2))


@rule("GridSample", traits=Trait.INDEXES)
@rule("GridSample", domain=MICROSOFT)
def grid_sample(r: NodeAxes) -> None:
    grid = r.axes(1)
    r.unify(grid[0], r.axes(0)[0])
    r.lock_all(grid[1:], SPATIAL)
    r.set(windowed(r, r.axes(0)))


@rule("AffineGrid")
def affine_grid(r: NodeAxes) -> None:
    """theta [N, k, k + 1] and the size [N, C, ...] -> [N, ..., k]"""
    theta, content = r.axes(0), r.content(1)
    if content is None:
        raise Opaque("the size is known only at run time")
    r.lock_all(theta[1:], SPATIAL)
    sizes = list(content.ravel())
    r.unify(theta[0], axis_of_size(r, sizes[0]))
    r.expect(1, content, [theta[0], *(evaluate(size) for size in sizes[1:])])
    shape = r.out_shape()
    known = shape[1:] if shape is not None else (None,) * (len(sizes) - 1)
    r.set((theta[0], *(r.literal(s if isinstance(s, int) else None, SPATIAL) for s in known)))


@rule("CenterCropPad", traits=Trait.ENLARGES)
def center_crop_pad(r: NodeAxes) -> None:
    axes = r.axes(0)
    listed = {normalized(a, len(axes)) for a in r.get("axes", range(len(axes)))}
    r.lock_all([axes[i] for i in listed], "cropped or padded to a size")
    shape = r.out_shape()
    sizes = shape if shape is not None and len(shape) == len(axes) else (None,) * len(axes)
    new = [r.literal(s if isinstance(s, int) else None, "cropped or padded") for s in sizes]
    r.set(tuple(new[i] if i in listed else axis for i, axis in enumerate(axes)))


@rule("RoiAlign", "MaxRoiPool", traits=Trait.INDEXES)
def region_pool(r: NodeAxes) -> None:
    """[N, C, H, W] and regions -> [regions, C, h, w]"""
    axes = r.axes(0)
    for index in range(1, len(r.node.inputs)):
        r.lock_all(r.axes(index), "regions are data")
    r.lock(axes[0], "regions index into this axis")
    pooled = windowed(r, axes)
    shape = r.out_shape()
    count = shape[0] if shape else None
    regions = r.literal(count if isinstance(count, int) else None, "regions are data")
    r.set((regions, *pooled[1:]))


@rule("Resize", "Upsample", traits=Trait.INDEXES | Trait.ENLARGES)
def resize(r: NodeAxes) -> None:
    if r.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Opaque("tf_crop_and_resize")
    if r.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Opaque("keep_aspect_ratio_policy")
    axes = r.axes(0)
    listed = [normalized(a, len(axes)) for a in r.get("axes", range(len(axes)))]
    scales, sizes = _scales(r), r.content(3)
    result = list(axes)
    for position, i in enumerate(listed):
        if sizes is not None and position < sizes.size:
            unchanged = is_size_of(sizes.ravel()[position], axes[i])
        else:
            unchanged = scales is not None and scales[position : position + 1] == [1.0]
        if not unchanged:
            r.lock(axes[i], SPATIAL)
            shape = r.out_shape()
            size = shape[i] if shape is not None else None
            result[i] = r.literal(size if isinstance(size, int) else None, SPATIAL)
    if sizes is not None:
        r.expect(3, sizes, [result[i] for i in listed])
    r.set(tuple(result))


def _scales(r: NodeAxes) -> list[float | None] | None:
    """Scales from an attribute or an input, None for those that are computed."""
    if r.get("scales") is not None:
        return list(r.get("scales"))
    value = r.node.input(2 if r.node.op_type == "Resize" and r.opset >= 11 else 1)
    joined = None if value is None else value.producer
    parts = joined.inputs if joined is not None and joined.op_type == "Concat" else (value,)
    scales: list[float | None] = []
    for part in parts:
        tensor = r.analysis.model.constant(part)
        shape = None if part is None else part.shape
        if tensor is not None:
            scales.extend(float(s) for s in tensor.numpy().ravel())
        elif shape is not None and len(shape) == 1 and isinstance(shape[0], int):
            scales.extend([None] * shape[0])
        else:
            break  # of what follows not even the position is known
    return scales or None


@rule("DepthToSpace", traits=Trait.MOVES)
def depth_to_space(r: NodeAxes) -> None:
    axes = r.axes(0)
    size = int(r.get("blocksize", 0))
    channels = dims.axis_size(axes[1])
    if channels is None or size < 1 or channels % (size * size):
        raise Opaque(f"{channels} channels don't make blocks of {size}x{size}")
    block = r.factor(size, "positions in a block")
    kept = r.fresh(channels // (size * size), "channels")
    depth_first = r.get("mode", "DCR") == "DCR"
    r.unify(axes[1], dims.product([block, block, kept] if depth_first else [kept, block, block]))
    result = windowed(r, axes)
    r.set((axes[0], kept, *result[2:]))


@rule("Col2Im")
def col2im(r: NodeAxes) -> None:
    """Columns [N, C * block, L] -> image [N, C, ...]"""
    columns, image, block = r.axes(0), r.numbers(1), r.numbers(2)
    channels = dims.axis_size(columns[1]) if len(columns) == 3 else None
    if channels is None or image is None or block is None or channels % math.prod(block):
        raise Opaque("the sizes of image and block are known only at run time")
    positions = r.factor(math.prod(block), "positions in a block")
    kept = r.fresh(channels // math.prod(block), "channels")
    r.unify(columns[1], dims.product([kept, positions]))
    r.lock(columns[2], SPATIAL)
    r.set((columns[0], kept, *(r.literal(size, SPATIAL) for size in image)))


@rule("SpaceToDepth", traits=Trait.MOVES)
def space_to_depth(r: NodeAxes) -> None:
    axes = r.axes(0)
    block = r.factor(int(r.get("blocksize", 0)), "positions in a block")
    depth_first = r.get("mode", "DCR") == "DCR"
    r.lock_all(axes[2:], SPATIAL)
    out = dims.product([block, block, axes[1]] if depth_first else [axes[1], block, block])
    result = windowed(r, axes)
    r.set((axes[0], out, *result[2:]))
