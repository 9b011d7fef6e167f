"""The range of a tensor as scale and zero point of its quantization to bytes."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from ...plan.sizes import cascade, is_open
from ...targets import Target
from ...tensorir.builder import KernelBuilder, cast, constant, load
from ...tensorir.types import BufferVar, Computed, Expr, PrimFunc
from ...tensorir.vectors import VectorCode

CHAINS = 4
"""Partial ranges that don't wait for each other."""


Join = Callable[[Computed, Computed], Computed]


def build(count: int, target: Target) -> PrimFunc:
    """The kernel. Arguments: float32 [count], scale (float32 [1]), zero point (uint8 [1]).

    The range holds zero; the scale of nothing but zeros is 1. Where there is any NaN the scale is
    NaN, and the zero point the highest byte, as ONNX Runtime has it where NaN comes last.
    """
    k = KernelBuilder()
    x = k.parameter("X", (count,), "float32")
    scale = k.parameter("S", (1,), "float32")
    zero = k.parameter("Z", (1,), "uint8")
    if is_open(count):
        lanes, chains = target.lanes, CHAINS
    else:
        lanes = min(target.lanes, 1 << (count.bit_length() - 1))
        chains = CHAINS if count // lanes >= 2 * CHAINS else 1
    low, high = (k.local(chains * lanes, "float32", name) for name in ("low", "high"))
    for buffer in (low, high):
        for chain in range(chains):
            k.store(buffer, constant(0.0, "float32", lanes), chain * lanes, lanes=lanes)

    def take(start: Expr, chain: int, lanes: int) -> None:
        code = VectorCode(k, target, lanes)
        value = code.bind(load(x, start, lanes=lanes), "float32")
        at = chain * lanes
        k.store(low, tirx.min(value, load(low, at, lanes=lanes)), at, lanes=lanes)
        k.store(high, code.larger(value, load(high, at, lanes=lanes)), at, lanes=lanes)

    if is_open(count):
        for times, size, start in cascade(count, chains * lanes):
            with k.loop(times, "v") as v:
                for chain in range(max(1, size // lanes)):
                    take(start + v * size + chain * lanes, chain, min(size, lanes))
    else:
        full, rest = divmod(count, lanes)
        with k.loop(full // chains, "v") as v:
            for chain in range(chains):
                take((v * chains + chain) * lanes, chain, lanes)
        for number in range(full - full % chains, full):
            take(number * lanes, 0, lanes)
        if rest:  # the last vector overlaps the one before
            take(count - lanes, 0, lanes)
    one = VectorCode(k, target, 1)
    least, greatest = (
        _folded(k, buffer, join, chains * lanes)
        for buffer, join in ((low, tirx.min), (high, one.larger))
    )
    step = one.in_memory((greatest - least) / one.number(255.0))
    divisor = one.in_memory(tirx.Select(tirx.EQ(step, one.number(0.0)), one.number(1.0), step))
    offset = tirx.nearbyint(one.difference(one.number(0.0), least) / divisor)
    offset = one.in_memory(tirx.max(tirx.min(offset, one.number(255.0)), one.number(0.0)))
    offset = tirx.Select(one.is_number(divisor), offset, one.number(255.0))
    k.store(scale, divisor, 0)
    k.store(zero, cast(cast(offset, "int32", 1), "uint8", 1), 0)
    return k.finish()


def _folded(k: KernelBuilder, buffer: BufferVar, join: Join, count: int) -> Computed:
    """One number of all in a buffer."""
    total = k.local(1, "float32", "total")
    k.store(total, load(buffer, 0), 0)
    with k.loop(count, "i") as i:
        k.store(total, join(load(buffer, i), load(total, 0)), 0)
    return load(total, 0)
