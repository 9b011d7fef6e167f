"""Shape rules over symbolic sizes, one per operator family.

They matter where ONNX's own inference loses a symbol or can't see a computed shape;
operators that are not here keep the types which that inference found.
"""

from __future__ import annotations

from collections.abc import Callable

from ....ir.graph import Node
from . import expression as e
from .expression import Size
from .facts import Facts, Shape

Rule = Callable[[Node, Facts], "list[Shape | None]"]

RULES: dict[str, Rule] = {}

_SAME = """
    Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitwiseNot Cast CastLike Ceil Celu Clip
    Cos Cosh CumSum DequantizeLinear Dropout Elu Erf Exp Floor Gelu GroupNormalization HardSigmoid
    HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu
    Log LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg Not PRelu QuantizeLinear
    RMSNormalization Reciprocal Relu Round ScatterElements ScatterND Selu Shrink Sigmoid Sign Sin
    Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Trilu EyeLike
    RandomNormalLike RandomUniformLike Bernoulli
"""

_BROADCAST = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less
    LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum Where Xor
"""


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(op_types, function))
        return function

    return register


@rule(*_SAME.split())
def same(node: Node, facts: Facts) -> list[Shape | None]:
    return [facts.shape(node.input(0))]


@rule(*_BROADCAST.split())
def broadcast(node: Node, facts: Facts) -> list[Shape | None]:
    shapes = [facts.shape(v) for v in node.inputs]
    if facts.opset < 7:  # the second operand was stretched to the first
        return shapes[:1]
    known = [s for s in shapes if s is not None]
    return [broadcast_shapes(known) if len(known) == len(shapes) else None]


def broadcast_shapes(shapes: list[Shape]) -> Shape:
    """Numpy's broadcasting, which ONNX shares."""
    rank = max(len(s) for s in shapes)
    result: list[Size] = [1] * rank
    for shape in shapes:
        for i, size in enumerate(shape):
            axis = rank - len(shape) + i
            result[axis] = e.broadcast(result[axis], size)
    return tuple(result)


