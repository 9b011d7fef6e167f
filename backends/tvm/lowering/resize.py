"""The rule of Resize and Upsample of images over rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ....ir.graph import Node
from ..plan.operations import ResizeOp
from ..plan.programs import Program, dequantize
from ..plan.sampling import Axis, Sampling, Taps, fitted_scale, is_old
from .context import Constant, Lowering, Quantized, Stored


def resize(lowering: Lowering, node: Node) -> bool:
    """Bytes stay bytes where the nearest is taken, and are interpolated as floats.

    Everything else (other axes, types and ranks, regions of interest, scales computed at
    run time) is for the plain loops of `lowering/loops/resize.py`.
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
    taps = [_taps(sampling, *a) for a in zip(shape, out, scales, strict=True)]
    if any(t is not None for t in taps[:2]):
        return False
    source = item.tensor
    element, dtype = Program((source.dtype,)), source.dtype
    if sampling.mode != "nearest" and dtype != "float32":
        if not isinstance(item, Quantized):
            return False  # ONNX Runtime has integer arithmetic of its own
        element, dtype = dequantize(dtype, item.scale, item.zero), "float32"
    spatial = [t or Taps.unchanged(n) for t, n in zip(taps[2:], out[2:], strict=True)]
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


def _taps(sampling: Sampling, size: int, out: int, scale: float) -> Taps | None:
    """What an axis takes, None where it stays as it is."""
    return None if size == out and scale == 1 else sampling.table(Axis(size, out), scale)


def _scales(
    lowering: Lowering, node: Node, shape: Sequence[int], out: Sequence[int]
) -> list[float] | None:
    """The scale of every axis, None where it is computed at run time.

    Where no axis changes its size ONNX Runtime copies, whatever the scales.
    """
    rank = len(shape)
    if shape == out:
        return [1.0] * rank
    axes = [int(a) % rank for a in node.get("axes", list(range(rank)))]
    old = is_old(node, lowering.model.opset)
    given = node.get("scales")
    if given is None:
        value = node.input(1 if old else 2)
        given = lowering.constant(value)
        if given is None and value is not None and value.shape != (0,):
            return None
    found = np.ones(rank)
    if given is not None and np.size(given):
        found[axes] = np.reshape(given, -1)
    elif node.get("keep_aspect_ratio_policy", "stretch") == "stretch":
        found[axes] = [out[a] / shape[a] for a in axes]
    else:
        sizes = lowering.constant(node.input(3))
        if sizes is None:
            return None
        ratios = [np.float32(s) / np.float32(shape[a]) for a, s in zip(axes, sizes, strict=True)]
        found[axes] = fitted_scale(np, ratios, node.get("keep_aspect_ratio_policy"))
    return [float(s) for s in found]


RULES: dict[str, Callable[[Lowering, Node], bool]] = {"Resize": resize, "Upsample": resize}
