"""Linear quantization in all its forms: per tensor, per axis, in blocks, at run time."""

from __future__ import annotations

from tvm import tirx

from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from . import mathematics as m
from .base import Array, OperatorCall, cell, divide, nest, number, rule, select, to

_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32")


def _parameter(call: OperatorCall, x: Array, index: list[Expr]) -> Expr:
    """The scale or zero point of the element at `index`."""
    if x.size == 1:
        return x.at(0)
    axis = int(call.node.get("axis", 1)) % len(index)
    block = int(call.node.get("block_size", 0))
    if x.rank <= 1:
        return x.at(index[axis])
    place = list(index)
    place[axis] = divide(index[axis], block)
    return x[place]


@rule("QuantizeLinear")
def quantize_linear(call: OperatorCall) -> None:
    target = call.output_dtype()
    if target not in ("int8", "uint8", "int16", "uint16"):
        call.fail(f"quantization to {target}")

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, scale, *zero = xs
        with nest(k, ys[0].shape) as index:
            own = to(_parameter(call, scale, index), "float32")
            value = m.round_even(to(x[index], "float32") / own)
            if zero:
                value = value + to(_parameter(call, zero[0], index), "float32")
            ys[0].store(m.saturate(value, target), index)

    call.loops(body, key=())


@rule("DequantizeLinear")
def dequantize_linear(call: OperatorCall) -> None:
    if call.dtype() not in _INTEGERS:
        call.fail(f"dequantization of {call.dtype()}")

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, scale, *zero = xs
        with nest(k, ys[0].shape) as index:
            value = to(x[index], "int32")
            if zero:
                value = value - to(_parameter(call, zero[0], index), "int32")
            own = to(_parameter(call, scale, index), "float32")
            ys[0].store(to(value, "float32") * own, index)

    call.loops(body, key=())


@rule("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: OperatorCall) -> None:
    """The range of the data, zero included, over 0 to 255; the scale of nothing but zeros is 1.

    With any NaN the scale is NaN, the zero point 255, every byte 0.
    """

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x = xs[0]
        y, scale, zero = (*ys, None, None)[:3]
        low = cell(k, "float32", 0, "low")
        high = cell(k, "float32", 0, "high")
        with k.loop(x.size, "m") as i:
            low.set(select(tirx.LT(x.at(i), low.get()), x.at(i), low.get()))
            high.set(m.largest(x.at(i), high.get()))
        step = cell(k, "float32", (high.get() - low.get()) / number(255, "float32"), "step")
        divisor = select(tirx.EQ(step.get(), number(0, "float32")), 1, step.get())
        offset = cell(k, "float32", 0, "offset")
        raw = m.round_even((number(0, "float32") - low.get()) / divisor)
        bounded = tirx.max(tirx.min(raw, number(255, "float32")), number(0, "float32"))
        offset.set(select(m.is_nan(divisor), 255, bounded))
        if y is not None:
            with k.loop(x.size, "q") as i:
                value = m.round_even(x.at(i) / divisor) + offset.get()
                y.put(m.saturate(value, "uint8"), i)
        if scale is not None:
            scale.put(divisor, 0)
        if zero is not None:
            zero.put(to(to(offset.get(), "int32"), "uint8"), 0)

    call.loops(body, key=())
