"""How to draw nodes that move data, index, or make numbers from nothing."""

from __future__ import annotations

import math

import numpy as np

from .random_builder import ANY, BATCH, Builder, Drawn, ImpossibleError
from .random_nodes import code, entry


@entry("Reshape")
def reshape(b: Builder, op: str) -> None:
    x = b.pick(ANY, range(6))
    count = x.array.size
    target: list[int] = []
    if b.batch and x.rank:
        target.append(b.one_of(0, -1))
        count = math.prod(x.shape[1:])
    elif b.chance(0.3) and x.rank:
        target.append(0)
        count = math.prod(x.shape[1:])
    while count > 1 and len(target) < 4:
        factor = b.one_of(*(f for f in range(1, count + 1) if count % f == 0))
        target.append(factor)
        count //= factor
    target.append(count)
    if -1 not in target and b.chance(0.5):
        target[b.between(0, len(target) - 1)] = -1
    b.node(op, [x, b.ints(target)], exact=True)


@entry("Flatten")
def flatten(b: Builder, op: str) -> None:
    x = b.pick(ANY, (1, 2, 3, 4))
    axis = b.one_of(None, 1, *range(-x.rank, x.rank + 1)) if not b.batch else None
    b.node(op, [x], axis=axis, exact=True)


@entry("Squeeze", "Unsqueeze")
def squeeze(b: Builder, op: str) -> None:
    x = b.pick(ANY, (1, 2, 3, 4))
    if op == "Unsqueeze":
        places = b.random.permutation(np.arange(1 if b.batch else 0, x.rank + 2))
        b.node(op, [x, b.ints(sorted(places[:2].tolist()))], exact=True)
        return
    ones = [i for i, s in enumerate(x.shape) if s == 1]
    if not ones and b.chance(0.8):
        x = b.node("Unsqueeze", [x, b.ints([x.rank])])[0]
        ones = [x.rank - 1]
    if not ones and b.batch:
        raise ImpossibleError("a single sample's axis would go")
    inputs = [x, b.ints(ones)] if b.batch or b.chance(0.7) else [x]
    b.node(op, inputs, exact=True)


@entry("Transpose")
def transpose(b: Builder, op: str) -> None:
    x = b.pick(ANY, (2, 3, 4, 5))
    start = 1 if b.batch else 0
    perm = [*range(start), *b.random.permutation(np.arange(start, x.rank)).tolist()]
    b.node(op, [x], perm=perm if b.batch or b.chance(0.85) else None, exact=True)


@entry("Concat")
def concat(b: Builder, op: str) -> None:
    x = b.pick(ANY, (1, 2, 3, 4))
    axis = b.axis(x.rank)
    parts = [x]
    for _ in range(b.between(0, 2)):
        shape = list(x.shape)
        fitting = [
            v for v in b.values
            if v.dtype == x.dtype and v.rank == x.rank
            and all(s == t for i, (s, t) in enumerate(zip(v.shape, x.shape, strict=True))
                    if i != axis % x.rank)
        ]  # fmt: skip
        shape[axis] = b.between(1, 4)
        parts.append(b.one_of(*fitting) if b.chance(0.6) else b.operand(shape, x.dtype))
    b.node(op, [parts[i] for i in b.random.permutation(len(parts))], axis=axis, exact=True)


@entry("Split")
def split(b: Builder, op: str) -> None:
    x = b.pick(ANY, (1, 2, 3, 4))
    axis = b.axis(x.rank)
    size = x.shape[axis]
    if size < 2:
        raise ImpossibleError("nothing to split")
    if b.chance(0.5):
        cut = b.between(1, size - 1)
        b.node(op, [x, b.ints([cut, size - cut])], 2, axis=axis, exact=True)
        return
    count = b.one_of(*(n for n in (2, 3, 4) if n <= size))
    number = {"num_outputs": count} if b.opset >= 18 else {}
    b.node(op, [x], count, axis=axis, exact=True, **number)


