"""Contrib operators that ONNX has an equivalent of by now, or whose images have channels last."""

from __future__ import annotations

import numpy as np

from .body import Body, definition


def channels_first(b: Body, x: str, rank: int) -> str:
    return b("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)])


def channels_last(b: Body, x: str, rank: int) -> str:
    return b("Transpose", x, perm=[0, *range(2, rank), 1])


@definition("NhwcMaxPool")
def _nhwc_max_pool(b: Body) -> list[str]:
    rank = b.rank(0)
    x = channels_first(b, b.required(0), rank)
    names = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
    return [channels_last(b, b("MaxPool", x, **b.attributes(*names)), rank)]


@definition("ExpandDims")
def _expand_dims(b: Body) -> list[str]:
    axis = int(b.known(1).reshape(()))
    return [b.unsqueezed(b.required(0), axis if axis >= 0 else b.rank(0) + 1 + axis)]


@definition("Trilu")
def _trilu(b: Body) -> list[str]:
    if b.opset < 14:
        b.fail("it has no definition before opset 14")
    return [b("Trilu", b.required(0), b.given(1), upper=int(b.attribute("upper", 1)))]


@definition("Pad")
def _pad(b: Body) -> list[str]:
    if b.opset < 11:
        b.fail("it has no definition before opset 11")
    pads = b.reshaped(b.required(1), -1)
    value = b.given(2)
    value = None if value is None else b.reshaped(value)
    return [b("Pad", b.required(0), pads, value, mode=b.attribute("mode", "constant"))]


@definition("Range")
def _range(b: Body) -> list[str]:
    if b.opset < 11:
        b.fail("it has no definition before opset 11")
    step = b.given(2) or b.number(1)
    return [b("Range", *(b.reshaped(x) for x in (b.required(0), b.required(1), step)))]


@definition("GatherND")
def _gather_nd(b: Body) -> list[str]:
    return [b("GatherND", b.required(0), b.cast(b.required(1), np.int64))]


@definition("GridSample")
def _grid_sample(b: Body) -> list[str]:
    if b.opset < 16:
        b.fail("it has no definition before opset 16")
    mode = str(b.attribute("mode", "bilinear"))
    if b.opset >= 20:
        mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    names = b.attributes("align_corners", "padding_mode")
    return [b("GridSample", b.required(0), b.required(1), mode=mode, **names)]


@definition("CDist")
def _distances(b: Body) -> list[str]:
    """Distances of all rows of one matrix from all of another."""
    left, right = b.unsqueezed(b.required(0), 1), b.unsqueezed(b.required(1), 0)
    difference = b("Sub", left, right)
    squares = b.reduced("ReduceSum", b("Mul", difference, difference), 2, keepdims=0)
    squared = b.attribute("metric", "sqeuclidean") in ("sqeuclidean", b"sqeuclidean")
    return [squares if squared else b("Sqrt", squares)]
