"""Recurrent layers with weights of bytes, whose states are multiplied as bytes, too.

A state between -1 and 1 is a whole number of 2^-22, which is as exact as the sums of floats are,
and that number is three bytes. Each is multiplied by the weights as integers, and the sums of
the three are put together as floats. LSTM's states, and by default GRU's and RNN's, are such
numbers, unless one is given or NaN; a step with any other state multiplies floats.
"""

from __future__ import annotations

import math

from tvm import tirx

from ..functions.rounding import MAGIC
from ..plan.recurrent import Recurrent
from ..plan.sizes import is_open
from ..targets import Target
from ..tensorir.builder import cast, constant, load, reinterpret
from ..tensorir.types import BufferVar, Computed, Expr, PrimFunc
from ..tensorir.vectors import VectorCode, folded
from .matrix.dot import FourBytes, VnniDot
from .matrix.neon import NeonDot
from .recurrent import RecurrentKernel, Rule
from .recurrent import scratch as scratch_of_floats

PLANES = 3
"""Bytes of a state: planes of the least, the middle and the most significant ones."""

UNIT = 2.0**-22
"""What a state's whole number counts. Added to `MAGIC` it is in the low bits of a float."""

MOST = 2**15
"""Units up to which sums of products of bytes, and what they begin with, fit 32 bits."""

SIGN = 0x80
"""The bit by which unsigned and signed bytes that are meant to be 128 apart differ."""


def multiplies_state(layer: Recurrent, target: Target) -> bool:
    """Whether a layer's kernel is this one: where an instruction adds up four products of bytes."""
    if layer.weight_dtype != "int8" or target.small or layer.hidden > MOST:
        return False
    return not {"vnni", "dotprod"}.isdisjoint(target.features)


def build(layer: Recurrent, target: Target) -> PrimFunc:
    """The kernel.

    Arguments are those of `recurrent.build`, but that weights are packed in words
    (`Recurrent.pack_words`), and behind their scales is the sum of each column's weights.
    """
    return _StateBytes(layer, target).build()


def scratch(layer: Recurrent, target: Target) -> list[tuple[tuple[int, ...], str]]:
    """Those of `recurrent.scratch`, and the states' bytes."""
    size = layer.batch * layer.units(target) * target.lanes
    return [*scratch_of_floats(layer, target), ((PLANES, size), _dot(target).input_dtype)]


def _dot(target: Target) -> FourBytes:
    if "vnni" in target.features:
        return VnniDot(target.lanes, "uint8")
    return NeonDot(target.lanes, "int8")


