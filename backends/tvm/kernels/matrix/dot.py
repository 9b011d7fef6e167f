"""Multiply-accumulate by vectors: output channels in lanes, input channels reduced.

One `Dot` per data type and instruction set. A step multiplies `depth` input channels of
one pixel, broadcast to all lanes, by the weights of `lanes` output channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tvm import tirx

from .....ir.tensor import Array
from ...tensorir.builder import (
    KernelBuilder,
    cast,
    constant,
    llvm,
    load,
    reinterpret,
    splat,
    vector_type,
)
from ...tensorir.types import BufferVar, Computed, Expr, Index

SIGN_BITS = -0x7F7F7F80
"""0x80808080: flips four bytes between signed and unsigned, which adds or takes away 128."""


@dataclasses.dataclass(frozen=True)
class Dot:
    """Float multiply-add: one channel per step."""

    lanes: int
    input_dtype: str

    depth = 1
    together = 1
    """Steps whose channels are better read by one load."""
    reads = 1
    """Instructions that read the channels of such steps."""
    multiplies = 1
    """Instructions of a step for each accumulator."""
    factors = 0
    """Instructions that take the channels of one step from what was read."""
    parts = 1
    """Vectors that the weights of a step are, and its channels for each pixel."""
    pixels = 1
    """Pixels that an instruction takes at once."""
    temporaries = 1
    """Registers that a step takes besides accumulators, weights and what was read."""
    unroll = 4
    """Steps that the body of the innermost loop takes where nothing else is chosen."""
    spare = 5
    """Registers that LLVM needs beside those that a tile holds, lest it keeps some on the stack."""
    accumulator = "float32"
    weight_dtype = "float32"
    input_offset = 0
    """What the instruction adds to each input element: corrected in the bias."""

    @property
    def by_instructions(self) -> bool:
        """Whether tiles are chosen by how many instructions they take."""
        return self.together > 1

    @property
    def weights_per_step(self) -> int:
        """Weight elements of one vector and step."""
        return self.lanes * self.depth

    def pack(self, weights: Array) -> Array:
        """[..., lanes, depth] to [..., weights_per_step] in the order that `step` reads."""
        return weights.reshape(*weights.shape[:-2], -1).astype(self.weight_dtype)

    def activation(
        self, builder: KernelBuilder, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        """Load `depth` channels of a pixel and broadcast them; named, for several uses."""
        return [splat(load(buffer, *index), self.lanes)]

    def read(
        self, builder: KernelBuilder, steps: int, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        """Load the channels of one step, or of `together` ones; `factor` takes them apart."""
        assert steps == 1
        return self.activation(builder, buffer, *index)

    def factor(self, read: list[Computed], steps: int, step: int) -> list[Computed]:
        """The activation of one of the `steps` that `read` has loaded."""
        return read

    def weights(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        value = load(buffer, *index, lanes=self.lanes)
        return [bind(builder, value, self.weight_dtype, self.lanes)]

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        return accumulator + activation[0] * weights[0]

    def ones(self) -> list[Computed]:
        """An activation that is 1 in every channel: it sums the weights."""
        return [constant(1, self.accumulator, self.lanes)]

    def accumulators(self, vectors: int, pixels: int) -> int:
        """How many of them a tile has."""
        return vectors * pixels

    def registers(self, vectors: int, pixels: int) -> int:
        """Registers that a tile's reduction takes: accumulators, weights of a step, what was read,
        and temporary ones."""
        return self.accumulators(vectors, pixels) + vectors + pixels + self.temporaries

    def instructions(self, vectors: int, pixels: int) -> float:
        """Instructions of one reduction step of a tile, where several steps are read together."""
        reads = pixels * (self.reads + self.factors * self.together) / self.together
        return vectors * pixels * self.multiplies + vectors + reads

    def join(self, first: list[Computed], second: list[Computed], steps: int) -> list[Computed]:
        """What was read of two pixels, where an instruction takes both."""
        raise NotImplementedError

    def shares(
        self, vector: int, pixel: int, vectors: int, pixels: int, weights: list[Computed]
    ) -> list[tuple[int, list[Computed]]]:
        """Numbers of the accumulators that a step from `pixel` on adds to, each with its weights.

        That of a vector and a pixel is `vector * pixels + pixel` outside of the reduction.
        """
        return [(vector * pixels + pixel, weights)]

    def enter(
        self, builder: KernelBuilder, accumulators: BufferVar, vectors: int, pixels: int
    ) -> None:
        """Rearrange a tile's accumulators before the reduction."""

    def leave(
        self, builder: KernelBuilder, accumulators: BufferVar, vectors: int, pixels: int
    ) -> None:
        """Undo `enter` after the reduction."""

    def pack_words(self, builder: KernelBuilder, words: Computed) -> list[Computed]:
        """Vectors to store as weights, from a 32-bit word of `depth` channels per lane."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class WideningDot(Dot):
    """Integers without a dot-product instruction: 16-bit weights, 32-bit multiply-add."""

    accumulator = "int32"
    weight_dtype = "int16"

    def activation(
        self, builder: KernelBuilder, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        return [splat(cast(load(buffer, *index), "int32", 1), self.lanes)]

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        return accumulator + activation[0] * cast(weights[0], "int32", self.lanes)


@dataclasses.dataclass(frozen=True)
class FourBytes(Dot):
    """Base of the instructions that take four 8-bit channels at a time."""

    depth = 4
    accumulator = "int32"
    weight_dtype = "int8"
    signed_input = False

    @property
    def input_offset(self) -> int:  # type: ignore[override]
        if self.signed_input:
            return 0 if self.input_dtype == "int8" else -128
        return 128 if self.input_dtype == "int8" else 0

    def word(self, builder: KernelBuilder, buffer: BufferVar, *index: Index) -> Computed:
        """Four channels as one 32-bit word, of the signedness that the instruction wants."""
        word = reinterpret(load(buffer, *index, lanes=4), "int32", 1)
        if self.input_offset:
            word = word ^ tirx.const(SIGN_BITS, "int32")
        return word

    def activation(
        self, builder: KernelBuilder, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        word = splat(self.word(builder, buffer, *index), self.lanes)
        dtype = "int8" if self.signed_input else "uint8"
        value = reinterpret(word, dtype, 4 * self.lanes)
        return [bind(builder, value, dtype, 4 * self.lanes)]

    def weights(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        value = load(buffer, *index, lanes=4 * self.lanes)
        return [bind(builder, value, "int8", 4 * self.lanes)]

    def ones(self) -> list[Computed]:
        return [constant(1, "int8" if self.signed_input else "uint8", 4 * self.lanes)]

    def sum_bytes(self, accumulator: Computed, buffer: BufferVar, index: Expr) -> Computed:
        """Add a vector's bytes, as `activation` takes them, four to each lane."""
        words = reinterpret(load(buffer, index, lanes=4 * self.lanes), "int32", self.lanes)
        if self.input_offset:
            words = words ^ constant(SIGN_BITS, "int32", self.lanes)
        dtype = "int8" if self.signed_input else "uint8"
        value = reinterpret(words, dtype, 4 * self.lanes)
        return self.step(accumulator, [value], [constant(1, "int8", 4 * self.lanes)])

    def pack_words(self, builder: KernelBuilder, words: Computed) -> list[Computed]:
        return [bind(builder, reinterpret(words, "int8", 4 * self.lanes), "int8", 4 * self.lanes)]


