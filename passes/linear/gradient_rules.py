"""One rule for each operator: gradients of its inputs from those of its outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from ...ir.graph import Node, Value
from ...ir.model import Model
from ...ir.tensor import Array, Tensor

PREFIX = "gradient/"
"""Of the names of all values that rules add."""

REDUCES_BY_INPUT = 13
"""Version since which ReduceSum takes its axes as an input."""

PADS_BY_INPUT = 11
"""The same for Pad and its pads."""


class NoRuleError(Exception):
    """There is no gradient through a node, or not in the form in which it is used."""


class Builder:
    """Adds nodes to the main graph of a model, whose shapes have been inferred."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.gradients: dict[Value, Value] = {}
        """Of the values behind the node whose turn it is."""
        self._made = 0

    def op(self, op_type: str, *inputs: Value | None, **attributes: object) -> Value:
        """The result of a new node."""
        self._made += 1
        result = Value(f"{PREFIX}{self._made}")
        node = Node(op_type, inputs, [result], name=result.name)
        for name, value in attributes.items():
            node.set(name, value)
        self.model.graph.add_node(node)
        return result

    def constant(self, array: Array) -> Value:
        self._made += 1
        return self.model.graph.add_initializer(
            f"{PREFIX}{self._made}", Tensor.from_array(np.asarray(array))
        )

    def number(self, number: float) -> Value:
        return self.constant(np.array(number, np.float32))

    def scaled(self, value: Value, factor: float) -> Value:
        return value if factor == 1 else self.op("Mul", value, self.number(factor))

    def sum(self, value: Value, axes: Sequence[int], *, keep: bool) -> Value:
        """Sum over axes, all of them counted from the front."""
        if not axes:
            return value
        if self.model.opset < REDUCES_BY_INPUT:
            return self.op("ReduceSum", value, axes=list(axes), keepdims=int(keep))
        numbers = self.constant(np.array(axes, np.int64))
        return self.op("ReduceSum", value, numbers, keepdims=int(keep))

    def reshape(self, value: Value, sizes: Sequence[int]) -> Value:
        return self.op("Reshape", value, self.constant(np.array(sizes, np.int64)))

    def unsqueezed(self, value: Value, axis: int) -> Value:
        if self.model.opset < REDUCES_BY_INPUT:
            return self.op("Unsqueeze", value, axes=[axis])
        return self.op("Unsqueeze", value, self.constant(np.array([axis], np.int64)))

    def like(self, value: Value, other: Value) -> Value:
        """The same elements in the shape of another value."""
        return self.op("Reshape", value, self.op("Shape", other))

    def masked(self, value: Value, condition: Value) -> Value:
        """A value where a condition holds, 0 elsewhere."""
        return self.op("Mul", value, self.op("Cast", condition, to=TensorProto.FLOAT))

    def reduced(self, value: Value, result: Value, operand: Value) -> Value:
        """The gradient of an operand that was broadcast, from that of the result."""
        axes = _repeated(shape(result), shape(operand))
        summed = self.sum(value, axes, keep=True)
        return summed if len(shape(result)) == len(shape(operand)) else self.like(summed, operand)


def _repeated(have: Sequence[object], want: Sequence[object]) -> list[int]:
    """The axes of sizes `have` over which an operand of sizes `want` was repeated."""
    extra = len(have) - len(want)
    axes = list(range(extra))
    for axis, (size, old) in enumerate(zip(have[extra:], want, strict=True), extra):
        if size != old:
            if old != 1:
                raise NoRuleError
            axes.append(axis)
    return axes


Rule = Callable[[Builder, Node, Value], "list[Value | None]"]
"""From a node and the gradient of its first output to the gradients of its inputs."""


def shape(value: Value | None) -> tuple[int | str | None, ...]:
    found = None if value is None else value.shape
    if found is None or None in found:
        raise NoRuleError
    return found


