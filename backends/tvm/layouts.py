"""Choosing the blocked layouts of a whole plan's tensors."""

from __future__ import annotations

from .choices import Choices
from .kernels import depthwise, winograd
from .layout import Blocked
from .plan import ConcatOp, ConvolutionOp, ElementwiseOp, Operation, Plan, PoolingOp, Tensor, View


def choose_layouts(plan: Plan, choices: Choices) -> dict[Tensor, Blocked]:
    """The blocked layout of every tensor that has one, with the padding its readers need.

    Convolution and pooling write blocked tensors; elementwise operations and
    concatenations along the channels keep what their inputs have, or take it where a
    reader wants it. The first reader with padding decides on the fill.
    """
    layouts: dict[Tensor, Blocked] = {}
    for op in plan.operations:
        y = op.output
        if not _wants_blocks(op, layouts):
            continue
        layouts[y] = Blocked.of(y.shape, choices.target.block, y.dtype)
    for tensor, layout in layouts.items():
        pads, fill = [0, 0, 0, 0], None
        for reader in tensor.readers:
            if isinstance(reader, (ConvolutionOp, PoolingOp)) and reader.input is tensor:
                own = needed_pads(reader, choices)
                if any(own) and fill is None:
                    fill = reader.fill
                if any(own) and fill == reader.fill:
                    pads = [max(p, o) for p, o in zip(pads, own, strict=True)]
        layouts[tensor] = layout.with_pads(pads, fill or 0)
    return layouts


def needed_pads(op: ConvolutionOp | PoolingOp, choices: Choices) -> tuple[int, int, int, int]:
    """Physical padding that the operation's kernel reads: top, left, bottom, right."""
    if choices.by_winograd(op):
        return winograd.needed_pads(op.input.shape, op.output.shape, op.geometry)
    top, left, bottom, right = op.geometry.pads
    if (
        isinstance(op, ConvolutionOp)
        and op.is_depthwise
        and op.input.dtype != "float32"
        and "vnni" in choices.target.features
    ):
        right += depthwise.extra_columns(op.geometry.kernel[1])
    return top, left, bottom, right


def _wants_blocks(op: Operation, layouts: dict[Tensor, Blocked]) -> bool:
    if isinstance(op, (ConvolutionOp, PoolingOp)):
        return True
    if not op.output.is_image:
        return False
    if isinstance(op, ElementwiseOp):
        if any(v.tensor in layouts and v.tensor.shape == op.output.shape for v in op.views):
            return True
        if any(_is_blocks(v, layouts) and v.shape == op.output.shape for v in op.views):
            return True
        if any(not v.is_whole for v in op.views):
            return False
        return any(
            isinstance(r, (ConvolutionOp, PoolingOp)) and r.input is op.output
            for r in op.output.readers
        )
    if isinstance(op, ConcatOp):
        return op.axis == 1 and all(t in layouts for t in op.inputs)
    return False


def _is_blocks(view: View, layouts: dict[Tensor, Blocked]) -> bool:
    """Whether a view is a blocked tensor's channels from the beginning of a block on."""
    layout = layouts.get(view.tensor)
    first = view.first_channel
    return layout is not None and first is not None and first % layout.block == 0
