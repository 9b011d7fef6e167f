"""Choosing the blocked layouts of a whole plan's tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable

from .aliases import Alias, Padding, choose_aliases
from .blocked import Blocked
from .operations import ConcatOp, ConvolutionOp, ElementwiseOp, Plan, PoolingOp, ResizeOp
from .sizes import typical
from .tensors import Operation, PlanTensor, View

log = logging.getLogger(__name__)

Pads = tuple[int, int, int, int]
"""top, left, bottom, right"""

NeededPads = Callable[[ConvolutionOp | PoolingOp], Pads]
"""Physical padding that the kernel of an operation reads."""


def choose_layouts(
    plan: Plan, block: int, needed_pads: NeededPads
) -> tuple[dict[PlanTensor, Blocked], dict[PlanTensor, Alias]]:
    """The blocked layout of every tensor that has one, and where those lie that share buffers.

    `block` is the number of channels in a block of an image with many.

    Convolution and pooling write blocked tensors; elementwise operations and
    concatenations along the channels keep what their inputs have, or take it where a
    reader wants it. Layouts have the padding that readers need, of the tensor itself or
    of others in its buffer. The first reader with padding decides on the fill;
    elementwise operations alone write one that a run computes.
    """
    layouts: dict[PlanTensor, Blocked] = {}
    for op in plan.operations:
        if op.outputs and _wants_blocks(op, layouts):
            y = op.output
            layouts[y] = Blocked.of(y.shape, block, y.dtype)
    paddings = {tensor: _padding(tensor, needed_pads) for tensor in layouts}
    aliases = choose_aliases(plan, layouts, paddings)
    for tensor, layout in layouts.items():
        padding = paddings[aliases[tensor].whole if tensor in aliases else tensor]
        layouts[tensor] = layout.with_pads(padding.pads, padding.fill or 0)
        log.debug("%s: %s", tensor.name, layouts[tensor])
    for tensor, alias in aliases.items():
        log.debug("%s: in %s from block %d", tensor.name, alias.whole.name, alias.first_block)
    return layouts, aliases


def _padding(tensor: PlanTensor, needed_pads: NeededPads) -> Padding:
    padding = Padding()
    for reader in tensor.readers:
        if isinstance(reader, (ConvolutionOp, PoolingOp)) and reader.input is tensor:
            pads = needed_pads(reader)
            at_run_time = isinstance(reader.fill, PlanTensor)
            if not any(pads) or (at_run_time and not isinstance(tensor.producer, ElementwiseOp)):
                continue
            if padding.fill is None or padding.fill == reader.fill:
                padding = padding.union(Padding(pads, reader.fill))
    return padding


def _wants_blocks(op: Operation, layouts: dict[PlanTensor, Blocked]) -> bool:
    if isinstance(op, (ConvolutionOp, PoolingOp)):
        return True
    if isinstance(op, ResizeOp):
        return _resizes_blocks(op, layouts)
    if not op.output.is_image:
        return False
    if isinstance(op, ElementwiseOp):
        if any(v.tensor in layouts and v.tensor.shape == op.output.shape for v in op.views):
            return True
        if any(_is_blocks(v, layouts) and v.shape == op.output.shape for v in op.views):
            return True
        if any(not v.is_whole for v in op.views):
            return False
        return _feeds_images(op.output)
    if isinstance(op, ConcatOp):
        blocked = [t in layouts for t in op.inputs]
        wanted = all(blocked) or (any(blocked) and _feeds_images(op.output))
        return op.axis == 1 and wanted
    return False


def _resizes_blocks(op: ResizeOp, layouts: dict[PlanTensor, Blocked]) -> bool:
    """Whether to resize blocks; not where input and output are rows, or the larger of them."""
    if not op.suits_rows:
        return True
    x, y = op.input, op.output
    image = (ConvolutionOp, PoolingOp, ResizeOp, ElementwiseOp, ConcatOp)
    wanted = any(isinstance(reader, image) for reader in y.readers)
    if x in layouts:
        return wanted or typical(y.elements) <= typical(x.elements)
    return wanted and typical(y.elements) >= typical(x.elements)


def _feeds_images(tensor: PlanTensor) -> bool:
    """Whether a reader wants blocks."""
    return any(
        isinstance(r, (ConvolutionOp, PoolingOp)) and r.input is tensor for r in tensor.readers
    )


def _is_blocks(view: View, layouts: dict[PlanTensor, Blocked]) -> bool:
    """Whether a view is a blocked tensor's channels from the beginning of a block on."""
    layout = layouts.get(view.tensor)
    first = view.first_channel
    return layout is not None and first is not None and first % layout.block == 0