def sizes(value: Value | None, first: int = 0) -> list[int]:
    """The sizes of a value's axes from one on, which have to be known."""
    found = shape(value)[first:]
    if not all(isinstance(size, int) for size in found):
        raise NoRuleError
    return [size for size in found if isinstance(size, int)]


def _in(node: Node, position: int = 0) -> Value:
    value = node.input(position)
    if value is None:
        raise NoRuleError
    return value


def _out(node: Node) -> Value:
    value = node.output(0)
    if value is None:
        raise NoRuleError
    return value


def _axis(node: Node, name: str, default: int, rank: int) -> int:
    axis = int(node.get(name, default))
    return axis + rank if axis < 0 else axis


# --- sums and products -----------------------------------------------------------


def _add(b: Builder, node: Node, g: Value) -> list[Value | None]:
    return [b.reduced(g, _out(node), _in(node, k)) for k in (0, 1)]


def _sub(b: Builder, node: Node, g: Value) -> list[Value | None]:
    first, second = _add(b, node, g)
    assert second is not None
    return [first, b.op("Neg", second)]


def _mul(b: Builder, node: Node, g: Value) -> list[Value | None]:
    x, y = _in(node), _in(node, 1)
    return [b.reduced(b.op("Mul", g, other), _out(node), own) for own, other in ((x, y), (y, x))]


def _div(b: Builder, node: Node, g: Value) -> list[Value | None]:
    x, y = _in(node), _in(node, 1)
    first = b.op("Div", g, y)
    second = b.op("Neg", b.op("Mul", first, _out(node)))
    return [b.reduced(first, _out(node), x), b.reduced(second, _out(node), y)]


def _gemm(b: Builder, node: Node, g: Value) -> list[Value | None]:
    if node.get("transA", 0):
        raise NoRuleError
    a, weights = _in(node), _in(node, 1)
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    if node.get("transB", 0):
        first = b.op("Gemm", g, weights, alpha=alpha)
        second = b.op("Gemm", g, a, alpha=alpha, transA=1)
    else:
        first = b.op("Gemm", g, weights, alpha=alpha, transB=1)
        second = b.op("Gemm", a, g, alpha=alpha, transA=1)
    bias = node.input(2)
    third = None if bias is None else b.scaled(b.reduced(g, _out(node), bias), beta)
    return [first, second, third]


def _matmul(b: Builder, node: Node, g: Value) -> list[Value | None]:
    a, c = _in(node), _in(node, 1)
    ranks = len(shape(a)), len(shape(c))
    if min(ranks) < 2:
        raise NoRuleError
    first = _unbatched(b, b.op("MatMul", g, _swapped(b, c, ranks[1])), node, a)
    if ranks[1] == 2:
        inner, outer = sizes(c)
        rows = b.reshape(a, [-1, inner])
        return [first, b.op("Gemm", rows, b.reshape(g, [-1, outer]), transA=1)]
    second = b.op("MatMul", _swapped(b, a, ranks[0]), g)
    return [first, _unbatched(b, second, node, c)]


def _swapped(b: Builder, value: Value, rank: int) -> Value:
    return b.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def _unbatched(b: Builder, value: Value, node: Node, operand: Value) -> Value:
    """Sum the axes in front over which an operand of MatMul was repeated."""
    axes = _repeated(shape(_out(node))[:-2], shape(operand)[:-2])
    return b.like(b.sum(value, axes, keep=True), operand) if axes else value


# --- convolution and pooling -------------------------------------------------------


FEWEST_CHANNELS, MOST_TAPS = 8, 25
"""Input channels from which, and taps up to which, products of matrices give the gradient of a
convolution's weights sooner than another convolution: by half to two thirds."""


