"""How long an operation's kernel takes at other widths, by the models that choose tiles.

Cycles are about right among the widths of one kernel, less so among kinds of kernels:
`latency.py` corrects them by measurements where there can be any.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

from ..kernels.convolution import tiles, winograd
from ..kernels.convolution.transforms import transforms
from ..kernels.matrix import matmul
from ..kernels.matrix.reduction import weight_range
from ..plan.blocked import Blocked, block_for
from ..plan.operations import (
    ConvolutionOp,
    LoopsOp,
    MatMulOp,
    ProductOp,
    RecurrentOp,
    ReshapeOp,
)
from ..plan.tensors import Operation, PlanTensor
from ..targets import Target
from .choices import Choices
from .convolution import lies_in_lanes
from .work import vector_operations

Shape = tuple[int, ...]

Resized = Callable[[PlanTensor], Shape]
"""The shape that a tensor of the plan has at other widths."""

CALL = 60.0
"""Cycles that calling a kernel takes."""

SCALAR = 4.0
"""Cycles of plain loops for each element that they read or write."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Cycles of a kernel of some form; those of different forms compare less well."""

    form: str
    cycles: float


class Estimator:
    """Cycles of one operation as a function of the sizes of what it reads and writes."""

    def __init__(
        self,
        op: Operation,
        target: Target,
        choices: Choices,
        layouts: Mapping[PlanTensor, Blocked],
    ) -> None:
        self.op, self.target, self.choices, self.layouts = op, target, choices, layouts
        self.tensors = list(dict.fromkeys((*op.outputs, *op.reads())))
        """Whose sizes count."""
        # Before anything is resized: afterwards weights hold no values.
        weights = op.weights if isinstance(op, (ConvolutionOp, MatMulOp)) else None
        self._weight_range = (-128, 127) if weights is None else weight_range(weights)
        self._known = functools.lru_cache(maxsize=None)(self._cycles)

    def __call__(self, shape_of: Resized, weights: Shape | None = None) -> Estimate:
        """The estimate; `weights` are a convolution's [O, I / groups, ...] where they are known."""
        return self._known(tuple(shape_of(tensor) for tensor in self.tensors), weights)

    def _cycles(self, shapes: tuple[Shape, ...], weights: Shape | None) -> Estimate:
        now = dict(zip(self.tensors, shapes, strict=True))
        if any(0 in shape for shape in shapes) or isinstance(self.op, ReshapeOp):
            return Estimate("nothing", 0.0)
        if isinstance(self.op, ConvolutionOp):
            form, cycles = self._convolution(self.op, now, weights)
            return Estimate(form, CALL + cycles)
        form = type(self.op).__name__
        if isinstance(self.op, MatMulOp):
            return Estimate(form, CALL + self._product(self.op, now))
        if isinstance(self.op, RecurrentOp):
            return Estimate(form, CALL + self._recurrent(self.op, now))
        ratio = self._ratio(now)
        if isinstance(self.op, LoopsOp):
            elements = self._elements(lambda tensor: tensor.shape)
            return Estimate(form, CALL + SCALAR * elements * ratio)
        return Estimate(form, CALL + vector_operations(self.op, self.target) * ratio)

    def _ratio(self, now: Mapping[PlanTensor, Shape]) -> float:
        """Of the work to that at the original widths, for kernels without a model of their own."""
        op = self.op
        if isinstance(op, ProductOp):
            tensors = (op.left.tensor, op.right.tensor, op.output)
            shares = [math.prod(now[t]) / max(t.elements, 1) for t in tensors]
            # [m, k] @ [k, n]: the root of mk * kn * mn is mkn. Axes that all three have, such
            # as heads, count once.
            return max(math.sqrt(math.prod(shares)), min(shares))
        return self._elements(now.__getitem__) / max(self._elements(lambda t: t.shape), 1)

    def _elements(self, shape_of: Resized) -> int:
        """Elements that are read and written; of constants, such as tables, little is read."""
        return sum(math.prod(shape_of(t)) for t in self.tensors if t.const is None)

    def _recurrent(self, op: RecurrentOp, now: Mapping[PlanTensor, Shape]) -> float:
        """Every unit reads all units at each step; and the elements are written."""
        directions, gates, hidden = op.weights.shape
        positions = op.projections[0].elements / max(gates, 1)
        share = math.prod(now[op.output]) / op.output.elements
        macs = positions * directions * gates * hidden * share**2
        return macs / self.target.lanes + self._elements(now.__getitem__)

    def _convolution(
        self, op: ConvolutionOp, now: Mapping[PlanTensor, Shape], weights: Shape | None
    ) -> tuple[str, float]:
        source, result = now[op.input], now[op.output]
        x, y = self._blocked(op.input, source), self._blocked(op.output, result)
        if op.is_depthwise:
            return "depthwise", _depthwise(y, op, self.target)
        groups = 1
        if op.groups > 1:
            per_group = weights[1] if weights is not None and len(weights) > 1 else None
            groups = _groups(op, source[1], result[1], per_group)
        if groups > 1 and groups == source[1] == result[1]:
            return "depthwise", _depthwise(y, op, self.target)
        width = source[1] // groups
        if groups > 1 and source[1] == result[1] and lies_in_lanes(op, width, y, self.target):
            return "depthwise", _depthwise(y, op, self.target, width)
        resized = dataclasses.replace(
            op,
            input=dataclasses.replace(op.input, shape=source),
            outputs=[dataclasses.replace(op.output, shape=result)],
            groups=groups,
        )
        fresh = op.output in self.choices.fresh
        choices = dataclasses.replace(
            self.choices, fresh=frozenset({resized.output} if fresh else ())
        )
        if choices.by_winograd(resized):
            by = transforms(op.input.dtype, self.target)
            kernel = winograd.Winograd(x, y, op.geometry, op.program, (), groups, fresh, by)
            return "winograd", winograd.estimate(kernel, self.target)
        pads = op.geometry.margins
        x = dataclasses.replace(x, top=pads[0], left=pads[1], bottom=pads[2], right=pads[3])
        conv = tiles.Convolution(
            x,
            op.input.dtype,
            y,
            op.geometry,
            groups,
            op.program,
            (),
            self._weight_range,
            op.upsampling,
        )
        conv = tiles.columns_as_rows(conv) if conv.is_column else conv
        return "direct", min(cycles for cycles, _ in tiles.estimate_tiles(conv, self.target))

    def _blocked(self, tensor: PlanTensor, shape: Shape) -> Blocked:
        """The layout at another number of channels."""
        own = self.layouts.get(tensor)
        if own is None:
            return Blocked.of(shape, self.target.block, tensor.dtype)
        block = block_for(shape[1], self.target.block, tensor.dtype)
        return dataclasses.replace(own, channels=shape[1], block=block)

    def _product(self, op: MatMulOp, now: Mapping[PlanTensor, Shape]) -> float:
        shape, depth = now[op.output], now[op.input][-1]
        rows = math.prod(shape[:-1])
        kernel = matmul.MatMul(
            rows, depth, shape[-1], op.input.dtype, op.program, (), self._weight_range
        )
        return matmul.estimate(kernel, self.target)


def _groups(op: ConvolutionOp, inputs: int, outputs: int, per_group: int | None) -> int:
    """Groups of a convolution that has lost channels: whole groups, or some of each.

    Where its weights' shape isn't known, whichever fits.
    """
    if per_group is not None and inputs % per_group == 0:
        return inputs // per_group
    if inputs % op.groups == 0 and outputs % op.groups == 0:
        return op.groups
    return max(1, math.gcd(inputs, outputs))


def _depthwise(y: Blocked, op: ConvolutionOp, target: Target, width: int = 1) -> float:
    """A multiply-add and a load, or a permutation, for each tap and channel of a group, and the
    epilogue."""
    pixels = y.batch * y.blocks * max(1, y.block // target.lanes) * y.height * y.width
    return pixels * (math.prod(op.geometry.kernel) * width + len(op.program.instructions) + 1.0)
