"""Reductions, with axes known or given at run time; ArgMax and ArgMin; running sums."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from tvm import tirx

from ...plan.sizes import may_be_none, size_of
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr
from . import mathematics as m
from .base import (
    Array,
    OperatorCall,
    all_of,
    bind,
    cell,
    checked,
    compute_type,
    dtype_of,
    equal,
    is_float,
    nest,
    number,
    rule,
    select,
    to,
    when,
)
from .mathematics import lit


@dataclasses.dataclass(frozen=True)
class Reduction:
    """How elements are combined: `start`, then `join(total, element)`, at last `finish`.

    As in ONNX Runtime those that are `real` are computed in doubles for integers, too, so
    that results that are too large saturate; of `undefined` ones results that are no
    number become the lowest integer.
    """

    join: Callable[[Expr, Expr], Expr]
    start: Callable[[str], Expr]
    finish: Callable[[Expr, int], Expr] = lambda total, count: total
    real: bool = False
    undefined: bool = False


def _zero(dtype: str) -> Expr:
    return number(0, dtype)


def _lowest(dtype: str) -> Expr:
    return number(-math.inf, dtype) if is_float(dtype) else tirx.min_value(dtype)


def _highest(dtype: str) -> Expr:
    return number(math.inf, dtype) if is_float(dtype) else tirx.max_value(dtype)


def _add(total: Expr, x: Expr) -> Expr:
    return total + x


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": Reduction(_add, _zero),
    "ReduceMean": Reduction(_add, _zero, lambda total, count: _over(total, count)),
    "ReduceProd": Reduction(lambda total, x: total * x, lambda dtype: number(1, dtype), real=True),
    "ReduceMax": Reduction(m.largest, _lowest),
    "ReduceMin": Reduction(m.smallest, _highest),
    "ReduceL1": Reduction(lambda total, x: total + m.absolute(x), _zero),
    "ReduceL2": Reduction(
        lambda total, x: total + x * x, _zero, lambda total, _: m.sqrt(total), real=True
    ),
    "ReduceSumSquare": Reduction(lambda total, x: total + x * x, _zero, real=True),
    "ReduceLogSum": Reduction(
        _add, _zero, lambda total, _: m.log(total), real=True, undefined=True
    ),
}


def _over(total: Expr, count: int) -> Expr:
    """A mean, as ONNX Runtime's zero of no elements."""
    divisor = lit(max(count, 1), total)
    if may_be_none(size_of(count)):
        divisor = tirx.max(divisor, lit(1, total))
    return total / divisor if is_float(dtype_of(total)) else tirx.truncdiv(total, divisor)


@rule(*_REDUCTIONS, "ReduceLogSumExp")
def reduce(call: OperatorCall) -> None:
    if call.dtype() == "bool" and call.node.op_type not in ("ReduceMax", "ReduceMin"):
        call.fail("not defined on booleans")
    given = call.node.get("axes")
    runtime = given is None and call.has(1) and call.constant(1) is None
    if not runtime:
        axes = call.ints("axes", 1)
        _reduce_over(call, [_axes(call, axes)])
        return
    candidates = _candidates(call)
    if not candidates:
        call.fail("no axes lead to the declared shape")
    _reduce_over(call, candidates)


def _axes(call: OperatorCall, axes: list[int] | None) -> tuple[int, ...]:
    rank = call.rank()
    if not axes:
        keep = bool(call.node.get("noop_with_empty_axes", 0))
        return () if keep and call.opset >= 13 else tuple(range(rank))
    return tuple(sorted(a % rank for a in axes))


def _candidates(call: OperatorCall) -> list[tuple[int, ...]]:
    """The sets of axes, counted from the input's size, that give the result's shape."""
    shape, result = call.shape(), call.output_shape()
    keep = bool(call.node.get("keepdims", 1))
    count = call.shape(1)[0]
    if count == 0:
        return [_axes(call, None)]
    return [
        axes
        for axes in itertools.combinations(range(len(shape)), count)
        if reduced(shape, axes, keep=keep) == result
    ]


def reduced(shape: Sequence[int], axes: Sequence[int], *, keep: bool) -> tuple[int, ...]:
    """The shape of a reduction over axes."""
    if keep:
        return tuple(1 if i in axes else s for i, s in enumerate(shape))
    return tuple(s for i, s in enumerate(shape) if i not in axes)


def _reduce_over(call: OperatorCall, candidates: list[tuple[int, ...]]) -> None:
    """A reduction over the only candidate, or over that which the input says at run time."""
    shape = call.shape()
    rank = len(shape)
    op_type = call.node.op_type

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        for axes in candidates:
            condition: Expr = True
            if len(candidates) > 1:
                found = [checked(k, xs[1][[i]], rank) for i in range(len(axes))]
                matches = [tirx.any(*(equal(f, a) for f in found)) for a in axes]
                condition = all_of(*matches)
            with when(k, condition):
                if op_type == "ReduceLogSumExp":
                    _log_sum_exp(k, xs[0], ys[0], axes)
                else:
                    _plain(k, xs[0], ys[0], axes, _REDUCTIONS[op_type])

    call.loops(body, [0, 1] if len(candidates) > 1 else [0], key=tuple(candidates))