def _geometry(node: Node, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads (all begins, then all ends)."""
    rank = len(kernel)
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "", "VALID") or node.get("ceil_mode", 0):
        raise NoRuleError
    strides = list(node.get("strides") or [1] * rank)
    dilations = list(node.get("dilations") or [1] * rank)
    return strides, dilations, list(node.get("pads") or [0] * 2 * rank)


def _spread(
    b: Builder, node: Node, g: Value, weights: Value, kernel: Sequence[int], groups: int
) -> Value:
    """What the outputs of a convolution, times its weights, add up to at each input."""
    strides, dilations, pads = _geometry(node, kernel)
    rank = len(kernel)
    extra = []
    for axis, (size, out) in enumerate(zip(sizes(_in(node), 2), sizes(_out(node), 2), strict=True)):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        covered = strides[axis] * (out - 1) + reach - pads[axis] - pads[axis + rank]
        extra.append(size - covered)
    # what strides skip at the end gets nothing: padded, since output_padding has to be small
    behind = [n if n < max(s, d) else 0 for n, s, d in zip(extra, strides, dilations, strict=True)]
    if behind != extra:
        raise NoRuleError
    return b.op(
        "ConvTranspose",
        g,
        weights,
        strides=strides,
        dilations=dilations,
        pads=pads,
        output_padding=behind,
        group=groups,
    )


def _conv(b: Builder, node: Node, g: Value) -> list[Value | None]:
    weights = _in(node, 1)
    kernel = sizes(weights, 2)
    groups = int(node.get("group", 1))
    rank = len(kernel)
    second = _weights_gradient(b, node, g, kernel)
    third = None
    if node.input(2) is not None:
        third = b.sum(g, [0, *range(2, 2 + rank)], keep=False)
    return [_spread(b, node, g, weights, kernel, groups), second, third]


def _weights_gradient(b: Builder, node: Node, g: Value, kernel: Sequence[int]) -> Value:
    """The outputs' gradients by the inputs that each tap saw: [O, C / groups, kernel]."""
    channels, groups = _size(_in(node), 1), int(node.get("group", 1))
    fits = channels >= FEWEST_CHANNELS and math.prod(kernel) <= MOST_TAPS
    if groups == 1 and fits and b.model.opset >= PADS_BY_INPUT:
        return _tap_by_tap(b, node, g, kernel)
    return _convolved(b, node, g, kernel, groups)


def _tap_by_tap(b: Builder, node: Node, g: Value, kernel: Sequence[int]) -> Value:
    """One product of matrices for each tap, over all samples and positions."""
    strides, dilations, pads = _geometry(node, kernel)
    rank = len(kernel)
    x, space = _in(node), sizes(_out(node), 2)
    channels, outputs = _size(x, 1), _size(_out(node), 1)
    last = b.op("Transpose", x, perm=[0, *range(2, 2 + rank), 1])  # [N, ..., C]
    if any(pads):
        around = [0, *pads[:rank], 0, 0, *pads[rank:], 0]
        last = b.op("Pad", last, b.constant(np.array(around, np.int64)))
    moved = b.op("Transpose", g, perm=[1, 0, *range(2, 2 + rank)])
    rows = b.reshape(moved, [outputs, -1])
    axes, steps = (b.constant(np.array(v, np.int64)) for v in (range(1, 1 + rank), strides))
    found = []
    for tap in np.ndindex(*kernel):
        begins = np.multiply(tap, dilations).astype(np.int64)
        ends = begins + np.multiply(strides, np.subtract(space, 1)) + 1
        bounds = b.constant(begins), b.constant(ends.astype(np.int64))
        seen = b.op("Slice", last, *bounds, axes, steps)
        found.append(b.op("MatMul", rows, b.reshape(seen, [-1, channels])))
    joined = b.op("Concat", *found, axis=1) if len(found) > 1 else found[0]
    parts = b.reshape(joined, [outputs, *kernel, channels])
    return b.op("Transpose", parts, perm=[0, 1 + rank, *range(1, 1 + rank)])


def _convolved(b: Builder, node: Node, g: Value, kernel: Sequence[int], groups: int) -> Value:
    """A convolution of inputs with the outputs' gradients."""
    strides, dilations, pads = _geometry(node, kernel)
    rank = len(kernel)
    order = [1, 0, *range(2, 2 + rank)]
    x = _in(node)
    width, space = _size(x, 1) // groups, sizes(x, 2)
    if groups == 1:
        inputs = b.op("Transpose", x, perm=order)  # [C, N, ...]
    else:
        split = b.reshape(x, [-1, groups, width, *space])
        moved = b.op("Transpose", split, perm=[2, 1, 0, *range(3, 3 + rank)])
        inputs = b.reshape(moved, [width, -1, *space])  # [C / groups, groups * N, ...]
    found = b.op(
        "Conv",
        inputs,
        b.op("Transpose", g, perm=order),
        strides=dilations,
        dilations=strides,
        pads=pads,
        group=groups,
    )  # [C / groups, O, kernel, and what strides skipped]
    cut = [b.constant(np.array(v, np.int64)) for v in ([0] * rank, kernel, range(2, 2 + rank))]
    return b.op("Transpose", b.op("Slice", found, *cut), perm=order)


def _average_pool(b: Builder, node: Node, g: Value) -> list[Value | None]:
    kernel = list(node.get("kernel_shape"))
    pads = node.get("pads")
    if (pads and any(pads) and not node.get("count_include_pad", 0)) or node.get("ceil_mode", 0):
        raise NoRuleError
    x = _in(node)
    if not (pads and any(pads)) and kernel == sizes(x, 2):
        return _global_average_pool(b, node, g)
    channels = sizes(x, 1)[0]
    share = np.full((channels, 1, *kernel), 1 / math.prod(kernel), np.float32)
    return [_spread(b, node, g, b.constant(share), kernel, channels)]


def _global_average_pool(b: Builder, node: Node, g: Value) -> list[Value | None]:
    x = _in(node)
    share = b.scaled(g, 1 / math.prod(sizes(x, 2)))
    return [b.op("Expand", share, b.op("Shape", x))]


def _max_pool(b: Builder, node: Node, g: Value) -> list[Value | None]:
    """Of windows that don't overlap: to each largest element."""
    kernel = list(node.get("kernel_shape"))
    strides, dilations, pads = _geometry(node, kernel)
    if strides != kernel or any(pads) or set(dilations) != {1}:
        raise NoRuleError
    x = _in(node)
    channels = sizes(x, 1)[0]
    ones = b.constant(np.ones((channels, 1, *kernel), np.float32))
    largest = _spread(b, node, _out(node), ones, kernel, channels)
    return [b.masked(_spread(b, node, g, ones, kernel, channels), b.op("Equal", x, largest))]


# --- activations -------------------------------------------------------------------


def _relu(b: Builder, node: Node, g: Value) -> list[Value | None]:
    return [b.masked(g, b.op("Greater", _out(node), b.number(0.0)))]


def _clip(b: Builder, node: Node, g: Value) -> list[Value | None]:
    return [b.masked(g, b.op("Equal", _in(node), _out(node))), None, None]


def _leaky_relu(b: Builder, node: Node, g: Value) -> list[Value | None]:
    x = _in(node)
    positive = b.op("Greater", x, b.number(0.0))
    return [b.op("Where", positive, g, b.scaled(g, float(node.get("alpha", 0.01))))]


def _sigmoid(b: Builder, node: Node, g: Value) -> list[Value | None]:
    y = _out(node)
    return [b.op("Mul", g, b.op("Mul", y, b.op("Sub", b.number(1.0), y)))]


def _tanh(b: Builder, node: Node, g: Value) -> list[Value | None]:
    y = _out(node)
    return [b.op("Mul", g, b.op("Sub", b.number(1.0), b.op("Mul", y, y)))]


def _erf(b: Builder, node: Node, g: Value) -> list[Value | None]:
    x = _in(node)
    bell = b.op("Exp", b.op("Neg", b.op("Mul", x, x)))
    return [b.op("Mul", g, b.scaled(bell, 2 / math.sqrt(math.pi)))]


def _gelu(b: Builder, node: Node, g: Value) -> list[Value | None]:
    if node.get("approximate", "none") != "none":
        raise NoRuleError
    x = _in(node)
    half = b.scaled(b.op("Erf", b.scaled(x, math.sqrt(0.5))), 0.5)
    below = b.op("Add", half, b.number(0.5))
    bell = b.op("Exp", b.scaled(b.op("Mul", x, x), -0.5))
    slope = b.scaled(b.op("Mul", x, bell), 1 / math.sqrt(2 * math.pi))
    return [b.op("Mul", g, b.op("Add", below, slope))]


def _hard_sigmoid(b: Builder, node: Node, g: Value) -> list[Value | None]:
    y = _out(node)
    inside = b.op("Greater", b.op("Mul", y, b.op("Sub", b.number(1.0), y)), b.number(0.0))
    return [b.masked(b.scaled(g, float(node.get("alpha", 0.2))), inside)]


def _hard_swish(b: Builder, node: Node, g: Value) -> list[Value | None]:
    x = _in(node)
    middle = b.op("Add", b.scaled(x, 1 / 3), b.number(0.5))
    above = b.op("Where", b.op("Less", x, b.number(3.0)), middle, b.number(1.0))
    return [b.op("Mul", g, b.masked(above, b.op("Greater", x, b.number(-3.0))))]


def _exp(b: Builder, node: Node, g: Value) -> list[Value | None]:
    return [b.op("Mul", g, _out(node))]


def _sqrt(b: Builder, node: Node, g: Value) -> list[Value | None]:
    return [b.op("Div", b.scaled(g, 0.5), _out(node))]


def _neg(b: Builder, node: Node, g: Value) -> list[Value | None]:
    return [b.op("Neg", g)]


def _identity(b: Builder, node: Node, g: Value) -> list[Value | None]:
    return [g]


def _softmax(b: Builder, node: Node, g: Value) -> list[Value | None]:
    y = _out(node)
    rank = len(shape(y))
    last = b.model.opset >= REDUCES_BY_INPUT
    axis = _axis(node, "axis", -1 if last else 1, rank)
    if not last and axis != rank - 1:
        raise NoRuleError
    weighed = b.op("Mul", g, y)
    whole = b.op("Mul", y, b.sum(weighed, [axis], keep=True))
    return [b.op("Sub", weighed, whole)]


# --- normalization -----------------------------------------------------------------


def _layer_normalization(b: Builder, node: Node, g: Value) -> list[Value | None]:
    x, scale = _in(node), _in(node, 1)
    rank = len(shape(x))
    last = rank - 1
    if _axis(node, "axis", -1, rank) != last:
        raise NoRuleError
    width = sizes(x, last)[0]

    def mean(value: Value) -> Value:
        return b.scaled(b.sum(value, [last], keep=True), 1 / width)

    centred = b.op("Sub", x, mean(x))
    variance = mean(b.op("Mul", centred, centred))
    epsilon = b.number(float(node.get("epsilon", 1e-5)))
    deviation = b.op("Sqrt", b.op("Add", variance, epsilon))
    normal = b.op("Div", centred, deviation)
    inner = b.op("Mul", g, scale)
    along = b.op("Mul", normal, mean(b.op("Mul", inner, normal)))
    first = b.op("Div", b.op("Sub", b.op("Sub", inner, mean(inner)), along), deviation)
    over = list(range(last))
    third = None if node.input(2) is None else b.sum(g, over, keep=False)
    return [first, b.sum(b.op("Mul", g, normal), over, keep=False), third]


def _batch_normalization(b: Builder, node: Node, g: Value) -> list[Value | None]:
    if node.get("training_mode", 0):
        raise NoRuleError
    x, scale = _in(node), _in(node, 1)
    rank = len(shape(x))

    def column(value: Value) -> Value:
        return b.reshape(value, [-1, *[1] * (rank - 2)])

    epsilon = b.number(float(node.get("epsilon", 1e-5)))
    deviation = column(b.op("Sqrt", b.op("Add", _in(node, 4), epsilon)))
    normal = b.op("Div", b.op("Sub", x, column(_in(node, 3))), deviation)
    over = [0, *range(2, rank)]
    first = b.op("Div", b.op("Mul", g, column(scale)), deviation)
    second = b.sum(b.op("Mul", g, normal), over, keep=False)
    return [first, second, b.sum(g, over, keep=False), None, None]


# --- movement of elements ------------------------------------------------------------


def _reshaped(b: Builder, node: Node, g: Value) -> list[Value | None]:
    return [b.like(g, _in(node))]


def _transpose(b: Builder, node: Node, g: Value) -> list[Value | None]:
    rank = len(shape(_in(node)))
    perm = node.get("perm") or list(range(rank))[::-1]
    return [b.op("Transpose", g, perm=[perm.index(axis) for axis in range(rank)])]


def _concat(b: Builder, node: Node, g: Value) -> list[Value | None]:
    rank = len(shape(_out(node)))
    axis = _axis(node, "axis", 0, rank)
    found: list[Value | None] = []
    start = 0
    for value in node.inputs:
        end = start + _size(value, axis)
        limits = [b.constant(np.array([n], np.int64)) for n in (start, end, axis)]
        found.append(b.op("Slice", g, *limits))
        start = end
    return found


def _split(b: Builder, node: Node, g: Value) -> list[Value | None]:
    parts = []
    for value in node.outputs:
        if value is None:
            raise NoRuleError
        none = b.op("Mul", value, b.number(0.0)) if value not in b.gradients else None
        parts.append(b.gradients[value] if none is None else none)
    rank = len(shape(_in(node)))
    return [b.op("Concat", *parts, axis=_axis(node, "axis", 0, rank)), None]


def _slice(b: Builder, node: Node, g: Value) -> list[Value | None]:
    """In steps of one."""
    x = _in(node)
    rank = len(shape(x))
    operands = [b.model.constant(node.input(k)) for k in range(1, 5)]
    starts, ends, axes, steps = (None if t is None else t.numpy().tolist() for t in operands)
    if starts is None or ends is None or (steps is not None and set(steps) != {1}):
        raise NoRuleError
    pads = [0] * 2 * rank
    for start, end, axis in zip(starts, ends, axes or range(len(starts)), strict=True):
        size = _size(x, axis)
        first, last, _ = slice(start, end).indices(size)
        pads[axis % rank], pads[axis % rank + rank] = first, size - max(first, last)
    return [b.op("Pad", g, b.constant(np.array(pads, np.int64)))]


def _size(value: Value | None, axis: int) -> int:
    size = shape(value)[axis]
    if not isinstance(size, int):
        raise NoRuleError
    return size


def _gather(b: Builder, node: Node, g: Value) -> list[Value | None]:
    """Of a single element along an axis."""
    x = _in(node)
    rank = len(shape(x))
    axis = _axis(node, "axis", 0, rank)
    index = b.model.constant(node.input(1))
    if index is None or index.size != 1:
        raise NoRuleError
    size = _size(x, axis)
    place = int(index.numpy().reshape(-1)[0]) % size
    if index.shape == ():
        g = b.unsqueezed(g, axis)
    pads = [0] * 2 * rank
    pads[axis], pads[axis + rank] = place, size - place - 1
    return [b.op("Pad", g, b.constant(np.array(pads, np.int64))), None]


RULES: dict[str, Rule] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "Erf": _erf,
    "Exp": _exp,
    "Flatten": _reshaped,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": _identity,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Neg": _neg,
    "Relu": _relu,
    "Reshape": _reshaped,
    "Sigmoid": _sigmoid,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _sqrt,
    "Squeeze": _reshaped,
    "Sub": _sub,
    "Tanh": _tanh,
    "Transpose": _transpose,
    "Unsqueeze": _reshaped,
}
