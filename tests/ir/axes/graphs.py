"""Random networks over everything that has axes: what a step may add, and the strategy.

A step takes a network and a value and adds nodes; it returns nothing of use, since what
it makes is found among the network's shapes. Steps that don't fit raise `Skip`.
"""

import math

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from .blocks import BLOCKS, Skip, convolution, linear, need, spread
from .network import Network

UNARY = {
    7: [
        "Relu", "Sigmoid", "Tanh", "Neg", "Abs", "LeakyRelu", "Elu", "Softplus", "HardSigmoid",
        "Cos", "Identity", "Selu", "Softsign",
    ],
    9: ["Erf", "Sinh"],
    12: ["Celu"],
    14: ["HardSwish"],
    18: ["Mish"],
    20: ["Gelu"],
}  # fmt: skip
"""By the opset from which on ONNX Runtime has them."""

OPSETS = [21, 17, 13, 11, 9, 7, 10, 12, 18, 23, 26, onnx.defs.onnx_opset_version()]

LARGEST = 4000
"""Elements of the largest value."""


def like(net, x, reason=lambda a, b: a == b):
    """Another value whose shape fits that of x."""
    shape = net.shapes[x]
    return net.choose([n for n, s in net.shapes.items() if reason(s, shape)])


def unary(net, x):
    op = net.choose([op for since, ops in UNARY.items() if since <= net.opset for op in ops])
    if op == "Sinh":
        x = net.node("Tanh", [x], net.shapes[x])
    return net.node(op, [x], net.shapes[x])


def moved(net, x):
    """Operators that leave values alone."""
    kind = net.choose(["Dropout", "Clip", "Cast", "Slice"])
    if kind == "Dropout":
        return net.dropout(x)
    if kind == "Clip":
        return net.clip(x, -1.0, 2.0)
    if kind == "Cast":
        y = net.hidden("Cast", [x], to=11)
        return net.node("Cast", [y], net.shapes[x], to=1)
    return net.slice(x, net.choose(range(len(net.shapes[x]))), 0, 2**63 - 1)


def broadcasts(a, b):
    return all(p == q or 1 in (p, q) for p, q in zip(a[::-1], b[::-1], strict=False))


def binary(net, x):
    """With another value, broadcast either way."""
    exact = net.maybe()
    y = like(net, x) if exact else like(net, x, broadcasts)
    shape = np.broadcast_shapes(net.shapes[x], net.shapes[y])
    need(math.prod(shape) <= LARGEST)
    op = net.choose(["Add", "Add", "Sub", "Mul", "Div", "Max", "Mean", "Where", "PRelu"])
    if op in ("Max", "Mean"):
        need(net.opset >= 8)
    if op == "Mul":
        y = net.node("Tanh", [y], net.shapes[y])
    if op == "Div":  # without Where, masks multiply, and 0 / 0 stays
        need(net.opset >= 9)
        y = net.node("Softplus", [y], net.shapes[y])
        y = net.node("Add", [y, net.small(np.float32(0.5))], net.shapes[y])
    if op == "PRelu":
        need(shape == net.shapes[x] and len(net.shapes[y]) <= len(shape))
    if op == "Where":
        need(net.opset >= 9)
        mask = net.initializer(net.random.random(net.choose([shape[-1:], (), shape])) < 0.5)
        need(not net.dynamic)
        return net.node("Where", [mask, x, y], shape)
    return net.node(op, [x, y], shape)


def affine(net, x):
    """With a constant that broadcasts."""
    shape = net.shapes[x]
    axis = net.choose(range(len(shape)))
    need(not net.careful(shape[axis]))
    aligned = tuple(s if i == axis else 1 for i, s in enumerate(shape))
    forms = [(), (1,), aligned, aligned[axis:]]
    if not any(net.careful(s) for s in shape):
        forms += [shape, shape[-2:]]
    form = net.choose(forms)
    if net.maybe(6) and shape[axis] == 1:
        form = tuple(3 if i == axis else 1 for i in range(len(shape)))
    result = np.broadcast_shapes(shape, form)
    need(math.prod(result) <= LARGEST)
    op = net.choose(["Add", "Sub", "Mul", "Div", "PRelu", "Max"])
    need(op != "Max" or net.opset >= 8)
    need(op != "PRelu" or result == shape)
    need(op != "Div" or net.opset >= 9)
    c = net.between(0.5, 1.5, *form) if op == "Div" else net.weights(*form)
    swap = op in ("Add", "Sub", "Mul") and net.maybe(3)
    return net.node(op, [c, x] if swap else [x, c], result)


