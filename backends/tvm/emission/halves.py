"""Which operations of a plan compute in 16 bits: those that are asked for and gain by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Set

from ..kernels.convolution import tiles, winograd
from ..plan.blocked import Blocked
from ..plan.halves import STORED, may_be_halves, use_halves
from ..plan.operations import ConvolutionOp, Plan, ProductOp
from ..plan.sizes import is_open
from ..plan.tensors import Operation
from ..targets import Target, multiplies_halves
from .choices import Choices
from .convolution import lies_in_lanes


@dataclasses.dataclass(frozen=True)
class Halves:
    """What is to be computed in `dtype`, bfloat16 or float16: operations of `nodes`, by label."""

    dtype: str
    nodes: Set[str]


def narrow(plan: Plan, halves: Halves, target: Target, choices: Choices) -> dict[str, str]:
    """Let a plan, before fusion, compute in 16 bits; nodes that stay in float32, with reasons."""
    plan.link()
    chosen, left = [], {}
    for op in plan.operations:
        if op.label not in halves.nodes:
            continue
        reason = _reason_against(op, halves.dtype, target, choices)
        if reason:
            left[op.label] = reason
        elif may_be_halves(op):
            chosen.append(op)
    use_halves(plan, halves.dtype, chosen)
    return left


def _reason_against(op: Operation, dtype: str, target: Target, choices: Choices) -> str:
    if isinstance(op, (ConvolutionOp, ProductOp)) and is_open(*op.output.shape):
        return "its sizes are open"
    if not isinstance(op, ConvolutionOp) or op.input.dtype != "float32":
        return ""
    y = Blocked.of(op.output.shape, target.block, op.output.dtype)
    same = op.input.shape[1] == op.output.shape[1]
    if op.is_depthwise or (
        op.groups > 1 and same and lies_in_lanes(op, op.weights.shape[1], y, target)
    ):
        return "it has no sums over channels that an instruction for pairs could take"
    # Without an instruction it is memory that 16 bits are asked for.
    by_instruction = multiplies_halves(target, dtype)
    if by_instruction and choices.by_winograd(op) and _winograd_is_faster(op, y, dtype, target):
        return "it is faster in float32 by Winograd's algorithm"
    return ""


def _winograd_is_faster(op: ConvolutionOp, y: Blocked, dtype: str, target: Target) -> bool:
    """By the models that choose tiles."""
    x = Blocked.of(op.input.shape, target.block, op.input.dtype)
    kernel = winograd.Winograd(x, y, op.geometry, op.program, (), op.groups)
    half = Blocked.of(op.input.shape, target.block, STORED[dtype])
    half = half.with_pads(op.geometry.margins, 0)
    conv = tiles.Convolution(half, STORED[dtype], y, op.geometry, op.groups, op.program, ())
    cycles = min(cycles for cycles, _ in tiles.estimate_tiles(conv, target))
    return winograd.estimate(kernel, target) < cycles
