"""The rule of Resize and Upsample of images over rows and columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ....ir.graph import Node
from ..plan.operations import LoopsOp, ResizeOp
from ..plan.programs import Program, dequantize
from ..plan.sampling import Axis, OpenTaps, Sampling, Taps, fitted_scale, is_old
from ..plan.sizes import is_open
from ..plan.tensors import PlanTensor
from ..tensorir.builder import KernelBuilder
from ..tensorir.types import PrimFunc
from .context import Constant, Lowering, Quantized, Stored
from .loops.base import Array, OperatorCall, bind, number
from .loops.resize import SampledAxis, make_table, ratio, told_scales, unchanged


def resize(lowering: Lowering, node: Node) -> bool:
    """Bytes stay bytes where the nearest is taken, and are interpolated as floats.

    Everything else (other axes, types and ranks, regions of interest) is for the plain loops of
    `lowering/loops/resize.py`.
    """
    x, y = node.input(0), node.output(0)
    if x is None or y is None:
        return False
    shape, out = lowering.shape(x), lowering.shape(y)
    sampling = Sampling.of(node, lowering.model.opset)
    if len(shape) not in (3, 4) or sampling.unknown is not None or sampling.crops:
        return False
    item = lowering.item(x)
    if isinstance(item, Constant) or item.tensor.dtype not in ("float32", "uint8", "int8"):
        return False
    scales = _scales(lowering, node, shape, out)
    if scales is None:
        return False
    stays = [_stays(*a) for a in zip(shape, out, scales, strict=True)]
    axes = [Axis(*sizes) for sizes in zip(shape[2:], out[2:], strict=True)]
    if not all(stays[:2]) or any(map(sampling.spreads, axes)):
        return False
    source = item.tensor
    element, dtype = Program((source.dtype,)), source.dtype
    if sampling.mode != "nearest" and dtype != "float32":
        if not isinstance(item, Quantized):
            return False  # ONNX Runtime has integer arithmetic of its own
        element, dtype = dequantize(dtype, item.scale, item.zero), "float32"
    told = told_scales(OperatorCall(lowering, node))
    spatial = [_taps(lowering, node, sampling, a, scales[a], told) for a in range(2, len(shape))]
    rows, columns = [Taps.unchanged(1), *spatial][-2:]
    output = lowering.tensor(y, dtype)
    lowering.add(
        ResizeOp(
            label=node.label,
            outputs=[output],
            operands=[],
            program=Program((dtype,)),
            input=source,
            mode=sampling.mode,
            element=element,
            rows=rows,
            columns=columns,
        )
    )
    if isinstance(item, Quantized) and dtype != "float32":
        lowering.items[y] = Quantized(output, item.scale, item.zero)
    else:
        lowering.items[y] = Stored(output)
    return True


_COMPUTED = math.nan
"""Stands for a scale that a run computes."""


def _stays(size: int, out: int, scale: float | None) -> bool:
    """Whether an axis stays as it is."""
    return size == out and scale in (None, 1)


def _taps(
    lowering: Lowering,
    node: Node,
    sampling: Sampling,
    axis: int,
    scale: float | None,
    told: PlanTensor | None,
) -> Taps | OpenTaps:
    """What an axis takes; `told` are the scales that a run computes, if it does."""
    x, y = node.input(0), node.output(0)
    assert x is not None
    assert y is not None
    shape, out = lowering.shape(x), lowering.shape(y)
    own = Axis(shape[axis], out[axis])
    if not is_open(own.size, own.out) and scale is not None:
        if _stays(own.size, own.out, scale):
            return Taps.unchanged(own.out)
        if own.size != own.out or not is_open(*shape, *out):
            return sampling.table(own, scale)
    return _open_taps(lowering, node, sampling, (shape, out), axis, scale, told)


def _open_taps(
    lowering: Lowering,
    node: Node,
    sampling: Sampling,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    axis: int,
    scale: float | None,
    told: PlanTensor | None,
) -> OpenTaps:
    """Tables that a kernel before the operator's own fills."""
    shape, out = shapes
    own = Axis(shape[axis], out[axis])
    stays = _stays(own.size, own.out, scale)
    is_told = scale is not None and math.isnan(scale)
    taps = 1 if stays else sampling.taps(own)
    pattern = None if stays or is_told else sampling.pattern(own)
    table = (own.out, taps)
    names = [f"{node.label}/{kind}{axis}" for kind in ("places", "weights", "outside")]
    places = PlanTensor(names[0], "int32", table)
    weights = PlanTensor(names[1], "float32", table)
    outside = PlanTensor(names[2], "int32", (own.out,))
    tables = [places, weights, outside]
    read = [told] if is_told and told is not None else []

    def build() -> PrimFunc:
        k = KernelBuilder()
        given = [Array(k, "X", t.shape, t.dtype) for t in read]
        made = [Array(k, f"Y{i}", t.shape, t.dtype) for i, t in enumerate(tables)]
        if stays:
            with k.loop(own.out, "o") as o:
                made[0].store(o, (o, 0))
                made[1].store(1.0, (o, 0))
            return k.finish()
        factor = ratio(own.size, own.out) if scale is None else number(scale, "float32")
        if is_told:
            factor = bind(k, given[0].at(axis))
        sampled = SampledAxis(axis, own, taps)
        window = [number(0.0, "float32"), number(1.0, "float32")]
        make_table(k, sampling, sampled, factor, window, made, unchanged(shape, out))
        return k.finish()

    key = ("taps", sampling, None if is_told else scale, is_told, shape, out, axis)
    lowering.add(LoopsOp(node.label, tables, read, build, key))
    return OpenTaps(taps, places, None if sampling.mode == "nearest" else weights, pattern)


