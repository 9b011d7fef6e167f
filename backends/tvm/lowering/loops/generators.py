"""Operators that make tensors from few numbers: ranges, constants, identity matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import Array, OperatorCall, equal, limited, nest, number, rule, select, to


@rule("Range")
def range_(call: OperatorCall) -> None:
    """The length shows in the result's shape."""

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        start, delta = xs
        with k.loop(ys[0].size, "i") as i:
            ys[0].put(start.at(0) + to(i, start.dtype) * delta.at(0), i)

    call.loops(body, [0, 2], key=())


@rule("ConstantOfShape")
def constant_of_shape(call: OperatorCall) -> None:
    given = call.node.get("value")
    value = 0.0
    if given is not None:
        from onnx import numpy_helper

        value = numpy_helper.to_array(given).reshape(()).item()
    call.define_constant(np.full(call.output_shape(), value, call.output_dtype()))


@rule("EyeLike")
def eye_like(call: OperatorCall) -> None:
    k = int(call.node.get("k", 0))
    rows, columns = call.output_shape()
    call.define_constant(np.eye(rows, columns, k, dtype=call.output_dtype()))


@rule("HannWindow", "HammingWindow", "BlackmanWindow")
def window(call: OperatorCall) -> None:
    """The size shows in the result's shape (ONNX's definition: ends at the sample before)."""
    size = call.output_shape()[0]
    n = size if call.node.get("periodic", 1) else max(size - 1, 1)
    angle = np.arange(size, dtype=np.float64) * 2 * np.pi / n
    if call.node.op_type == "HannWindow":
        values = 0.5 - 0.5 * np.cos(angle)
    elif call.node.op_type == "HammingWindow":
        values = 25 / 46 - 21 / 46 * np.cos(angle)
    else:
        values = 0.42 - 0.5 * np.cos(angle) + 0.08 * np.cos(2 * angle)
    call.define_constant(values.astype(call.output_dtype()))


@rule("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
def random(call: OperatorCall) -> None:
    call.fail("compiled models draw no random numbers")


@rule("Bernoulli", "Multinomial")
def random_draw(call: OperatorCall) -> None:
    call.fail("compiled models draw no random numbers")


@rule("Det")
def determinant(call: OperatorCall) -> None:
    """By Gaussian elimination with pivoting."""
    *outer, n, _ = call.shape()

    def body(k: Any, xs: list[Array], ys: list[Any]) -> None:
        from . import mathematics as m
        from .base import cell, when

        x, y, work = xs[0], ys[0], ys[1]
        with nest(k, outer) as index:
            with nest(k, (n, n)) as (r, c):
                work.store(x[[*index, r, c]], (r, c))
            result = cell(k, x.dtype, 1, "result")
            with k.loop(n, "step") as step:
                pivot = cell(k, "int32", step, "pivot")
                with k.loop(n, "r") as r:
                    found = limited(k, pivot.get(), 0, n)
                    size, best = m.absolute(work[r, step]), m.absolute(work[found, step])
                    larger = size > best
                    if not isinstance(step, int):
                        from .base import all_of

                        larger = all_of(r > step, larger)
                    with when(k, larger):
                        pivot.set(r)
                chosen = limited(k, pivot.get(), 0, n)
                swapped = equal(chosen, step)
                result.set(select(swapped, result.get(), result.get() * number(-1, x.dtype)))
                with k.loop(n, "c") as c:
                    kept = cell(k, x.dtype, work[step, c], "kept")
                    work.store(work[chosen, c], (step, c))
                    work.store(kept.get(), (chosen, c))
                result.set(result.get() * work[step, step])
                with k.loop(n, "r2") as r:  # noqa: SIM117 - loops nest as they run
                    with when(k, r > step if not isinstance(r, int) else False):
                        singular = equal(work[step, step], 0)
                        factor = cell(k, x.dtype, 0, "factor")
                        quotient = work[r, step] / work[step, step]
                        factor.set(select(singular, number(0, x.dtype), quotient))
                        with k.loop(n, "c2") as c:
                            work.store(work[r, c] - factor.get() * work[step, c], (r, c))
            y.store(result.get(), index)

    call.loops(body, key=(), scratch=[((n, n), call.dtype())])
