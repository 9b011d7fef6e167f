"""Resize in all its modes, Upsample, and sampling by a grid."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tvm import tirx

from ...faults import Fault
from ...graph.most import MOST, is_decided
from ...plan.sampling import Axis, Sampling, cubic, fitted_scale, is_old
from ...plan.sizes import is_open, may_be_equal, size_of
from ...plan.tensors import PlanTensor
from ...tensorir.builder import KernelBuilder, as_int
from ...tensorir.types import Computed, Expr
from . import mathematics as m
from .base import (
    Array,
    OperatorCall,
    all_of,
    any_of,
    bind,
    cell,
    clamped,
    compute_type,
    differ,
    guarded,
    is_float,
    limited,
    maximum,
    minimum,
    nest,
    number,
    rule,
    select,
    to,
    within,
    within_axis,
)
from .convolution import inside
from .mathematics import lit
from .selection import kernel_before


@dataclasses.dataclass(frozen=True)
class SampledAxis:
    """An axis of the tensor that is resized; `taps` is None where only a run tells how many input
    elements an output element takes."""

    axis: int
    sampled: Axis
    taps: int | None

    def tables(self) -> list[tuple[Sequence[int], str]]:
        """Shapes and types of the tables of positions, of weights and of what lies outside.

        Without taps these are the first positions, and coordinates with the sums of weights.
        """
        out, taps = self.sampled.out, self.taps
        places, weights = (1, 2) if taps is None else (taps, taps)
        return [((out, places), "int32"), ((out, weights), "float32"), ((out,), "int32")]


_FAR = 2**28
"""Pixels, beyond the edges of any image; some of them can be added up."""

_LARGEST = 2.0**62
"""Places of GridSample beyond which, or NaN, are taken for the edge at -1."""

_Scale = Callable[[dict[int | PlanTensor, Array], int], Computed]
"""The scale of an axis inside the kernel, from the arrays by input number."""


class _Expressions:
    """The functions that `Sampling` calls, on expressions."""

    floor = staticmethod(functools.partial(m.libm, "floor"))
    ceil = staticmethod(functools.partial(m.libm, "ceil"))

    @staticmethod
    def abs(x: Computed) -> Computed:
        return to(m.absolute(x), "float32")

    @staticmethod
    def where(condition: Computed | bool, a: Expr, b: Expr) -> Computed:
        return to(select(condition, a, b), "float32")

    @staticmethod
    def size(size: int) -> Expr:
        return number(size, "float32") if is_open(size) else float(size)

    @staticmethod
    def double(x: Expr) -> Computed:
        return to(x, "float64")

    @staticmethod
    def single(x: Expr) -> Computed:
        return m.fence(to(x, "float32"))

    @staticmethod
    def minimum(a: Expr, b: Expr) -> Computed:
        return tirx.min(a, to(b, "float32"))

    @staticmethod
    def maximum(a: Expr, b: Expr) -> Computed:
        return tirx.max(a, to(b, "float32"))


@rule("Resize", "Upsample")
def resize(call: OperatorCall) -> None:
    """Separable: tables of positions and weights per axis, then their products.

    Scales, sizes and the region of interest may be computed at run time; the kernel
    makes the tables, in float32 as ONNX Runtime does.
    """
    shape, out = call.shape(), call.output_shape()
    node = call.node
    sampling = Sampling.of(node, call.opset)
    if sampling.unknown is not None:
        call.fail(sampling.unknown)
    if sampling.antialias and sampling.mode != "nearest" and not is_float(call.dtype()):
        call.fail("antialias of integers, which ONNX Runtime rounds after each axis")
    rank = len(shape)
    chosen = [int(a) % rank for a in node.get("axes", list(range(rank)))]
    told = told_scales(call)
    scale_of, whole = _scales(call, shape, out, chosen, told)
    known = call.lowering.sizes.scales(node) if call.lowering.sizes is not None else None
    kept = {a for a, scale in zip(chosen, known or (), strict=False) if scale == 1.0}
    crops = sampling.crops
    axes = []
    rounding = _rounding_axes(call, sampling)
    for a in chosen:
        if out[a] != shape[a] or (not whole and a not in kept) or a in rounding:
            sampled = Axis(shape[a], out[a])
            taps = None if sampling.spreads(sampled) else sampling.taps(sampled)
            axes.append(SampledAxis(a, sampled, taps))
    inputs: list[int | PlanTensor]
    inputs = [i for i, v in enumerate(node.inputs) if v is not None and 0 not in call.shape(i)]
    inputs += [told] if told is not None else []
    scratch = [table for axis in axes for table in axis.tables()]
    value = float(node.get("extrapolation_value", 0.0))

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        arrays = dict(zip(inputs, xs, strict=True))
        y, x = ys[0], xs[0]
        same = unchanged(shape, out)
        tables = {a.axis: ys[1 + 3 * i : 4 + 3 * i] for i, a in enumerate(axes)}
        spreads = {}
        for axis in axes:
            place = chosen.index(axis.axis)
            scale = bind(k, scale_of(arrays, axis.axis))
            if axis.taps is None:
                spreads[axis.axis] = Spread(k, sampling, axis.sampled, scale)
            window = [number(0.0, "float32"), number(1.0, "float32")]
            if crops:
                window = [to(arrays[1].at(place + n), "float32") for n in (0, len(chosen))]
            spread = spreads.get(axis.axis)
            make_table(k, sampling, axis, scale, window, tables[axis.axis], same, spread)
        with nest(k, out) as index:
            result = _sample(k, x, index, axes, tables, sampling.mode, spreads)
            if crops:
                marks = [tables[a.axis][2][[index[a.axis]]] > 0 for a in axes]
                result = select(any_of(*marks), number(value, x.dtype), to(result, x.dtype))
            y.store(result, index)

    call.loops(body, inputs, scratch=scratch)


def _rounding_axes(call: OperatorCall, sampling: Sampling) -> range:
    """Axes along which integers are interpolated even if they keep their sizes.

    Of two or three axes together, as ONNX Runtime does: at an edge it adds two halves of
    the same element, and sums near a whole number round differently by that.
    """
    rank = call.rank()
    if is_float(call.dtype()) or sampling.mode != "linear" or sampling.antialias:
        return range(0)
    return range(rank - {2: 2, 3: 3, 4: 2, 5: 3}.get(rank, 0), rank)


def told_scales(call: OperatorCall) -> PlanTensor | None:
    """The scales of all axes of the node, where data decide sizes by them, which a kernel before
    the operator's own computes with these sizes; None for other nodes."""
    node, lowering = call.node, call.lowering
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    at = 1 if is_old(node, call.opset) else 2
    has_scales = call.has(at) and 0 not in call.shape(at)
    by_scales = has_scales and call.constant(at) is None
    by_fit = not has_scales and policy != "stretch" and "scales" not in node.attributes
    shape, out = call.shape(), call.output_shape()
    if lowering.sizes is None or not (by_scales or (by_fit and is_open(*shape, *out))):
        return None
    axes = [int(a) % len(shape) for a in node.get("axes", list(range(len(shape))))]
    sizes = PlanTensor(f"{node.label}/sizes", "int64", (len(shape),))
    scales = PlanTensor(f"{node.label}/scales", "float32", (len(shape),))
    wanted = None if by_scales else call.constant(3)
    inputs = [] if wanted is not None else [at if by_scales else 3]

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        given: list[Computed] = []
        for i, a in enumerate(axes):
            size = xs[0].at(i) if wanted is None else number(wanted.reshape(-1)[i], "int64")
            given.append(to(size, "float32"))
            if not by_scales:
                given[-1] = given[-1] / number(shape[a], "float32")
        if not by_scales:
            given = [fitted_scale(_Expressions(), given, policy)] * len(axes)
        for i, a in enumerate(range(len(shape))):
            scale = bind(k, given[axes.index(a)] if a in axes else number(1.0, "float32"))
            # TVM negates comparisons as if there were no NaN.
            k.fail_if(tirx.any(tirx.isnan(scale), scale <= number(0, "float32")), Fault.VALUE)
            length = scale * number(shape[a], "float32")
            if not by_scales:
                length = length + number(0.5, "float32")
            found = within(k, length, 0, MOST + 1, Fault.VALUE)
            if not is_decided(size_of(out[a])):
                k.fail_if(differ(found, as_int(out[a])), Fault.VALUE)
            ys[0].put(found, i)
            ys[1].put(scale, i)

    kernel_before(call, body, inputs, [sizes, scales])
    return scales


