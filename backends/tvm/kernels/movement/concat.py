"""Concatenation: row-major along any axis, blocked along the channels."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from ...plan.blocked import Blocked
from ...plan.sizes import cascade_of, is_open
from ...targets import Target
from ...tensorir.builder import KernelBuilder, load
from ...tensorir.types import BufferVar, Expr, PrimFunc
from ..epilogue import fill_border


def build_plain(outer: int, runs: Sequence[int], dtype: str, target: Target) -> PrimFunc:
    """Concatenate row-major inputs of `outer` runs each. Arguments: inputs, output."""
    k = KernelBuilder()
    total = sum(runs)
    if is_open(outer, *runs):
        return _build_open(outer, runs, dtype, target)
    buffers = [k.parameter(f"X{i}", (outer * r,), dtype) for i, r in enumerate(runs)]
    result = k.parameter("Y", (outer * total,), dtype)
    lanes = target.lanes
    with k.loop(outer, "o") as o:
        first = 0
        for buffer, run in zip(buffers, runs, strict=True):
            if run >= lanes:
                with k.loop(run // lanes, "v") as v:
                    value = load(buffer, o * run + v * lanes, lanes=lanes)
                    k.store(result, value, o * total + first + v * lanes, lanes=lanes)
            rest = run % lanes
            if rest:
                with k.loop(rest, "t") as t:
                    at = run - rest + t
                    k.store(result, load(buffer, o * run + at), o * total + first + at)
            first += run
    return k.finish()


def _build_open(outer: int, runs: Sequence[int], dtype: str, target: Target) -> PrimFunc:
    """The same of sizes that only a run fixes: each run an axis, in vectors of fewer lanes at
    its end."""
    k = KernelBuilder()
    buffers = [k.parameter(f"X{i}", (outer, r), dtype) for i, r in enumerate(runs)]
    result = k.parameter("Y", (outer, sum(runs)), dtype)
    with k.loop(outer, "o") as o:
        first = 0
        for buffer, run in zip(buffers, runs, strict=True):
            for count, lanes, start in cascade_of(run, target.lanes):
                with k.loop(count, "v") as v:
                    at = v * lanes + start
                    k.store(result, load(buffer, o, at, lanes=lanes), o, at + first, lanes=lanes)
            first += run
    return k.finish()


def build_append(
    outer: int, shape: tuple[int, int, int], room: int, dtype: str, target: Target
) -> PrimFunc:
    """Copy rows to where a result of `outer` times `room` rows goes on. `shape` is how many rows
    the result holds before, how many are new, and the elements of one. Arguments: rows, result."""
    before, rows, inner = shape
    k = KernelBuilder()
    if is_open(inner):
        x = k.parameter("X", (outer, rows, inner), dtype)
        result = k.parameter("Y", (outer, room, inner), dtype)
        with k.loop(outer, "o") as o, k.loop(rows, "r") as r:
            for count, lanes, start in cascade_of(inner, target.lanes):
                with k.loop(count, "v") as v:
                    at = v * lanes + start
                    value = load(x, o, r, at, lanes=lanes)
                    k.store(result, value, o, r + before, at, lanes=lanes)
        return k.finish()
    x = k.parameter("X", (outer, rows * inner), dtype)
    result = k.parameter("Y", (outer, room * inner), dtype)
    with k.loop(outer, "o") as o:
        for count, lanes, start in cascade_of(rows * inner, target.lanes):
            with k.loop(count, "v") as v:
                at = v * lanes + start
                value = load(x, o, at, lanes=lanes)
                k.store(result, value, o, at + before * inner, lanes=lanes)
    return k.finish()


def build_blocked(
    inputs: Sequence[Blocked], output: Blocked, dtype: str, target: Target
) -> PrimFunc:
    """Concatenate blocked inputs along the channels. Arguments: inputs, output."""
    k = KernelBuilder()
    buffers = [k.parameter(f"X{i}", x.shape, dtype) for i, x in enumerate(inputs)]
    result = k.parameter("Y", output.shape, dtype)
    fill_border(k, result, output, dtype)
    first = 0
    for x, buffer in zip(inputs, buffers, strict=True):
        aligned = first % output.block == 0 and x.block == output.block
        lanes = min(target.lanes, x.block) if aligned else 1
        with (
            k.outer(output.batch, x.blocks, parallel=False) as (n, cb),
            k.loop(output.height, "h") as h,
            k.loop(output.width, "w") as w,
            k.loop(x.block // lanes, "part") as part,
        ):
            value = load(buffer, n * x.blocks + cb, x.position(h, w), part * lanes, lanes=lanes)
            own = cb * x.block + part * lanes
            channel = own + first
            at = (
                n * output.blocks + _div(channel, output.block),
                output.position(h, w),
                _mod(channel, output.block),
            )
            if aligned or x.channels % x.block == 0:
                k.store(result, value, *at, lanes=lanes)
            else:
                with k.when(own < x.channels):
                    k.store(result, value, *at, lanes=lanes)
        first += x.channels
    _zero_tail(k, result, output, dtype)
    return k.finish()


def _zero_tail(k: KernelBuilder, result: BufferVar, output: Blocked, dtype: str) -> None:
    """Lanes past the last channel hold zeros, not what was in memory before."""
    rest = output.padded_channels - output.channels
    if not rest:
        return
    zero = tirx.const(0, dtype)
    with (
        k.loop(output.batch, "n") as n,
        k.loop(output.height, "h") as h,
        k.loop(output.width, "w") as w,
        k.loop(rest, "t") as t,
    ):
        lane = output.block - rest + t
        k.store(result, zero, (n + 1) * output.blocks - 1, output.position(h, w), lane)


def _div(value: Expr, by: int) -> Expr:
    return value // by if isinstance(value, int) else tirx.floordiv(value, by)


def _mod(value: Expr, by: int) -> Expr:
    return value % by if isinstance(value, int) else tirx.floormod(value, by)
