"""Elementwise programs as kernels of their own, between any layouts, with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import tirx

from .....ir.symbolic import expressions as e
from ...functions.program_code import ProgramCode
from ...functions.rounding import PACKED, packs
from ...plan.sizes import cascade, is_open, size_of, stand_in
from ...plan.strides import collapse
from ...plan.tensors import PlanTensor
from ...targets import Target
from ...tensorir.builder import (
    KernelBuilder,
    as_int,
    constant,
    join,
    load,
    smaller,
    splat,
    tiles_of,
)
from ...tensorir.types import BufferVar, Computed, Expr, PrimFunc
from ..epilogue import fill_border
from . import permutation, squares
from .images import as_row, axes_of, image_shape, load_row_major
from .sources import Elementwise, Source


def build(kernel: Elementwise, target: Target, parallel: bool = False) -> PrimFunc:
    """The kernel. Arguments: sources, what padding holds where a run computes it, output."""
    if kernel.layout is not None:
        return _to_blocked(as_row(kernel), target, parallel)
    if any(s.layout is not None for s in kernel.sources):
        return _from_blocked(as_row(kernel), target, parallel)
    return _plain(kernel, target, parallel)


def _declare(k: KernelBuilder, kernel: Elementwise) -> list[BufferVar]:
    return [
        k.parameter(f"X{i}", axes_of(s, kernel) or s.buffer_shape, s.dtype)
        for i, s in enumerate(kernel.sources)
    ]


def _to_blocked(kernel: Elementwise, target: Target, parallel: bool) -> PrimFunc:
    y = kernel.layout
    assert y is not None
    k = KernelBuilder()
    buffers = _declare(k, kernel)
    fill: Computed | None = None
    if isinstance(y.fill, PlanTensor):
        fill = load(k.parameter("F", (1,), y.fill.dtype), 0)
    result = k.parameter("Y", y.shape, kernel.program.dtype)
    fill_border(k, result, y, kernel.program.dtype, fill)
    strides = [_image_strides(s) for s in kernel.sources]
    by_lane = any(s.layout is None and st[1] for s, st in zip(kernel.sources, strides, strict=True))
    size = (y.batch, y.channels, y.height, y.width)
    if by_lane and squares.fits(kernel, strides, size):
        body = squares.Squares(k, kernel, target, buffers, result, strides, size)
        body.build(parallel=parallel)
        return k.finish()
    lanes = 1 if by_lane else min(target.lanes, y.block)
    together = 1 if by_lane else _together(kernel, target)
    if together > 1:
        lanes = y.block
    code = ProgramCode(k, target, lanes * together)
    ragged = y.channels != y.padded_channels
    if by_lane and y.blocks == 1 and _interleaves(kernel, strides):
        _interleave(k, kernel, target, buffers, result, strides, parallel=parallel)
        return k.finish()

    def values(n: Expr, c: Expr, h: Expr, w: Expr) -> list[Computed]:
        found = []
        for source, buffer, stride in zip(kernel.sources, buffers, strides, strict=True):
            if source.layout is not None:
                found.append(_load_blocked(source, buffer, n, c, h, w, lanes))
            else:
                value = load_row_major(kernel, source, buffer, stride, (n, c, h, w))
                found.append(splat(value, lanes))
        return found

    with k.outer(y.batch, y.blocks, parallel=parallel) as (n, cb):
        if by_lane:
            with k.loop(y.block, "c") as lane:
                channel = cb * y.block + lane
                with k.loop(y.height, "h") as h, k.loop(y.width, "w") as w:
                    at = (n * y.blocks + cb, y.position(h, w), lane)
                    if not ragged:
                        value = code.evaluate(kernel.program, values(n, channel, h, w))
                        k.store(result, value, *at)
                    else:
                        with k.when(channel < y.channels):
                            value = code.evaluate(kernel.program, values(n, channel, h, w))
                            k.store(result, value, *at)
                        with k.when(channel >= y.channels):
                            k.store(result, constant(0, kernel.program.dtype), *at)
        else:
            steps = -(-y.width // together) if together > 1 else y.width
            with (
                k.loop(y.height, "h") as h,
                k.loop(steps, "w") as step,
                k.loop(y.block // lanes, "part") as part,
            ):
                channel = cb * y.block + part * lanes
                first = step if together == 1 else smaller(step * together, y.width - together)
                columns = [values(n, channel, h, first + i) for i in range(together)]
                operands = [join(column, lanes) for column in zip(*columns, strict=True)]
                value = code.evaluate(kernel.program, operands)
                if ragged:
                    value = _mask(value, channel, y.channels, kernel.program.dtype, lanes)
                at = (n * y.blocks + cb, y.position(h, first), part * lanes)
                k.store(result, value, *at, lanes=lanes * together)
    return k.finish()


def _together(kernel: Elementwise, target: Target) -> int:
    """Pixels of a row whose bytes are rounded together, where they fill a vector: not on x86,
    where nothing was measured that gains by it."""
    y, dtype = kernel.layout, kernel.program.dtype
    assert y is not None
    narrow = "neon" in target.features and packs(target, dtype)
    if not narrow or is_open(y.width) or y.channels != y.padded_channels:
        return 1
    if ProgramCode.is_looped(kernel.program):
        return 1
    return max(1, min(PACKED * target.lanes // y.block, int(y.width)))


def _interleaves(kernel: Elementwise, strides: Sequence[Sequence[int]]) -> bool:
    """Whether every source is row-major with neighbouring pixels (or one value) in a row."""
    y = kernel.layout
    assert y is not None
    whole = all(s.layout is None for s in kernel.sources)
    return whole and y.block in (2, 3, 4) and all(s[3] in (0, 1) for s in strides)


def _interleave(
    k: KernelBuilder,
    kernel: Elementwise,
    target: Target,
    buffers: Sequence[BufferVar],
    result: BufferVar,
    strides: Sequence[Sequence[int]],
    *,
    parallel: bool,
) -> None:
    """Images of few channels: whole vectors of pixels per channel, then interleaved."""
    y = kernel.layout
    assert y is not None
    dtype = kernel.program.dtype

    def pixels(n: Expr, h: Expr, w: Expr, lanes: int) -> None:
        code = ProgramCode(k, target, lanes)
        vectors = []
        for c in range(y.block):
            if c >= y.channels:
                vectors.append(constant(0, dtype, lanes))
                continue
            values = []
            for source, buffer, s in zip(kernel.sources, buffers, strides, strict=True):
                own = lanes if s[3] else 1
                found = load_row_major(kernel, source, buffer, s, (n, c, h, w), own)
                values.append(found if s[3] else splat(found, lanes))
            vectors.append(code.bind(code.evaluate(kernel.program, values), dtype))
        if lanes == 1:
            for c, value in enumerate(vectors):
                k.store(result, value, n, y.position(h, w), c)
            return
        order = [c * lanes + i for i in range(lanes) for c in range(y.block)]
        k.store(result, tirx.Shuffle(vectors, order), n, y.position(h, w), 0, lanes=len(order))

    lanes = target.lanes
    wide = PACKED * lanes
    if "neon" in target.features and packs(target, dtype) and not is_open(y.width):
        lanes = wide if y.width >= wide else lanes  # which one instruction interleaves

    def row(n: Expr, h: Expr) -> None:
        if is_open(y.width):
            with k.when(as_int(y.width) >= lanes), k.loop(tiles_of(y.width, lanes), "v") as v:
                pixels(n, h, tirx.min(v * lanes, as_int(y.width - lanes)), lanes)
            with k.when(as_int(y.width) < lanes), k.loop(y.width, "w") as w:
                pixels(n, h, w, 1)
        elif y.width >= lanes:
            with k.loop(-(-y.width // lanes), "v") as v:
                last = tirx.IntImm("int32", y.width - lanes)
                start = v * lanes
                if y.width % lanes:
                    start = tirx.min(start, last) if not isinstance(v, int) else 0
                pixels(n, h, start, lanes)
        else:
            with k.loop(y.width, "w") as w:
                pixels(n, h, w, 1)

    if is_open(y.batch):
        with k.open_nest((y.batch, 1, y.height, 1), parallel=parallel) as (n, _, h, _):
            row(n, h)
    else:
        with k.outer(y.batch, y.height, parallel=parallel) as (n, h):
            row(n, h)


def _mask(value: Computed, channel: Expr, channels: int, dtype: str, lanes: int) -> Computed:
    """Zero the lanes past the last channel, which may hold infinities otherwise."""
    if lanes == 1:
        return tirx.Select(channel < channels, value, constant(0, dtype))
    ramp = tirx.Ramp(channel, tirx.IntImm("int32", 1), lanes)
    keep = ramp < splat(tirx.IntImm("int32", channels), lanes)
    return tirx.Select(keep, value, constant(0, dtype, lanes))


def _load_blocked(
    source: Source, buffer: BufferVar, n: Expr, c: Expr, h: Expr, w: Expr, lanes: int
) -> Computed:
    layout = source.layout
    assert layout is not None
    image = n if layout.batch != 1 else 0
    if layout.height == 1:
        h = 0
    if layout.width == 1:
        w = 0
    block = c // layout.block if isinstance(c, int) else tirx.floordiv(c, layout.block)
    lane = c % layout.block if isinstance(c, int) else tirx.floormod(c, layout.block)
    outer = image * layout.blocks + source.first_block + block
    return load(buffer, outer, layout.position(h, w), lane, lanes=lanes)


def _from_blocked(kernel: Elementwise, target: Target, parallel: bool) -> PrimFunc:
    """Row-major output of inputs of which some are blocked."""
    k = KernelBuilder()
    buffers = _declare(k, kernel)
    n_, c_, h_, w_ = size = image_shape(kernel.shape)
    shape = size if is_open(h_, w_) else (math.prod(kernel.shape),)
    result = k.parameter("Y", shape, kernel.program.dtype)
    strides = [_image_strides(s) for s in kernel.sources]
    if squares.fits(kernel, strides, size):
        body = squares.Squares(k, kernel, target, buffers, result, strides, size)
        body.build(parallel=parallel)
        return k.finish()
    code = ProgramCode(k, target, 1)
    with (
        k.outer(n_, c_, parallel=parallel) as (n, c),
        k.loop(h_, "h") as h,
        k.loop(w_, "w") as w,
    ):
        values = []
        for source, buffer, stride in zip(kernel.sources, buffers, strides, strict=True):
            if source.layout is not None:
                values.append(_load_blocked(source, buffer, n, c, h, w, 1))
            else:
                values.append(load_row_major(kernel, source, buffer, stride, (n, c, h, w)))
        value = code.evaluate(kernel.program, values)
        at = (n, c, h, w) if is_open(h_, w_) else ((n * c_ + c) * h_ + h) * w_ + w
        k.store(result, value, at)
    return k.finish()


def _plain(kernel: Elementwise, target: Target, parallel: bool) -> PrimFunc:
    """Row-major throughout: adjacent axes with the same broadcasting are one."""
    k = KernelBuilder()
    buffers = _declare(k, kernel)
    total = math.prod(kernel.shape)
    result = k.parameter("Y", (total,), kernel.program.dtype)
    sizes, strides = collapse(kernel.shape, [s.element_strides for s in kernel.sources])
    known = not is_open(*sizes)
    if known and len(strides) == 1 and permutation.fits(sizes, strides[0]):
        permutation.build(
            k, kernel, target, buffers[0], result, sizes, strides[0], parallel=parallel
        )
        return k.finish()
    *outer, inner = sizes
    whole = all(s[-1] in (0, 1) for s in strides)
    width = target.lanes if whole else 1
    if not is_open(inner):
        width = min(width, 1 << (inner.bit_length() - 1))

    def body(indices: Sequence[Expr], at: Expr, lanes: int) -> None:
        values = []
        for source, buffer, stride in zip(kernel.sources, buffers, strides, strict=True):
            base: Expr = source.offset + at * stride[-1]
            for i, s in zip(indices, stride[:-1], strict=True):
                base = base + (i * s if source.strides is None else _times(i, s))
            if stride[-1] == 0:
                values.append(splat(load(buffer, base), lanes))
            else:
                values.append(load(buffer, base, lanes=lanes))
        value = ProgramCode(k, target, lanes).evaluate(kernel.program, values)
        offset: Expr = 0
        for i, size in zip(indices, outer, strict=True):
            offset = offset * size + i
        k.store(result, value, offset * inner + at, lanes=lanes)

    def row(indices: Sequence[Expr]) -> None:
        if is_open(inner):
            for count, size, start in cascade(inner, width):
                with k.loop(count, "v", parallel=parallel and not indices and size == width) as v:
                    body(indices, start + v * size, size)
            return
        with k.loop(inner // width, "v", parallel=parallel and not indices) as v:
            body(indices, v * width, width)
        if inner % width:  # the last vector overlaps the one before
            body(indices, inner - width, width)

    def nest(indices: list[Expr]) -> None:
        depth = len(indices)
        if depth == len(outer):
            row(indices)
            return
        with k.loop(outer[depth], f"i{depth}", parallel=parallel and depth == 0) as i:
            nest([*indices, i])

    nest([])
    return k.finish()


def _times(index: Expr, stride: int) -> Expr:
    """An index times a stride, its number first: a size times that may have more than 32 bits
    where the axis has one element."""
    found = e.single_term(size_of(stride)) if is_open(stride) else None
    if found is None or abs(found[0]) == 1:
        return index * stride
    rest = e.divide_exactly(size_of(stride), found[0])
    assert rest is not None
    return index * found[0] * stand_in(rest)


def _image_strides(source: Source) -> list[int]:
    strides = source.element_strides
    if len(strides) == 3:
        return [strides[0], strides[1], 0, strides[2]]
    return [0] * (4 - len(strides)) + strides