@entry("Slice")
def slices(b: Builder, op: str) -> None:
    x = b.pick(ANY, (1, 2, 3, 4))
    axes = b.axes(x.rank)
    starts, ends, steps = [], [], []
    for axis in axes:
        size = x.shape[axis]
        low, step = b.between(0, max(0, size - 1)), b.one_of(1, 1, 1, 2, -1, -2)
        high = b.between(low + 1, size + 2)
        if step < 0:
            low, high = min(high, size) - 1, (low - 1 if low else -(2**31))
        elif b.chance(0.3):
            low, high = low - size, 2**31 - 1
        starts.append(low)
        ends.append(high)
        steps.append(step)
    dtype = b.one_of("int64", "int32")
    operands = [b.ints(n, dtype) for n in (starts, ends, axes, steps)]
    if all(s == 1 for s in steps) and b.chance(0.4):
        operands.pop()
    b.node(op, [x, *operands], exact=True)


@entry("Pad")
def pad(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float32", "float64", "int64", "int32", "uint8"), (1, 2, 3, 4))
    axes = {a % x.rank for a in b.axes(x.rank)}
    amounts = [b.between(-1, 2) if i % x.rank in axes else 0 for i in range(2 * x.rank)]
    modes = ["constant", "reflect", "edge", *(["wrap"] if b.opset >= 19 else [])]
    mode = b.one_of(*modes)
    if mode != "constant":
        amounts = [max(0, a) for a in amounts]
    inputs: list[Drawn | None] = [x, b.ints(amounts)]
    if mode == "constant" and b.chance(0.5):
        inputs.append(b.constant(np.asarray(1, x.dtype)))
    if b.opset >= 18 and b.chance(0.3):
        chosen = sorted(axes)
        begins, ends = amounts[: x.rank], amounts[x.rank :]
        kept = [begins[a] for a in chosen] + [ends[a] for a in chosen]
        inputs = [x, b.ints(kept), inputs[2] if len(inputs) > 2 else None, b.ints(chosen)]
    b.node(op, inputs, mode=mode if b.chance(0.9) or mode != "constant" else None, exact=True)


@entry("Expand", "Tile")
def expand(b: Builder, op: str) -> None:
    x = b.pick(ANY, (1, 2, 3, 4))
    first = 1 if b.batch else 0
    counts = [b.one_of(1, 2, 3) if i >= first and b.chance(0.5) else 1 for i in range(x.rank)]
    if op == "Tile":
        b.node(op, [x, b.ints(counts)], exact=True)
        return
    shape = [n if s == 1 and i >= first else b.one_of(1, s) if i else 1
             for i, (s, n) in enumerate(zip(x.shape, counts, strict=True))]  # fmt: skip
    b.node(op, [x, b.ints(shape[b.between(0, len(shape)) :])], exact=True)


@entry("DepthToSpace", "SpaceToDepth")
def depth(b: Builder, op: str) -> None:
    block = b.one_of(1, 2, 3)
    n, c, h, w = b.sizes(4)
    shape = (n, max(1, c // 4) * block**2, h, w) if op[0] == "D" else (n, c, 2 * block, block)
    x = b.pick(("float32", "float32", "float64"), (4,)) if b.chance(0.4) else b.fresh(
        shape, "float32")  # fmt: skip
    mode = {"mode": b.one_of("DCR", "CRD")} if op == "DepthToSpace" else {}
    b.node(op, [x], blocksize=block, exact=True, **mode)


@entry("CenterCropPad")
def crop(b: Builder, op: str) -> None:
    x = b.pick(("float32", "int64"), (2, 3, 4))
    axes = b.axes(x.rank)
    shape = b.ints([max(1, x.shape[a] + b.between(-2, 3)) for a in axes])
    b.node(op, [x, shape], axes=axes, exact=True)


@entry("Trilu")
def triangle(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float32", "float64", "int64", "bool"), (2, 3, 4))
    if b.batch and x.rank == 2:
        raise ImpossibleError("mixes samples")
    offset = [b.constant(np.asarray(b.between(-2, 2), np.int64))] if b.chance(0.6) else []
    b.node(op, [x, *offset], upper=b.between(0, 1), exact=True)


@entry("Shape", "Size")
def shape(b: Builder, op: str) -> None:
    """The shape of a value, and something that is computed from it."""
    x = b.pick(ANY, (1, 2, 3, 4))
    bounds = {}
    if op == "Shape" and b.opset >= 15 and b.chance(0.5):
        bounds = {"start": b.between(-x.rank, x.rank - 1)}
    if b.batch:
        if op == "Size":
            raise ImpossibleError("mixes samples")
        bounds = {"start": 1} if b.opset >= 15 else {}
    sizes = b.node(op, [x], exact=True, **bounds)[0]
    if op == "Size":
        b.node("Mul", [sizes, b.ints(2)])
    elif b.chance(0.5) and sizes.array.prod() <= 512:
        b.node("ConstantOfShape", [sizes], exact=True)


@entry("ConstantOfShape")
def constant_of_shape(b: Builder, op: str) -> None:
    from onnx import numpy_helper

    value = numpy_helper.from_array(b.numbers((1,), b.one_of(*ANY)))
    b.node(op, [b.ints(b.sizes(b.between(0, 3)))], value=value, exact=True)


@entry("EyeLike")
def eye(b: Builder, op: str) -> None:
    x = b.pick(("float32", "int64", "float64"), (2,))
    dtype = {"dtype": code(b.one_of("float32", "int64"))} if b.chance(0.6) else {}
    b.node(op, [x], k=b.between(-2, 2), exact=True, **dtype)


@entry("Range")
def ranges(b: Builder, op: str) -> None:
    dtype = b.one_of("int64", "int32", "float32")
    low, step = b.between(-3, 3), b.one_of(1, 2, -1)
    high = low + step * b.between(1, 9)
    b.node(op, [b.constant(np.asarray(n, dtype)) for n in (low, high, step)], exact=True)


# --- indexing ----------------------------------------------------------------------


def indices(b: Builder, shape: tuple[int, ...], size: int) -> Drawn:
    """Indices in range: constants, inputs, or computed in the graph."""
    if size < 1:
        raise ImpossibleError("no index")
    dtype = b.one_of("int64", "int32")
    low = -size if b.chance(0.4) else 0
    array = b.random.integers(low, size, shape).astype(dtype)
    if b.chance(0.5) and not (b.batch and shape and shape[0] == BATCH):
        return b.constant(array)
    given = b.input(array)
    if b.chance(0.3):
        return b.node("Clip", [given, b.constant(np.asarray(low, dtype)),
                               b.constant(np.asarray(size - 1, dtype))])[0]  # fmt: skip
    return given


@entry("Gather")
def gather(b: Builder, op: str) -> None:
    x = b.pick(ANY, (1, 2, 3, 4))
    axis = b.axis(x.rank)
    shape = b.one_of((), (1,), (3,), (2, 3))
    if b.batch and b.chance(0.3):  # an embedding
        table = b.constant(b.numbers((7, 5), "float32"))
        b.node(op, [table, b.input(b.random.integers(0, 7, (BATCH, 3)))], exact=True)
        return
    index = indices(b, shape, x.shape[axis])
    b.node(op, [x, index], axis=axis, exact=True)


@entry("GatherElements")
def gather_elements(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float32", "float64", "int64", "int32"), (1, 2, 3))
    axis = b.axis(x.rank)
    shape = list(x.shape)
    shape[axis] = b.between(1, 5)
    b.node(op, [x, indices(b, tuple(shape), x.shape[axis])], axis=axis, exact=True)


@entry("GatherND")
def gather_nd(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float32", "float64", "int64", "int32"), (2, 3, 4))
    batch_dims = 1 if b.batch else b.between(0, x.rank - 2)
    depth = b.between(1, x.rank - batch_dims)
    limit = min(x.shape[batch_dims : batch_dims + depth])
    index = indices(b, (*x.shape[:batch_dims], b.between(1, 4), depth), limit)
    if index.dtype != "int64":
        index = b.node("Cast", [index], to=code("int64"))[0]
    b.node(op, [x, index], batch_dims=batch_dims, exact=True)


@entry("ScatterElements")
def scatter_elements(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float32", "float64", "int64", "int32"), (1, 2, 3))
    axis = b.axis(x.rank)
    size = x.shape[axis]
    shape = list(x.shape)
    shape[axis] = count = b.between(1, size)
    modes = ["none", *(["add", "mul"] if b.opset >= 16 else [])]
    mode = b.one_of(*modes, *(["max", "min"] if b.opset >= 18 else []))
    if mode == "none":  # no index twice
        line = b.random.permutation(size)[:count]
        array = np.broadcast_to(line.reshape([-1 if i == axis % x.rank else 1
                                              for i in range(x.rank)]), shape)  # fmt: skip
        if b.batch and shape[0] == BATCH:
            index = b.input(np.ascontiguousarray(array))
        else:
            index = b.constant(np.ascontiguousarray(array))
    else:
        index = indices(b, tuple(shape), size)
    attributes = {"reduction": mode} if b.opset >= 16 else {}
    updates = b.operand(shape, x.dtype)
    b.node(op, [x, index, updates], axis=axis, exact=mode == "none", **attributes)


@entry("ScatterND")
def scatter_nd(b: Builder, op: str) -> None:
    if b.batch:
        raise ImpossibleError("mixes samples")
    x = b.pick(("float32", "float32", "float64", "int64", "int32"), (1, 2, 3))
    depth = b.between(1, x.rank)
    rows = [
        tuple(int(b.between(0, s - 1)) for s in x.shape[:depth]) for _ in range(b.between(1, 4))
    ]
    mode = b.one_of("none", "add", "mul") if b.opset >= 16 else "none"
    if mode == "none":
        rows = sorted(set(rows))
    updates = b.operand((len(rows), *x.shape[depth:]), x.dtype)
    attributes = {"reduction": mode} if b.opset >= 16 else {}
    index = np.asarray(rows, np.int64).reshape(len(rows), depth)
    given = b.constant(index) if b.chance(0.5) else b.input(index)
    b.node(op, [x, given, updates], exact=mode == "none", **attributes)


@entry("TensorScatter")
def tensor_scatter(b: Builder, op: str) -> None:
    n, h, w = b.sizes(3)
    cache = b.fresh((n, h + 1, w), "float32")
    count = b.between(1, h + 1)
    update = b.input(b.numbers((cache.shape[0], count, w), "float32"))
    places = b.random.integers(0, h + 2 - count, cache.shape[:1])
    b.node(op, [cache, update, b.input(places)], axis=1, mode=b.one_of("linear", "circular"),
           exact=True)  # fmt: skip


@entry("OneHot")
def one_hot(b: Builder, op: str) -> None:
    index = b.fresh(b.sizes(b.between(1, 2)), "int64")
    values = b.constant(
        np.asarray([0, 1] if b.chance(0.7) else [-1, 3], b.one_of("float32", "int64"))
    )
    depth = b.constant(np.asarray(b.one_of(1, 4, 10), b.one_of("int64", "float32")))
    axis = b.one_of(-1, 1, None if b.batch else 0)
    b.node(op, [index, depth, values], axis=axis, exact=True)


@entry("ReverseSequence")
def reverse_sequence(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float32", "float64", "int64"), (2, 3))
    batch_axis = 0 if b.batch else b.between(0, 1)
    size, count = x.shape[1 - batch_axis], x.shape[batch_axis]
    if not size or not count:
        raise ImpossibleError("nothing to reverse")
    lengths = b.random.integers(1, size + 1, (count,))
    given = b.input(lengths) if b.batch or b.chance(0.5) else b.constant(lengths)
    b.node(op, [x, given], batch_axis=batch_axis, time_axis=1 - batch_axis, exact=True)


@entry("Compress")
def compress(b: Builder, op: str) -> None:
    x = b.pick(("float32", "int64", "float64"), (1, 2, 3))
    axis = b.axis(x.rank)
    mask = b.random.random(x.shape[axis]) < 0.6
    given = b.constant(mask) if b.batch or b.chance(0.5) else b.input(mask)
    b.node(op, [x, given], axis=axis, exact=True)


@entry("NonZero")
def non_zero(b: Builder, op: str) -> None:
    if b.batch:
        raise ImpossibleError("mixes samples")
    b.node(op, [b.pick(("bool", "int64", "float32"), (1, 2, 3))], exact=True)


# --- constants and signals ---------------------------------------------------------


@entry("HannWindow", "HammingWindow", "BlackmanWindow")
def window(b: Builder, op: str) -> None:
    size = b.constant(np.asarray(b.one_of(1, 4, 9, 16), np.int64))
    b.node(op, [size], periodic=b.between(0, 1), output_datatype=code("float32"))


@entry("MelWeightMatrix")
def mel(b: Builder, op: str) -> None:
    integers = [b.constant(np.asarray(n, np.int64)) for n in (b.between(2, 6), 64, 8000)]
    ends = [b.constant(np.asarray(n, np.float32)) for n in (20.0, 3800.0)]
    b.node(op, [*integers, *ends])


@entry("DFT")
def fourier(b: Builder, op: str) -> None:
    n, size, _ = b.sizes(3)
    inverse = b.between(0, 1)
    components = 2 if inverse else b.between(1, 2)
    x = b.fresh((n, size, components), "float32")
    onesided = b.between(0, 1) if not inverse and components == 1 else 0
    length = b.one_of(None, b.ints(max(1, size + b.between(-1, 2))))
    if b.opset < 20:
        b.node(op, [x, length], axis=1, inverse=inverse, onesided=onesided)
    else:
        axis = b.constant(np.asarray(b.one_of(1, -2), np.int64))
        b.node(op, [x, length, axis], inverse=inverse, onesided=onesided)


@entry("STFT")
def short_time_fourier(b: Builder, op: str) -> None:
    x = b.fresh((b.between(1, 2), 32, 1), "float32")
    step = b.constant(np.asarray(b.one_of(4, 7), np.int64))
    frame = b.constant(np.asarray(8, np.int64))
    weights = b.constant(b.random.uniform(0.2, 1, 8).astype(np.float32))
    inputs = b.one_of([x, step, weights], [x, step, weights, frame], [x, step, None, frame])
    b.node(op, inputs, onesided=b.between(0, 1))


@entry("Det")
def determinant(b: Builder, op: str) -> None:
    size = b.between(1, 4)
    b.node(op, [b.fresh((*b.sizes(1), size, size), b.one_of("float32", "float64"))])


@entry("Einsum")
def einsum(b: Builder, op: str) -> None:
    n, i, j, k = b.sizes(4)
    equation, *shapes = b.one_of(
        ("nij,njk->nik", (n, i, j), (n, j, k)), ("nij,nkj->nik", (n, i, j), (n, k, j)),
        ("ni,ni->n", (n, i), (n, i)), ("nij->nji", (n, i, j)), ("...ij,...jk->...ik", (n, i, j),
        (n, j, k)), ("ni,ij->nj", (n, i), (i, j)), ("nij->n", (n, i, j)),
    )  # fmt: skip
    given = []
    for shape in shapes:
        own = b.batch and ((shape[0] == n and equation != "ni,ij->nj") or not given)
        shape = (BATCH, *shape[1:]) if own else shape
        given.append(b.operand(shape, "float32") if given else b.input(b.numbers(shape, "float32")))
    b.node(op, given, equation=equation)
