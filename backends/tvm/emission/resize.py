"""Resize as kernel calls."""

from __future__ import annotations

import math

import numpy as np

from ....ir.tensor import Array
from ..kernels.epilogue import Operand
from ..kernels.image import resize
from ..plan.blocked import Blocked
from ..plan.operations import ResizeOp
from ..plan.sampling import OpenTaps, Taps
from ..plan.schedule import Buffer
from ..plan.tensors import PlanTensor
from ..targets import Target
from ..tensorir.types import PrimFunc
from .emission import Emission

SPELLED_OUT = 16
"""Up to so many output pixels of one input pixel are spelled out in a kernel."""


def emit(emission: Emission, op: ResizeOp) -> None:
    """Build the kernel where no call has, and call it."""
    y = emission.own(op.output)
    plain = y is None
    if y is None:
        y = _images(op.output)
        x, layout = _plain(emission, op.input)
        operands, arguments = _plain_operands(emission, op)
    else:
        x, layout = emission.blocked(op.input)
        operands, arguments = emission.operands(op, y, y.padded_channels)
    kernel = _kernel(op, layout, y, operands, emission.target)
    parallel = emission.is_parallel(op)

    def build() -> PrimFunc:
        return resize.build(kernel, emission.target, parallel)

    key = (kernel, parallel)
    arguments = [x, *_tables(emission, op, kernel, layout), *arguments]
    if plain:
        emission.define(op.output, emission.call(key, build, arguments, y.shape, op.output.dtype))
    else:
        emission.produce(op.output, key, build, arguments)


def _kernel(
    op: ResizeOp, x: Blocked, y: Blocked, operands: tuple[Operand, ...], target: Target
) -> resize.Resize:
    order, repeats, groups = _order(op), 0, None
    if order == "none":
        repeats = op.columns.repeats(x.width)
        repeats = repeats if repeats <= SPELLED_OUT else 0
    if order == "blended" and (y.block >= target.lanes or y.block == 1):
        groups = op.columns.groups(x.width)
        groups = groups if groups is not None and max(groups) <= SPELLED_OUT else None
    return resize.Resize(
        x,
        op.input.dtype,
        y,
        (op.rows.count, op.columns.count),
        order,
        repeats,
        groups,
        op.element,
        op.program,
        operands,
    )


def _images(tensor: PlanTensor) -> Blocked:
    """A row-major tensor as blocks of one channel of images without others."""
    n, c, *rows, columns = tensor.shape
    return Blocked(n * c, 1, math.prod(rows), columns, 1)


def _plain(emission: Emission, tensor: PlanTensor) -> tuple[Buffer, Blocked]:
    return emission.read(tensor, None), _images(tensor)


def _plain_operands(emission: Emission, op: ResizeOp) -> tuple[tuple[Operand, ...], list[Buffer]]:
    """The operands, each a number or of the output's shape."""
    operands, arguments = [], []
    for tensor in op.operands:
        buffer, layout = emission.read(tensor, None), None
        if tensor.elements > 1:
            buffer, layout = _plain(emission, tensor)
        operands.append(Operand(tensor.dtype, layout))
        arguments.append(buffer)
    return tuple(operands), arguments


def _order(op: ResizeOp) -> str:
    if op.rows.weights is None and op.columns.weights is None:
        return "none"
    if op.input.dtype == "float32":
        return "blended"
    pairs = op.rows.count <= 2 and op.columns.count <= 2
    return "corners" if op.mode == "linear" and pairs else "nested"


def _tables(emission: Emission, op: ResizeOp, kernel: resize.Resize, x: Blocked) -> list[Buffer]:
    rows, columns = op.rows, op.columns
    places = rows.places
    if not kernel.is_open:
        assert isinstance(places, np.ndarray)
        places = (places + x.top) * x.columns + x.left
    tables: list[Array | PlanTensor] = [places]
    if kernel.has_columns:
        tables.append(columns.places)
    if kernel.order != "none":
        across = _weights(columns)
        if not kernel.is_open:
            assert isinstance(across, np.ndarray)
            across = across.T
        tables += [_weights(rows), across]
    return [_buffer(emission, table) for table in tables]


def _buffer(emission: Emission, table: Array | PlanTensor) -> Buffer:
    if isinstance(table, PlanTensor):
        return emission.read(table, None)
    return emission.constant(np.ascontiguousarray(table).reshape(-1))


def _weights(taps: Taps | OpenTaps) -> Array | PlanTensor:
    if taps.weights is not None:
        return taps.weights
    assert isinstance(taps, Taps)
    return np.ones(taps.places.shape, np.float32)