def _scales(
    call: OperatorCall,
    shape: tuple[int, ...],
    out: tuple[int, ...],
    axes: list[int],
    told: PlanTensor | None,
) -> tuple[_Scale, bool]:
    """How the kernel gets an axis's scale; whether axes of equal sizes stay as they are.

    Where no axis changes its size ONNX Runtime copies, whatever the scales.
    """
    node = call.node
    if shape == out:
        return lambda *_: number(1.0, "float32"), True
    if told is not None:
        return lambda arrays, axis: arrays[told].at(axis), False
    at = 1 if is_old(node, call.opset) else 2
    given = node.get("scales")
    constant = call.constant(at) if given is None else np.asarray(given)
    if constant is not None and constant.size:
        table = dict(zip(axes, constant.reshape(-1).tolist(), strict=True))
        whole = all(table[a] == 1.0 for a in axes if shape[a] == out[a])
        return lambda _, axis: number(table.get(axis, 1.0), "float32"), whole
    if call.has(at) and 0 not in call.shape(at):
        return lambda arrays, axis: to(arrays[at].at(axes.index(axis)), "float32"), False
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return lambda _, axis: ratio(shape[axis], out[axis]), True

    def kept(arrays: dict[int | PlanTensor, Array], axis: int) -> Computed:
        ratios = [
            to(arrays[3].at(i), "float32") / number(shape[a], "float32") for i, a in enumerate(axes)
        ]
        return fitted_scale(_Expressions(), ratios, policy)

    return kept, False


