"""Pooling of blocked activations: windows (maximum, average) and whole images."""

from __future__ import annotations

import dataclasses
import math

from tvm import tirx

from ...functions.program_code import ProgramCode
from ...plan.blocked import Blocked
from ...plan.geometry import Counted, Geometry
from ...plan.programs import Program
from ...plan.sizes import is_open
from ...targets import Target
from ...tensorir.builder import KernelBuilder, as_int, cast, constant, load, splat
from ...tensorir.types import Computed, Expr, PrimFunc
from ..epilogue import Epilogue, Operand, declare, fill_border


@dataclasses.dataclass(frozen=True)
class Pooling:
    """One pooling kernel.

    `kind` is "maximum", "average" (float32 sums of `element` results, divided by the
    constant `divisor` or, where it is 0, by a table over the output pixels, or what is
    `counted`) or "sum" (of integers, undivided).
    """

    kind: str
    input: Blocked
    input_dtype: str
    output: Blocked
    geometry: Geometry
    element: Program
    divisor: float
    program: Program
    operands: tuple[Operand, ...]
    counted: Counted | None = None

    @property
    def accumulator(self) -> str:
        if self.kind == "maximum":
            return self.input_dtype
        return "int32" if self.kind == "sum" else "float32"


def build(pool: Pooling, target: Target, parallel: bool = False) -> PrimFunc:
    """The kernel. Arguments: input, [divisors], operands, output."""
    x, y, geometry = pool.input, pool.output, pool.geometry
    lanes = min(target.lanes, y.block)
    k = KernelBuilder()
    source = k.parameter("X", x.shape, pool.input_dtype)
    table = None
    if pool.kind == "average" and not pool.divisor and pool.counted is None:
        table = k.parameter("D", (y.height * y.width,), "float32")
    buffers = declare(k, pool.operands, y, y.padded_channels)
    result = k.parameter("Y", y.shape, pool.program.dtype)
    fill_border(k, result, y, pool.program.dtype)
    epilogue = Epilogue(k, target, pool.program, pool.operands, buffers, y, result, lanes)
    top, left = x.top - geometry.pads[0], x.left - geometry.pads[1]
    kernel_h, kernel_w = geometry.kernel
    rows, columns = _unrolled(kernel_h, kernel_w)
    code = ProgramCode(k, target, lanes)
    extents = (y.batch, y.padded_channels // lanes, y.height, y.width)
    with k.nest(extents, parallel=parallel) as (n, vector, oh, ow):
        parts = y.block // lanes
        cb, part = (vector, 0) if parts == 1 else (vector // parts, vector % parts)
        channel = cb * y.block + part * lanes
        acc = k.local(lanes, pool.accumulator)
        k.store(acc, constant(_start_value(pool), pool.accumulator, lanes), 0, lanes=lanes)

        def element(kh: Expr, kw: Expr) -> Computed:
            h = oh * geometry.strides[0] + kh * geometry.dilations[0] + top
            w = ow * geometry.strides[1] + kw * geometry.dilations[1] + left
            value = load(source, n * x.blocks + cb, x.at(h, w), part * lanes, lanes=lanes)
            return code.evaluate(pool.element, [value])

        with k.loop(kernel_h // rows, "kh") as kh, k.loop(kernel_w // columns, "kw") as kw:
            values = [
                element(kh * rows + i, kw * columns + j)
                for i in range(rows)
                for j in range(columns)
            ]
            if pool.kind == "maximum":
                total = code.largest(values, pool.input_dtype)
                if is_open(kernel_h, kernel_w) or len(values) < kernel_h * kernel_w:
                    total = code.larger(total, load(acc, 0, lanes=lanes), pool.input_dtype)
                k.store(acc, total, 0, lanes=lanes)
            else:
                for value in values:
                    if pool.accumulator == "int32":
                        value = cast(value, "int32", lanes)
                    k.store(acc, load(acc, 0, lanes=lanes) + value, 0, lanes=lanes)
        value = load(acc, 0, lanes=lanes)
        if pool.kind == "average":
            by = splat(load(table, oh * y.width + ow), lanes) if table is not None else None
            if pool.counted is not None:
                count = _count(pool, pool.counted, 0, oh) * _count(pool, pool.counted, 1, ow)
                by = splat(cast(count, "float32", 1), lanes)
            value = value / (by if by is not None else code.number(pool.divisor))
        epilogue.finish([value], n, channel, oh, ow)
    return k.finish()


def _count(pool: Pooling, counted: Counted, axis: int, index: Expr) -> Computed:
    """Elements of a window along an axis that count."""
    size = pool.input.width if axis else pool.input.height
    start = index * pool.geometry.strides[axis] - counted.pads[axis]
    first = tirx.max(as_int(start), -counted.margins[axis])
    end = as_int(start + pool.geometry.kernel[axis])
    return tirx.min(end, as_int(size + counted.margins[axis + 2])) - first


def _unrolled(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the window that are visited without a loop."""
    if is_open(height, width):
        return 1, 1
    if height * width <= 9:
        return height, width
    return 1, width if width <= 16 else 1


def _start_value(pool: Pooling) -> float:
    if pool.kind != "maximum":
        return 0
    return {"float32": -math.inf, "uint8": 0, "int8": -128}[pool.input_dtype]
