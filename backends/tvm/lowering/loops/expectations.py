"""Checks, made when an artifact runs, that operands lead to the shapes compiled for.

Where an operand that decides the shape of a result is computed at run time, all that is known
of that shape is what the model declares. A kernel without results then computes the shape
anew, before the operator's own kernel, and fails where it is another.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

from tvm import tirx

from .....ir.graph import normalize_domain
from .....ir.model import Model
from ...errors import UnsupportedNodesError
from ...faults import Fault
from ...graph.loops import has_declared_rows
from ...graph.told import TOLD
from ...plan.operations import LoopsOp
from ...tensorir.builder import KernelBuilder
from ...tensorir.types import Expr, PrimFunc
from .base import (
    Array,
    OperatorCall,
    all_of,
    any_of,
    bind,
    cell,
    dtype_of,
    equal,
    is_float,
    nest,
    number,
    select,
    to,
)
from .movement import col2im_blocks
from .reduction import reduced

_FAR = 2**40
"""Beyond every size, and near enough to zero for sums and differences of 64-bit numbers."""


class ShapeCheck:
    """The operands of a node inside the kernel that checks them; `out` is the result's shape."""

    def __init__(self, call: OperatorCall, k: KernelBuilder, arrays: dict[int, Array]) -> None:
        self.call, self.k, self.arrays = call, k, arrays
        self.out = next(
            call.output_shape(i) for i, v in enumerate(call.node.outputs) if v is not None
        )
        self.is_empty = True
        """Whether nothing is left to check when the artifact runs."""

    def values(self, index: int) -> list[Expr] | None:
        """The elements of an operand, integers as int64 near zero; None where it is omitted."""
        if not self.call.has(index):
            return None
        constant = self.call.constant(index)
        if constant is not None:
            return list(constant.reshape(-1).tolist())
        array = self.arrays[index]
        return [self._near(array.at(i), array.dtype) for i in range(array.size)]

    def value(self, index: int) -> Expr:
        """The only element of an operand that must be given."""
        found = self.values(index)
        if found is None or len(found) != 1:
            self.call.fail(f"operand {index} is not one number")
        return found[0]

    def _near(self, element: Expr, dtype: str) -> Expr:
        if is_float(dtype):
            return bind(self.k, element)
        if dtype == "uint64":
            element = tirx.min(element, number(_FAR, dtype))
        wide = to(element, "int64")
        return bind(self.k, tirx.max(tirx.min(wide, wide_(_FAR)), wide_(-_FAR)))

    def require(self, *conditions: Expr) -> None:
        """Fail unless all of the conditions hold."""
        holds = all_of(*conditions)
        if isinstance(holds, bool):
            if not holds:
                self.call.fail(f"its operands don't lead to the declared {list(self.out)}")
            return
        self.is_empty = False
        # TVM negates comparisons as if there were no NaN: the outcome is kept as a number.
        outcome = cell(self.k, "int32", select(holds, 1, number(0, "int32")), "outcome")
        self.k.fail_if(outcome.get() < 1, Fault.VALUE)

    def require_shape(self, sizes: Sequence[Expr], shape: Sequence[int]) -> None:
        self.require(len(sizes) == len(shape))
        self.require(*(same(s, n) for s, n in zip(sizes, shape, strict=True)))

    def require_axes(self, index: int, rank: int, candidates: Sequence[Sequence[int]]) -> None:
        """Fail unless the operand's axes are those of a candidate, in any order."""
        found = self.values(index) or []
        self.require(any_of(*(names_axes(found, axes, rank) for axes in candidates)))


def names_axes(found: Sequence[Expr], axes: Sequence[int], rank: int) -> Expr:
    """Whether the axes given, perhaps from the end, are these."""
    return all_of(
        len(found) == len(axes),
        *(any_of(*(any_of(same(f, a), same(f, a - rank)) for f in found)) for a in axes),
    )


def wide_(value: int) -> Expr:
    return number(value, "int64")


def same(a: Expr, b: int) -> Expr:
    return int(a) == b if isinstance(a, (int, float)) else equal(a, b)


Check = Callable[[ShapeCheck], None]

_CHECKS: dict[str, tuple[tuple[int, ...], Check]] = {}

CHECKED_WITHIN = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Pad", "Slice", "Unique"})
"""Operators whose own kernels find out where the operands lead to another shape."""


def expects(*op_types: str, operands: Sequence[int]) -> Callable[[Check], Check]:
    """Register the check of operators whose result's shape depends on these operands."""

    def register(check: Check) -> Check:
        for op_type in op_types:
            _CHECKS[op_type] = (tuple(operands), check)
        return check

    return register


