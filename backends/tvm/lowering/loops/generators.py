"""Operators that make tensors from few numbers: ranges, constants, identity matrices."""

from __future__ import annotations

import numpy as np

from ...plan.sizes import is_open
from ...tensorir.builder import KernelBuilder
from .base import Array, OperatorCall, equal, nest, number, rule, select, to


@rule("Range")
def range_(call: OperatorCall) -> None:
    """The length shows in the result's shape."""

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        start, delta = xs
        with k.loop(ys[0].size, "i") as i:
            ys[0].put(start.at(0) + to(i, start.dtype) * delta.at(0), i)

    call.loops(body, [0, 2], key=())


def fill(call: OperatorCall, value: float, index: int = 0) -> None:
    """Let an output be one number everywhere."""
    shape, dtype = call.output_shape(index), call.output_dtype(index)
    if not is_open(*shape):
        call.define_constant(np.full(shape, value, dtype), index)
        return

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with k.loop(ys[0].size, "i") as i:
            ys[0].put(number(value, dtype), i)

    call.loops(body, [], outputs=[index], key=("fill", value, index))


@rule("ConstantOfShape")
def constant_of_shape(call: OperatorCall) -> None:
    given = call.node.get("value")
    value = 0.0
    if given is not None:
        from onnx import numpy_helper

        value = numpy_helper.to_array(given).reshape(()).item()
    fill(call, value)


@rule("EyeLike")
def eye_like(call: OperatorCall) -> None:
    k = int(call.node.get("k", 0))
    rows, columns = call.output_shape()
    if is_open(rows, columns):

        def body(builder: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
            with nest(builder, ys[0].shape) as (i, j):
                ys[0].store(select(equal(j - i, k), 1, number(0, ys[0].dtype)), [i, j])

        call.loops(body, [], key=())
        return
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
