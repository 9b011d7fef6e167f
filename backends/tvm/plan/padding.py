"""What `auto_pad` adds to an axis, of a known size or one that only a run fixes."""

from __future__ import annotations

from ....ir.graph import Node
from ....ir.pooled_shapes import same_pads
from ....ir.symbolic import expressions as e
from ....ir.symbolic.spatial import POOLING, automatic_padding
from .sizes import OpenSizeError, is_open, size_of, stand_in, within


def automatic_pads(
    node: Node, size: int, kernel: int, stride: int, dilation: int
) -> tuple[int, int]:
    """What SAME_UPPER or SAME_LOWER adds before and after an axis; `kernel` is without dilation.

    Along an open axis a run computes them, within what the window allows.
    """
    if not is_open(size):
        return same_pads(node, size, kernel, stride, dilation)
    if stride == 1:  # whatever the size
        return same_pads(node, kernel * dilation, kernel, stride, dilation)
    pools = node.op_type in POOLING
    extent = kernel if pools else (kernel - 1) * dilation + 1
    if pools and extent < stride:
        raise OpenSizeError("what auto_pad leaves out between windows")
    odd = 1 if node.get("auto_pad") == "SAME_LOWER" else 0
    total = e.maximum(automatic_padding(size_of(size), extent, stride), 0)
    share = e.subtract(total, e.floor_divide(e.add(total, odd), 2))
    after = within(stand_in(share), 0, (extent - odd) // 2)
    before = stand_in(e.subtract(total, size_of(after)))
    return within(before, 0, (extent - 1 + odd) // 2), after