_OF_SIZES = {"Pad": (3,), "Range": (2,), "Slice": (3, 4)}
"""Operands that give sizes to results, of operators without a check, or whose others runs read."""

_OF_AXES = frozenset({"Squeeze", "Unsqueeze"})
"""Operators whose operands name axes."""


def refuse_sizes_of_inputs(model: Model) -> None:
    """Raise UnsupportedNodesError where an input of the model gives a result its size, and of the
    operator runs don't read it."""
    reasons = {}
    for node in model.graph.nodes:
        if normalize_domain(node.domain) != "" or node.op_type in _OF_AXES:
            continue
        told = () if node.op_type in TOLD else _CHECKS.get(node.op_type, ((), None))[0]
        positions = (0,) if has_declared_rows(node) else _OF_SIZES.get(node.op_type, told)
        for value in map(node.input, positions):
            if value is not None and value.is_input and model.constant(value) is None:
                reasons[node] = (
                    f"node '{node.label}' ({node.op_type}): input '{value.name}' gives a result "
                    f"its size, which is fixed in a compiled model; --input-value {value.name}=... "
                    "fixes the input, --declared-sizes compiles for the size that is declared"
                )
    if reasons:
        raise UnsupportedNodesError(reasons, [], [])


def expect(call: OperatorCall) -> None:
    """Emit the check of a node whose result's shape is only declared.

    Raises UnsupportedError where nothing is known to check.
    """
    op_type = call.node.op_type
    reduces = op_type.startswith("Reduce")
    if op_type in CHECKED_WITHIN:
        if 0 in call.output_shape():
            call.fail("its result is declared to be empty, and computed operands decide that")
        return
    found = ((1,), _reduction) if reduces else _CHECKS.get(op_type)
    if found is None:
        y = next(v.name for v in call.node.outputs if v is not None)
        call.fail(f"nothing confirms the shape that is declared for '{y}'")
    operands, check = found
    computed = [i for i in operands if call.has(i) and call.constant(i) is None]
    tensors = [call.tensor(i) for i in computed]
    if operands and not computed:
        call.fail(f"nothing confirms the declared {list(call.output_shape())}")
    k = KernelBuilder()
    arrays = {
        i: Array(k, f"X{i}", t.shape, t.dtype) for i, t in zip(computed, tensors, strict=True)
    }
    expectation = ShapeCheck(call, k, arrays)
    check(expectation)
    if not expectation.is_empty:
        function = k.finish()
        call.lowering.add(LoopsOp(call.node.label, [], tensors, lambda: function))


@expects("GroupNormalization", "MeanVarianceNormalization", operands=[])
def _like_first(e: ShapeCheck) -> None:
    """ONNX's inference doesn't say that the result has the input's shape."""
    e.require(e.out == e.call.shape())


