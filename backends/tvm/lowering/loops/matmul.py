"""Matrix products of any type and rank: MatMul, Gemm, the integer ones, Einsum."""

from __future__ import annotations

import math
from collections.abc import Callable

from .....ir.einsum import read_equation
from ...plan.sizes import broadcast_shapes, is_open
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from . import mathematics as m
from .base import (
    Array,
    OperatorCall,
    cell,
    compute_type,
    nest,
    number,
    rule,
    to,
)


def _dims(shape: tuple[int, ...], first: bool) -> tuple[int, ...]:
    """At least two dims, as MatMul reads them."""
    if len(shape) >= 2:
        return shape
    return (1, *shape) if first else (*shape, 1)


Take = Callable[[Expr, Expr, Expr, Expr], Expr]
Finish = Callable[[Expr, list[Expr], Expr], None]


def _product(
    call: OperatorCall, k: KernelBuilder, a: Array, b: Array, finish: Finish, dtype: str, take: Take
) -> None:
    """For each element of a (broadcast) matrix product: `finish(position, index, sum)`.

    `take(a, b, row, column)` is one element's contribution.
    """
    left, right = _dims(a.shape, True), _dims(b.shape, False)
    batch = broadcast_shapes(left[:-2], right[:-2])
    rows, depth, columns = left[-2], left[-1], right[-1]
    with nest(k, (*batch, rows, columns)) as index:
        *outer, r, c = index
        total = cell(k, dtype, 0)
        own_a = _batch_offset(outer, left[:-2]) * rows * depth
        own_b = _batch_offset(outer, right[:-2]) * depth * columns
        with k.loop(depth, "d") as d:
            x = a.at(own_a + r * depth + d)
            w = b.at(own_b + d * columns + c)
            total.add(take(x, w, r, c))
        position: Expr = 0
        for i, size in zip(index, (*batch, rows, columns), strict=True):
            position = position * size + i
        finish(position, index, total.get())


def _batch_offset(outer: list[Expr], shape: tuple[int, ...]) -> Expr:
    own = outer[len(outer) - len(shape) :]
    at: Expr = 0
    for i, size in zip(own, shape, strict=True):
        at = at * size + (0 if size == 1 else i)
    return at


@rule("MatMul")
def matmul(call: OperatorCall) -> None:
    dtype = compute_type(call.output_dtype())

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        _product(
            call,
            k,
            xs[0],
            xs[1],
            lambda position, _, total: ys[0].put(total, position),
            dtype,
            lambda x, w, r, c: to(x, dtype) * to(w, dtype),
        )

    call.loops(body, key=())


@rule("Gemm")
def gemm(call: OperatorCall) -> None:
    alpha, beta = float(call.node.get("alpha", 1.0)), float(call.node.get("beta", 1.0))
    trans_a, trans_b = bool(call.node.get("transA", 0)), bool(call.node.get("transB", 0))
    dtype = compute_type(call.output_dtype())
    depth = call.shape(0)[0 if trans_a else 1]

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with nest(k, ys[0].shape) as (r, c):
            total = cell(k, dtype, 0)
            with k.loop(depth, "d") as d:
                x = xs[0][(d, r) if trans_a else (r, d)]
                w = xs[1][(c, d) if trans_b else (d, c)]
                total.add(to(x, dtype) * to(w, dtype))
            result = total.get()
            if alpha != 1.0:
                result = result * number(alpha, dtype)
            if len(xs) > 2 and beta != 0.0:
                bias = to(xs[2].broadcast((r, c)), dtype)
                result = result + (bias * number(beta, dtype) if beta != 1.0 else bias)
            ys[0].store(result, (r, c))

    call.loops(body, key=())


def _zero_point(x: Array | None, row_or_column: Expr) -> Expr:
    """A zero point for the whole matrix, or per row or column."""
    if x is None:
        return 0
    return to(x.at(0 if x.size == 1 else row_or_column), "int32")


@rule("MatMulInteger")
def matmul_integer(call: OperatorCall) -> None:
    present = [i for i in range(4) if call.has(i)]

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        given = dict(zip(present, xs, strict=True))
        a0, b0 = given.get(2), given.get(3)
        for zero in (a0, b0):
            if zero is not None and zero.rank > 1:
                call.fail("zero points per matrix")

        def take(x: Expr, w: Expr, r: Expr, c: Expr) -> Expr:
            return (to(x, "int32") - _zero_point(a0, r)) * (to(w, "int32") - _zero_point(b0, c))

        _product(call, k, xs[0], xs[1], lambda p, _, total: ys[0].put(total, p), "int32", take)

    call.loops(body, present, key=tuple(present))


@rule("QLinearMatMul")
def qlinear_matmul(call: OperatorCall) -> None:
    """Inputs: a, scale, zero, b, scale, zero, output scale, zero."""

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = xs
        if any(x.rank > 1 for x in (a_scale, b_scale, y_scale)):
            call.fail("quantization parameters per matrix")

        def take(x: Expr, w: Expr, r: Expr, c: Expr) -> Expr:
            left = to(x, "int32") - _zero_point(a_zero, r)
            return left * (to(w, "int32") - _zero_point(b_zero, c))

        def finish(position: Expr, index: list[Expr], total: Expr) -> None:
            r, c = index[-2], index[-1]
            s = to(a_scale.at(0 if a_scale.size == 1 else r), "float32")
            s = s * to(b_scale.at(0 if b_scale.size == 1 else c), "float32")
            s = s / to(y_scale.at(0), "float32")
            rounded = m.round_even(to(total, "float32") * s)
            rounded = rounded + to(y_zero.at(0), "float32")
            ys[0].put(m.saturate(rounded, ys[0].dtype), position)

        _product(call, k, a, b, finish, "int32", take)

    call.loops(body, key=())


@rule("Einsum")
def einsum(call: OperatorCall) -> None:
    """One loop per letter; every product is summed in one go."""
    try:
        ranks = [call.rank(i) for i in range(len(call.node.inputs))]
        equation = read_equation(str(call.node.get("equation")), ranks)
    except ValueError as error:
        call.fail(str(error))
    terms, result = equation.operands, equation.result
    sizes: dict[str, int] = {}
    for i, term in enumerate(terms):
        for letter, size in zip(term, call.shape(i), strict=True):
            known = sizes.setdefault(letter, size)
            if known == 1:
                sizes[letter] = size
            elif size != 1:
                call.lowering.require_equal(known, size)
    summed = [c for c in sizes if c not in result]
    dtype = compute_type(call.output_dtype())

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with nest(k, [sizes[c] for c in result]) as outer:
            place = dict(zip(result, outer, strict=True))
            total = cell(k, dtype, 0)
            with nest(k, [sizes[c] for c in summed], "s") as inner:
                place.update(zip(summed, inner, strict=True))
                product: Expr = number(1, dtype)
                for i, (x, term) in enumerate(zip(xs, terms, strict=True)):
                    index = [
                        0 if size == 1 else place[c] for c, size in zip(term, x.shape, strict=True)
                    ]
                    element = to(x[index], dtype)
                    product = element if i == 0 else product * element
                total.add(product)
            ys[0].store(total.get(), outer)

    if math.prod(size for size in sizes.values() if not is_open(size)) > 2**36:
        call.fail("too many products for one loop nest")
    call.loops(body, key=())
