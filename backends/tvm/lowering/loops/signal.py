"""Discrete Fourier transforms and the filter bank that goes with them; BitCast."""

from __future__ import annotations

import numpy as np
from tvm import tirx

from ...faults import Fault
from ...plan.sizes import is_open
from ...plan.tensors import PlanTensor
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Computed, Expr
from .base import (
    Array,
    Cell,
    OperatorCall,
    any_of,
    cell,
    checked,
    clamped,
    compute_type,
    differ,
    divide,
    equal,
    limited,
    maximum,
    minimum,
    nest,
    number,
    rule,
    select,
    to,
    when,
)
from .mathematics import libm


def _twiddles(call: OperatorCall, size: int, dtype: str, sign: float) -> PlanTensor:
    angle = 2 * np.pi * np.arange(size) / size
    table = np.stack([np.cos(angle), sign * np.sin(angle)]).astype(dtype)
    return PlanTensor(f"{call.node.label}/twiddles", dtype, table.shape, const=table)


@rule("DFT")
def dft(call: OperatorCall) -> None:
    """By definition, with a table of roots of unity, which the kernel makes where only a run
    tells how many there are.

    Where the axis is computed at run time, the kernel chooses among those that lead
    from the one shape to the other.
    """
    inverse, onesided = bool(call.node.get("inverse", 0)), bool(call.node.get("onesided", 0))
    axes = _dft_axes(call)
    lengths = [_dft_length(call, a, inverse and onesided, onesided) for a in axes]
    if inverse and onesided:
        for axis, length in zip(axes, lengths, strict=True):
            _require_half(call, axis, length)
    dtype, sign = compute_type(call.dtype()), 1.0 if inverse else -1.0
    tables = [_twiddles(call, n, dtype, sign) for n in lengths if not is_open(n)]
    scratch = [((2, n), dtype) for n in lengths if is_open(n)]
    chosen = [2] if len(axes) > 1 else []

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        given: Expr = 0
        if chosen:
            given = checked(k, xs[-1].at(0), call.rank())
            k.fail_if(tirx.Not(any_of(*(equal(given, axis) for axis in axes))), Fault.VALUE)
        known, made = iter(xs[1:]), iter(ys[1:])
        for axis, length in zip(axes, lengths, strict=True):
            with when(k, equal(given, axis) if chosen else True):
                roots = next(made if is_open(length) else known)
                if is_open(length):
                    _make_roots(k, roots, length, sign)
                _transform(k, xs[0], ys[0], roots, axis, length, inverse, inverse and onesided)

    call.loops(body, [0, *tables, *chosen], scratch=scratch)


def _require_half(call: OperatorCall, axis: int, length: int) -> None:
    """Of other spectra than half of what they are turned into, runtimes make different things."""
    given, wanted = call.shape()[axis], length // 2 + 1
    if given == wanted:
        return
    if not is_open(given, wanted):
        call.fail(f"a spectrum of {given} values for {length} numbers, not of {wanted}")
    call.lowering.require_equal(given, wanted)


def _make_roots(k: KernelBuilder, roots: Array, length: int, sign: float) -> None:
    with k.loop(length, "root") as i:
        angle = to(i, roots.dtype) * number(2 * np.pi, roots.dtype) / number(length, roots.dtype)
        roots.store(libm("cos", angle), [0, i])
        roots.store(libm("sin", angle) * number(sign, roots.dtype), [1, i])


def _dft_axes(call: OperatorCall) -> list[int]:
    rank = call.rank()
    if call.opset < 20:
        return [int(call.node.get("axis", 1)) % rank]
    given = call.constant(2)
    if given is not None or not call.has(2):
        return [(-2 if given is None else int(given.reshape(()))) % rank]
    own, result = call.shape()[:-1], call.output_shape()[:-1]
    changed = [i for i, (a, b) in enumerate(zip(own, result, strict=True)) if a != b]
    if len(changed) > 1:
        call.fail("more than one axis changes its size")
    return changed or list(range(rank - 1))


def _dft_length(call: OperatorCall, axis: int, mirrored: bool, onesided: bool) -> int:
    if call.has(1):
        count = call.constant(1)
        if count is not None:
            return int(count.reshape(()))
        if onesided and not mirrored:
            call.fail("dft_length is computed at run time; make it a constant")
    return call.shape()[axis] if onesided and not mirrored else call.output_shape()[axis]


def _transform(
    k: KernelBuilder,
    x: Array,
    y: Array,
    roots: Array,
    axis: int,
    length: int,
    inverse: bool,
    mirrored: bool,
) -> None:
    """`mirrored`: the input is the first half of a spectrum whose rest is its conjugate."""
    dtype = roots.dtype
    with nest(k, y.shape[:-1]) as index:
        real, imaginary = cell(k, dtype, 0, "real"), cell(k, dtype, 0, "imaginary")
        turn = cell(k, "int32", 0, "turn")
        terms = length if mirrored or length == x.shape[axis] else minimum(x.shape[axis], length)
        with k.loop(terms, "t") as t:
            source, sign = t, number(1, dtype)
            if mirrored and not isinstance(t, int):
                upper = t >= length // 2 + 1
                source = select(upper, length - t, t)
                sign = select(upper, number(-1, dtype), number(1, dtype))
                if is_open(x.shape[axis]):  # which has as many values as `_require_half` says
                    source = limited(k, source, 0, x.shape[axis])
            place = [*index[:axis], source, *index[axis + 1 :]]
            angle = limited(k, turn.get(), 0, length)
            c, s = roots[0, angle], roots[1, angle]
            a = to(x[[*place, 0]], dtype)
            if x.shape[-1] == 2:
                b = to(x[[*place, 1]], dtype) * sign
                real.add(a * c - b * s)
                imaginary.add(a * s + b * c)
            else:
                real.add(a * c)
                imaginary.add(a * s)
            _advance(turn, index[axis], length)
        factor = _reciprocal(length if inverse else 1, dtype)
        y.store(real.get() * factor, [*index, 0])
        if y.shape[-1] == 2:
            y.store(imaginary.get() * factor, [*index, 1])