def vpdpbusd(lanes: int, accumulator: Computed, bytes_: Computed, weights: Computed) -> Computed:
    """The x86 instruction of AVX-512 VNNI and AVX-VNNI: unsigned bytes times signed weights."""
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return llvm(name, vector_type("int32", lanes), accumulator, bytes_, weights)


@dataclasses.dataclass(frozen=True)
class VnniDot(FourBytes):
    """x86 with VNNI: unsigned activations, signed weights."""

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        return vpdpbusd(self.lanes, accumulator, activation[0], weights[0])


def in_order(total: Computed, lanes: int) -> Computed:
    """A sum of 32-bit integers that is computed before others: else LLVM adds all products of a
    loop's body first, which then don't fit the registers."""
    bits = reinterpret(total, "float32", lanes)
    bits = llvm(f"llvm.arithmetic.fence.v{lanes}f32", vector_type("float32", lanes), bits)
    return reinterpret(bits, "int32", lanes)


def copies(vector: Computed, lanes: int, index: int, count: int) -> Computed:
    """One element of a vector, or a scalar, `count` times."""
    return splat(vector, count) if lanes == 1 else shuffle(vector, lanes, [index] * count)


def shuffle(vector: Computed, lanes: int, order: Sequence[int]) -> Computed:
    """Elements of a vector in any order, also more than it has."""
    return tirx.Shuffle([vector] * -(-len(order) // lanes), list(order))


MADD = {
    4: "llvm.x86.sse2.pmadd.wd",
    8: "llvm.x86.avx2.pmadd.wd",
    16: "llvm.x86.avx512.pmaddw.d.512",
}
"""Products of 16 bits, added in pairs, by the lanes of their sums."""


def madd(lanes: int, total: Computed, first: Computed, second: Computed) -> Computed:
    """The sum with what that x86 instruction makes of two vectors."""
    products = llvm(MADD[lanes], vector_type("int32", lanes), first, second)
    return in_order(total + products, lanes)


@dataclasses.dataclass(frozen=True)
class MaddDot(FourBytes):
    """x86 without VNNI: pmaddwd on 16-bit pairs, exact where pmaddubsw saturates.

    Of a broadcast word of channels a, b, c, d one mask gives the pair (a, c) and one
    shift the pair (b, d), so the 16-bit weights are stored in those pairs.
    """

    weight_dtype = "int16"
    parts = 2
    multiplies = 4

    def pack(self, weights: Array) -> Array:
        pairs = np.stack([weights[..., 0::2], weights[..., 1::2]], axis=-3)
        return pairs.reshape(*weights.shape[:-2], -1).astype("int16")

    def activation(
        self, builder: KernelBuilder, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        word = splat(self.word(builder, buffer, *index), self.lanes)
        pairs = reinterpret(word, "uint16", 2 * self.lanes)
        pairs = bind(builder, pairs, "uint16", 2 * self.lanes)
        even = pairs & splat(tirx.const(0xFF, "uint16"), 2 * self.lanes)
        odd = pairs >> splat(tirx.const(8, "uint16"), 2 * self.lanes)
        return [
            bind(builder, reinterpret(p, "int16", 2 * self.lanes), "int16", 2 * self.lanes)
            for p in (even, odd)
        ]

    def weights(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        *outer, last = index
        return [
            bind(
                builder,
                load(buffer, *outer, last + i * 2 * self.lanes, lanes=2 * self.lanes),
                "int16",
                2 * self.lanes,
            )
            for i in range(2)
        ]

    def ones(self) -> list[Computed]:
        return [constant(1, "int16", 2 * self.lanes)] * 2

    def pack_words(self, builder: KernelBuilder, words: Computed) -> list[Computed]:
        lanes = 2 * self.lanes
        pairs = bind(builder, reinterpret(words, "int16", lanes), "int16", lanes)
        eight = constant(8, "int16", lanes)
        return [
            bind(builder, value, "int16", lanes)
            for value in ((pairs << eight) >> eight, pairs >> eight)
        ]

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        for a, w in zip(activation, weights, strict=True):
            accumulator = madd(self.lanes, accumulator, a, w)
        return accumulator


MADD_BYTES = {
    4: "llvm.x86.ssse3.pmadd.ub.sw.128",
    8: "llvm.x86.avx2.pmadd.ub.sw",
    16: "llvm.x86.avx512.pmaddubs.w.512",
}
"""Products of unsigned by signed bytes, added in pairs, by the lanes of 32-bit sums."""


@dataclasses.dataclass(frozen=True)
class PairedDot(FourBytes):
    """x86 without VNNI: pmaddubsw, whose 16-bit sums of `joined` words are widened together, by
    weights that `paired.split` has made fit."""

    joined: int = 1

    @property
    def depth(self) -> int:  # type: ignore[override]
        return 4 * self.joined

    @property
    def parts(self) -> int:  # type: ignore[override]
        return self.joined

    def pack(self, weights: Array) -> Array:
        words = weights.reshape(*weights.shape[:-1], self.joined, 4)
        return super().pack(np.moveaxis(words, -2, -3).reshape(weights.shape))

    def activation(
        self, builder: KernelBuilder, buffer: BufferVar, *index: Index
    ) -> list[Computed]:
        *outer, last = index
        assert not isinstance(last, tuple)
        words: list[Computed] = []
        for i in range(self.joined):
            words += super().activation(builder, buffer, *outer, last + 4 * i)
        return words

    def weights(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        *outer, last = index
        words: list[Computed] = []
        for i in range(self.joined):
            words += super().weights(builder, buffer, *outer, last + 4 * self.lanes * i)
        return words

    def ones(self) -> list[Computed]:
        return super().ones() * self.joined

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        dtype = vector_type("int16", 2 * self.lanes)
        first, *others = (
            llvm(MADD_BYTES[self.lanes], dtype, a, w)
            for a, w in zip(activation, weights, strict=True)
        )
        for other in others:
            first = first + other
        return madd(self.lanes, accumulator, first, constant(1, "int16", 2 * self.lanes))


def bind(builder: KernelBuilder, value: Computed, dtype: str, lanes: int) -> Computed:
    """A name for a value that several steps use."""
    variable = tirx.Var("r", vector_type(dtype, lanes))
    builder.statement(tirx.Bind(variable, value))
    return variable