@rule("Transpose")
def transpose(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    if shape is None:
        return [None]
    order = node.get("perm") or list(reversed(range(len(shape))))
    return [tuple(shape[i] for i in order) if len(order) == len(shape) else None]


@rule("Reshape")
def reshape(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    target = node.get("shape") or facts.elements(node.input(1))
    if target is None:
        return [None]
    sizes: list[Size] = []
    for i, size in enumerate(target):
        if size == 0 and not node.get("allowzero", 0):
            if shape is None or i >= len(shape):
                return [None]
            sizes.append(shape[i])
        else:
            sizes.append(size)
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


def _solve(before: Shape, after: list[Size]) -> None:
    """Work out an unknown size after a reshape from the number of elements."""
    unknown = [i for i, s in enumerate(after) if isinstance(s, e.Expression) and is_unknown(s)]
    if len(unknown) == 1:
        rest = e.multiply(*(s for i, s in enumerate(after) if i != unknown[0]))
        quotient = e.divide_exactly(e.multiply(*before), rest)
        if quotient is not None:
            after[unknown[0]] = quotient


def is_unknown(size: Size) -> bool:
    """Whether nothing is known about a size."""
    atom = size.atom if isinstance(size, e.Expression) else None
    return atom is not None and atom.op == "unknown"


@rule("Flatten")
def flatten(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    if shape is None:
        return [None]
    axis = node.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return [(e.multiply(*shape[:axis]), e.multiply(*shape[axis:]))]


@rule("Squeeze")
def squeeze(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    axes = facts.axes(node)
    if shape is None:
        return [None]
    if axes is None:
        known = node.input(1) is None and all(isinstance(s, int) for s in shape)
        return [tuple(s for s in shape if s != 1) if known else None]
    gone = {axis % len(shape) for axis in axes}
    return [tuple(s for i, s in enumerate(shape) if i not in gone)]


@rule("Unsqueeze")
def unsqueeze(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    axes = facts.axes(node)
    if shape is None or axes is None:
        return [None]
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes}
    old = iter(shape)
    return [tuple(1 if i in new else next(old) for i in range(rank))]


@rule("Expand")
def expand(node: Node, facts: Facts) -> list[Shape | None]:
    shape, target = facts.shape(node.input(0)), facts.elements(node.input(1))
    if shape is None or target is None:
        return [None]
    return [broadcast_shapes([shape, tuple(target)])]


@rule("ConstantOfShape")
def constant_of_shape(node: Node, facts: Facts) -> list[Shape | None]:
    target = facts.elements(node.input(0))
    return [None if target is None else tuple(target)]


@rule("Tile")
def tile(node: Node, facts: Facts) -> list[Shape | None]:
    shape, repeats = facts.shape(node.input(0)), facts.elements(node.input(1))
    if shape is None or repeats is None or len(shape) != len(repeats):
        return [None]
    return [tuple(e.multiply(s, r) for s, r in zip(shape, repeats, strict=True))]


@rule("Shape")
def shape_of(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    if shape is None:
        return [None]
    return [(len(shape[node.get("start", 0) : node.get("end", len(shape))]),)]


@rule("Size")
def size_of(node: Node, facts: Facts) -> list[Shape | None]:
    return [()]


@rule("Concat")
def concat(node: Node, facts: Facts) -> list[Shape | None]:
    shapes = [facts.shape(v) for v in node.inputs]
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes) or len({len(s) for s in known}) != 1:
        return [None]
    axis = node.get("axis", 1) % len(known[0])
    result = list(known[0])
    result[axis] = e.add(*(s[axis] for s in known))
    for i in range(len(result)):
        if i != axis:
            result[i] = next((s[i] for s in known if isinstance(s[i], int)), result[i])
    return [tuple(result)]


@rule("Split")
def split(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    count = len(node.outputs)
    if shape is None:
        return [None] * count
    axis = node.get("axis", 0) % len(shape)
    parts = node.get("split") or facts.elements(node.input(1))
    if parts is None:
        if node.input(1) is not None:
            return [None] * count
        parts = _equal_parts(shape[axis], count, facts)
    return [(*shape[:axis], part, *shape[axis + 1 :]) for part in parts]


def _equal_parts(size: Size, count: int, facts: Facts) -> list[Size]:
    if isinstance(size, int):
        each = -(-size // count)
        return [*([each] * (count - 1)), size - each * (count - 1)]
    exact = e.divide_exactly(size, count)
    return [exact if exact is not None else facts.unknown() for _ in range(count)]


@rule("Slice")
def slice_(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    bounds = facts.slice_bounds(node)
    if shape is None:
        return [None]
    if bounds is None:
        return [tuple(facts.unknown() for _ in shape)]
    result = list(shape)
    for axis, start, end, step in bounds:
        found = sliced_size(shape[axis], start, end, step)
        result[axis] = found if found is not None else facts.unknown()
    return [tuple(result)]


def sliced_size(size: Size, start: Size, end: Size, step: Size) -> Size | None:
    """How many indices `start:end:step` picks out of `size`; None where unclear."""
    if all(isinstance(x, int) for x in (size, start, end, step)):
        assert isinstance(size, int)
        return len(range(size)[slice(*_clamped(start, end, step))]) if step != 0 else None
    if step != 1:
        return None
    first, last = (_bound(x, size) for x in (start, end))
    if first is None or last is None:
        return None
    length = e.add(last, e.negative(first))
    return length if e.is_nonnegative(length) or first == 0 else None


def _clamped(start: Size, end: Size, step: Size) -> tuple[int, int | None, int]:
    assert isinstance(start, int)
    assert isinstance(end, int)
    assert isinstance(step, int)
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
    return e.minimum(index, size) if e.is_nonnegative(index) else None


@rule("Gather")
def gather(node: Node, facts: Facts) -> list[Shape | None]:
    shape, indices = facts.shape(node.input(0)), facts.shape(node.input(1))
    if not shape or indices is None:
        return [None]
    axis = node.get("axis", 0) % len(shape)
    return [(*shape[:axis], *indices, *shape[axis + 1 :])]


@rule("GatherElements")
def gather_elements(node: Node, facts: Facts) -> list[Shape | None]:
    return [facts.shape(node.input(1))]


@rule("MatMul")
def matmul(node: Node, facts: Facts) -> list[Shape | None]:
    a, b = facts.shape(node.input(0)), facts.shape(node.input(1))
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return [None]
    return (
        [(*broadcast_shapes([a[:-2], b[:-2]]), a[-2], b[-1])]
        if len(a) > 2 or len(b) > 2
        else [(a[0], b[1])]
    )


@rule("Gemm")
def gemm(node: Node, facts: Facts) -> list[Shape | None]:
    a, b = facts.shape(node.input(0)), facts.shape(node.input(1))
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return [None]
    return [(a[1 if node.get("transA", 0) else 0], b[0 if node.get("transB", 0) else 1])]


@rule(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def reduce(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    axes = facts.axes(node)
    if shape is None or (axes is None and node.input(1) is not None):
        return [None]
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            return [shape]
        axes = list(range(len(shape)))
    gone = {axis % len(shape) for axis in axes} if shape else set()
    if node.get("keepdims", 1):
        return [tuple(1 if i in gone else s for i, s in enumerate(shape))]
    return [tuple(s for i, s in enumerate(shape) if i not in gone)]


@rule("ArgMax", "ArgMin")
def argument_of(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    if not shape:
        return [None]
    axis = node.get("axis", 0) % len(shape)
    kept = (1,) if node.get("keepdims", 1) else ()
    return [(*shape[:axis], *kept, *shape[axis + 1 :])]


@rule("Pad")
def pad(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    pads = node.get("pads") or node.get("paddings") or facts.elements(node.input(1))
    if shape is None or pads is None:
        return [None]
    axes = list(range(len(shape)))
    if node.input(3) is not None:
        chosen = facts.integers(node.input(3))
        if chosen is None:
            return [None]
        axes = [axis % len(shape) for axis in chosen]
    if len(pads) != 2 * len(axes):
        return [None]
    result = list(shape)
    for i, axis in enumerate(axes):
        result[axis] = e.add(shape[axis], pads[i], pads[i + len(axes)])
    return [tuple(result)]


@rule("Range")
def range_(node: Node, facts: Facts) -> list[Shape | None]:
    bounds = [facts.elements(v) for v in node.inputs]
    if any(b is None or len(b) != 1 for b in bounds):
        return [(facts.unknown(),)]
    start, limit, delta = (b[0] for b in bounds if b is not None)
    if delta != 1:
        return [(facts.unknown(),)]
    length = e.add(limit, e.negative(start))
    return [(length if e.is_nonnegative(length) else facts.unknown(),)]


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(node: Node, facts: Facts) -> list[Shape | None]:
    shape = facts.shape(node.input(0))
    return [None if shape is None else (*shape[:2], *[1] * (len(shape) - 2))]


@rule("LSTM", "GRU", "RNN")
def recurrent(node: Node, facts: Facts) -> list[Shape | None]:
    shape, weight = facts.shape(node.input(0)), facts.shape(node.input(2))
    if shape is None or weight is None or len(shape) != 3 or len(weight) != 3:
        return [None] * len(node.outputs)
    hidden, directions = weight[2], weight[0]
    if node.get("layout", 0):
        batch, sequence = shape[:2]
        return [
            (batch, sequence, directions, hidden),
            (batch, directions, hidden),
            (batch, directions, hidden),
        ]
    sequence, batch = shape[:2]
    return [
        (sequence, directions, batch, hidden),
        (directions, batch, hidden),
        (directions, batch, hidden),
    ]


@rule("If")
def either_branch(node: Node, facts: Facts) -> list[Shape | None]:
    """What both branches agree in."""
    results = [[facts.shape(v) for v in body.outputs] for body in node.subgraphs()]
    if len(results) != 2:
        return [None] * len(node.outputs)
    return [_common(a, b, facts) for a, b in zip(*results, strict=False)]


def _common(a: Shape | None, b: Shape | None, facts: Facts) -> Shape | None:
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else facts.unknown() for x, y in zip(a, b, strict=True))
