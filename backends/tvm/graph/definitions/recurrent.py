"""Recurrent layers whose activations are quantized at every step."""

from __future__ import annotations

import numpy as np

from .body import Body, definition

MOST_STEPS = 4096
"""Steps of a sequence that are spelled out one by one."""


@definition("DynamicQuantizeLSTM")
def _dynamic_lstm(b: Body) -> list[str]:
    """All inputs are quantized together, the states of a step together.

    Inputs: X, W [directions, input, 4 * hidden], R, B, lengths, initial h and c, peepholes,
    W's scale and zero point, R's.
    """
    b.without({4: "lengths of sequences", 7: "peepholes"}, {"clip": 0.0, "input_forget": 0})
    hidden = int(b.attribute("hidden_size", 0))
    direction = str(b.attribute("direction", "forward"))
    reverse = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    names = [str(n) for n in b.attribute("activations", ())]
    if direction not in reverse:
        b.fail(f"direction isn't known: {direction!r}")
    flags = reverse[direction]
    if names and [n.lower() for n in names] != ["sigmoid", "tanh", "tanh"] * len(flags):
        b.fail("other activations than Sigmoid, Tanh and Tanh aren't supported")
    steps, batch = b.size(0, 0), b.size(0, 1)
    if not 0 < steps <= MOST_STEPS or hidden < 1:
        b.fail(f"{steps} steps are too many, or none")
    rows = b.reshaped(b.required(0), steps * batch, -1)
    x, scale, zero = b.several("DynamicQuantizeLinear", 3, rows)
    results = [
        _direction(b, d, (x, zero, scale), (steps, batch, hidden), backwards=backwards)
        for d, backwards in enumerate(flags)
    ]
    every = [[b.unsqueezed(b.unsqueezed(h, 0), 0) for h in states] for states, _, _ in results]
    whole = [b("Concat", *(own[t] for own in every), axis=1) for t in range(steps)]
    last = [b.unsqueezed(h, 0) for _, h, _ in results]
    cells = [b.unsqueezed(c, 0) for _, _, c in results]
    return [b("Concat", *whole, axis=0), b("Concat", *last, axis=0), b("Concat", *cells, axis=0)]


def _direction(
    b: Body,
    number: int,
    source: tuple[str, str, str],
    sizes: tuple[int, int, int],
    *,
    backwards: bool,
) -> tuple[list[str], str, str]:
    """The states of all steps in the sequence's order, the last state and the last cell."""
    steps, batch, hidden = sizes

    def own(index: int) -> str:
        part = b.sliced(b.required(index), 0, number, number + 1)
        return b.squeezed(part, 0) if b.rank(index) > 1 else part

    def product(x: str, zero: str, scale: str, weights: int, parameters: int) -> str:
        points = own(parameters + 1)
        sums = b("MatMulInteger", x, own(weights), zero, points)
        return b("Mul", b.cast(sums, np.float32), b("Mul", scale, own(parameters)))

    x, zero, scale = source
    inputs = product(x, zero, scale, 1, 8)
    bias = None
    if b.given(3) is not None:
        both = b.split(own(3), 0, (4 * hidden, 4 * hidden))
        bias = b("Add", *both)
    nothing = b.value(np.zeros((batch, hidden), np.float32))
    h = own(5) if b.given(5) is not None else nothing
    c = own(6) if b.given(6) is not None else nothing
    states: list[str] = [""] * steps
    for step in reversed(range(steps)) if backwards else range(steps):
        bytes_, step_scale, step_zero = b.several("DynamicQuantizeLinear", 3, h)
        gates = b.sliced(inputs, 0, step * batch, (step + 1) * batch)
        gates = b("Add", gates, product(bytes_, step_zero, step_scale, 2, 10))
        if bias is not None:
            gates = b("Add", gates, bias)
        i, o, f, g = b.split(gates, 1, (hidden,) * 4)
        kept = b("Mul", b("Sigmoid", f), c)
        c = b("Add", kept, b("Mul", b("Sigmoid", i), b("Tanh", g)))
        h = b("Mul", b("Sigmoid", o), b("Tanh", c))
        states[step] = h
    return states, h, c
