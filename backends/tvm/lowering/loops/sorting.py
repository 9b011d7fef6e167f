"""TopK and Hardmax."""

from __future__ import annotations

import math

from tvm import tirx

from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from . import mathematics as m
from .base import (
    Array,
    OperatorCall,
    all_of,
    bind,
    cell,
    compute_type,
    is_float,
    nest,
    rule,
    select,
    to,
    when,
)


@rule("TopK")
def top_k(call: OperatorCall) -> None:
    """By repeated selection: of equal elements the one of the smaller index comes first.

    K shows in the result's shape, so it may be computed at run time. NaN is the largest.
    """
    shape = call.shape()
    axis = call.axis(len(shape), -1)
    largest = bool(call.node.get("largest", 1))
    count = call.output_shape(0 if call.node.output(0) is not None else 1)[axis]
    size = shape[axis]

    def before(a: Expr, i: Expr, b: Expr, j: Expr, dtype: str) -> Expr:
        """Whether element `a` at `i` comes before `b` at `j`."""
        better = a > b if largest else a < b
        if is_float(dtype):
            one, other = (a, b) if largest else (b, a)
            better = tirx.any(better, tirx.all(m.is_nan(one), tirx.Not(m.is_nan(other))))
            same = tirx.any(tirx.EQ(a, b), tirx.all(m.is_nan(a), m.is_nan(b)))
        else:
            same = tirx.EQ(a, b)
        return tirx.any(better, tirx.all(same, i < j))

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, (values, indices) = xs[0], (*ys, None)[:2]
        dtype = compute_type(x.dtype)
        with nest(k, [s for i, s in enumerate(shape) if i != axis]) as index:
            last = cell(k, dtype, 0, "last")
            last_at = cell(k, "int32", -1, "last_at")
            with k.loop(count, "rank") as rank:
                best = cell(k, dtype, 0, "best")
                best_at = cell(k, "int32", -1, "best_at")
                with k.loop(size, "r") as r:
                    element = bind(k, to(x[[*index[:axis], r, *index[axis:]]], dtype))
                    after = tirx.any(
                        last_at.get() < 0, before(last.get(), last_at.get(), element, r, dtype)
                    )
                    first = tirx.any(
                        best_at.get() < 0, before(element, r, best.get(), best_at.get(), dtype)
                    )
                    with when(k, all_of(after, first)):
                        best.set(element)
                        best_at.set(r)
                last.set(best.get())
                last_at.set(best_at.get())
                place = [*index[:axis], rank, *index[axis:]]
                if values is not None:
                    values.store(best.get(), place)
                if indices is not None:
                    indices.store(best_at.get(), place)

    call.loops(body, [0], key=(count,))


@rule("Hardmax")
def hardmax(call: OperatorCall) -> None:
    """One at the first largest element; before opset 13 over all axes from `axis` on.

    As in ONNX Runtime a row has no largest element where its first one is NaN.
    """
    shape = call.shape()
    flat = call.opset < 13
    axis = call.axis(len(shape), 1 if flat else -1)
    outer = math.prod(shape[:axis])
    size = math.prod(shape[axis:]) if flat else shape[axis]
    inner = 1 if flat else math.prod(shape[axis + 1 :])

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        with nest(k, (outer, inner)) as (o, i):
            at = cell(k, "int32", 0, "at")
            best = cell(k, compute_type(xs[0].dtype), xs[0].at(o * size * inner + i), "best")
            with k.loop(size, "r") as r:
                element = to(xs[0].at((o * size + r) * inner + i), best.dtype)
                with when(k, element > best.get()):
                    best.set(element)
                    at.set(r)
            with k.loop(size, "w") as r:
                hit = all_of(tirx.EQ(at.get(), to(r, "int32")), tirx.Not(m.is_nan(best.get())))
                ys[0].put(select(hit, 1, to(0, "int32")), (o * size + r) * inner + i)

    call.loops(body, key=())
