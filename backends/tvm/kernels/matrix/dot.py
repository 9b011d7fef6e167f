"""Multiply-accumulate by vectors: output channels in lanes, input channels reduced.

One `Dot` per data type and instruction set. A step multiplies `depth` input channels of
one pixel, broadcast to all lanes, by the weights of `lanes` output channels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from tvm import tirx

from .....ir.tensor import Array
from ...targets import Target
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
from ...tensorir.types import BufferVar, Computed, Expr

SIGN_BITS = -0x7F7F7F80
"""0x80808080: flips four bytes between signed and unsigned, which adds or takes away 128."""


@dataclasses.dataclass(frozen=True)
class Dot:
    """Float multiply-add: one channel per step."""

    lanes: int
    input_dtype: str

    depth = 1
    accumulator = "float32"
    weight_dtype = "float32"
    input_offset = 0
    """What the instruction adds to each input element: corrected in the bias."""

    @property
    def weights_per_step(self) -> int:
        """Weight elements of one vector and step."""
        return self.lanes * self.depth

    def pack(self, weights: Array) -> Array:
        """[..., lanes, depth] to [..., weights_per_step] in the order that `step` reads."""
        return weights.reshape(*weights.shape[:-2], -1).astype(self.weight_dtype)

    def activation(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        """Load `depth` channels of a pixel and broadcast them; named, for several uses."""
        return [splat(load(buffer, *index), self.lanes)]

    def weights(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        value = load(buffer, *index, lanes=self.lanes)
        return [_bind(builder, value, self.weight_dtype, self.lanes)]

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        return accumulator + activation[0] * weights[0]

    def ones(self) -> list[Computed]:
        """An activation that is 1 in every channel: it sums the weights."""
        return [constant(1, self.accumulator, self.lanes)]


@dataclasses.dataclass(frozen=True)
class WideningDot(Dot):
    """Integers without a dot-product instruction: 16-bit weights, 32-bit multiply-add."""

    accumulator = "int32"
    weight_dtype = "int16"

    def activation(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
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

    def word(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> Computed:
        """Four channels as one 32-bit word, of the signedness that the instruction wants."""
        word = reinterpret(load(buffer, *index, lanes=4), "int32", 1)
        if self.input_offset:
            word = word ^ tirx.const(SIGN_BITS, "int32")
        return word

    def activation(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        word = splat(self.word(builder, buffer, *index), self.lanes)
        dtype = "int8" if self.signed_input else "uint8"
        value = reinterpret(word, dtype, 4 * self.lanes)
        return [_bind(builder, value, dtype, 4 * self.lanes)]

    def weights(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        value = load(buffer, *index, lanes=4 * self.lanes)
        return [_bind(builder, value, "int8", 4 * self.lanes)]

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
        """Vectors to store as weights, from a 32-bit word of four channels per lane."""
        return [_bind(builder, reinterpret(words, "int8", 4 * self.lanes), "int8", 4 * self.lanes)]


@dataclasses.dataclass(frozen=True)
class VnniDot(FourBytes):
    """AVX-512 VNNI vpdpbusd: unsigned activations, signed weights."""

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        return llvm(
            "llvm.x86.avx512.vpdpbusd.512", "int32x16", accumulator, activation[0], weights[0]
        )


@dataclasses.dataclass(frozen=True)
class NeonDot(FourBytes):
    """ARMv8.2 sdot: both operands signed."""

    signed_input = True

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return llvm(name, "int32x4", accumulator, activation[0], weights[0])


_MADD = {
    4: "llvm.x86.sse2.pmadd.wd",
    8: "llvm.x86.avx2.pmadd.wd",
    16: "llvm.x86.avx512.pmaddw.d.512",
}


@dataclasses.dataclass(frozen=True)
class MaddDot(FourBytes):
    """x86 without VNNI: pmaddwd on 16-bit pairs, exact where pmaddubsw saturates.

    Of a broadcast word of channels a, b, c, d one mask gives the pair (a, c) and one
    shift the pair (b, d), so the 16-bit weights are stored in those pairs.
    """

    weight_dtype = "int16"

    def pack(self, weights: Array) -> Array:
        pairs = np.stack([weights[..., 0::2], weights[..., 1::2]], axis=-3)
        return pairs.reshape(*weights.shape[:-2], -1).astype("int16")

    def activation(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        word = splat(self.word(builder, buffer, *index), self.lanes)
        pairs = reinterpret(word, "uint16", 2 * self.lanes)
        pairs = _bind(builder, pairs, "uint16", 2 * self.lanes)
        even = pairs & splat(tirx.const(0xFF, "uint16"), 2 * self.lanes)
        odd = pairs >> splat(tirx.const(8, "uint16"), 2 * self.lanes)
        return [
            _bind(builder, reinterpret(p, "int16", 2 * self.lanes), "int16", 2 * self.lanes)
            for p in (even, odd)
        ]

    def weights(self, builder: KernelBuilder, buffer: BufferVar, *index: Expr) -> list[Computed]:
        *outer, last = index
        return [
            _bind(
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
        pairs = _bind(builder, reinterpret(words, "int16", lanes), "int16", lanes)
        eight = constant(8, "int16", lanes)
        return [
            _bind(builder, value, "int16", lanes)
            for value in ((pairs << eight) >> eight, pairs >> eight)
        ]

    def step(
        self, accumulator: Computed, activation: list[Computed], weights: list[Computed]
    ) -> Computed:
        dtype = vector_type("int32", self.lanes)
        for a, w in zip(activation, weights, strict=True):
            accumulator = accumulator + llvm(_MADD[self.lanes], dtype, a, w)
        return accumulator


def choose(target: Target, input_dtype: str, low: int = -128, high: int = 127) -> Dot:
    """The fastest exact way to multiply inputs of a type by weights within [low, high]."""
    lanes = target.lanes
    if input_dtype == "float32":
        return Dot(lanes, input_dtype)
    fits = low >= -128 and high <= 127
    if "vnni" in target.features and fits:
        return VnniDot(lanes, input_dtype)
    if "dotprod" in target.features and fits:
        return NeonDot(lanes, input_dtype)
    if target.machine == "x86_64":
        return MaddDot(lanes, input_dtype)
    return WideningDot(lanes, input_dtype)


def weight_range(weights: Array) -> tuple[int, int]:
    """8 bits unless integer weights need more."""
    if weights.dtype == np.float32 or (weights.min() >= -128 and weights.max() <= 127):
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


def _bind(builder: KernelBuilder, value: Computed, dtype: str, lanes: int) -> Computed:
    variable = tirx.Var("r", vector_type(dtype, lanes))
    builder.statement(tirx.Bind(variable, value))
    return variable