def _scales(
    lowering: Lowering, node: Node, shape: Sequence[int], out: Sequence[int]
) -> list[float | None] | None:
    """The scale of every axis, None where no rule here takes it; that of an axis is None where it
    is the ratio of sizes of which a run fixes one, and `_COMPUTED` where a run computes it.

    Where no axis changes its size ONNX Runtime copies, whatever the scales.
    """
    rank = len(shape)
    if tuple(shape) == tuple(out):
        return [1.0] * rank
    axes = [int(a) % rank for a in node.get("axes", list(range(rank)))]
    old = is_old(node, lowering.model.opset)
    given = node.get("scales")
    if given is None:
        value = node.input(1 if old else 2)
        given = lowering.constant(value)
        if given is None and value is not None and value.shape != (0,):
            return _told(lowering, node, axes, out)
    found: list[float | None] = [1.0] * rank
    if given is not None and np.size(given):
        for axis, scale in zip(axes, np.reshape(given, -1).tolist(), strict=True):
            found[axis] = scale
    elif node.get("keep_aspect_ratio_policy", "stretch") == "stretch":
        for a in axes:
            found[a] = None if is_open(shape[a], out[a]) else out[a] / shape[a]
    elif is_open(*shape, *out):
        if not all(is_open(out[a]) for a in axes):
            return None
        for a in axes:
            found[a] = _COMPUTED
    else:
        sizes = lowering.constant(node.input(3))
        if sizes is None:
            return None
        ratios = [np.float32(s) / np.float32(shape[a]) for a, s in zip(axes, sizes, strict=True)]
        scale = float(fitted_scale(np, ratios, node.get("keep_aspect_ratio_policy")))
        for a in axes:
            found[a] = scale
    return found


def _told(
    lowering: Lowering, node: Node, axes: Sequence[int], out: Sequence[int]
) -> list[float | None] | None:
    """The scales of all axes, of which an operand that a run computes tells some."""
    sizes = lowering.sizes
    scales = None if sizes is None else sizes.scales(node)
    if scales is None or len(scales) != len(axes):
        return None
    known = dict(zip(axes, scales, strict=True))
    computed = [a for a in axes if known[a] is None]
    if not all(is_open(out[a]) for a in computed):
        return None
    return [_COMPUTED if a in computed else known.get(a, 1.0) for a in range(len(out))]


RULES: dict[str, Callable[[Lowering, Node], bool]] = {"Resize": resize, "Upsample": resize}
