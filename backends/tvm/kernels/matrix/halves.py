"""Multiply-accumulate of 16-bit floats, two channels of a pixel at a time, added in float32."""

from __future__ import annotations

import dataclasses

import ml_dtypes
from tvm import tirx

from .....ir.tensor import Array
from ...tensorir.bfloat import BITS
from ...tensorir.bfloat import dot as bfloat_dot
from ...tensorir.builder import KernelBuilder, cast, constant, llvm, load, reinterpret, splat
from ...tensorir.types import BufferVar, Computed, Expr, Index
from .dot import Dot, bind, copies, shuffle


@dataclasses.dataclass(frozen=True)
class HalfDot(Dot):
    """Base of products of 16-bit floats, two channels at a time, whose sums are float32.

    What is read is a 32-bit word of both channels, for each of several steps.
    """

    depth = 2

    def words(
        self, builder: KernelBuilder, steps: int, buffer: BufferVar, *index: Index
    ) -> Computed:
        """The channels of some steps, a word for each."""
        return reinterpret(load(buffer, *index, lanes=2 * steps), "int32", steps)

    def pack_words(self, builder: KernelBuilder, words: Computed) -> list[Computed]:
        halves = reinterpret(words, self.weight_dtype, 2 * self.lanes)
        return [bind(builder, halves, self.weight_dtype, 2 * self.lanes)]

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        """With both channels as vectors of float32: by multiplications and additions."""
        for a, w in zip(activation, weights, strict=True):
            accumulator = accumulator + a * w
        return accumulator


@dataclasses.dataclass(frozen=True)
class BfloatDot(HalfDot):
    """bfloat16 by an instruction for pairs: AVX-512's vdpbf16ps, ARM's bfdot."""

    weight_dtype = BITS

    def pack(self, weights: Array) -> Array:
        return super().pack(weights.astype(ml_dtypes.bfloat16).view(BITS))

    @property
    def together(self) -> int:  # type: ignore[override]
        return 4 if self.lanes == 4 else 1

    def read(
        self, builder: KernelBuilder, steps: int, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        return [bind(builder, self.words(builder, steps, buffer, *index), "int32", steps)]

    def factor(self, read: list[Computed], steps: int, step: int) -> list[Computed]:
        word = copies(read[0], steps, step, self.lanes)
        return [reinterpret(word, BITS, 2 * self.lanes)]

    def weights(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        lanes = 2 * self.lanes
        return [bind(builder, load(buffer, *index, lanes=lanes), BITS, lanes)]

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        return bfloat_dot(accumulator, weights[0], activation[0], self.lanes)


@dataclasses.dataclass(frozen=True)
class BfloatPairs(BfloatDot):
    """bfloat16 without such an instruction: the two halves of a word as float32, each exact."""

    parts = 2
    together = 1

    def apart(self, builder: KernelBuilder, words: Computed) -> list[Computed]:
        """The numbers in the lower halves of 32-bit words, and those in the upper ones."""
        lanes = self.lanes
        bits = reinterpret(words, "uint32", lanes)
        low = bits << constant(16, "uint32", lanes)
        high = bits & constant(0xFFFF0000, "uint32", lanes)
        return [
            bind(builder, reinterpret(part, "float32", lanes), "float32", lanes)
            for part in (low, high)
        ]

    def read(
        self, builder: KernelBuilder, steps: int, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        return self.apart(builder, splat(self.words(builder, 1, buffer, *index), self.lanes))

    def factor(self, read: list[Computed], steps: int, step: int) -> list[Computed]:
        return read

    def weights(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        words = reinterpret(load(buffer, *index, lanes=2 * self.lanes), "int32", self.lanes)
        return self.apart(builder, bind(builder, words, "int32", self.lanes))

    step = HalfDot.step


@dataclasses.dataclass(frozen=True)
class HalfPairs(HalfDot):
    """float16 as float32, each exact: of the two channels of a step one vector each."""

    weight_dtype = "float16"
    parts = 2

    def pack(self, weights: Array) -> Array:
        return super().pack(weights.swapaxes(-1, -2))

    def pack_words(self, builder: KernelBuilder, words: Computed) -> list[Computed]:
        lanes = 2 * self.lanes
        halves = bind(builder, reinterpret(words, "float16", lanes), "float16", lanes)
        apart = [*range(0, lanes, 2), *range(1, lanes, 2)]
        return [bind(builder, tirx.Shuffle([halves], apart), "float16", lanes)]

    def read(
        self, builder: KernelBuilder, steps: int, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        pair = bind(builder, cast(load(buffer, *index, lanes=2), "float32", 2), "float32", 2)
        return [
            bind(builder, shuffle(pair, 2, [i] * self.lanes), "float32", self.lanes) for i in (0, 1)
        ]

    def weights(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        *outer, last = index
        lanes = self.lanes
        halves = [load(buffer, *outer, last + i * lanes, lanes=lanes) for i in (0, 1)]
        return [self._wide(builder, half) for half in halves]

    def _wide(self, builder: KernelBuilder, half: Computed) -> Computed:
        return bind(builder, cast(half, "float32", self.lanes), "float32", self.lanes)


@dataclasses.dataclass(frozen=True)
class NeonHalf(HalfPairs):
    """ARM's fmlal and fmlal2: products of float16 in full, added to float32."""

    parts = 1
    multiplies = 2
    together = 4

    def read(
        self, builder: KernelBuilder, steps: int, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        halves = load(buffer, *index, lanes=2 * steps)
        return [bind(builder, halves, "float16", 2 * steps)]

    def factor(self, read: list[Computed], steps: int, step: int) -> list[Computed]:
        lanes = 2 * self.lanes
        return [shuffle(read[0], 2 * steps, [2 * step + i] * lanes) for i in (0, 1)]

    def weights(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        lanes = 2 * self.lanes
        return [bind(builder, load(buffer, *index, lanes=lanes), "float16", lanes)]

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        for name, a in zip(("fmlal", "fmlal2"), activation, strict=True):
            name = f"llvm.aarch64.neon.{name}.v4f32.v8f16"
            accumulator = llvm(name, "float32x4", accumulator, weights[0], a)
        return accumulator
