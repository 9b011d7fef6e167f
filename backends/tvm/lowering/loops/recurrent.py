"""RNN, GRU and LSTM: the recurrence as loops over time, one direction after the other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from .....ir.ops.recurrent import DEFAULT_ACTIVATIONS, GATES
from ...functions.definitions import FUNCTIONS
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from . import mathematics as m
from .base import (
    Array,
    Cell,
    OperatorCall,
    cell,
    compute_type,
    nest,
    number,
    rule,
    to,
    when,
    within,
)

Activation = Callable[[Expr], Expr]

_ACTIVATIONS = {
    name.replace("_", ""): FUNCTIONS[name]
    for name in (
        "affine",
        "elu",
        "hard_sigmoid",
        "leaky_relu",
        "relu",
        "scaled_tanh",
        "sigmoid",
        "softplus",
        "softsign",
        "tanh",
        "thresholded_relu",
    )
}
"""The activations that ONNX has, by name in lower case."""


def _activation(call: OperatorCall, name: str, numbers: Sequence[list[float]]) -> Activation:
    """The function of that name; its parameters are taken off the lists of numbers."""
    function = _ACTIVATIONS.get(name.lower())
    if function is None:
        call.fail(f"activation '{name}'")
    given = dict(function.parameters)
    for parameter, values in zip(given, numbers, strict=False):
        if values:
            given[parameter] = float(values.pop(0))
    return functools.partial(m.evaluate, function, **given)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """The parts that the kinds share."""

    kind: str
    hidden: int
    directions: int
    batch_first: bool
    clip: float
    reset_after: bool
    functions: Sequence[Sequence[Activation]]


@rule("RNN", "GRU", "LSTM")
def recurrent(call: OperatorCall) -> None:
    node, kind = call.node, call.node.op_type
    direction = node.get("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    hidden = call.shape(2)[2]
    names = [str(n) for n in node.get("activations", DEFAULT_ACTIVATIONS[kind] * directions)]
    alphas, betas = list(node.get("activation_alpha", [])), list(node.get("activation_beta", []))
    functions: list[list[Activation]] = []
    count = len(DEFAULT_ACTIVATIONS[kind])
    if len(names) != count * directions:
        call.fail(f"{len(names)} activations")
    for i, name in enumerate(names):
        if i % count == 0:
            functions.append([])
        functions[-1].append(_activation(call, name, (alphas, betas)))
    layer = _Layer(
        kind,
        hidden,
        directions,
        bool(node.get("layout", 0)),
        float(node.get("clip", 0.0)),
        bool(node.get("linear_before_reset", 0)),
        functions,
    )
    shape = call.shape(0)
    steps, batch = (shape[1], shape[0]) if layer.batch_first else (shape[0], shape[1])
    dtype = compute_type(call.dtype())
    present = [i for i in range(8) if call.has(i)]
    scratch = [((GATES[kind], hidden), dtype), ((2, hidden), dtype)]

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        given = dict(zip(present, xs, strict=True))
        outputs = [*ys[: len(ys) - 2], None, None, None][:3]
        gates, state = ys[-2], ys[-1]
        for d in range(directions):
            backwards = direction == "reverse" or d == 1
            with k.loop(batch, f"n{d}") as n:
                _sequence(
                    call, k, layer, given, outputs, gates, state, d, n, steps, backwards, dtype
                )

    call.loops(body, present, key=tuple(present), scratch=scratch)


def _sequence(
    call: OperatorCall,
    k: KernelBuilder,
    layer: _Layer,
    given: dict[int, Array],
    outputs: Sequence[Array | None],
    gates: Array,
    state: Array,
    d: int,
    n: Expr,
    steps: int,
    backwards: bool,
    dtype: str,
) -> None:
    """One sequence in one direction; `state` rows are the hidden and the cell state."""
    x = given[0]
    lengths, initial_h, initial_c = given.get(4), given.get(5), given.get(6)
    y, y_h, y_c = outputs
    first = layer.batch_first

    def start(source: Array | None, h: Expr) -> Expr:
        if source is None:
            return number(0, dtype)
        return to(source[n, d, h] if first else source[d, n, h], dtype)

    with k.loop(layer.hidden, "h") as h:
        state.store(start(initial_h, h), (0, h))
        state.store(start(initial_c, h), (1, h))
    length: Expr = steps
    if lengths is not None:
        length = within(k, lengths[[n]], 0, steps + 1)
    with k.loop(steps, "t") as t:
        inside: Expr = True if lengths is None else t < length
        at = (length - 1 - t) if backwards else t

        def store_output(value: Expr, h: Expr, at: Expr) -> None:
            if y is not None:
                y.store(value, (n, at, d, h) if first else (at, d, n, h))

        def active() -> None:
            def element(i: Expr) -> Expr:
                return to(x[n, at, i] if first else x[at, n, i], dtype)

            _step(k, layer, given, gates, state, d, element, dtype)
            with k.loop(layer.hidden, "h") as h:
                store_output(state[0, h], h, at)

        if inside is True:
            active()
        else:
            with when(k, inside):
                active()
            with when(k, t >= length), k.loop(layer.hidden, "h") as h:
                store_output(number(0, dtype), h, t)
    for target, row in ((y_h, 0), (y_c, 1)):
        if target is not None:
            with k.loop(layer.hidden, "h") as h:
                target.store(state[row, h], (n, d, h) if first else (d, n, h))


def _step(
    k: KernelBuilder,
    layer: _Layer,
    given: dict[int, Array],
    gates: Array,
    state: Array,
    d: int,
    element: Callable[[Expr], Expr],
    dtype: str,
) -> None:
    w, r, b = given[1], given[2], given.get(3)
    size, hidden = w.shape[2], layer.hidden
    kind, functions = layer.kind, layer.functions[d]
    count = GATES[kind]

    def limited(value: Expr) -> Expr:
        if not layer.clip:
            return value
        low, high = number(-layer.clip, dtype), number(layer.clip, dtype)
        return m.largest(low, m.smallest(high, value))

    def bias(row: Expr, *, recurrent_: bool) -> Expr:
        if b is None:
            return number(0, dtype)
        return to(b[d, row + (count * hidden if recurrent_ else 0)], dtype)

    def add_products(total: Cell, row: Expr, h_factor: Callable[[Expr], Expr] | None) -> None:
        """W x + R (h or what `h_factor` makes of it)."""
        with k.loop(size, "i") as i:
            total.add(to(w[d, row, i], dtype) * element(i))
        if h_factor is not None:
            with k.loop(hidden, "j") as j:
                total.add(to(r[d, row, j], dtype) * h_factor(j))

    if kind == "RNN":
        with k.loop(hidden, "h") as h:
            total = cell(k, dtype, bias(h, recurrent_=False) + bias(h, recurrent_=True))
            add_products(total, h, lambda j: state[0, j])
            gates.store(functions[0](limited(total.get())), (0, h))
        with k.loop(hidden, "h") as h:
            state.store(gates[0, h], (0, h))
        return
    if kind == "GRU":
        _gru_step(k, layer, given, gates, state, d, add_products, bias, limited, dtype)
        return
    peephole = given.get(7)

    def peep(index: int, h: Expr, row: Expr) -> Expr:
        if peephole is None:
            return number(0, dtype)
        return to(peephole[d, index * hidden + h], dtype) * row

    f, g, out = functions
    with nest(k, (4, hidden), "g") as (gate, h):
        row = gate * hidden + h
        total = cell(k, dtype, bias(row, recurrent_=False) + bias(row, recurrent_=True))
        add_products(total, row, lambda j: state[0, j])
        gates.store(total.get(), (gate, h))
    with k.loop(hidden, "h") as h:  # gates in order: input, output, forget, cell
        old = cell(k, dtype, state[1, h], "old")
        i = f(limited(gates[0, h] + peep(0, h, old.get())))
        forget = f(limited(gates[2, h] + peep(2, h, old.get())))
        new = cell(k, dtype, 0, "new")
        new.set(forget * old.get() + i * g(limited(gates[3, h])))
        o = f(limited(gates[1, h] + peep(1, h, new.get())))
        state.store(new.get(), (1, h))
        state.store(o * out(new.get()), (0, h))


def _gru_step(
    k: KernelBuilder,
    layer: _Layer,
    given: dict[int, Array],
    gates: Array,
    state: Array,
    d: int,
    add_products: Callable[..., None],
    bias: Callable[..., Expr],
    limited: Callable[[Expr], Expr],
    dtype: str,
) -> None:
    hidden = layer.hidden
    f, g = layer.functions[d]
    r = given[2]
    with nest(k, (2, hidden), "g") as (gate, h):  # update, then reset
        row = gate * hidden + h
        total = cell(k, dtype, bias(row, recurrent_=False) + bias(row, recurrent_=True))
        add_products(total, row, lambda j: state[0, j])
        gates.store(f(limited(total.get())), (gate, h))
    with k.loop(hidden, "h") as h:
        row = h + 2 * hidden
        total = cell(k, dtype, bias(row, recurrent_=False))
        if layer.reset_after:
            add_products(total, row, None)
            product = cell(k, dtype, bias(row, recurrent_=True), "product")
            with k.loop(hidden, "j") as j:
                product.add(to(r[d, row, j], dtype) * state[0, j])
            total.add(gates[1, h] * product.get())
        else:
            total.add(bias(row, recurrent_=True))
            add_products(total, row, lambda j: gates[1, j] * state[0, j])
        gates.store(g(limited(total.get())), (2, h))
    with k.loop(hidden, "h") as h:
        z = gates[0, h]
        state.store((number(1, dtype) - z) * gates[2, h] + z * state[0, h], (0, h))