@expects("MelWeightMatrix", operands=[])
def _mel_weight_matrix(e: ShapeCheck) -> None:
    bins, length = (e.call.known(i, "a size") for i in range(2))
    e.require(e.out == (int(length.reshape(())) // 2 + 1, int(bins.reshape(()))))


# --- operators that move elements ------------------------------------------------


@expects("Reshape", operands=[1])
def _reshape(e: ShapeCheck) -> None:
    """0 copies an axis, one -1 is what remains."""
    target, shape, k = e.values(1) or [], e.call.shape(), e.k
    copies = not e.call.node.get("allowzero", 0)
    e.require(len(target) == len(e.out), math.prod(shape) == math.prod(e.out))
    open_ = cell(k, "int32", 0, "open")
    product = cell(k, "int64", 1, "product")
    for i, (size, n) in enumerate(zip(target, e.out, strict=True)):
        fits = same(size, n)
        if copies:
            copied = i < len(shape) and shape[i] == n
            fits = any_of(all_of(same(size, 0), copied), all_of(fits, n != 0))
        any_size = same(size, -1)
        e.require(any_of(any_size, fits))
        open_.add(select(any_size, 1, 0))
        product.set(product.get() * select(any_size, wide_(1), wide_(n)))
    e.require(open_.get() <= 1)
    e.require(any_of(open_.get() < 1, product.get() > wide_(0)))


@expects("Expand", operands=[1])
def _expand(e: ShapeCheck) -> None:
    target, own = e.values(1) or [], e.call.shape()
    e.require(len(e.out) == max(len(target), len(own)))
    own = (1,) * (len(e.out) - len(own)) + own
    sizes = [1] * (len(e.out) - len(target)) + target
    for size, mine, n in zip(sizes, own, e.out, strict=True):
        e.require(mine in (1, n), any_of(same(size, n), all_of(mine == n, same(size, 1))))


@expects("Tile", operands=[1])
def _tile(e: ShapeCheck) -> None:
    repeats, shape = e.values(1) or [], e.call.shape()
    e.require(len(repeats) == len(shape) == len(e.out))
    for count, own, n in zip(repeats, shape, e.out, strict=True):
        if own == 0:
            e.require(n == 0)
        else:
            e.require(n % own == 0, same(count, n // own))


@expects("ConstantOfShape", operands=[0])
def _constant_of_shape(e: ShapeCheck) -> None:
    e.require_shape(e.values(0) or [], e.out)


@expects("CenterCropPad", operands=[1])
def _center_crop_pad(e: ShapeCheck) -> None:
    rank = len(e.out)
    axes = [int(a) % rank for a in e.call.node.get("axes", list(range(rank)))]
    e.require_shape(e.values(1) or [], [e.out[a] for a in axes])


@expects("Col2Im", operands=[1, 2])
def _col2im(e: ShapeCheck) -> None:
    e.require_shape(e.values(1) or [], e.out[2:])
    blocks, block = col2im_blocks(e.call), e.values(2) or []
    e.require(any_of(*(all_of(*map(same, block, sizes)) for sizes in blocks)))


@expects("Split", operands=[1])
def _split(e: ShapeCheck) -> None:
    axis = e.call.axis(e.call.rank(), 0)
    outputs = range(len(e.call.node.outputs))
    e.require_shape(e.values(1) or [], [e.call.output_shape(i)[axis] for i in outputs])


@expects("Squeeze", operands=[1])
def _squeeze(e: ShapeCheck) -> None:
    shape = e.call.shape()
    e.require_axes(1, len(shape), _ones_removed(shape, e.out))


@expects("Unsqueeze", operands=[1])
def _unsqueeze(e: ShapeCheck) -> None:
    e.require_axes(1, len(e.out), _ones_removed(e.out, e.call.shape()))


def _ones_removed(shape: Sequence[int], result: Sequence[int]) -> list[tuple[int, ...]]:
    """The sets of axes of one element without which a shape is another."""
    ones = [i for i, size in enumerate(shape) if size == 1]
    return [
        axes
        for axes in itertools.combinations(ones, max(0, len(shape) - len(result)))
        if tuple(s for i, s in enumerate(shape) if i not in axes) == tuple(result)
    ]


def _reduction(e: ShapeCheck) -> None:
    shape, count = e.call.shape(), e.call.shape(1)[0]
    keep = bool(e.call.node.get("keepdims", 1))
    if count == 0:
        none = e.call.node.get("noop_with_empty_axes", 0) and e.call.opset >= 13
        e.require(reduced(shape, () if none else range(len(shape)), keep=keep) == e.out)
        return
    candidates = [
        axes
        for axes in itertools.combinations(range(len(shape)), count)
        if reduced(shape, axes, keep=keep) == e.out
    ]
    e.require_axes(1, len(shape), candidates)


# --- resizing --------------------------------------------------------------------


@expects("Resize", "Upsample", operands=[1, 2, 3])
def _resize(e: ShapeCheck) -> None:
    from ...plan.sampling import is_old

    node, shape = e.call.node, e.call.shape()
    old = is_old(node, e.call.opset)
    axes = [int(a) % len(shape) for a in node.get("axes", list(range(len(shape))))]
    scales = e.values(1 if old else 2)
    if not scales:
        sizes, policy = e.values(3) or [], node.get("keep_aspect_ratio_policy", "stretch")
        e.require(len(sizes) == len(axes), *_others_stay(shape, e.out, axes))
        if policy == "stretch":
            e.require_shape(sizes, [e.out[a] for a in axes])
            return
        ratios = [
            bind(e.k, to(s, "float32") / number(shape[a], "float32"))
            for s, a in zip(sizes, axes, strict=True)
        ]
        fitted = bind(e.k, functools.reduce(_FITTING[policy], ratios))
        for a in axes:
            rounded = fitted * number(shape[a], "float32") + number(0.5, "float32")
            _require_floor(e, rounded, e.out[a])
        return
    e.require(len(scales) == len(axes))
    for axis, scale in zip(axes, scales, strict=True):
        _require_floor(e, to(scale, "float32") * number(shape[axis], "float32"), e.out[axis])
    e.require(*_others_stay(shape, e.out, axes))


_FITTING = {"not_larger": tirx.min, "not_smaller": tirx.max}


def _require_floor(e: ShapeCheck, value: Expr, size: int) -> None:
    found = bind(e.k, value)
    dtype = dtype_of(found)
    e.require(found >= number(size, dtype), found < number(size + 1, dtype))


def _others_stay(shape: Sequence[int], out: Sequence[int], axes: Sequence[int]) -> list[bool]:
    sizes = zip(shape, out, strict=True)
    return [axis in axes or own == n for axis, (own, n) in enumerate(sizes)]


@expects("AffineGrid", operands=[1])
def _affine_grid(e: ShapeCheck) -> None:
    """Sizes are [N, C, ...]; the grid is [N, ..., rank]."""
    sizes = e.values(1) or []
    e.require_shape([sizes[0], *sizes[2:]], e.out[:-1])


@expects("MaxUnpool", operands=[2])
def _max_unpool(e: ShapeCheck) -> None:
    e.require_shape(e.values(2) or [], e.out)


# --- numbers of results ----------------------------------------------------------


@expects("TopK", operands=[1])
def _top_k(e: ShapeCheck) -> None:
    shape = e.call.shape()
    axis = e.call.axis(len(shape), -1)
    e.require(e.out[axis] <= shape[axis], same(e.value(1), e.out[axis]))


@expects("OneHot", operands=[1])
def _one_hot(e: ShapeCheck) -> None:
    depth = e.value(1)
    n = e.out[e.call.axis(len(e.out), -1)]
    if isinstance(depth, (int, float)) or not is_float(e.call.dtype(1)):
        e.require(same(depth, n))
        return
    _require_floor(e, to(depth, "float64"), n)


@expects("Range", operands=[0, 1, 2])
def _range(e: ShapeCheck) -> None:
    """The smallest whole number that is at least (limit - start) / delta."""
    dtype = e.call.dtype()
    start, limit, delta = (e.value(i) for i in range(3))
    exact = dtype if is_float(dtype) else "int64"
    span = to(to(limit, exact) - to(start, exact), "float64")
    step = bind(e.k, to(delta, "float64"))
    e.require(tirx.any(step < number(0, "float64"), step > number(0, "float64")))
    count = bind(e.k, span / step)
    n = e.out[0]
    e.require(count <= number(n, "float64"))
    if n:
        e.require(count > number(n - 1, "float64"))


@expects("HannWindow", "HammingWindow", "BlackmanWindow", operands=[0])
def _window(e: ShapeCheck) -> None:
    e.require(same(e.value(0), e.out[0]))


@expects("DFT", operands=[1, 2])
def _dft(e: ShapeCheck) -> None:
    call, node, shape = e.call, e.call.node, e.call.shape()
    rank = len(shape)
    inverse, onesided = bool(node.get("inverse", 0)), bool(node.get("onesided", 0))
    axis: Expr = int(node.get("axis", 1)) % rank
    if call.opset >= 20:
        axis = e.value(2) if call.has(2) else rank - 2
    given = e.value(1) if call.has(1) else None
    fitting = []
    for a in range(rank - 1):
        others = all(m == n for i, (m, n) in enumerate(zip(shape[:-1], e.out[:-1], strict=True))
                     if i != a)  # fmt: skip
        n = e.out[a]
        if given is None:
            length = 2 * (shape[a] - 1) if inverse and onesided else shape[a]
            fits: Expr = n == (length // 2 + 1 if onesided and not inverse else length)
        elif onesided and not inverse:
            fits = any_of(same(given, 2 * (n - 1)), same(given, 2 * n - 1))
        else:
            fits = same(given, n)
        fitting.append(all_of(others, fits, any_of(same(axis, a), same(axis, a - rank))))
    e.require(any_of(*fitting))


@expects("STFT", operands=[])
def _stft(e: ShapeCheck) -> None:
    """The kernel itself counts the frames."""
    call, shape = e.call, e.call.shape()
    length = int(call.known(3, "frame_length").reshape(())) if call.has(3) else call.shape(2)[0]
    bins = length // 2 + 1 if call.node.get("onesided", 1) else length
    e.require(shape[1] >= length, e.out == (shape[0], e.out[1], bins, 2))


# --- control flow ----------------------------------------------------------------


def require(call: OperatorCall) -> None:
    """The first input, where all others, truth values, hold; else the run fails."""
    computed = []
    for index in range(1, len(call.node.inputs)):
        constant = call.constant(index)
        if constant is None:
            computed.append(call.tensor(index))
        elif not constant.reshape(-1).all():
            call.fail("the number of steps contradicts the declared shape of a result")

    def build() -> PrimFunc:
        k = KernelBuilder()
        for i, tensor in enumerate(computed):
            array = Array(k, f"X{i}", tensor.shape, tensor.dtype)
            with nest(k, [array.size]) as (at,):
                k.fail_if(tirx.Not(to(array.at(at), "bool")), Fault.VALUE)
        return k.finish()

    if computed:
        call.lowering.add(LoopsOp(call.node.label, [], computed, build))
    call.same(call.value(0))