def ratio(size: int, out: int) -> Computed:
    """The scale that leads from one size to another."""
    if is_open(size, out):
        return number(out, "float32") / number(size, "float32")
    return number(out / size, "float32")


def unchanged(shape: Sequence[int], out: Sequence[int]) -> Expr:
    """Whether a run finds that no axis changes its size."""
    different = [(a, b) for a, b in zip(shape, out, strict=True) if a != b]
    if not all(may_be_equal(a, b) for a, b in different):
        return False
    return all_of(*(tirx.EQ(as_int(a), as_int(b)) for a, b in different))


class Spread:
    """Antialiasing along an axis of which only a run knows how far output elements reach."""

    def __init__(self, k: KernelBuilder, sampling: Sampling, axis: Axis, scale: Computed) -> None:
        self.k, self.sampling, self.axis = k, sampling, axis
        self.shrink = bind(k, to(sampling.shrink(_Expressions(), scale), "float32"))
        far = number(sampling.reach, "float32") / self.shrink
        self.half = bind(k, clamped(k, m.libm("ceil", far), 1, _FAR) + 1)

    def first(self, at: Computed) -> Expr:
        """The first element that one at a coordinate takes."""
        floor = clamped(self.k, m.libm("floor", at), -_FAR, _FAR)
        return floor - (self.half - 1)

    def weight(self, place: Expr, at: Computed) -> Computed:
        """The weight of an element for one at a coordinate."""
        xp, own = _Expressions(), to(place, "float32")
        return self.sampling.weight(xp, self.axis, own, at, self.shrink)

    def total(self, first: Expr, at: Computed) -> Computed:
        """The sum of all weights."""
        total = cell(self.k, "float32", 0, "total")
        with self.k.loop(self.half * 2, "t") as t:
            total.add(self.weight(first + t, at))
        return total.get()