def concat(net, x):
    shape = net.shapes[x]
    axis = net.choose(range(len(shape)))

    def fits(a, b):
        return len(a) == len(b) and all(i == axis or a[i] == b[i] for i in range(len(a)))

    parts = [x, *(like(net, x, fits) for _ in range(net.choose([1, 1, 2, 3])))]
    sizes = {v: net.shapes[v][axis] for v in parts}
    if net.maybe(4) and not any(net.careful(s) for s in shape):
        parts.append(net.weights(*shape))
        sizes[parts[-1]] = shape[axis]
    net.random.shuffle(parts)
    total = sum(sizes[v] for v in parts)
    result = tuple(total if i == axis else s for i, s in enumerate(shape))
    need(math.prod(result) <= LARGEST)
    return net.node("Concat", parts, result, axis=net.choose([axis, axis - len(shape)]))


def parts_of(net, size):
    count = net.choose([2, 2, 3])
    need(size >= count)
    if size % count == 0 and net.maybe():
        return [size // count] * count
    cuts = sorted(net.random.permutation(np.arange(1, size))[: count - 1].tolist())
    return np.diff([0, *cuts, size]).tolist()


def split(net, x):
    axis = net.choose(range(len(net.shapes[x])))
    need(not net.careful(net.shapes[x][axis]))
    return net.split(x, axis, parts_of(net, net.shapes[x][axis]))


def slice_(net, x):
    axis = net.choose(range(len(net.shapes[x])))
    size = net.shapes[x][axis]
    need(size > 1 and not net.careful(size))
    start = net.choose(range(size - 1))
    stop = net.choose(range(start + 1, size + 1))
    step = net.choose([1, 1, 1, 2]) if net.opset >= 10 else 1
    if net.maybe(4) and net.opset >= 10:
        return net.slice(x, axis, -1, -(2**31), -1)
    if net.maybe(3):
        start -= size
    if stop < size and net.maybe(3):
        stop -= size
    return net.slice(x, axis, start, 2**31 - 1 if stop == size else stop, step)


def gather(net, x):
    shape = net.shapes[x]
    axis = net.choose(range(len(shape)))
    size = shape[axis]
    need(not net.careful(size))
    kind = net.choose(["scalar", "order", "some", "matrix"])
    if kind == "scalar":
        need(len(shape) > 1)
        indices = np.array(net.random.integers(-size, size))
    elif kind == "order":
        indices = net.random.permutation(size)
    elif kind == "some":
        indices = net.random.integers(-size, size, net.choose(range(1, 5)))
    else:
        need(len(shape) < 5)
        indices = net.random.integers(0, size, (2, 2))
    result = (*shape[:axis], *indices.shape, *shape[axis + 1 :])
    need(math.prod(result) <= LARGEST)
    kind = net.choose([np.int64, np.int32])
    return net.node("Gather", [x, net.small(indices.astype(kind))], result, axis=axis)


def transpose(net, x):
    shape = net.shapes[x]
    order = list(range(len(shape)))
    net.random.shuffle(order)
    return net.node("Transpose", [x], [shape[i] for i in order], perm=order)


def reshape(net, x):
    """Merge neighbours, split an axis, or regroup two axes."""
    shape = net.shapes[x]
    rank = len(shape)
    plan = [[i] for i in range(rank)]
    kind = net.choose(["merge", "split", "regroup", "flatten", "all"])
    at = net.choose(range(rank))
    if kind == "flatten":
        cut = net.choose(range(rank + 1))
        result = (math.prod(shape[:cut]), math.prod(shape[cut:]))
        return net.node("Flatten", [x], result, axis=cut)
    if kind == "all":
        return net.reshape(x, [plan[0], list(range(1, rank)) if rank > 1 else 1])
    if kind == "merge":
        need(at + 1 < rank)
        return net.reshape(x, [*plan[:at], plan[at] + plan[at + 1], *plan[at + 2 :]])
    need(not net.careful(shape[at]) and rank < 5)
    if kind == "split":
        size, taken = shape[at], [at]
    else:
        need(at + 1 < rank and not net.careful(shape[at + 1]))
        size, taken = shape[at] * shape[at + 1], [at, at + 1]
    factor = net.choose([d for d in range(1, size + 1) if size % d == 0])
    return net.reshape(x, [*plan[:at], factor, size // factor, *plan[taken[-1] + 1 :]])


def size_one(net, x):
    shape = net.shapes[x]
    ones = [i for i, s in enumerate(shape) if s == 1]
    if ones and len(shape) > 1 and net.maybe():
        return net.squeeze(x, [net.choose(ones)])
    need(len(shape) < 5)
    return net.unsqueeze(x, [net.choose(range(len(shape) + 1))])


def repeat(net, x):
    shape = net.shapes[x]
    if net.maybe() and net.opset >= 8:
        target = [s if s > 1 else net.choose([1, 2, 3]) for s in shape]
        written = [1 if net.careful(s) or net.maybe(3) else s for s in target]
        target = np.broadcast_shapes(shape, written)
        need(math.prod(target) <= LARGEST)
        return net.node("Expand", [x, net.ints(*written)], target)
    axis = net.choose(range(len(shape)))
    times = [2 if i == axis else 1 for i in range(len(shape))]
    result = [s * t for s, t in zip(shape, times, strict=True)]
    need(math.prod(result) <= LARGEST)
    return net.node("Tile", [x, net.ints(*times)], result)


def reduction(net, x):
    shape = net.shapes[x]
    op = net.choose(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"])
    op = net.choose([op, op, "ReduceLogSumExp", "ReduceSumSquare", "ReduceL1"])
    axes = [i for i in range(len(shape)) if net.maybe()]
    need(axes)
    keep = net.maybe() or len(axes) == len(shape)
    y = net.reduce(op, x, axes, keep)
    scale = math.prod(shape[i] for i in axes)
    if op in ("ReduceSumSquare", "ReduceL1"):
        y = net.node("Mul", [y, net.small(np.float32(1 / scale))], net.shapes[y])
    return y


def normalization(net, x):
    shape = net.shapes[x]
    need(len(shape) >= 3 and not net.careful(shape[1]))
    c = shape[1]
    kinds = ["Batch", "Batch", "Batch", "Instance", "LRN"]
    if net.opset >= 21:
        kinds += ["Group"] * 2
    kind = net.choose(kinds)
    if kind == "Batch":
        scale, variance = net.between(0.5, 1.5, c), net.between(0.5, 2.0, c)
        return net.node(
            "BatchNormalization", [x, scale, net.weights(c), net.weights(c), variance], shape
        )
    if kind == "LRN":
        need(len(shape) == 4)
        return net.node(kind, [x], shape, size=3, alpha=0.1)
    need(math.prod(shape[2:]) > 1)
    if kind == "Instance":
        return net.node(
            "InstanceNormalization",
            [x, net.between(0.5, 1.5, c), net.weights(c)],
            shape,
            epsilon=0.1,
        )
    groups = net.choose([d for d in range(1, c + 1) if c % d == 0])
    return net.node(
        "GroupNormalization",
        [x, net.between(0.5, 1.5, c), net.weights(c)],
        shape,
        num_groups=groups,
        epsilon=0.1,
    )


def over_last(net, x):
    """Normalizations over the last axes, written as one operator."""
    shape = net.shapes[x]
    axis = net.choose([-1, -1, -2]) if len(shape) > 2 else -1
    inner = shape[axis:]
    need(not any(net.careful(s) for s in inner) and math.prod(inner) > 1)
    kind = net.choose(["LayerNormalization", "LayerNormalization", "RMSNormalization"])
    need(net.opset >= (17 if kind == "LayerNormalization" else 23))
    inputs = [x, net.between(0.5, 1.5, *inner)]
    if kind == "LayerNormalization" and net.maybe():
        inputs.append(net.weights(*inner))
    return net.node(kind, inputs, shape, axis=axis, epsilon=0.1)


def ranked(net, x):
    """Operators for which the order along an axis matters."""
    shape = net.shapes[x]
    axis = net.choose(range(len(shape)))
    op = net.choose(["Softmax", "Softmax", "LogSoftmax", "CumSum", "TopK", "Trilu", "ArgMax"])
    if op == "CumSum":
        need(net.opset >= 11)
        axis = net.small(np.array(axis, np.int64))
        return net.node(op, [x, axis], shape)
    if op == "TopK":
        need(net.opset >= 11 and not net.careful(shape[axis]))
        kept = [1 if i == axis else s for i, s in enumerate(shape)]
        y = net.name()
        net.nodes.append(helper.make_node(op, [x, net.ints(1)], [y, f"{y}_indices"], axis=axis))
        net.read.add(x)
        net.shapes[y] = tuple(kept)
        return y
    if op == "Trilu":
        need(net.opset >= 14 and len(shape) > 1)
        return net.node(op, [x], shape, upper=net.choose([0, 1]))
    if op == "ArgMax":
        kept = [1 if i == axis else s for i, s in enumerate(shape)]
        y = net.hidden(op, [x], axis=axis)
        return net.node("Cast", [y], kept, to=1)
    return net.node(op, [x], shape, axis=axis)


def product(net, x):
    """Of two values, batched."""
    shape = net.shapes[x]
    need(len(shape) > 1)
    y = like(net, x, lambda a, b: a[:-2] == b[:-2] and len(a) == len(b) and a[-1] == b[-1])
    other = net.shapes[y]
    result = (*shape[:-1], other[-2])
    need(math.prod(result) <= LARGEST)
    scale = net.small(np.float32(1 / math.sqrt(shape[-1])))
    if net.maybe(3) and net.opset >= 12:
        lead = "abcde"[: len(shape) - 2]
        z = net.node("Einsum", [x, y], result, equation=f"{lead}ij,{lead}kj->{lead}ik")
    else:
        order = [*range(len(other) - 2), len(other) - 1, len(other) - 2]
        t = net.node("Transpose", [y], [other[i] for i in order], perm=order)
        z = net.node("MatMul", [x, t], result)
    return net.node("Mul", [z, scale], result)


def einsum(net, x):
    """A contraction of any axis with a weight."""
    shape = net.shapes[x]
    need(net.opset >= 12)
    axis = net.choose(range(len(shape)))
    need(not net.careful(shape[axis]))
    size = net.choose([2, 3, 4, 6])
    labels = "abcde"[: len(shape)]
    new = labels.replace(labels[axis], "z")
    equation = f"{labels}, {labels[axis]}z -> {new}"
    result = [size if i == axis else s for i, s in enumerate(shape)]
    need(math.prod(result) <= LARGEST)
    return net.node("Einsum", [x, net.weights(shape[axis], size)], result, equation=equation)


def windows(net, x):
    shape = net.shapes[x]
    rank = len(shape) - 2
    need(1 <= rank <= 3)
    kind = net.choose(["MaxPool", "AveragePool", "Global", "Resize", "Pad", "Pad", "Channels"])
    if kind == "Global":
        op = net.choose(["GlobalAveragePool", "GlobalMaxPool"])
        return net.node(op, [x], [*shape[:2], *[1] * rank])
    if kind == "Resize":
        need(rank == 2 and math.prod(shape) * 4 <= LARGEST)
        return net.resize(x, 2, net.choose(["nearest", "linear"]))
    if kind == "Pad":
        mode = net.choose(["constant", "constant", "reflect", "edge"])
        need(mode != "reflect" or shape[-1] > 1)
        pads = [0] * len(shape)
        pads[-1] = 1
        return net.pad(x, pads + pads, mode, 0.0 if mode != "constant" else 0.5)
    if kind == "Channels":
        before, after = net.choose([0, 1, 2]), net.choose([0, 1, 3])
        pads = [0, before, *[0] * rank, 0, after, *[0] * rank]
        return net.pad(x, pads, value=net.choose([0.0, 1.0]))
    need(all(s >= 2 for s in shape[2:]) and not any(net.careful(s) for s in shape[2:]))
    result = [*shape[:2], *(s // 2 for s in shape[2:])]
    return net.node(kind, [x], result, kernel_shape=[2] * rank, strides=[2] * rank)


ANYWHERE = [
    unary, unary, moved, binary, binary, affine, concat, concat, split, slice_, gather, transpose,
    reshape, reshape, size_one, repeat, reduction, over_last, ranked, product, einsum, linear,
    linear,
]  # fmt: skip
IMAGES = [convolution, convolution, convolution, normalization, windows]


def pick(net):
    """A value, rather a late one, so that graphs get deep."""
    names = list(net.shapes)
    return names[-1 - min(net.choose(range(4)), len(names) - 1)]


def grow(net, steps):
    """Add a number of steps; those that don't fit count as well."""
    for _ in range(steps):
        x = pick(net)
        rank = len(net.shapes[x])
        kind = net.choose(["anywhere", "images", "blocks"])
        choices = {"anywhere": ANYWHERE, "images": IMAGES, "blocks": BLOCKS}[kind]
        if rank == 0 or rank > 5:
            continue
        before = net.checkpoint()
        try:
            net.choose(choices)(net, x)
        except Skip:
            net.restore(before)


def finish(net):
    """Contract what nothing reads; some values are outputs as they are. Returns outputs."""
    outputs = []
    ends = [n for n in net.shapes if n not in net.read and n not in net.feeds]
    for x in ends[-6:]:
        outputs.append(x if net.maybe(8) else contraction(net, x))
    return outputs


def contraction(net, x):
    """Every element into the result, so that only the first axis stays as it is."""
    shape = net.shapes[x]
    if len(shape) < 2:
        return net.node("Neg", [x], shape)
    inner = math.prod(shape[1:])
    if net.careful(inner) or inner > 500:
        axis = net.choose([i for i, s in enumerate(shape) if not net.careful(s)] or [None])
        if axis is not None:
            aligned = [s if i == axis else 1 for i, s in enumerate(shape)]
            x = net.node("Mul", [x, net.weights(*aligned)], shape)
        return net.reduce("ReduceSum", x, list(range(1, len(shape))), keep=False)
    if len(shape) > 2:
        x = net.node("Flatten", [x], (shape[0], inner), axis=1)
    weight = net.weights(2, inner)
    return net.node("Gemm", [x, weight, net.weights(2)], (shape[0], 2), transB=1)


@st.composite
def networks(draw, steps=10):
    """A model, inputs for it, and a seed for a selection."""

    def choose(options):
        options = list(options)
        need(options)
        return options[draw(st.integers(0, len(options) - 1))]

    opset = choose(OPSETS)
    seed = draw(st.integers(0, 2**32 - 1))
    net = Network(choose, opset=opset, seed=seed, dynamic=choose([False, True]))
    net.old_ir = opset <= 13 and choose(range(4)) == 1
    spread(net)
    grow(net, choose(range(1, steps + 1)))
    return net.model(finish(net)), net.feeds, seed


def network(seed, steps=12, planted=False):
    """The same from a seed alone, many times faster than through hypothesis."""
    random = np.random.default_rng(seed)

    def choose(options):
        options = list(options)
        need(options)
        return options[random.integers(len(options))]

    opset = choose(OPSETS)
    net = Network(choose, opset=opset, seed=seed, dynamic=choose([False, True]), planted=planted)
    net.old_ir = opset <= 13 and choose(range(4)) == 1
    spread(net)
    grow(net, choose(range(1, steps + 1)))
    return net.model(finish(net)), net.feeds
