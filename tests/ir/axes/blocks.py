"""Blocks of real architectures as steps of random networks."""

import math

import numpy as np

SIZES = [2, 3, 4, 6, 8, 9, 12]
"""Widths: with common divisors and without."""


class Skip(Exception):  # noqa: N818 - not an error
    """A step doesn't fit its value."""


def need(condition):
    if not condition:
        raise Skip


def spread(net):
    """An input and a layer that makes its channels prunable."""
    batch = 5 if net.dynamic else net.choose([1, 2, 3])
    kind = net.choose(["image", "image", "sequence", "volume", "signal", "vector", "tokens"])
    if kind == "tokens":
        ids = net.random.integers(0, 7, (batch, 4))
        x = net.input(ids.shape, ids.astype(np.int64))
        width = net.choose([4, 6, 8])
        table = net.weights(7, width)
        x = net.node("Gather", [table, x], (batch, 4, width), axis=0)
        net.table = table
        return linear(net, x)
    spatial = {"image": (6, 4), "volume": (4, 3, 2), "signal": (8,)}
    if kind in spatial:
        return convolution(net, net.input((batch, net.choose([1, 2, 3]), *spatial[kind])))
    return linear(net, net.input((batch, 4, 6) if kind == "sequence" else (batch, 6)))


def convolution(net, x, out=None, groups=None, kernel=None):
    """Grouped or not, transposed or not, of any rank."""
    shape = net.shapes[x]
    rank = len(shape) - 2
    need(1 <= rank <= 3 and not net.careful(shape[1]))
    c = shape[1]
    if groups is None:
        groups = net.choose([1, 1, c, net.choose([d for d in range(1, c + 1) if c % d == 0])])
    if out is None:
        out = net.choose([s for s in SIZES if s % groups == 0] or [groups])
    kernel = net.choose([1, 3]) if kernel is None else kernel
    stride = net.choose([1, 1, 2]) if kernel == 3 else 1
    need(stride == 1 or not any(net.careful(s) for s in shape[2:]))
    result = (shape[0], out, *(-(-s // stride) for s in shape[2:]))
    pads = [kernel // 2] * (2 * rank)
    bias = [net.weights(out)] if net.maybe() else []
    if net.maybe(5) and stride == 1 and rank < 3:
        weight = net.weights(c, out // groups, *[kernel] * rank)
        return net.node("ConvTranspose", [x, weight, *bias], result, group=groups, pads=pads)
    weight = net.weights(out, c // groups, *[kernel] * rank)
    return net.node(
        "Conv", [x, weight, *bias], result, group=groups, pads=pads, strides=[stride] * rank
    )


def linear(net, x, out=None):
    """MatMul or Gemm over the last axis, with or without a bias."""
    shape = net.shapes[x]
    need(len(shape) >= 2 and not net.careful(shape[-1]))
    out = net.choose(SIZES) if out is None else out
    result = (*shape[:-1], out)
    if len(shape) == 2 and net.maybe():
        transposed = net.choose([0, 1])
        weight = net.weights(out, shape[1]) if transposed else net.weights(shape[1], out)
        bias = [net.weights(*net.choose([(out,), (1, out), (1,), ()]))]
        if net.opset >= 11 and net.maybe():
            bias = []
        return net.node("Gemm", [x, weight, *bias], result, transB=transposed, alpha=0.5)
    y = net.node("MatMul", [x, net.weights(shape[-1], out)], result)
    return net.node("Add", [y, net.weights(out)], result) if net.maybe() else y


def pointwise(net, x, out):
    return convolution(net, x, out=out, groups=1, kernel=1)


def image(net, x, ranks=(1, 2)):
    shape = net.shapes[x]
    need(len(shape) - 2 in ranks and not net.careful(shape[1]))
    return shape


def residual(net, x):
    """x + f(x); f may change the width in between."""
    shape = image(net, x)
    y = pointwise(net, x, net.choose([3, 4, 6]))
    y = convolution(net, net.node("Relu", [y], net.shapes[y]), out=shape[1], groups=1)
    need(net.shapes[y] == shape)
    return net.node("Add", net.choose([[x, y], [y, x]]), shape)


def dense(net, x):
    shape = image(net, x)
    y = pointwise(net, x, net.choose([2, 3, 4]))
    joined = (shape[0], shape[1] + net.shapes[y][1], *shape[2:])
    return net.node("Concat", [x, y], joined, axis=1)


def padded_shortcut(net, x):
    """A residual whose shortcut gets channels of zeros."""
    shape = image(net, x)
    before, after = net.choose([(0, 2), (1, 1), (2, 3)])
    pads = [0, before, *[0] * (len(shape) - 2), 0, after, *[0] * (len(shape) - 2)]
    short = net.pad(x, pads)
    y = pointwise(net, x, shape[1] + before + after)
    return net.node("Add", [short, y], net.shapes[y])


def squeeze_and_excitation(net, x):
    shape = image(net, x)
    if net.maybe():
        y = net.node("GlobalAveragePool", [x], (*shape[:2], *[1] * (len(shape) - 2)))
        y = pointwise(net, y, net.choose([2, 3]))
        y = pointwise(net, net.node("Relu", [y], net.shapes[y]), shape[1])
    else:
        y = net.reduce("ReduceMean", x, list(range(2, len(shape))), keep=False)
        y = linear(net, y, net.choose([2, 3]))
        y = linear(net, net.node("Relu", [y], net.shapes[y]), shape[1])
        if net.maybe():
            y = net.unsqueeze(y, list(range(2, len(shape))))
        else:
            y = net.reshape(y, [[0], [1], *[1] * (len(shape) - 2)])
    y = net.node("Sigmoid", [y], net.shapes[y])
    return net.node("Mul", [x, y], shape)


def shuffle(net, x):
    """Channel shuffle; then maybe halves that needn't fall on its blocks."""
    shape = image(net, x)
    groups = net.choose([g for g in (2, 3, 4) if shape[1] % g == 0])
    rest = [[i] for i in range(2, len(shape))]
    y = net.reshape(x, [[0], groups, shape[1] // groups, *rest])
    order = [0, 2, 1, *range(3, len(shape) + 1)]
    y = net.node("Transpose", [y], [net.shapes[y][i] for i in order], perm=order)
    y = net.reshape(y, [[0], [1, 2], *[[i] for i in range(3, len(shape) + 1)]])
    if net.maybe(3):
        return y
    at = net.choose(range(1, shape[1]))
    left, right = net.split(y, 1, [at, shape[1] - at])
    pointwise(net, left, net.choose([2, 4]))
    return pointwise(net, right, net.choose([2, 4]))


def shuffle_unit(net, x):
    """ShuffleNet v2: halves, a branch on one, joined and shuffled."""
    shape = image(net, x)
    need(shape[1] % 2 == 0)
    half = shape[1] // 2
    left, right = net.split(x, 1, [half, half])
    right = pointwise(net, right, half)
    right = convolution(net, right, out=half, groups=half)
    need(net.shapes[right] == net.shapes[left])
    joined = net.node("Concat", [left, right], shape, axis=1)
    return shuffle(net, joined)


def c2f(net, x):
    shape = image(net, x)
    y = pointwise(net, x, 8)
    parts = net.split(y, 1, [4, 4])
    for _ in range(net.choose([1, 2])):
        z = convolution(net, parts[-1], out=4, groups=1)
        need(net.shapes[z] == net.shapes[parts[-1]])
        parts.append(net.node("Add", [parts[-1], z], net.shapes[z]) if net.maybe() else z)
    joined = net.node("Concat", parts, (shape[0], 4 * len(parts), *shape[2:]), axis=1)
    return pointwise(net, joined, net.choose([4, 6]))


def pixel_shuffle(net, x):
    shape = image(net, x, ranks=(2,))
    n, c, h, w = shape
    if net.maybe(3):
        need(h % 2 == w % 2 == 0 and not net.careful(h) and not net.careful(w))
        return net.node("SpaceToDepth", [x], (n, 4 * c, h // 2, w // 2), blocksize=2)
    need(c % 4 == 0 and math.prod(shape) < 1000)
    if net.maybe() and net.opset >= 11:
        mode = net.choose(["DCR", "CRD"])
        return net.node("DepthToSpace", [x], (n, c // 4, 2 * h, 2 * w), blocksize=2, mode=mode)
    y = net.reshape(x, [[0], c // 4, 2, 2, [2], [3]])
    order = [0, 1, 4, 2, 5, 3]
    y = net.node("Transpose", [y], [net.shapes[y][i] for i in order], perm=order)
    return net.reshape(y, [[0], [1], [2, 3], [4, 5]])


def heads_of(net, x, heads, size):
    y = net.reshape(x, [[0], [1], heads, size])
    return net.node("Transpose", [y], [net.shapes[y][i] for i in (0, 2, 1, 3)], perm=[0, 2, 1, 3])


def projections(net, x, heads, groups, size):
    """q, k, v as [N, heads, S, D]: apart or from one product, split in one of three ways."""
    n, s, _ = net.shapes[x]
    if net.maybe():
        return [heads_of(net, linear(net, x, h * size), h, size) for h in (heads, groups, groups)]
    fused = linear(net, x, (heads + 2 * groups) * size)
    kind = net.choose(["split", "axis", "inner"])
    if kind == "split" or heads != groups:
        parts = net.split(fused, 2, [heads * size, groups * size, groups * size])
        counts = (heads, groups, groups)
        return [heads_of(net, p, h, size) for p, h in zip(parts, counts, strict=True)]
    if kind == "axis":
        y = net.reshape(fused, [[0], [1], 3, heads, size])
        order = (2, 0, 3, 1, 4)
        y = net.node("Transpose", [y], [net.shapes[y][i] for i in order], perm=order)
        shape = (n, heads, s, size)
        if net.maybe():
            return [net.squeeze(p, [0]) for p in net.split(y, 0, [1, 1, 1])]
        indices = [net.small(np.array(i, np.int64)) for i in range(3)]
        return [net.node("Gather", [y, i], shape, axis=0) for i in indices]
    y = heads_of(net, fused, heads, 3 * size)
    return net.split(y, 3, [size] * 3)


def repeated(net, x, times):
    """[N, K, S, D] -> [N, K * times, S, D] by Unsqueeze, Expand, Reshape."""
    n, k, s, d = net.shapes[x]
    if times == 1 or net.opset < 8:
        need(times == 1)
        return x
    y = net.unsqueeze(x, [2])
    written = [1, 1, times, 1, 1]
    if not net.careful(n) and not net.careful(s) and net.maybe():
        written = [n, k, times, s, d]
    y = net.node("Expand", [y, net.ints(*written)], (n, k, times, s, d))
    return net.reshape(y, [[0], [1, 2], [3], [4]])


def attention(net, x):
    """Heads, a fused projection or three, grouped queries, scores as products or an Einsum."""
    shape = net.shapes[x]
    need(len(shape) == 3 and not net.careful(shape[2]))
    groups, times, size = net.choose([1, 2, 3]), net.choose([1, 1, 2, 3]), net.choose([2, 3, 4])
    heads = groups * times
    n, s = shape[:2]
    if net.opset >= 23 and net.maybe():
        q, k, v = (linear(net, x, h * size) for h in (heads, groups, groups))
        y = net.node(
            "Attention", [q, k, v], (n, s, heads * size), q_num_heads=heads, kv_num_heads=groups
        )
        return linear(net, y, shape[2])
    q, k, v = projections(net, x, heads, groups, size)
    k, v = repeated(net, k, times), repeated(net, v, times)
    scores = (n, heads, s, s)
    if net.opset >= 12 and net.maybe(3):
        z = net.node("Einsum", [q, k], scores, equation="nhsd,nhtd->nhst")
    else:
        t = net.node("Transpose", [k], (n, heads, size, s), perm=[0, 1, 3, 2])
        z = net.node("MatMul", [q, t], scores)
    z = net.node("Mul", [z, net.small(np.float32(1 / math.sqrt(size)))], scores)
    z = net.node("Softmax", [z], scores, axis=3)
    y = net.node("MatMul", [z, v], (n, heads, s, size))
    y = net.node("Transpose", [y], (n, s, heads, size), perm=[0, 2, 1, 3])
    y = linear(net, net.reshape(y, [[0], [1], [2, 3]]), shape[2])
    return net.node("Add", [x, y], shape) if net.maybe() else y


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(net, x):
    """[S, N, I], one direction or both; initial states constant or of a computed shape."""
    shape = net.shapes[x]
    need(len(shape) == 3 and not net.careful(shape[2]))
    s, n, i = shape
    op = net.choose(list(GATES))
    directions, hidden = net.choose([1, 2]), net.choose([2, 3, 4])
    gates = GATES[op] * hidden
    weights = [net.weights(directions, gates, i), net.weights(directions, gates, hidden)]
    bias = net.weights(directions, 2 * gates) if net.maybe() else ""
    states = []
    if net.maybe():
        count = 2 if op == "LSTM" else 1
        states = ["", *(initial_state(net, x, directions, hidden) for _ in range(count))]
    if op == "LSTM" and states and net.maybe(3):
        states.append(net.weights(directions, 3 * hidden))
    direction = "bidirectional" if directions == 2 else net.choose(["forward", "reverse"])
    reset = net.choose([0, 1]) if op == "GRU" else None
    last = net.maybe()
    outputs = [(s, directions, n, hidden), (directions, n, hidden) if last else None]
    y, state = net.node(
        op,
        [x, *weights, bias, *states],
        outputs=outputs,
        hidden_size=hidden,
        direction=direction,
        linear_before_reset=reset,
    )
    if last and directions == 2:
        state = net.node("Transpose", [state], (n, 2, hidden), perm=[1, 0, 2])
        net.reshape(state, [[0], [1, 2]])
    if directions == 1:
        return net.squeeze(y, [1])
    y = net.node("Transpose", [y], (s, n, 2, hidden), perm=[0, 2, 1, 3])
    return net.reshape(y, [[0], [1], [2, 3]])


def initial_state(net, x, directions, hidden):
    n = net.shapes[x][1]
    if not net.careful(n) and net.maybe():
        return net.weights(directions, n, hidden)
    need(net.opset >= 9)
    size = net.hidden("Gather", [net.hidden("Shape", [x]), net.ints(1)], axis=0)
    shape = net.hidden("Concat", [net.ints(directions), size, net.ints(hidden)], axis=0)
    if net.maybe():
        return net.hidden("ConstantOfShape", [shape])
    return net.hidden("Expand", [net.weights(directions, 1, hidden), shape])


def tied_head(net, x):
    """The transposed embedding as last layer."""
    table = getattr(net, "table", None)
    shape = net.shapes[x]
    need(table is not None and len(shape) == 3 and not net.careful(shape[2]))
    width = next(k[0][1] for k, names in net.constants.items() if table in names)
    if shape[2] != width:
        x = linear(net, x, width)
    t = net.hidden("Transpose", [table], perm=[1, 0])
    return net.node("MatMul", [x, t], (*shape[:2], 7))


BLOCKS = [
    residual, dense, padded_shortcut, squeeze_and_excitation, shuffle, shuffle_unit, c2f,
    pixel_shuffle, attention, attention, recurrent, recurrent, tied_head,
]  # fmt: skip
