"""Reduction steps of a tile: which multiply instruction takes them, what they load and cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .....ir.tensor import Array
from ...targets import Target, multiplies_halves
from ...tensorir.bfloat import BITS
from ...tensorir.builder import KernelBuilder, load
from ...tensorir.types import BufferVar, Computed
from .dot import Dot, MaddDot, PairedDot, VnniDot, WideningDot
from .halves import BfloatDot, BfloatPairs, HalfPairs, NeonHalf
from .neon import NeonDot, NeonFloat, NeonMatrix, NeonPairs, NeonWideFloat


def multiply(
    builder: KernelBuilder,
    dot: Dot,
    accumulators: BufferVar,
    steps: int,
    vectors: int,
    pixels: int,
    read: Callable[[int], list[Computed]],
    weights: Callable[[int, int], list[Computed]],
    read_both: Callable[[int], list[Computed] | None] = lambda _: None,
) -> None:
    """Some reduction steps of a tile of `vectors` times `pixels` accumulators.

    `read(pixel)` loads the channels of these steps, `weights(step, vector)` a vector of weights.
    `read_both(pixel)` loads those of a pixel and the next one together, if it can.
    """

    def both(p: int) -> list[Computed]:
        last = p + 1 == pixels
        found = None if last else read_both(p)
        if found is not None:
            return found
        first = read(p)
        return dot.join(first, first if last else read(p + 1), steps)

    known: list[list[Computed]] = []
    for step in range(steps):
        factors = [weights(step, v) for v in range(vectors)]
        for p in range(0, pixels, dot.pixels):
            if step == 0:
                known.append(read(p) if dot.pixels == 1 else both(p))
            value = dot.factor(known[p // dot.pixels], steps, step)
            for v in range(vectors):
                for number, own in dot.shares(v, p, vectors, pixels, factors[v]):
                    at = number * dot.lanes
                    total = dot.step(load(accumulators, at, lanes=dot.lanes), value, own)
                    builder.store(accumulators, total, at, lanes=dot.lanes)


def stays_in_registers(dot: Dot, target: Target, vectors: int, pixels: int) -> bool:
    """Whether a loop over reduction steps that are read together keeps a tile in registers."""
    held = dot.registers(vectors, pixels)
    return vectors * pixels == 1 or held <= target.registers - dot.spare


def unrolled(dot: Dot, steps: int, most: int, *, whole: bool = True) -> int:
    """Steps of a loop's body: a divisor of all of them, if `whole` or there is one of some steps.

    Where each takes several instructions, more than are read together are too many for LLVM to
    keep a tile in registers.
    """
    most = dot.together if dot.multiplies > 1 else most
    divisors = [u for u in range(1, most + 1) if steps % u == 0]
    divisor = min(divisors, key=lambda u: (len(runs(u, dot.together)) / u, -u), default=1)
    return divisor if whole or 2 * divisor > most else min(most, steps)


def runs(steps: int, together: int) -> list[tuple[int, int]]:
    """First step and number of steps of each of the loads that read the channels of `steps`."""
    whole = steps // together * together if together > 1 else steps
    size = together
    return [(i, size) for i in range(0, whole, size)] + [(i, 1) for i in range(whole, steps)]


def choose(
    target: Target,
    input_dtype: str,
    low: int = -128,
    high: int = 127,
    joined: int = 0,
    pairs: bool | None = None,
) -> Dot:
    """The fastest exact way to multiply inputs of a type by weights within [low, high].

    Of 16-bit floats weights are of the same type, and products as exact as their sums. Products of
    `joined` words may be added in 16 bits. `pairs` says that pixels may be taken two at a time, of
    eight channels each, and whether those lie side by side.
    """
    lanes = target.lanes
    if joined:
        return PairedDot(lanes, input_dtype, joined)
    if input_dtype == "float32":
        wide = NeonWideFloat if target.machine == "aarch64" else NeonFloat
        return (wide if "neon" in target.features else Dot)(lanes, input_dtype)
    if input_dtype == BITS:
        by_pairs = multiplies_halves(target, "bfloat16")
        return (BfloatDot if by_pairs else BfloatPairs)(lanes, input_dtype)
    if input_dtype == "float16":
        by_pairs = multiplies_halves(target, "float16")
        return (NeonHalf if by_pairs else HalfPairs)(lanes, input_dtype)
    fits = low >= -128 and high <= 127
    if "vnni" in target.features and fits:
        return VnniDot(lanes, input_dtype)
    mixed = "i8mm" in target.features
    if mixed and fits and pairs is not None:
        return NeonMatrix(lanes, input_dtype, adjacent=pairs)
    if "dotprod" in target.features and fits:
        return NeonDot(lanes, input_dtype, mixed)
    if "neon" in target.features and fits:
        is_64_bit = target.machine == "aarch64"
        return NeonPairs(lanes, input_dtype, low > -128, is_64_bit)
    if target.machine == "x86_64":
        return MaddDot(lanes, input_dtype)
    return WideningDot(lanes, input_dtype)


def weight_range(weights: Array) -> tuple[int, int]:
    """8 bits, with the lowest number or without, unless integer weights need more."""
    if weights.dtype == np.float32 or (weights.min() >= -127 and weights.max() <= 127):
        return -127, 127
    if weights.min() >= -128 and weights.max() <= 127:
        return -128, 127
    return int(weights.min()), int(weights.max())


def without_offset(bias: Array, weights: Array, offset: int) -> Array:
    """The bias that takes back what `offset`, added to every input, makes with the weights.

    [outputs] and [outputs, ...]; it wraps as 32-bit accumulators do.
    """
    if not offset:
        return bias
    sums: Array = weights.reshape(weights.shape[0], -1).astype(np.int64).sum(1)
    corrected: Array = bias.astype(np.int64) - offset * sums
    return corrected.astype(np.int32)
