"""Multiply-accumulate by ARM's NEON and its extensions: floats, and bytes in several ways."""

from __future__ import annotations

import dataclasses

from tvm import tirx

from .....ir.tensor import Array
from ...tensorir.builder import (
    KernelBuilder,
    cast,
    llvm,
    load,
    reinterpret,
    splat,
)
from ...tensorir.types import BufferVar, Computed, Expr, Index
from .dot import SIGN_BITS, Dot, FourBytes, bind, copies, in_order, shuffle


@dataclasses.dataclass(frozen=True)
class NeonFloat(Dot):
    """Multiply-add by one of the elements of a register, which one load fills."""

    together = 4

    def read(
        self, builder: KernelBuilder, steps: int, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        if steps == 1:
            return [splat(load(buffer, *index), self.lanes)]
        return [bind(builder, load(buffer, *index, lanes=steps), "float32", steps)]

    def factor(self, read: list[Computed], steps: int, step: int) -> list[Computed]:
        return read if steps == 1 else [copies(read[0], steps, step, self.lanes)]


@dataclasses.dataclass(frozen=True)
class NeonWideFloat(NeonFloat):
    """The same where 32 registers are filled two at a time (AArch64)."""

    unroll = 8
    spare = 1

    def registers(self, vectors: int, pixels: int) -> int:
        """LLVM reads eight steps of a pixel by one instruction, which fills two registers."""
        return super().registers(vectors, pixels) + pixels

    def instructions(self, vectors: int, pixels: int) -> float:
        """One instruction reads two vectors of weights."""
        return vectors * pixels + vectors / 2 + pixels / self.unroll


@dataclasses.dataclass(frozen=True)
class NeonBytes(FourBytes):
    """Base of ARM's instructions on 8-bit channels, both operands signed.

    Channels of several steps are read at once, and each word of them is broadcast from there.
    """

    signed_input = True
    together = 2

    def activation(
        self, builder: KernelBuilder, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        return self.factor(self.read(builder, 1, buffer, *index), 1, 0)

    @property
    def reads(self) -> int:  # type: ignore[override]
        return 2 if self.input_offset else 1

    def read(
        self, builder: KernelBuilder, steps: int, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        words = reinterpret(load(buffer, *index, lanes=4 * steps), "int32", steps)
        if self.input_offset:
            words = words ^ splat(tirx.const(SIGN_BITS, "int32"), steps)
        return [bind(builder, words, "int32", steps)]


@dataclasses.dataclass(frozen=True)
class NeonDot(NeonBytes):
    """ARMv8.2 sdot, the word of channels by its place in a register; where the CPU multiplies bytes
    of different signedness (i8mm), unsigned channels by sudot."""

    mixed: bool = False

    @property
    def signed_input(self) -> bool:  # type: ignore[override]
        return not (self.mixed and self.input_dtype == "uint8")

    def factor(self, read: list[Computed], steps: int, step: int) -> list[Computed]:
        word = copies(read[0], steps, step, self.lanes)
        return [reinterpret(word, "int8", 4 * self.lanes)]

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        if self.signed_input:
            name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
            return llvm(name, "int32x4", accumulator, weights[0], activation[0])
        name = "llvm.aarch64.neon.usdot.v4i32.v16i8"
        return llvm(name, "int32x4", accumulator, activation[0], weights[0])


@dataclasses.dataclass(frozen=True)
class NeonMatrix(NeonDot):
    """smmla and usmmla of i8mm: eight channels of two pixels by those of two outputs.

    An accumulator holds two outputs of one pixel, then the same of the next one: the first
    accumulator of two pixels has the lower half of a vector's outputs, the second one the upper
    half. Of an odd number of pixels the last one counts twice. `adjacent` promises that the
    channels of neighbouring pixels mostly lie side by side, so that one load reads both.
    """

    mixed: bool = True
    adjacent: bool = False

    depth = 8
    pixels = 2
    by_instructions = True

    @property
    def together(self) -> int:  # type: ignore[override]
        return 1 if self.adjacent else 2

    def read(
        self, builder: KernelBuilder, steps: int, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        words = reinterpret(load(buffer, *index, lanes=8 * steps), "int64", steps)
        return [bind(builder, words, "int64", steps)]

    def read_both(self, builder: KernelBuilder, buffer: BufferVar, *index: Index) -> list[Computed]:
        """One step's channels of a pixel and of the next one, which follow."""
        return [bind(builder, load(buffer, *index, lanes=16), self.input_dtype, 16)]

    def join(self, first: list[Computed], second: list[Computed], steps: int) -> list[Computed]:
        return [
            reinterpret(tirx.Shuffle([first[0], second[0]], [i, steps + i]), "int8", 16)
            for i in range(steps)
        ]

    def factor(self, read: list[Computed], steps: int, step: int) -> list[Computed]:
        return [read[step]]

    def weights(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        *outer, last = index
        return [
            bind(builder, load(buffer, *outer, last + 16 * i, lanes=16), "int8", 16)
            for i in range(2)
        ]

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        kind = "smmla" if self.signed_input else "usmmla"
        name = f"llvm.aarch64.neon.{kind}.v4i32.v16i8"
        return llvm(name, "int32x4", accumulator, activation[0], weights[0])

    def sum_bytes(self, accumulator: Computed, buffer: BufferVar, index: Expr) -> Computed:
        return NeonDot(self.lanes, self.input_dtype, self.mixed).sum_bytes(
            accumulator, buffer, index
        )

    def pack_words(self, builder: KernelBuilder, words: Computed) -> list[Computed]:
        return [bind(builder, reinterpret(words, "int8", 32), "int8", 32)]

    def accumulators(self, vectors: int, pixels: int) -> int:
        return vectors * (pixels + pixels % 2)

    def registers(self, vectors: int, pixels: int) -> int:
        pairs = -(-pixels // 2)
        return vectors * 2 * (pairs + 1) + pairs * self.together + self.temporaries

    def instructions(self, vectors: int, pixels: int) -> float:
        pairs = -(-pixels // 2)
        return vectors * 2 * (pairs + 1) + pairs * self.together

    def shares(
        self, vector: int, pixel: int, vectors: int, pixels: int, weights: list[Computed]
    ) -> list[tuple[int, list[Computed]]]:
        first = vector * pixels + pixel
        second = first + 1 if pixel + 1 < pixels else vectors * pixels + vector
        return [(first, weights[:1]), (second, weights[1:])]

    def enter(
        self, builder: KernelBuilder, accumulators: BufferVar, vectors: int, pixels: int
    ) -> None:
        if pixels % 2:
            for v in range(vectors):
                last = load(accumulators, (v * pixels + pixels - 1) * 4, lanes=4)
                builder.store(accumulators, last, (vectors * pixels + v) * 4, lanes=4)
        self.leave(builder, accumulators, vectors, pixels)

    def leave(
        self, builder: KernelBuilder, accumulators: BufferVar, vectors: int, pixels: int
    ) -> None:
        """The lower halves of two vectors in one, the upper ones in the other: undoes itself."""
        for v in range(vectors):
            for p in range(0, pixels, 2):
                places = [at for at, _ in self.shares(v, p, vectors, pixels, [])]
                both = [
                    bind(builder, load(accumulators, at * 4, lanes=4), "int32", 4) for at in places
                ]
                for at, order in zip(places, ((0, 1, 4, 5), (2, 3, 6, 7)), strict=True):
                    half = tirx.Shuffle(both, list(order))
                    builder.store(accumulators, half, at * 4, lanes=4)


_PAIRS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Order of the pairs of channels of four outputs: the first ones, then the second ones."""


@dataclasses.dataclass(frozen=True)
class NeonPairs(NeonBytes):
    """ARM without dot products: 8-bit products, two of which fit 16 bits, added in pairs.

    Of a word of channels a, b, c, d one half of the weights is multiplied by a and b, the
    other by c and d, into the same 16-bit sums unless two products of the lowest numbers
    would pass them (`narrow` promises that no weight is -128); pairs of neighbours are then
    added to the 32-bit accumulators.
    """

    narrow: bool = False
    is_64_bit: bool = True

    multiplies = 3
    factors = 1
    temporaries = 5

    def pack(self, weights: Array) -> Array:
        pairs = weights.reshape(*weights.shape[:-2], 2 * self.lanes, 2)[..., _PAIRS, :]
        return super().pack(pairs.reshape(weights.shape))

    def pack_words(self, builder: KernelBuilder, words: Computed) -> list[Computed]:
        pairs = tirx.Shuffle([reinterpret(words, "int16", 2 * self.lanes)], list(_PAIRS))
        return [bind(builder, reinterpret(pairs, "int8", 4 * self.lanes), "int8", 4 * self.lanes)]

    def factor(self, read: list[Computed], steps: int, step: int) -> list[Computed]:
        pairs = reinterpret(read[0], "int16", 2 * steps)
        order = [2 * step + i // self.lanes for i in range(2 * self.lanes)]
        return [reinterpret(shuffle(pairs, 2 * steps, order), "int8", 4 * self.lanes)]

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        low, high = (self._products(activation[0], weights[0], half) for half in (0, 1))
        for sums in [low + high] if self.narrow else [low, high]:
            accumulator = self._add_pairs(accumulator, sums)
        return accumulator

    def _products(self, a: Computed, w: Computed, half: int) -> Computed:
        lanes = 2 * self.lanes
        own = list(range(half * lanes, (half + 1) * lanes))
        first, second = (tirx.Shuffle([v], own) for v in (a, w))
        if self.is_64_bit:
            return llvm("llvm.aarch64.neon.smull.v8i16", "int16x8", first, second)
        return cast(first, "int16", lanes) * cast(second, "int16", lanes)

    def _add_pairs(self, accumulator: Computed, sums: Computed) -> Computed:
        if not self.is_64_bit:
            return llvm("llvm.arm.neon.vpadals.v4i32.v8i16", "int32x4", accumulator, sums)
        total = accumulator + llvm("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", sums)
        return in_order(total, 4)
