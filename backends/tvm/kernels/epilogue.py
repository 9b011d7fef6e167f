"""What kernels with blocked output share: operands of fused programs, stores, borders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from ..layout import Blocked
from .builder import KernelBuilder, constant, load, splat


@dataclasses.dataclass(frozen=True)
class Operand:
    """An operand of a fused program beside the kernel's own result.

    With a `layout` it is a blocked tensor, of the output's size or 1 x 1 pixels;
    `per_channel` is a vector over the padded channels; otherwise it is one number.
    """

    dtype: str
    layout: Blocked | None = None
    per_channel: bool = False


def declare(
    builder: KernelBuilder, operands: Sequence[Operand], output: Blocked, channels: int
) -> list[Any]:
    """Declare a kernel's operand parameters."""
    buffers = []
    for index, operand in enumerate(operands):
        if operand.layout is not None:
            shape: tuple[int, ...] = operand.layout.shape
        else:
            shape = (channels,) if operand.per_channel else (1,)
        buffers.append(builder.parameter(f"P{index}", shape, operand.dtype))
    return buffers


def read(operand: Operand, buffer: Any, n: Any, channel: Any, position: Any, lanes: int) -> Any:
    """The operand's vector of `lanes` channels from `channel` on, at a pixel."""
    if operand.layout is not None:
        layout = operand.layout
        image = n if layout.batch > 1 else 0
        block, lane = _split(channel, layout.block)
        return load(buffer, image * layout.blocks + block, position, lane, lanes=lanes)
    if operand.per_channel:
        return load(buffer, channel, lanes=lanes)
    return splat(load(buffer, 0), lanes)


def store_lanes(
    builder: KernelBuilder,
    buffer: Any,
    layout: Blocked,
    value: Any,
    n: Any,
    channel: Any,
    position: Any,
    lanes: int,
) -> None:
    """Store a vector of channels; blocks shorter than the vector take its first lanes."""
    if lanes > layout.block:
        value = tirx.Shuffle([value], list(range(layout.block)))
        lanes = layout.block
    block, lane = _split(channel, layout.block)
    builder.store(buffer, value, n * layout.blocks + block, position, lane, lanes=lanes)


def _split(channel: Any, block: int) -> tuple[Any, Any]:
    if isinstance(channel, int):
        return channel // block, channel % block
    return tirx.floordiv(channel, block), tirx.floormod(channel, block)


def fill_border(builder: KernelBuilder, buffer: Any, layout: Blocked, dtype: str) -> None:
    """Write the physical padding around each image."""
    if not any(layout.pads):
        return
    value = constant(layout.fill, dtype, layout.block)
    rows, columns = layout.rows, layout.columns
    with builder.loop(layout.shape[0], "b") as b:

        def run(count: int, start: Any) -> None:
            if count > 0:
                with builder.loop(count, "p") as p:
                    builder.store(buffer, value, b, start + p, 0, lanes=layout.block)

        run(layout.top * columns, 0)
        run(layout.bottom * columns, (rows - layout.bottom) * columns)
        if layout.left or layout.right:
            with builder.loop(layout.height, "h") as h:
                for column in (*range(layout.left), *range(columns - layout.right, columns)):
                    at = (h + layout.top) * columns + column
                    builder.store(buffer, value, b, at, 0, lanes=layout.block)
