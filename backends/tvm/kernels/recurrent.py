"""LSTM, GRU and RNN over whole sequences, their input projections already computed.

Per time step a register tile multiplies the state by packed weights of all gates of the
same hidden units, so that the gates' arithmetic follows in registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from tvm import tirx

from ..functions.definitions import FUNCTIONS
from ..functions.program_code import ProgramCode, VectorArithmetic
from ..plan.recurrent import Recurrent
from ..plan.sizes import cascade_of, is_open
from ..targets import Target
from ..tensorir.builder import KernelBuilder, constant, load
from ..tensorir.types import BufferVar, Computed, Expr, Index, PrimFunc
from .matrix.dot import Dot
from .matrix.neon import NeonFloat

Rule = Callable[[list[Computed], Expr, Expr], None]
"""What follows the products of a tile: takes a vector of sums per gate, batch and unit."""


def build(layer: Recurrent, target: Target) -> PrimFunc:
    """The kernel.

    Arguments: projections [steps, batch, columns] of each direction, packed weights, of bytes
    their scales, for `reset_after` the recurrent bias of the hidden gate, initial states where
    given; Y, Y_h and (LSTM) Y_c; then the scratch buffers of `scratch`.
    """
    return RecurrentKernel(layer, target).build()


def scratch(layer: Recurrent, target: Target) -> list[tuple[tuple[int, ...], str]]:
    """Buffers of floats: two hidden states in turn, the cell state, what the reset gate leaves; and
    a direction's weights as floats, where they are made of bytes once for all steps."""
    size = layer.batch * layer.units(target) * target.lanes
    shapes = [(2, size) if is_open(size) else (2 * size,), (size,), (size,)]
    if converts_ahead(layer, target):
        shapes.append((layer.units(target) * layer.hidden * layer.gates * target.lanes,))
    return [(shape, "float32") for shape in shapes]


def converts_ahead(layer: Recurrent, target: Target) -> bool:
    """Whether weights of bytes become floats before the first step instead of in each one.

    To convert four bytes takes NEON as many instructions as three products by them. Wider vectors
    convert as they load, dot products take bytes (`recurrent_bytes`), and what little room a
    target with `small` code has is for states.
    """
    if layer.weight_dtype != "int8" or target.small or "dotprod" in target.features:
        return False
    return "neon" in target.features and (is_open(layer.steps) or layer.steps >= _STEPS)


_STEPS = 3
"""Steps from which on weights are converted ahead: floats have to be stored and loaded again."""


