"""Shape rules, one per operator family.

They matter where ONNX's own inference loses a symbol or can't see a computed shape, and
where only a node has changed; operators that are not here keep the types which that
inference finds.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..graph import Node
from ..stand_ins import REQUIRE
from . import expressions as e
from .expressions import Expression, Size
from .facts import Facts, Misfit, Shape, position
from .registry import shape_rule

_SAME = """
    Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization Bernoulli BitwiseNot Cast CastLike Ceil
    Celu Clip Cos Cosh CumSum DequantizeLinear Dropout Elu Erf Exp EyeLike Floor Gelu
    GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN
    LayerNormalization LeakyRelu Log LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg
    Not PRelu QuantizeLinear RMSNormalization RandomNormalLike RandomUniformLike Reciprocal Relu
    Round ScatterElements ScatterND Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt
    Swish Tan Tanh ThresholdedRelu Trilu
"""

_BROADCAST = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less
    LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum Where Xor
"""


@shape_rule(*_SAME.split(), REQUIRE[1])
def same(node: Node, facts: Facts) -> Sequence[Shape | None]:
    """The first result has the shape of the first operand; other results are left to ONNX."""
    return [facts.shape(node.input(0))]


@shape_rule(*_BROADCAST.split())
def broadcast(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shapes = [facts.shape(v) for v in node.inputs]
    if facts.opset < 7:  # the second operand was stretched to the first
        return shapes[:1]
    known = [s for s in shapes if s is not None]
    return [broadcast_shapes(known) if known and len(known) == len(shapes) else None]


def broadcast_shapes(shapes: Sequence[Shape]) -> Shape:
    """Numpy's broadcasting, which ONNX shares."""
    rank = max(len(s) for s in shapes)
    result: list[Size] = [1] * rank
    for shape in shapes:
        for i, size in enumerate(shape):
            axis = rank - len(shape) + i
            result[axis] = e.broadcast(result[axis], size)
    return tuple(result)


def _sizes(elements: Sequence[Size], facts: Facts) -> Shape:
    """Elements that are sizes: what isn't certain to be one is unknown."""
    return tuple(map(facts.as_size, elements))


# --- movement ------------------------------------------------------------------------------


@shape_rule("Transpose")
def transpose(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    if shape is None:
        return [None]
    order = node.get("perm") or list(reversed(range(len(shape))))
    if sorted(order) != list(range(len(shape))):
        raise Misfit(f"perm {order} of {len(shape)} axes")
    return [tuple(shape[i] for i in order)]


@shape_rule("Reshape")
def reshape(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    target = node.get("shape") or facts.elements(node.input(1))
    if target is None:
        return [None]
    if shape is not None and any(e.mentions(size, "data") for size in target):
        return [_told_reshape(shape, target, facts, copies=not node.get("allowzero", 0))]
    sizes: list[Size] = []
    for i, size in enumerate(target):
        if size == 0 and not node.get("allowzero", 0):
            if shape is None or i >= len(shape):
                return [None]
            sizes.append(shape[i])
        else:
            sizes.append(size if size == -1 else facts.as_size(size))
    if -1 in sizes:
        place = sizes.index(-1)
        rest = e.multiply(*(s for i, s in enumerate(sizes) if i != place))
        sizes[place] = facts.unknown()
        if shape is not None:
            quotient = e.divide_exactly(e.multiply(*shape), rest)
            sizes[place] = quotient if quotient is not None else sizes[place]
    elif shape is not None:
        _solve(shape, sizes)
    return [tuple(sizes)]


def _told_reshape(
    shape: Shape, target: Sequence[Size], facts: Facts, *, copies: bool
) -> Shape | None:
    """What a reshape makes of numbers any of which data may decide: a size, 0 or -1."""
    total, told = e.multiply(*shape), list(target)
    for i, size in enumerate(told):
        copied = shape[i] if i < len(shape) else -2  # no size
        if copies and not _is_0_with(copied, size):
            told[i] = e.choose(e.equal(size, 0), copied, size)
    rest = e.multiply(*(s if _is_certain(s) else e.choose(e.equal(s, -1), 1, s) for s in told))
    left = e.divide_exactly(total, rest)
    if left is None:
        left = e.floor_divide(total, e.maximum(rest, 1))
    sizes = [s if _is_certain(s) else e.choose(e.equal(s, -1), left, s) for s in told]
    # Of an empty tensor sizes may be any, but for one that is 0.
    return tuple(facts.as_size(size, None if total == 0 else total) for size in sizes)


def _is_certain(size: Size) -> bool:
    """Whether a number in a reshape's target isn't -1."""
    return e.is_nonnegative(size)


def _is_0_with(size: Size, other: Size) -> bool:
    """Whether a size is 0 wherever another one is."""
    term = e.single_term(other)
    if other == 0 or term is None:
        return False
    return all(set(term[1]) <= set(product) for product in e.terms_of(size))


def _solve(before: Shape, after: list[Size]) -> None:
    """Work out an unknown size after a reshape from the number of elements."""
    unknown = [i for i, s in enumerate(after) if e.is_unknown(s)]
    if len(unknown) == 1:
        rest = e.multiply(*(s for i, s in enumerate(after) if i != unknown[0]))
        quotient = e.divide_exactly(e.multiply(*before), rest)
        if quotient is not None:
            after[unknown[0]] = quotient


@shape_rule("Flatten")
def flatten(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    if shape is None:
        return [None]
    axis = node.get("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        raise Misfit(f"axis {axis} of {len(shape)}")
    axis = axis + len(shape) if axis < 0 else axis
    return [(e.multiply(*shape[:axis]), e.multiply(*shape[axis:]))]


@shape_rule("Squeeze")
def squeeze(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    axes = facts.axes(node)
    if shape is None:
        return [None]
    if axes is None:
        known = node.input(1) is None and all(isinstance(s, int) for s in shape)
        return [tuple(s for s in shape if s != 1) if known else None]
    gone = {position(axis, len(shape)) for axis in axes}
    return [tuple(s for i, s in enumerate(shape) if i not in gone)]


@shape_rule("Unsqueeze")
def unsqueeze(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    axes = facts.axes(node)
    if shape is None or axes is None:
        return [None]
    rank = len(shape) + len(axes)
    new = {position(axis, rank) for axis in axes}
    if len(new) != len(axes):
        raise Misfit(f"axes {axes} name one twice")
    old = iter(shape)
    return [tuple(1 if i in new else next(old) for i in range(rank))]


@shape_rule("Expand")
def expand(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape, target = facts.shape(node.input(0)), facts.elements(node.input(1))
    if shape is None or target is None:
        return [None]
    return [broadcast_shapes([shape, _sizes(target, facts)])]


@shape_rule("ConstantOfShape")
def constant_of_shape(node: Node, facts: Facts) -> Sequence[Shape | None]:
    target = facts.elements(node.input(0))
    return [None if target is None else _sizes(target, facts)]


@shape_rule("Tile")
def tile(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape, repeats = facts.shape(node.input(0)), facts.elements(node.input(1))
    if shape is None or repeats is None or len(shape) != len(repeats):
        return [None]
    counts = _sizes(repeats, facts)
    return [tuple(e.multiply(s, r) for s, r in zip(shape, counts, strict=True))]


@shape_rule("Concat")
def concat(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shapes = [facts.shape(v) for v in node.inputs]
    known = [s for s in shapes if s is not None]
    if not known or len(known) < len(shapes) or len({len(s) for s in known}) != 1:
        return [None]
    axis = position(node.get("axis", 1), len(known[0]))
    result = list(known[0])
    result[axis] = e.add(*(s[axis] for s in known))
    for i in range(len(result)):
        if i != axis:
            result[i] = next((s[i] for s in known if isinstance(s[i], int)), result[i])
    return [tuple(result)]


@shape_rule("Split")
def split(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    count = len(node.outputs)
    if shape is None:
        return [None] * count
    axis = position(node.get("axis", 0), len(shape))
    parts = node.get("split") or facts.elements(node.input(1))
    if parts is None:
        if node.input(1) is not None:
            return [None] * count
        size = shape[axis]
        if isinstance(size, int):
            parts = equal_parts(size, count)
        else:
            part = e.ceil_divide(size, count) if has_rest(node) else e.floor_divide(size, count)
            last = e.subtract(size, e.multiply(part, count - 1)) if has_rest(node) else part
            parts = [*[part] * (count - 1), last]
    sizes = [facts.as_size(part, shape[axis]) for part in parts]
    return [(*shape[:axis], part, *shape[axis + 1 :]) for part in sizes]


def has_rest(node: Node) -> bool:
    """Whether the last part of a Split without sizes may be smaller than the others."""
    return node.get("num_outputs") is not None


def equal_parts(size: int, count: int) -> list[int]:
    """Sizes of Split without sizes: equal; since opset 18 the last one may be smaller."""
    each = -(-size // count)
    return [max(0, min(each, size - i * each)) for i in range(count)]


@shape_rule("Slice")
def slice_(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    bounds = facts.slice_bounds(node)
    if shape is None:
        return [None]
    if bounds is None:
        return [tuple(facts.unknown() for _ in shape)]
    result = list(shape)
    for axis, start, end, step in bounds:
        found = sliced_size(shape[axis], start, end, step)
        if found is None and isinstance(step, int):
            found = facts.uncertain(_any_sliced_size(shape[axis], start, end, step), shape[axis])
        result[axis] = found if found is not None else facts.unknown()
    return [tuple(result)]


def sliced_size(size: Size, start: Size, end: Size, step: Size) -> Size | None:
    """How many indices `start:end:step` picks out of `size`; None where unclear."""
    if isinstance(start, int) and isinstance(end, int) and isinstance(step, int) and step:
        if isinstance(size, int):
            begin = max(start, -size) if step < 0 else start
            return len(range(size)[slice(*_clamped(begin, end, step))])
    elif step == 0:
        raise Misfit("a step of 0")
    first, last = slice_range(start, end, step, size)
    if first is None or last is None or not isinstance(step, int):
        return None
    length = e.subtract(last, first) if step > 0 else e.subtract(first, last)
    if first != 0 or step < 0:
        length = e.maximum(length, 0)
    return e.ceil_divide(length, abs(step))


def slice_range(start: Size, end: Size, step: Size, size: Size) -> tuple[Size | None, Size | None]:
    """Where a slice begins and before which index it ends, from the front of the axis; None where
    the sign of a bound isn't known."""
    if not isinstance(step, int) or step > 0:
        return _bound(start, size), _bound(end, size)
    first = _bound_backwards(start, size)
    if first is not None and not (isinstance(start, int) and start >= -1):
        first = e.maximum(first, _least_first(size))
    return first, _bound_backwards(end, size)


def _any_sliced_size(size: Size, start: Size, end: Size, step: int) -> Size:
    """The same of bounds of either sign."""
    first, last = (_from_front(x, size, step > 0) for x in (start, end))
    first = first if step > 0 else e.maximum(first, _least_first(size))
    length = e.subtract(last, first) if step > 0 else e.subtract(first, last)
    return e.maximum(e.ceil_divide(length, abs(step)), 0)


def _from_front(index: Size, size: Size, forward: bool) -> Size:
    """A slice's bound counted from the front, within the axis."""
    wrapped = e.choose(e.less(index, 0), e.add(index, size), index)
    low, high = (0, size) if forward else (-1, e.subtract(size, 1))
    return e.maximum(e.minimum(wrapped, high), low)


def _clamped(start: int, end: int, step: int) -> tuple[int, int | None, int]:
    # Far below zero means "down to the first index" when going backwards.
    return start, None if step < 0 and end < -(2**30) else end, step


def _bound(index: Size, size: Size) -> Size | None:
    """An index counted from the front and cut off at the size."""
    if isinstance(index, int):
        if index >= 2**31 - 1:
            return size
        if index < 0:
            return e.maximum(e.add(size, index), 0)
        return e.minimum(index, size) if index else 0
    if _is_negative(index):
        return e.maximum(e.add(size, index), 0)
    return e.minimum(index, size) if e.is_nonnegative(index) else None


def _is_negative(index: Expression) -> bool:
    return index.range.high is not None and index.range.high < 0


def _least_first(size: Size) -> Size:
    """The least index that a slice backwards begins at: the first one, if there is any."""
    return e.minimum(0, e.subtract(size, 1))


def _bound_backwards(index: Size, size: Size) -> Size | None:
    """The same of a slice that goes backwards, to -1 where it takes the first index, too."""
    last = e.subtract(size, 1)
    if isinstance(index, int):
        if index >= 2**31 - 1:
            return last
        if index < 0:
            return -1 if index < -(2**30) else e.maximum(e.add(size, index), -1)
    elif _is_negative(index):
        return e.maximum(e.add(size, index), -1)
    return e.minimum(index, last) if e.is_nonnegative(index) else None


@shape_rule("Pad")
def pad(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    pads = node.get("pads") or node.get("paddings") or facts.elements(node.input(1))
    if shape is None or pads is None:
        return [None]
    axes = list(range(len(shape)))
    if node.input(3) is not None:
        chosen = facts.integers(node.input(3))
        if chosen is None:
            return [None]
        axes = [position(axis, len(shape)) for axis in chosen]
    if len(pads) != 2 * len(axes):
        raise Misfit(f"{len(pads)} pads for {len(axes)} axes")
    result = list(shape)
    for i, axis in enumerate(axes):
        size = e.add(shape[axis], pads[i], pads[i + len(axes)])
        result[axis] = facts.as_size(size)
    return [tuple(result)]


# --- indexing ------------------------------------------------------------------------------


@shape_rule("Gather")
def gather(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape, indices = facts.shape(node.input(0)), facts.shape(node.input(1))
    if not shape or indices is None:
        return [None]
    axis = position(node.get("axis", 0), len(shape))
    return [(*shape[:axis], *indices, *shape[axis + 1 :])]


@shape_rule("GatherElements")
def gather_elements(node: Node, facts: Facts) -> Sequence[Shape | None]:
    return [facts.shape(node.input(1))]


@shape_rule("OneHot")
def one_hot(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape, depth = facts.shape(node.input(0)), facts.elements(node.input(1))
    if shape is None or depth is None or len(depth) != 1:
        return [None]
    axis = position(node.get("axis", -1), len(shape) + 1)
    return [(*shape[:axis], facts.as_size(depth[0]), *shape[axis:])]


@shape_rule("TopK")
def top_k(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape, count = facts.shape(node.input(0)), facts.elements(node.input(1))
    if not shape or count is None or len(count) != 1 or "k" in node.attributes:
        return [None] * len(node.outputs)
    axis = position(node.get("axis", -1), len(shape))
    size = facts.as_size(count[0], shape[axis])
    return [(*shape[:axis], size, *shape[axis + 1 :])] * len(node.outputs)


@shape_rule("ArgMax", "ArgMin")
def argument_of(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    if not shape:
        return [None]
    axis = position(node.get("axis", 0), len(shape))
    kept = (1,) if node.get("keepdims", 1) else ()
    return [(*shape[:axis], *kept, *shape[axis + 1 :])]


# --- reductions ----------------------------------------------------------------------------


@shape_rule(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def reduce(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    if shape is None:
        return [None]
    gone = reduced_axes(node, facts, len(shape))
    if gone is None:
        return [None]
    if node.get("keepdims", 1):
        return [tuple(1 if i in gone else s for i, s in enumerate(shape))]
    return [tuple(s for i, s in enumerate(shape) if i not in gone)]


def reduced_axes(node: Node, facts: Facts, rank: int) -> set[int] | None:
    """The axes that a reduction runs over; None where only a run tells them."""
    axes = facts.axes(node)
    if axes is None and node.input(1) is not None:
        return None
    if not axes:
        return set() if node.get("noop_with_empty_axes", 0) else set(range(rank))
    return {position(axis, rank) for axis in axes}


@shape_rule("LSTM", "GRU", "RNN")
def recurrent(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape, weight = facts.shape(node.input(0)), facts.shape(node.input(2))
    if shape is None or weight is None or len(shape) != 3 or len(weight) != 3:
        return [None] * len(node.outputs)
    hidden, directions = weight[2], weight[0]
    if node.get("layout", 0):
        batch, sequence = shape[:2]
        state: Shape = (batch, directions, hidden)
        return [(batch, sequence, directions, hidden), state, state]
    sequence, batch = shape[:2]
    state = (directions, batch, hidden)
    return [(sequence, directions, batch, hidden), state, state]


# --- sizes as data ---------------------------------------------------------------------------


@shape_rule("Shape")
def shape_of(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    if shape is None:
        return [None]
    return [(len(shape[node.get("start", 0) : node.get("end", len(shape))]),)]


@shape_rule("Size")
def size_of(node: Node, facts: Facts) -> Sequence[Shape | None]:
    return [()]


@shape_rule("Range")
def range_(node: Node, facts: Facts) -> Sequence[Shape | None]:
    bounds = [facts.whole_numbers(v) for v in node.inputs]
    known = [b[0] for b in bounds if b is not None and len(b) == 1]
    if len(known) != 3:
        return [(facts.unknown(),)]
    start, limit, delta = known
    if not isinstance(delta, int) or delta == 0:
        return [(facts.unknown(),)]
    length = e.ceil_divide(e.subtract(limit, start), delta)
    if isinstance(length, int):
        return [(max(length, 0),)]
    if not e.is_nonnegative(length):
        length = facts.uncertain(e.maximum(length, 0))
    return [(length,)]


@shape_rule("NonZero")
def non_zero(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    if shape is None:
        return [None]
    return [(len(shape), facts.counted(node, e.multiply(*shape)))]


@shape_rule("Compress")
def compress(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    if shape is None:
        return [None]
    given = node.get("axis")
    if given is None:
        return [(facts.counted(node, e.multiply(*shape)),)]
    axis = position(given, len(shape))
    return [(*shape[:axis], facts.counted(node, shape[axis]), *shape[axis + 1 :])]


@shape_rule("Unique")
def unique(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    given = node.get("axis")
    if shape is None:
        return [None] * len(node.outputs)
    axis = 0 if given is None else position(given, len(shape))
    length = e.multiply(*shape) if given is None else shape[axis]
    count = facts.counted(node, length)
    whole = (count,) if given is None else (*shape[:axis], count, *shape[axis + 1 :])
    return [whole, (count,), (length,), (count,)][: len(node.outputs)]


@shape_rule("NonMaxSuppression")
def non_max_suppression(node: Node, facts: Facts) -> Sequence[Shape | None]:
    """At most so many boxes of each class as an operand says, or all of them."""
    scores = facts.shape(node.input(1))
    if scores is None or len(scores) != 3:
        return [None]
    batch, classes, boxes = scores
    limit = facts.integers(node.input(2)) if node.input(2) is not None else [0]
    most = e.minimum(boxes, max(0, limit[0])) if limit else boxes
    return [(facts.counted(node, e.multiply(batch, classes, most)), 3)]


# --- control flow ----------------------------------------------------------------------------


@shape_rule("If")
def either_branch(node: Node, facts: Facts) -> Sequence[Shape | None]:
    """What both branches agree in."""
    results = [[facts.shape(v) for v in body.outputs] for body in node.subgraphs()]
    if len(results) != 2:
        return [None] * len(node.outputs)
    return [_common(a, b, facts) for a, b in zip(*results, strict=False)]


def _common(a: Shape | None, b: Shape | None, facts: Facts) -> Shape | None:
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else facts.unknown() for x, y in zip(a, b, strict=True))
