"""Lowering of pooling: windows and whole images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ....ir.graph import Node, Value
from ....ir.tensor import Array
from ..plan.geometry import Counted, Geometry
from ..plan.operations import PoolingOp
from ..plan.programs import Program, ProgramBuilder, dequantize
from ..plan.sizes import is_open
from .context import Lowering, Quantized, Stored
from .convolution import window


def _pool_window(node: Node, shape: tuple[int, ...], output: tuple[int, ...]) -> Geometry:
    """A pooling window; ceil_mode lets it pass the lower right edge, as extra padding."""
    geometry = window(node, shape, tuple(node.get("kernel_shape")))
    if is_open(*shape, *output):
        return _past_edge(node, geometry)
    height, width = (1, shape[2]) if len(shape) == 3 else shape[2:]
    out_h, out_w = (1, output[2]) if len(output) == 3 else output[2:]
    top, left, bottom, right = geometry.pads
    need = []
    for axis, (size, out, before, after) in enumerate(
        ((height, out_h, top, bottom), (width, out_w, left, right))
    ):
        extent = (geometry.kernel[axis] - 1) * geometry.dilations[axis] + 1
        need.append(max(after, (out - 1) * geometry.strides[axis] + extent - size - before))
    return Geometry(
        geometry.kernel, geometry.strides, geometry.dilations, (top, left, need[0], need[1])
    )


def _is_image(shape: tuple[int, ...]) -> bool:
    """Whether kernels of blocks take a tensor: N, C, [H,] W with a known C."""
    return len(shape) in (3, 4) and not is_open(shape[1])


def _past_edge(node: Node, geometry: Geometry) -> Geometry:
    """A window with all the padding that ceil_mode may need, whatever the sizes."""
    if not node.get("ceil_mode", 0):
        return geometry
    top, left, bottom, right = geometry.pads
    more = [max(0, s - 1) for s in geometry.strides]
    if len(geometry.kernel) == 1 or geometry.kernel[0] == 1 == geometry.strides[0]:
        more[0] = 0
    return dataclasses.replace(geometry, pads=(top, left, bottom + more[0], right + more[1]))


def max_pool(lowering: Lowering, node: Node) -> bool:
    x, y = node.input(0), node.output(0)
    if x is None or y is None or node.output(1) is not None:
        return False
    shape = lowering.shape(x)
    if not _is_image(shape) or node.get("storage_order", 0):
        return False
    geometry = _pool_window(node, shape, lowering.shape(y))
    return all(p >= 0 for p in geometry.pads) and _maximum(lowering, node, x, y, geometry)


def global_max_pool(lowering: Lowering, node: Node) -> bool:
    x, y = node.input(0), node.output(0)
    if x is None or y is None or not _is_image(lowering.shape(x)):
        return False
    return _maximum(lowering, node, x, y, _whole_image(lowering.shape(x)))


def _maximum(lowering: Lowering, node: Node, x: Value, y: Value, geometry: Geometry) -> bool:
    """Maxima of the integers where the value is quantized (scales are positive)."""
    item = lowering.item(x)
    source = item.tensor if isinstance(item, Quantized) else lowering.stored(x)
    if source.dtype not in ("float32", "uint8", "int8"):
        return False
    output = lowering.tensor(y, source.dtype)
    lowest = {"float32": -math.inf, "uint8": 0, "int8": -128}[source.dtype]
    lowering.add(
        PoolingOp(
            label=node.label,
            outputs=[output],
            operands=[],
            program=Program((source.dtype,)),
            input=source,
            kind="maximum",
            geometry=geometry,
            element=Program((source.dtype,)),
            counts=None,
            fill=lowest,
        )
    )
    if isinstance(item, Quantized):
        lowering.items[y] = Quantized(output, item.scale, item.zero)
    else:
        lowering.items[y] = Stored(output)
    return True


def average_pool(lowering: Lowering, node: Node) -> bool:
    x, y = node.input(0), node.output(0)
    if x is None or y is None:
        return False
    shape = lowering.shape(x)
    if not _is_image(shape) or not lowering.is_computed_float(x):
        return False
    given = window(node, shape, tuple(node.get("kernel_shape")))
    geometry = _pool_window(node, shape, lowering.shape(y))
    if given.kernel == _whole_image(shape).kernel and not any(geometry.margins):
        return global_average_pool(lowering, node)
    include = bool(node.get("count_include_pad", 0))
    if is_open(*shape, *lowering.shape(y)):
        return _open_average(lowering, node, x, y, (given, geometry), include=include)
    counts = _counts(given, shape, lowering.shape(y), include)
    return _average(lowering, node, x, y, geometry, counts)


def global_average_pool(lowering: Lowering, node: Node) -> bool:
    """Of quantized values: the integer sum, scaled once, as in QLinearGlobalAveragePool."""
    x, y = node.input(0), node.output(0)
    if x is None or y is None:
        return False
    shape = lowering.shape(x)
    if not _is_image(shape) or not lowering.is_computed_float(x):
        return False
    item = lowering.item(x)
    if is_open(*shape[2:]):
        none = (0, 0, 0, 0)
        return _average(lowering, node, x, y, _whole_image(shape), Counted(none, none))
    count = int(np.prod(shape[2:]))
    if not isinstance(item, Quantized) or item.tensor.dtype not in ("uint8", "int8"):
        counts = np.full((1, 1), float(count), np.float32)
        return _average(lowering, node, x, y, _whole_image(shape), counts)
    builder = ProgramBuilder(("int32",))
    builder.add(
        "scale_sum", (0,), "float32", input_scale=item.scale, count=count, zero_point=item.zero
    )
    output = lowering.tensor(y, "float32")
    lowering.add(
        PoolingOp(
            label=node.label,
            outputs=[output],
            operands=[],
            program=builder.build(),
            input=item.tensor,
            kind="sum",
            geometry=_whole_image(shape),
            element=Program((item.tensor.dtype,)),
            counts=None,
            fill=0,
        )
    )
    lowering.items[y] = Stored(output)
    return True


def _open_average(
    lowering: Lowering,
    node: Node,
    x: Value,
    y: Value,
    windows: tuple[Geometry, Geometry],
    *,
    include: bool,
) -> bool:
    """An average whose counts a run finds; `windows` are as given and with what they read."""
    given, geometry = windows
    if given.dilations != (1, 1):
        return False
    if (include or not any(given.margins)) and given == geometry:
        counts = np.full((1, 1), float(np.prod(given.kernel)), np.float32)
        return _average(lowering, node, x, y, geometry, counts)
    margins = given.pads if include else (0, 0, 0, 0)
    return _average(lowering, node, x, y, geometry, Counted(given.pads, margins))


def _average(
    lowering: Lowering,
    node: Node,
    x: Value,
    y: Value,
    geometry: Geometry,
    counts: Array | Counted,
) -> bool:
    output = lowering.tensor(y, "float32")
    item = lowering.item(x)
    if isinstance(item, Quantized):
        source, fill = item.tensor, float(item.zero)
        element = dequantize(source.dtype, item.scale, item.zero)
    else:
        source, fill, element = lowering.stored(x), 0.0, Program(("float32",))
    lowering.add(
        PoolingOp(
            label=node.label,
            outputs=[output],
            operands=[],
            program=Program(("float32",)).then("pool_average"),
            input=source,
            kind="average",
            geometry=geometry,
            element=element,
            counts=counts,
            fill=fill,
        )
    )
    lowering.items[y] = Stored(output)
    return True


def _counts(
    geometry: Geometry, shape: tuple[int, ...], output: tuple[int, ...], include_pad: bool
) -> Array:
    """Number of elements that each output pixel averages: [OH, OW] float32."""
    sizes = (1, shape[2]) if len(shape) == 3 else shape[2:]
    out = (1, output[2]) if len(output) == 3 else output[2:]
    per_axis = []
    for axis in range(2):
        before, after = geometry.pads[axis], geometry.pads[axis + 2]
        low, high = (-before, sizes[axis] + after) if include_pad else (0, sizes[axis])
        starts = np.arange(out[axis])[:, None] * geometry.strides[axis] - before
        at = starts + np.arange(geometry.kernel[axis])[None] * geometry.dilations[axis]
        per_axis.append(((at >= low) & (at < high)).sum(1))
    rows, columns = per_axis
    return np.outer(rows, columns).astype(np.float32)


def _whole_image(shape: tuple[int, ...]) -> Geometry:
    kernel = (1, shape[2]) if len(shape) == 3 else (shape[2], shape[3])
    return Geometry(kernel, (1, 1), (1, 1), (0, 0, 0, 0))


RULES: dict[str, Callable[[Lowering, Node], bool]] = {
    "MaxPool": max_pool,
    "GlobalMaxPool": global_max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
}