class RecurrentKernel:
    """One kernel being built."""

    def __init__(self, layer: Recurrent, target: Target) -> None:
        self.layer, self.target = layer, target
        self.lanes = lanes = target.lanes
        self.units = layer.units(target)
        self.padded = self.units * lanes
        self.width = layer.gates * lanes
        directions = len(layer.reverse)
        k = self.k = KernelBuilder()
        size = layer.steps * layer.batch * layer.columns(target)
        self.x = [k.parameter(f"X{d}", (size,), "float32") for d in range(directions)]
        self.w = k.parameter("W", self.packed(), layer.weight_dtype)
        self.scale, self.bias = None, None
        if layer.weight_dtype == "int8":
            self.scale = k.parameter("WS", (directions * self.units * self.width,), "float32")
        self.more_constants()
        if layer.reset_after:
            self.bias = k.parameter("B", (directions * self.padded,), "float32")
        count = directions * layer.batch * layer.hidden
        given = (layer.initial_h, layer.initial_c)
        self.initial = [k.parameter("I", (count,), "float32") if g else None for g in given]
        self.y = k.parameter("Y", (layer.steps * count,), "float32")
        self.last_h = k.parameter("YH", (count,), "float32")
        self.last_c = k.parameter("YC", (count,), "float32") if layer.kind == "LSTM" else None
        self.h, self.c, self.reset, *ahead = (
            k.parameter(f"S{i}", *buffer) for i, buffer in enumerate(scratch(layer, target))
        )
        self.floats: BufferVar | None = ahead[0] if ahead else None
        self.more_scratch()
        self.code = ProgramCode(k, target, lanes)
        self.multiply = (NeonFloat if "neon" in target.features else Dot)(lanes, "float32")
        self.direction = 0
        accumulators = 4 if self.bias is not None else layer.gates
        self.rows = max(1, (target.registers - layer.gates - 2) // accumulators)
        if is_open(layer.batch):  # few tiles: each takes LLVM seconds
            self.rows = 1 << (self.rows.bit_length() - 1)
        else:
            self.rows = min(layer.batch, self.rows)

    def packed(self) -> tuple[int, ...]:
        """The shape of the packed weights."""
        return len(self.layer.reverse) * self.units, self.layer.hidden, self.width

    def more_constants(self) -> None:
        """Parameters of a subclass for constants."""

    def more_scratch(self) -> None:
        """Parameters of a subclass for scratch buffers, behind those of `scratch`."""

    def build(self) -> PrimFunc:
        k, layer = self.k, self.layer
        for d, reverse in enumerate(layer.reverse):
            self.direction = d
            if self.floats is not None:
                self.convert(self.floats)
            self.start(self.h, self.initial[0])
            self.start(self.c, self.initial[1])
            with k.loop(layer.steps, "t") as t:
                at = layer.steps - 1 - t if reverse else t
                self.step(t, at)
            self.finish(self.h, self.half(layer.steps % 2), self.last_h)
            if self.last_c is not None:
                self.finish(self.c, 0, self.last_c)
        return k.finish()

    def half(self, number: Expr) -> Expr:
        """Where one of the two hidden states begins; its number where the batch is open."""
        batch = self.layer.batch
        return number if is_open(batch) else number * (batch * self.padded)

    def place(self, state: BufferVar, offset: Expr, row: Expr, at: Expr) -> Index:
        """An element of a row of a state that begins at an offset."""
        if state is self.h and is_open(self.layer.batch):
            return offset, row + at
        return offset + row + at

    def convert(self, floats: BufferVar) -> None:
        """The direction's weights as floats, without their scales."""
        k, lanes = self.k, self.lanes
        first = self.direction * self.units
        with k.loop(self.units, "u") as unit, k.loop(self.layer.hidden, "k") as step:
            row = (unit * self.layer.hidden + step) * self.width
            for gate in range(self.layer.gates):
                value = load(self.w, first + unit, step, gate * lanes, lanes=lanes)
                value = self.code.integer_as_float(value, "int8")
                k.store(floats, value, row + gate * lanes, lanes=lanes)

    def weight(self, unit: Expr, step: Expr, gate: int) -> Computed:
        """What the state's element of a step of the product is multiplied by, of all lanes."""
        lanes = self.lanes
        if self.floats is not None:
            row = (unit * self.layer.hidden + step) * self.width
            return load(self.floats, row + gate * lanes, lanes=lanes)
        outer = self.direction * self.units + unit
        value = load(self.w, outer, step, gate * lanes, lanes=lanes)
        return self.code.integer_as_float(value, self.layer.weight_dtype)

    def start(self, state: BufferVar, initial: BufferVar | None) -> None:
        k, layer = self.k, self.layer
        with k.loop(layer.batch, "n") as n, k.loop(self.padded, "i") as i:
            k.store(state, constant(0.0, "float32"), self.place(state, 0, n * self.padded, i))
        if initial is not None:
            with k.loop(layer.batch, "n") as n, k.loop(layer.hidden, "i") as i:
                at = (self.direction * layer.batch + n) * layer.hidden + i
                k.store(state, load(initial, at), self.place(state, 0, n * self.padded, i))

    def finish(self, state: BufferVar, offset: Expr, result: BufferVar) -> None:
        k, layer = self.k, self.layer
        with k.loop(layer.batch, "n") as n, k.loop(layer.hidden, "i") as i:
            at = (self.direction * layer.batch + n) * layer.hidden + i
            k.store(result, load(state, self.place(state, offset, n * self.padded, i)), at)

    def step(self, t: Expr, at: Expr) -> None:
        """One time step; the state before it is in half t % 2."""
        layer = self.layer
        parity: Expr = t % 2
        before, after = (self.half(number) for number in (parity, 1 - parity))
        if layer.kind == "GRU" and not layer.reset_after:
            self.pass_over((0, 1), before, at, self.gru_gates(before))
            self.pass_over((2,), 0, at, self.gru_state(before, after, at), self.reset)
            return
        rule = {"RNN": self.rnn, "GRU": self.gru, "LSTM": self.lstm}[layer.kind]
        self.pass_over(tuple(range(layer.gates)), before, at, rule(before, after, at))

    def pass_over(
        self,
        gates: tuple[int, ...],
        before: Expr,
        at: Expr,
        rule: Rule,
        source: BufferVar | None = None,
    ) -> None:
        """Some gates of all units: `rule(sums, n, unit)` takes a vector of sums per gate."""
        source = self.h if source is None else source
        for unit, first, rows in self.tiles(self.rows):
            self.tile(gates, before, at, rule, source, unit, first, rows)

    def tiles(self, most: int) -> Iterator[tuple[Expr, Expr, int]]:
        """A vector of units, its first row and how many rows, at most so many, in loops."""
        k = self.k
        with k.loop(self.units, "u") as unit:
            for count, rows, start in cascade_of(self.layer.batch, most):
                with k.loop(count, "r") as r:
                    yield unit, start + r * rows, rows

    def tile(
        self,
        gates: tuple[int, ...],
        before: Expr,
        at: Expr,
        rule: Rule,
        source: BufferVar,
        unit: Expr,
        first: Expr,
        rows: int,
    ) -> None:
        k, layer, lanes = self.k, self.layer, self.lanes
        acc = k.local(rows * len(gates) * lanes, "float32")

        def place(r: int, g: int) -> int:
            return (r * len(gates) + g) * lanes

        for r in range(rows):
            for i, gate in enumerate(gates):
                if self.scale is None:
                    start = self.start_of(first + r, at, unit, gate)
                else:
                    start = constant(0.0, "float32", lanes)
                k.store(acc, start, place(r, i), lanes=lanes)
        unroll = next(u for u in (8, 4, 2, 1) if layer.hidden % u == 0)
        together = math.gcd(unroll, self.multiply.together)
        with k.loop(layer.hidden // unroll, "k") as ko:
            for u in range(0, unroll, together):
                step = ko * unroll + u
                places = [
                    self.place(source, before, (first + r) * self.padded, step) for r in range(rows)
                ]
                read = [self.multiply.read(k, together, source, own) for own in places]
                for s in range(together):
                    weights = [self.fresh(self.weight(unit, step + s, gate)) for gate in gates]
                    for r in range(rows):
                        (factor,) = self.multiply.factor(read[r], together, s)
                        for i in range(len(gates)):
                            own = load(acc, place(r, i), lanes=lanes)
                            k.store(acc, own + factor * weights[i], place(r, i), lanes=lanes)
        for r in range(rows):
            sums = []
            for i, gate in enumerate(gates):
                value = load(acc, place(r, i), lanes=lanes)
                if self.scale is not None:
                    value = self.scaled(value, first + r, at, unit, gate)
                sums.append(self.bind(value))
            rule(sums, first + r, unit)

    def scaled(self, total: Computed, n: Expr, at: Expr, unit: Expr, gate: int) -> Computed:
        """A gate's sum, of its products with weights that are bytes."""
        assert self.scale is not None
        outer = (self.direction * self.units + unit) * self.width
        own = load(self.scale, outer + gate * self.lanes, lanes=self.lanes)
        return self.start_of(n, at, unit, gate) + total * own

    def start_of(self, n: Expr, at: Expr, unit: Expr, gate: int) -> Computed:
        """What a gate's products with the state are added to."""
        if self.bias is None or gate != 2:
            return self.projected(n, at, unit, gate)
        outer = self.direction * self.units + unit
        return load(self.bias, outer * self.lanes, lanes=self.lanes)

    def fresh(self, value: Computed) -> Computed:
        variable = tirx.Var("w", f"float32x{self.lanes}")
        self.k.statement(tirx.Bind(variable, value))
        return variable

    def bind(self, value: Computed) -> Computed:
        """Keep a value: in memory, since TVM would spell out what functions compare."""
        return self.code.in_memory(value)

    def projected(self, n: Expr, at: Expr, unit: Expr, gate: int) -> Computed:
        """What the inputs contribute to a gate, its biases included."""
        row = (at * self.layer.batch + n) * self.units + unit
        start = row * self.width + gate * self.lanes
        return load(self.x[self.direction], start, lanes=self.lanes)

    def state(self, buffer: BufferVar, offset: Expr, n: Expr, unit: Expr) -> Computed:
        at = self.place(buffer, offset, n * self.padded, unit * self.lanes)
        return load(buffer, at, lanes=self.lanes)

    def activate(self, index: int, value: Computed) -> Computed:
        """Clip and apply the direction's activation function number `index`."""
        e, clip = self.code, self.layer.clip
        if clip:
            value = e.at_least(e.at_most(value, e.number(clip)), e.number(-clip))
        name = self.layer.activations[self.direction][index]
        return self.bind(self.apply(name, value))

    def apply(self, name: str, value: Computed) -> Computed:
        return FUNCTIONS[name].formula(VectorArithmetic(self.code), value)

    def keep(self, value: Computed, n: Expr, unit: Expr, after: Expr, at: Expr) -> None:
        """The new hidden state, also into the output."""
        k, layer, lanes = self.k, self.layer, self.lanes
        own = self.place(self.h, after, n * self.padded, unit * lanes)
        k.store(self.h, value, own, lanes=lanes)
        row = (at * len(layer.reverse) + self.direction) * layer.batch + n
        start = row * layer.hidden + unit * lanes
        rest = layer.hidden % lanes
        if not rest:
            k.store(self.y, value, start, lanes=lanes)
            return
        if self.units > 1:
            with k.when(unit < self.units - 1):
                k.store(self.y, value, start, lanes=lanes)
        with k.when(unit >= self.units - 1) if self.units > 1 else k.loop(1, "one"):
            for i in range(rest):
                k.store(self.y, tirx.Shuffle([value], [i]), start + i)

    # --- kinds ---

    def rnn(self, before: Expr, after: Expr, at: Expr) -> Rule:
        def rule(sums: list[Computed], n: Expr, unit: Expr) -> None:
            self.keep(self.activate(0, sums[0]), n, unit, after, at)

        return rule

    def lstm(self, before: Expr, after: Expr, at: Expr) -> Rule:
        def rule(sums: list[Computed], n: Expr, unit: Expr) -> None:
            i, o, f = (self.activate(0, sums[g]) for g in (0, 1, 2))
            candidate = self.activate(1, sums[3])
            cell = self.bind(f * self.state(self.c, 0, n, unit) + i * candidate)
            place = n * self.padded + unit * self.lanes
            self.k.store(self.c, cell, place, lanes=self.lanes)
            squashed = self.apply(self.layer.activations[self.direction][2], cell)
            self.keep(self.bind(o * squashed), n, unit, after, at)

        return rule

    def gru(self, before: Expr, after: Expr, at: Expr) -> Rule:
        """The reset gate scales the product with the state."""

        def rule(sums: list[Computed], n: Expr, unit: Expr) -> None:
            z, r = self.activate(0, sums[0]), self.activate(0, sums[1])
            own = self.projected(n, at, unit, 2)
            candidate = self.activate(1, own + r * sums[2])
            self.mix(z, candidate, n, unit, before, after, at)

        return rule

    def gru_gates(self, before: Expr) -> Rule:
        """Update and reset gates; the update gate waits in the cell state's buffer."""

        def rule(sums: list[Computed], n: Expr, unit: Expr) -> None:
            z, r = self.activate(0, sums[0]), self.activate(0, sums[1])
            place = n * self.padded + unit * self.lanes
            self.k.store(self.c, z, place, lanes=self.lanes)
            left = r * self.state(self.h, before, n, unit)
            self.k.store(self.reset, left, place, lanes=self.lanes)

        return rule

    def gru_state(self, before: Expr, after: Expr, at: Expr) -> Rule:
        def rule(sums: list[Computed], n: Expr, unit: Expr) -> None:
            z = self.bind(self.state(self.c, 0, n, unit))
            self.mix(z, self.activate(1, sums[0]), n, unit, before, after, at)

        return rule

    def mix(
        self,
        z: Computed,
        candidate: Computed,
        n: Expr,
        unit: Expr,
        before: Expr,
        after: Expr,
        at: Expr,
    ) -> None:
        old = self.state(self.h, before, n, unit)
        value = (self.code.number(1.0) - z) * candidate + z * old
        self.keep(self.bind(value), n, unit, after, at)