def _walk(
    k: KernelBuilder,
    x: Array,
    axes: Sequence[int],
    visit: Callable[[Expr, Callable[[Callable[[Expr], None]], None]], None],
) -> None:
    """For each kept index: `visit(position, each)`, where `each` runs over reduced elements."""
    kept = [i for i in range(x.rank) if i not in axes]
    with nest(k, [x.shape[i] for i in kept]) as outer:
        position: Expr = 0
        for i, axis in zip(outer, kept, strict=True):
            position = position * x.shape[axis] + i

        def each(function: Callable[[Expr], None]) -> None:
            if 0 in [x.shape[a] for a in axes]:
                return
            with nest(k, [x.shape[a] for a in axes], "r") as inner:
                index: list[Expr] = [0] * x.rank
                for i, axis in zip(outer, kept, strict=True):
                    index[axis] = i
                for i, axis in zip(inner, axes, strict=True):
                    index[axis] = i
                function(x[index])

        visit(position, each)


def _plain(k: KernelBuilder, x: Array, y: Array, axes: Sequence[int], reduction: Reduction) -> None:
    dtype = "uint8" if x.dtype == "bool" else compute_type(x.dtype)
    if not is_float(x.dtype) and reduction.real:
        dtype = "float64"
    count = math.prod(x.shape[a] for a in axes)

    def visit(position: Expr, each: Callable[[Callable[[Expr], None]], None]) -> None:
        total = cell(k, dtype, reduction.start(dtype))
        each(lambda element: total.set(reduction.join(total.get(), to(element, dtype))))
        result = reduction.finish(total.get(), count)
        y.put(m.convert(bind(k, result), y.dtype) if reduction.undefined else result, position)

    _walk(k, x, axes, visit)


def _log_sum_exp(k: KernelBuilder, x: Array, y: Array, axes: Sequence[int]) -> None:
    """Relative to the largest element, where that is finite.

    Of integers ONNX Runtime rounds each exponential towards zero, which leaves the number of
    elements that equal the largest; its logarithm and the sum stay doubles.
    """
    real = is_float(x.dtype)
    dtype = compute_type(x.dtype)
    wide = dtype if real else "float64"

    def visit(position: Expr, each: Callable[[Callable[[Expr], None]], None]) -> None:
        top = cell(k, dtype, _lowest(dtype), "top")
        each(lambda element: top.set(m.largest(top.get(), to(element, dtype))))
        if real:
            finite = m.absolute(top.get()) < number(math.inf, dtype)
            top.set(select(finite, top.get(), number(0, dtype)))
        total = cell(k, wide, 0)

        def add(element: Expr) -> None:
            own = to(element, dtype)
            total.add(m.exp(own - top.get()) if real else to(equal(own, top.get()), wide))

        each(add)
        y.put(m.log(total.get()) + to(top.get(), wide), position)

    _walk(k, x, axes, visit)


@rule("ArgMax", "ArgMin")
def arg(call: OperatorCall) -> None:
    shape = call.shape()
    axis = call.axis(len(shape), 0)
    keep = bool(call.node.get("keepdims", 1))
    last = bool(call.node.get("select_last_index", 0))
    maximal = call.node.op_type == "ArgMax"

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        outer = [s for i, s in enumerate(shape) if i != axis]
        dtype = compute_type(xs[0].dtype)
        with nest(k, outer) as index:
            best = cell(k, dtype, xs[0][[*index[:axis], 0, *index[axis:]]], "best")
            at = cell(k, "int64", 0, "at")
            with k.loop(shape[axis], "r") as r:
                element = to(xs[0][[*index[:axis], r, *index[axis:]]], dtype)
                better = element > best.get() if maximal else element < best.get()
                if last:
                    better = element >= best.get() if maximal else element <= best.get()
                with when(k, better):
                    best.set(element)
                    at.set(r)
            place = [*index[:axis], 0, *index[axis:]] if keep else index
            ys[0].store(at.get(), place)

    call.loops(body, key=())


@rule("CumSum", "CumProd")
def running(call: OperatorCall) -> None:
    """Running sums or products; the axis may be given at run time."""
    shape = call.shape()
    exclusive, reverse = bool(call.node.get("exclusive", 0)), bool(call.node.get("reverse", 0))
    given = call.constant(1)
    product = call.node.op_type == "CumProd"
    axes = range(len(shape)) if given is None else [int(given.reshape(())) % len(shape)]

    def along(k: KernelBuilder, x: Array, y: Array, axis: int) -> None:
        dtype = compute_type(x.dtype)
        with nest(k, [s for i, s in enumerate(shape) if i != axis]) as index:
            total = cell(k, dtype, 1 if product else 0)
            with k.loop(shape[axis], "r") as step:
                at = shape[axis] - 1 - step if reverse else step
                place = [*index[:axis], at, *index[axis:]]
                if exclusive:
                    y.store(total.get(), place)
                element = to(x[place], dtype)
                total.set(total.get() * element if product else total.get() + element)
                if not exclusive:
                    y.store(total.get(), place)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        for axis in axes:
            condition: Expr = True
            if given is None:
                condition = equal(checked(k, xs[1].at(0), len(shape)), axis)
            with when(k, condition):
                along(k, xs[0], ys[0], axis)

    call.loops(body, [0, 1] if given is None else [0], key=tuple(axes))