def make_table(
    k: KernelBuilder,
    sampling: Sampling,
    axis: SampledAxis,
    scale: Computed,
    window: Sequence[Computed],
    table: Sequence[Array],
    same: Expr,
    spread: Spread | None = None,
) -> None:
    """Fill a table of positions, one of weights and one of what lies outside.

    Elements stay where they are if a run finds that all axes are the `same`, or that this one
    isn't scaled, as in ONNX Runtime, which crops no such axis.
    """
    positions, weights, outside = table
    sampled, xp = axis.sampled, _Expressions()
    if is_open(sampled.size, sampled.out) or sampling.crops:
        same = any_of(same, tirx.EQ(scale, number(1.0, "float32")))
    last = sampled.size - 1
    with k.loop(sampled.out, "o") as o:
        at = sampling.coordinate(xp, sampled, to(o, "float32"), scale, window)
        at = bind(k, select(same, to(o, "float32"), at))
        past = tirx.any(at < number(0, "float32"), at > number(last, "float32"))
        outside.store(to(past, "int32"), (o,))
        if sampling.mode == "nearest":
            positions.store(clamped(k, sampling.nearest(xp, at, scale), 0, last + 1), (o, 0))
            return
        at = bind(k, sampling.inside(xp, sampled, at))
        if axis.taps is None:
            assert spread is not None
            first = bind(k, spread.first(at))
            positions.store(first, (o, 0))
            weights.store(at, (o, 0))
            weights.store(spread.total(first, at), (o, 1))
            return
        first = bind(k, clamped(k, xp.floor(at), -_FAR, _FAR) - (axis.taps // 2 - 1))
        shrink = sampling.shrink(xp, scale)
        total = cell(k, "float32", 0, "total")
        with k.loop(axis.taps, "t") as t:
            place = first + t
            weight = bind(k, sampling.weight(xp, sampled, to(place, "float32"), at, shrink))
            total.add(weight)
            weights.store(weight, (o, t))
            positions.store(maximum(minimum(place, last), 0), (o, t))
        if sampling.normalizes:
            with k.loop(axis.taps, "n") as t:
                weights.store(weights[o, t] / total.get(), (o, t))


def _sample(
    k: KernelBuilder,
    x: Array,
    index: list[Expr],
    axes: Sequence[SampledAxis],
    tables: Mapping[int, Sequence[Array]],
    mode: str,
    spreads: Mapping[int, Spread],
) -> Expr:
    """One output element."""
    place = list(index)
    if mode == "nearest":
        for axis in axes:
            position = tables[axis.axis][0][index[axis.axis], 0]
            place[axis.axis] = limited(k, position, 0, x.shape[axis.axis])
        return x[place]
    dtype = compute_type(x.dtype) if is_float(x.dtype) else "float32"
    total = cell(k, dtype, 0)
    counts = [spreads[a.axis].half * 2 if a.taps is None else a.taps for a in axes]
    with nest(k, counts, "t") as taps:
        weight: Expr = number(1, dtype)
        for axis, tap in zip(axes, taps, strict=True):
            positions, weights, _ = tables[axis.axis]
            own = index[axis.axis]
            if axis.taps is None:
                element = limited(k, positions[own, 0], -2 * _FAR, _FAR) + tap
                part = spreads[axis.axis].weight(element, weights[own, 0]) / weights[own, 1]
            else:
                element, part = positions[own, tap], weights[own, tap]
            place[axis.axis] = limited(k, element, 0, x.shape[axis.axis])
            weight = weight * to(part, dtype)
        product = to(x[place], dtype) * weight
        if not is_float(x.dtype):  # a sum at a whole number must round as in ONNX Runtime
            product = m.fence(product)
        total.add(product)
    return total.get() if is_float(x.dtype) else to(total.get(), "int32")


@rule("GridSample")
def grid_sample(call: OperatorCall) -> None:
    """Any number of spatial axes; the grid's last axis counts them backwards."""
    shape = call.shape()
    rank = len(shape) - 2
    mode = str(call.node.get("mode", "linear")).replace("bilinear", "linear")
    mode = mode.replace("bicubic", "cubic")
    padding = call.node.get("padding_mode", "zeros")
    corners = bool(call.node.get("align_corners", 0))

    def read(x: Array, outer: list[Expr], place: list[Expr], dtype: str) -> Expr:
        if padding == "zeros":
            element = to(x[[*outer, *place]], dtype)
            return guarded(inside(place, shape[2:]), element, number(0, dtype))
        if padding == "border":
            place = [within_axis(i, s) for i, s in zip(place, shape[2:], strict=True)]
        else:
            place = [_reflect(i, s, corners) for i, s in zip(place, shape[2:], strict=True)]
        return to(x[[*outer, *place]], dtype)

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        x, grid = xs
        dtype = compute_type(x.dtype)
        one = number(1, dtype)
        with nest(k, ys[0].shape) as (n, c, *out):
            coordinates = []
            for axis in range(rank):
                g = to(grid[[n, *out, rank - 1 - axis]], dtype)
                size = shape[2 + axis]
                if corners:
                    at = (g + one) * (number(size - 1, dtype) * number(0.5, dtype))
                else:
                    at = ((g + one) * number(size, dtype) - one) * number(0.5, dtype)
                at = bind(k, at)
                near = tirx.all(at > number(-_LARGEST, dtype), at < number(_LARGEST, dtype))
                at = select(near, at, number(0 if corners else -0.5, dtype))
                if padding == "border" and mode != "cubic":
                    at = bind(k, at)
                    at = tirx.max(tirx.min(at, number(size - 1, dtype)), number(0, dtype))
                coordinates.append(bind(k, at))
            if mode == "nearest":
                place = [clamped(k, m.round_even(at), -_FAR, _FAR) for at in coordinates]
                ys[0].store(read(x, [n, c], place, dtype), [n, c, *out])
                return
            taps = 2 if mode == "linear" else 4
            floors = [bind(k, m.libm("floor", at)) for at in coordinates]
            firsts = [clamped(k, floor, -_FAR, _FAR) for floor in floors]
            total = cell(k, dtype, 0)
            for offset in np.ndindex(*(taps,) * rank):
                weight: Expr = one
                place = []
                for axis, o in enumerate(offset):
                    fraction = coordinates[axis] - floors[axis]
                    if taps == 2:
                        own = fraction if o else one - fraction
                        place.append(firsts[axis] + o)
                    else:
                        own = _cubic_weight(fraction, o)
                        place.append(firsts[axis] + (o - 1))
                    weight = weight * own
                total.add(read(x, [n, c], [bind(k, p) for p in place], dtype) * weight)
            ys[0].store(total.get(), [n, c, *out])

    if mode not in ("nearest", "linear", "cubic"):
        call.fail(f"mode '{mode}'")
    call.loops(body, key=())


def _cubic_weight(t: Computed, tap: int) -> Computed:
    """The weight of tap 0 to 3 at fraction `t`."""
    return cubic(_Expressions(), [t + lit(1, t), t, lit(1, t) - t, lit(2, t) - t][tap], -0.75)


def _reflect(index: Expr, size: int, corners: bool) -> Expr:
    """An index mirrored at the edges' centres (align_corners) or at the edges."""
    if size == 1:
        return 0
    if corners:
        period = maximum(2 * (size - 1), 1)  # an axis of which a run finds that its size is 1
        folded = tirx.floormod(index, period)
        place = tirx.min(folded, period - folded)
    else:
        folded = tirx.floormod(index, 2 * size)
        place = tirx.min(folded, 2 * size - 1 - folded)
    return within_axis(place, size) if is_open(size) else place


@rule("AffineGrid")
def affine_grid(call: OperatorCall) -> None:
    """The image's sizes show in the result's shape."""
    out = call.output_shape()
    rank = out[-1]
    corners = bool(call.node.get("align_corners", 0))

    def body(k: KernelBuilder, xs: list[Array], ys: list[Array]) -> None:
        theta = xs[0]
        dtype = compute_type(theta.dtype)
        with nest(k, out[:-1]) as (n, *place):
            coordinates = []
            for axis in range(rank):
                size = out[1 + axis]
                at = to(place[axis], dtype)
                if corners:
                    step, start = (2 / (size - 1) if size > 1 else 0.0), -1.0
                else:
                    step, start = 2 / size, 1 / size - 1
                coordinates.append(bind(k, at * number(step, dtype) + number(start, dtype)))
            for row in range(rank):
                total = to(theta[n, row, rank], dtype)
                for column, value in enumerate(reversed(coordinates)):
                    total = total + to(theta[n, row, column], dtype) * value
                ys[0].store(total, [n, *place, row])

    call.loops(body, [0], key=())