class _StateBytes(RecurrentKernel):
    """One kernel being built."""

    def packed(self) -> tuple[int, ...]:
        self.words = -(-self.layer.hidden // 4)
        return len(self.layer.reverse) * self.units, self.words, 4 * self.width

    def more_constants(self) -> None:
        size = len(self.layer.reverse) * self.units * self.width
        self.totals = self.k.parameter("WT", (size,), "int32")

    def more_scratch(self) -> None:
        self.dot = _dot(self.target)
        *_, (shape, dtype) = scratch(self.layer, self.target)
        self.planes = self.k.parameter("P", shape, dtype)

    def weight(self, unit: Expr, step: Expr, gate: int) -> Computed:
        """One of the four bytes of a word, as a float."""
        lanes, outer = self.lanes, self.direction * self.units + unit
        start = 4 * gate * lanes
        word = reinterpret(load(self.w, outer, step // 4, start, lanes=4 * lanes), "int32", lanes)
        above = self.code.number(24, "int32") - self.code.number(8, "int32") * (step % 4)
        return self.code.to_float((word << above) >> self.code.number(24, "int32"))

    def pass_over(
        self,
        gates: tuple[int, ...],
        before: Expr,
        at: Expr,
        rule: Rule,
        source: BufferVar | None = None,
    ) -> None:
        k = self.k
        source = self.h if source is None else source
        fits = k.local(1, "int32", "fits")
        k.store(fits, self.split(source, before), 0)
        with k.when(tirx.EQ(load(fits, 0), 1)):
            accumulators = PLANES * len(gates)
            most = max(1, (self.target.registers - PLANES - 1) // accumulators)
            if is_open(self.layer.batch):
                most = 1
            for unit, first, rows in self.tiles(most):
                self.tile_of_bytes(gates, at, rule, unit, first, rows)
        with k.when(tirx.EQ(load(fits, 0), 0)):
            for unit, first, rows in self.tiles(1):
                self.tile(gates, before, at, rule, source, unit, first, rows)

    def split(self, source: BufferVar, before: Expr) -> Expr:
        """Store the bytes of all states; whether all of these are between -1 and 1."""
        k, lanes, code = self.k, self.lanes, self.code
        most = k.local(lanes, "float32", "most")
        k.store(most, code.number(0.0), 0, lanes=lanes)
        whole, rest = divmod(self.layer.hidden, lanes)
        with k.loop(self.layer.batch, "n") as n:
            if whole:
                with k.loop(whole, "v") as v:
                    self.split_vector(source, before, n, v, most)
            if rest:
                self.split_vector(source, before, n, whole, most, rest)
        largest = folded(code, load(most, 0, lanes=lanes), VectorCode.larger)
        return tirx.Select(largest <= constant(1.0, "float32"), 1, 0)

    def split_vector(
        self,
        source: BufferVar,
        before: Expr,
        n: Expr,
        v: Expr,
        most: BufferVar,
        count: int | None = None,
    ) -> None:
        """Those of one vector, zero from `count` on: what is there isn't part of the state."""
        k, lanes, code = self.k, self.lanes, self.code
        row = n * self.padded
        value = load(source, self.place(source, before, row, v * lanes), lanes=lanes)
        if count is not None:
            zero = constant(0.0, "float32")
            each = [tirx.Shuffle([value], [i]) if i < count else zero for i in range(lanes)]
            value = tirx.Shuffle(each, list(range(lanes)))
        value = code.bind(value, "float32")
        k.store(
            most, code.larger(code.magnitude(value), load(most, 0, lanes=lanes)), 0, lanes=lanes
        )
        shifted = code.fence(value * code.number(1 / UNIT)) + code.number(MAGIC)
        number = code.bind(reinterpret(shifted, "int32", lanes), "int32")
        signed = self.dot.input_dtype == "int8"
        for plane in range(PLANES):
            part = number >> code.number(8 * plane, "int32")
            if signed:
                part = part ^ code.number(SIGN, "int32")
            byte = cast(part, self.dot.input_dtype, lanes)
            k.store(self.planes, byte, plane, row + v * lanes, lanes=lanes)

    def tile_of_bytes(
        self, gates: tuple[int, ...], at: Expr, rule: Rule, unit: Expr, first: Expr, rows: int
    ) -> None:
        k, lanes, dot = self.k, self.lanes, self.dot
        outer = self.direction * self.units + unit
        acc = k.local(rows * len(gates) * PLANES * lanes, "int32")

        def place(r: int, i: int, plane: int) -> int:
            return ((r * len(gates) + i) * PLANES + plane) * lanes

        for i, gate in enumerate(gates):
            start = (outer * self.layer.gates + gate) * lanes
            total = self.code.bind(load(self.totals, start, lanes=lanes), "int32")
            for plane, factor in enumerate(self.offsets()):
                begin = total * self.code.number(factor, "int32")
                for r in range(rows):
                    k.store(acc, begin, place(r, i, plane), lanes=lanes)
        together = math.gcd(self.words, 4) if isinstance(dot, NeonDot) else 1
        with k.loop(self.words // together, "k") as ko:
            word = ko * together
            read = {
                (r, plane): dot.read(
                    k, together, self.planes, plane, (first + r) * self.padded + 4 * word
                )
                for r in range(rows)
                for plane in range(PLANES)
            }
            for step in range(together):
                for i, gate in enumerate(gates):
                    weights = dot.weights(k, self.w, outer, word + step, 4 * gate * lanes)
                    for (r, plane), own in read.items():
                        at_ = place(r, i, plane)
                        total = load(acc, at_, lanes=lanes)
                        total = dot.step(total, dot.factor(own, together, step), weights)
                        k.store(acc, total, at_, lanes=lanes)
        for r in range(rows):
            sums = []
            for i, gate in enumerate(gates):
                floats = [
                    self.code.to_float(load(acc, place(r, i, plane), lanes=lanes))
                    for plane in range(PLANES)
                ]
                low, middle, high = (
                    value * self.code.number(UNIT * 256.0**plane)
                    for plane, value in enumerate(floats)
                )
                sums.append(self.bind(self.scaled(high + middle + low, first + r, at, unit, gate)))
            rule(sums, first + r, unit)

    def offsets(self) -> tuple[int, ...]:
        """What each plane's products begin with, times the sum of the weights.

        The bytes of `MAGIC` and a number are that number and 2^22, a half of the highest
        plane's unsigned bytes; signed ones are 128 less than these.
        """
        return (128, 128, 64) if self.dot.input_dtype == "int8" else (0, 0, -64)
