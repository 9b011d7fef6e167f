"""Determinants and inverses of matrices, by elimination with pivoting."""

from __future__ import annotations

from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from . import mathematics as m
from .base import (
    Array,
    OperatorCall,
    all_of,
    cell,
    compute_type,
    equal,
    limited,
    nest,
    number,
    rule,
    select,
    to,
    when,
)


@rule("Det")
def determinant(call: OperatorCall) -> None:
    *outer, n, _ = call.shape()

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, y, work = xs[0], ys[0], ys[1]
        with nest(k, outer) as index:
            with nest(k, (n, n)) as (r, c):
                work.store(x[[*index, r, c]], (r, c))
            result = cell(k, x.dtype, 1, "result")
            with k.loop(n, "step") as step:
                chosen = _bring_pivot(k, work, step)
                swapped = equal(chosen, step)
                result.set(select(swapped, result.get(), result.get() * number(-1, x.dtype)))
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


@rule("Inverse", domain="com.microsoft")
def inverse(call: OperatorCall) -> None:
    """The matrix beside the identity becomes the identity beside its inverse."""
    *outer, n, _ = call.shape()
    dtype = compute_type(call.dtype())

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, y, work = xs[0], ys[0], ys[1]
        with nest(k, outer) as index:
            with nest(k, (n, n)) as (r, c):
                work.store(to(x[[*index, r, c]], dtype), (r, c))
                one, zero = number(1, dtype), number(0, dtype)
                work.store(select(equal(r, c), one, zero), (r, n + c))
            with k.loop(n, "step") as step:
                _bring_pivot(k, work, step)
                pivot = cell(k, dtype, work[step, step], "pivot")
                with k.loop(2 * n, "c1") as c:
                    work.store(work[step, c] / pivot.get(), (step, c))
                with k.loop(n, "r2") as r:
                    others = select(equal(r, step), number(0, dtype), work[r, step])
                    factor = cell(k, dtype, others, "factor")
                    with k.loop(2 * n, "c2") as c:
                        work.store(work[r, c] - factor.get() * work[step, c], (r, c))
            with nest(k, (n, n), "w") as (r, c):
                y.store(work[r, n + c], (*index, r, c))

    call.loops(body, key=(), scratch=[((n, 2 * n), dtype)])


def _bring_pivot(k: KernelBuilder, work: Array, step: Expr) -> Expr:
    """Swap a row with the one, from it on, of the largest element in its column; which."""
    n, columns = work.shape
    pivot = cell(k, "int32", step, "row")
    with k.loop(n, "r") as r:
        found = limited(k, pivot.get(), 0, n)
        larger: Expr = m.absolute(work[r, step]) > m.absolute(work[found, step])
        if not isinstance(step, int):
            larger = all_of(r > step, larger)
        with when(k, larger):
            pivot.set(r)
    chosen = limited(k, pivot.get(), 0, n)
    with k.loop(columns, "c") as c:
        kept = cell(k, work.dtype, work[step, c], "kept")
        work.store(work[chosen, c], (step, c))
        work.store(kept.get(), (chosen, c))
    return chosen