def _reciprocal(length: int, dtype: str) -> Computed:
    if isinstance(length, int):
        return number(1 / length, dtype)
    return number(1, dtype) / number(length, dtype)


def _advance(turn: Cell, step: Expr, length: int) -> None:
    """Go on by `step` on a circle of `length` places."""
    turn.set(turn.get() + step)
    turn.set(select(turn.get() >= length, turn.get() - length, turn.get()))


@rule("STFT")
def stft(call: OperatorCall) -> None:
    shape, out = call.shape(), call.output_shape()
    frames, bins = out[1], out[2]
    window = call.node.input(2) is not None
    length = int(call.known(3, "frame_length").reshape(())) if call.has(3) else call.shape(2)[0]
    dtype = compute_type(call.dtype())
    table = _twiddles(call, length, dtype, -1.0)
    complex_in = len(shape) == 3 and shape[2] == 2
    given_step = 0  # of which the number of open frames follows
    if is_open(frames):
        given_step = int(call.known(1, "frame_step").reshape(()))

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, roots = xs[0], xs[-1]
        step = given_step if is_open(frames) else _checked_step(k, xs[1], shape[1] - length, frames)
        with nest(k, (shape[0], frames, bins)) as (n, f, b):
            real, imaginary = cell(k, dtype, 0, "real"), cell(k, dtype, 0, "imaginary")
            turn = cell(k, "int32", 0, "turn")
            with k.loop(length, "t") as t:
                place = [n, f * step + t]
                a = to(x[[*place, 0] if len(shape) == 3 else place], dtype)
                if window:
                    a = a * to(xs[2][[t]], dtype)
                angle = limited(k, turn.get(), 0, length)
                c, s = roots[0, angle], roots[1, angle]
                real.add(a * c)
                imaginary.add(a * s)
                if complex_in:
                    i = to(x[[*place, 1]], dtype)
                    if window:
                        i = i * to(xs[2][[t]], dtype)
                    real.add(to(0, dtype) - i * s)
                    imaginary.add(i * c)
                _advance(turn, b, length)
            ys[0].store(real.get(), (n, f, b, 0))
            ys[0].store(imaginary.get(), (n, f, b, 1))

    call.loops(body, [0, 1, 2, table] if window else [0, 1, table])


def _checked_step(k: KernelBuilder, given: Array, room: int, frames: int) -> Expr:
    """How far a frame is behind the one before; the run ends where that leads to others than
    `frames` within `room` and the length of one."""
    most = room // (frames - 1) if frames > 1 else room + 1
    step = clamped(k, given.at(0), 0, most + 2)
    frames_found = divide(room, maximum(step, 1)) + 1
    k.fail_if(step < 1, Fault.VALUE)
    if frames > 1:
        k.fail_if(step > most, Fault.VALUE)
    k.fail_if(differ(frames_found, frames), Fault.VALUE)
    return step


@rule("MelWeightMatrix")
def mel_weight_matrix(call: OperatorCall) -> None:
    names = ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz")
    bins, length, rate, low, high = (
        float(call.known(i, name).reshape(())) for i, name in enumerate(names)
    )
    count = int(bins)
    spectrogram = int(length) // 2 + 1
    mel = 2595 * np.log10(1 + np.array([low, high]) / 700)
    points = mel[0] + np.arange(count + 2) * (mel[1] - mel[0]) / (count + 2)
    hertz = 700 * (10 ** (points / 2595) - 1)
    edges = ((int(length) + 1) * hertz // rate).astype(int)
    weights = np.zeros((spectrogram, count))
    for i in range(count):
        lower, center, upper = edges[i : i + 3]
        if center == lower:
            weights[center, i] = 1
        else:
            rows = np.arange(lower, center + 1)
            weights[rows, i] = (rows - lower) / (center - lower)
        if upper > center:
            rows = np.arange(center, upper)
            weights[rows, i] = (upper - rows) / (upper - center)
    call.define_constant(weights.astype(call.output_dtype()))


@rule("BitCast")
def bit_cast(call: OperatorCall) -> None:
    """The same bits as another type of the same width."""
    source, target = call.dtype(), call.output_dtype()
    if "bool" in (source, target):
        call.fail("booleans have no bits to reinterpret")
    if np.dtype(source).itemsize != np.dtype(target).itemsize:
        call.fail("types of different widths")

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with k.loop(ys[0].size, "i") as i:
            element = xs[0].at(i)
            ys[0].put(element if source == target else tirx.reinterpret(target, element), i)

    call.loops(body, key=())
