"""How to draw nodes with weights: convolutions, products, recurrences, pooling, attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from .random_builder import Builder, Drawn, ImpossibleError
from .random_nodes import entry, partner

REAL = ("float32", "float32", "float32", "float64")


def window(b: Builder, x: Drawn, *, dilated: bool = True) -> dict[str, Any]:
    """Attributes of a window that fits in the spatial axes."""
    spatial = x.shape[2:]
    kernel = [b.one_of(*(k for k in (1, 2, 3, 3, 5) if k <= max(1, s))) for s in spatial]
    found: dict[str, Any] = {"kernel_shape": kernel}
    if b.chance(0.5):
        found["strides"] = [b.between(1, 3) for _ in spatial]
    if dilated and b.chance(0.2):
        found["dilations"] = [b.between(1, 2) for _ in spatial]
    form = b.random.random()
    if form < 0.5:
        found["pads"] = [b.between(0, (kernel[i % len(kernel)] - 1) // 2 + (kernel[
            i % len(kernel)] > 1)) for i in range(2 * len(spatial))]  # fmt: skip
        found["pads"] = [min(p, kernel[i % len(kernel)] - 1) for i, p in enumerate(found["pads"])]
    elif form < 0.65:
        found["auto_pad"] = b.one_of("SAME_UPPER", "SAME_LOWER", "VALID")
        found.pop("dilations", None)
    return found


def image(b: Builder, dtypes: tuple[str, ...] = REAL) -> Drawn:
    """A value of samples, channels and one to three axes of space, mostly two."""
    rank = b.one_of(3, 4, 4, 4, 4, 5)
    if b.chance(0.5):
        return b.pick(dtypes, (rank,))
    size = b.one_of(5, 7, 8, 11)
    channels = b.one_of(1, 2, 3, 4, 8, 16, 17)
    spatial = (size, b.one_of(5, 6, 9), 3)[: rank - 2]
    return b.fresh((b.one_of(1, 1, 2), channels, *spatial), b.one_of(*dtypes))


@entry("Conv", "ConvTranspose")
def convolution(b: Builder, op: str) -> None:
    x = image(b)
    channels = x.shape[1]
    groups = b.one_of(1, 1, 1, channels, *(g for g in (2, 4) if channels % g == 0))
    if not groups or channels % groups:
        raise ImpossibleError("groups")
    found = window(b, x)
    kernel = found["kernel_shape"]
    each = b.one_of(1, 2, 3, 4) if groups > 1 else b.one_of(1, 3, 8, 16, 20)
    if op == "Conv":
        weights = b.weights(groups * each, channels // groups, *kernel, dtype=x.dtype)
    else:
        weights = b.weights(channels, each, *kernel, dtype=x.dtype)
        if "auto_pad" not in found and b.chance(0.3):
            strides = found.get("strides", [1] * len(kernel))
            found["output_padding"] = [b.between(0, s - 1) for s in strides]
    bias = [b.operand((groups * each,), x.dtype)] if b.chance(0.6) else []
    if b.chance(0.2):
        found.pop("kernel_shape")
    y = b.node(op, [x, weights, *bias], group=groups, **found)[0]
    if b.chance(0.5):
        b.node(b.one_of("Relu", "LeakyRelu", "Sigmoid", "HardSwish"), [y])


@entry("DeformConv")
def deformed(b: Builder, op: str) -> None:
    channels, out, size = b.one_of(1, 2, 4), b.one_of(1, 3), b.one_of(5, 6)
    x = b.fresh((1, channels, size, size), "float32")
    offsets = b.input(b.numbers((x.shape[0], 18, size - 2, size - 2), "float32", -0.8, 0.8))
    inputs: list[Drawn | None] = [x, b.weights(out, channels, 3, 3), offsets]
    if b.chance(0.5):
        inputs.append(b.operand((out,), "float32"))
    b.node(op, inputs, kernel_shape=[3, 3])


@entry("AveragePool", "MaxPool", "LpPool")
def pool(b: Builder, op: str) -> None:
    x = image(b, ("float32",) if op == "LpPool" else REAL)
    dilated = op == "MaxPool" or b.opset >= 19
    found = window(b, x, dilated=dilated and op != "LpPool")
    if b.chance(0.2) and op != "LpPool":
        found["ceil_mode"] = 1
    if op == "AveragePool":
        found["count_include_pad"] = b.between(0, 1)
    if op == "LpPool":
        found["p"] = b.between(1, 3)
    outputs = [True, True] if op == "MaxPool" and b.chance(0.1) else [True]
    b.node(op, [x], outputs, exact=op == "MaxPool", **found)


@entry("MaxUnpool")
def unpool(b: Builder, op: str) -> None:
    if b.batch:
        raise ImpossibleError("mixes samples")
    n, c, _, _ = b.sizes(4)
    x = b.fresh((n, c, 6, 8), "float32")
    y, places = b.node("MaxPool", [x], 2, exact=True, kernel_shape=[2, 2], strides=[2, 2])
    b.node(op, [y, places], exact=True, kernel_shape=[2, 2], strides=[2, 2])


@entry("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(b: Builder, op: str) -> None:
    p = {"p": b.between(1, 2)} if op == "GlobalLpPool" else {}
    b.node(op, [image(b, REAL[:1] if p else REAL)], exact=op == "GlobalMaxPool", **p)


@entry("Col2Im")
def col2im(b: Builder, op: str) -> None:
    n, c, _ = b.sizes(3)
    x = b.fresh((n, c * 4, 20), "float32")
    b.node(op, [x, b.ints([5, 6]), b.ints([2, 2])])


@entry("MaxRoiPool", "RoiAlign")
def regions(b: Builder, op: str) -> None:
    if b.batch:
        raise ImpossibleError("mixes samples")
    x = b.fresh((b.between(1, 2), b.one_of(1, 3), 8, 9), "float32")
    count = b.between(1, 3)
    corners = b.random.uniform(0, 3, (count, 2)).round(2)
    boxes = np.concatenate([corners, corners + b.random.uniform(1.2, 4, (count, 2)).round(2)], 1)
    owners = b.random.integers(0, x.shape[0], (count,))
    if op == "MaxRoiPool":
        rois = np.concatenate([owners[:, None], boxes.round()], 1).astype(np.float32)
        b.node(op, [x, b.input(rois)], pooled_shape=[2, 3], spatial_scale=1.0, exact=True)
        return
    half = {"coordinate_transformation_mode": b.one_of("half_pixel", "output_half_pixel")}
    b.node(
        op, [x, b.input(boxes.astype(np.float32)), b.input(owners)], output_height=2,
        output_width=b.one_of(1, 3), sampling_ratio=b.one_of(0, 2), mode=b.one_of("avg", "max"),
        **(half if b.opset >= 16 else {}),
    )  # fmt: skip


@entry("NonMaxSuppression")
def suppression(b: Builder, op: str) -> None:
    if b.batch:
        raise ImpossibleError("mixes samples")
    count = b.between(1, 6)
    corners = b.random.uniform(0, 5, (1, count, 2))
    boxes = np.concatenate([corners, corners + b.random.uniform(1, 4, (1, count, 2))], 2)
    scores = b.numbers((1, b.between(1, 2), count), "float32", 0, 1)
    limits = [b.ints([3]), b.constant(np.float32([0.4])), b.constant(np.float32([0.2]))]
    b.node(op, [b.input(boxes.astype(np.float32)), b.input(scores), *limits], exact=True)


# --- products ----------------------------------------------------------------------


@entry("MatMul")
def product(b: Builder, op: str) -> None:
    x = b.pick(REAL, (1, 2, 3, 4))
    out = b.one_of(1, 3, 8, 16, 33)
    if b.chance(0.55):
        y = b.weights(x.shape[-1], out, dtype=x.dtype)
    else:
        lead = x.shape[:-2] if b.chance(0.6) else ()
        y = b.operand((*lead, x.shape[-1], out), x.dtype)
    z = b.node(op, [x, y])[0]
    if b.chance(0.4):
        b.node("Add", [z, partner(b, z)])


@entry("Gemm")
def gemm(b: Builder, op: str) -> None:
    x = b.pick(REAL, (2,))
    left, right = (0 if b.batch else b.between(0, 1)), b.between(0, 1)
    rows, inner = x.shape[::-1] if left else x.shape
    out = b.one_of(1, 4, 8, 17)
    y = b.weights(*((out, inner) if right else (inner, out)), dtype=x.dtype)
    shape = b.one_of((out,), (1,), (), (1, out), (rows, 1), (rows, out))
    bias = [b.operand(shape, x.dtype)] if b.chance(0.7) else []
    factors = {"alpha": b.one_of(0.5, 1.0), "beta": b.one_of(2.0, 1.0)} if b.chance(0.4) else {}
    b.node(op, [x, y, *bias], transA=left, transB=right, **factors)


def bytes_of(b: Builder, x: Drawn) -> list[Drawn]:
    """A value as bytes, their scale and zero point."""
    scale = b.constant(np.float32(b.random.uniform(0.01, 0.04)))
    dtype = b.one_of("uint8", "int8")
    zero = b.constant(np.asarray(b.between(100, 140) if dtype == "uint8" else 3, dtype))
    return [b.node("QuantizeLinear", [x, scale, zero])[0], scale, zero]


def bytes_weights(b: Builder, shape: tuple[int, ...], dtype: str) -> list[Drawn]:
    zero = 128 if dtype == "uint8" else 0
    array = b.random.integers(-63, 64, shape) + zero  # else ONNX Runtime saturates sums of two
    scale = b.constant(np.float32(b.random.uniform(0.005, 0.02)))
    return [b.constant(array.astype(dtype)), scale, b.constant(np.asarray(zero, dtype))]


def result_of(b: Builder, dtype: str) -> list[Drawn]:
    scale = b.constant(np.float32(b.random.uniform(0.02, 0.06)))
    return [scale, b.constant(np.asarray(120 if dtype == "uint8" else 5, dtype))]


@entry("QLinearMatMul", "MatMulInteger")
def integer_product(b: Builder, op: str) -> None:
    x = bytes_of(b, b.pick(ranks=(2, 3)))
    y = bytes_weights(b, (x[0].shape[-1], b.one_of(1, 4, 16)), b.one_of("int8", "uint8"))
    if op == "MatMulInteger":
        zeros = b.one_of([], [x[2]], [x[2], y[2]])
        b.node(op, [x[0], y[0], *zeros])
        return
    result = b.node(op, [*x, *y, *result_of(b, x[0].dtype)])[0]
    b.node("DequantizeLinear", [result, *result_of(b, x[0].dtype)])


@entry("QLinearConv", "ConvInteger")
def integer_convolution(b: Builder, op: str) -> None:
    given = image(b, ("float32",))
    if given.rank != 4:
        raise ImpossibleError("rank")
    x = bytes_of(b, given)
    if op == "ConvInteger" and x[0].dtype != "uint8":
        raise ImpossibleError("ONNX Runtime has none for int8")
    out = b.one_of(1, 4, 16)
    found = window(b, x[0])
    y = bytes_weights(b, (out, given.shape[1], *found["kernel_shape"]), b.one_of("int8", "uint8"))
    if op == "ConvInteger":
        b.node(op, [x[0], y[0], *b.one_of([], [x[2]])], **found)
        return
    bias = [b.constant(b.random.integers(-500, 500, out).astype("int32"))] if b.chance(0.5) else []
    inputs = [*x, *y, *result_of(b, x[0].dtype), *bias]
    result = b.node(op, inputs, **found)[0]
    b.node("DequantizeLinear", [result, *result_of(b, x[0].dtype)])


# --- recurrences -------------------------------------------------------------------


@entry("RNN", "GRU", "LSTM")
def recurrence(b: Builder, op: str) -> None:
    hidden, gates = b.one_of(1, 4, 8, 11), {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    direction = b.one_of("forward", "forward", "reverse", "bidirectional")
    count = 2 if direction == "bidirectional" else 1
    layout = {}
    if b.batch:  # time comes first: samples are moved there and back
        x = b.node("Transpose", [b.pick(ranks=(3,))], perm=[1, 0, 2], exact=True)[0]
    else:
        x = b.pick(ranks=(3,))
    steps, samples, size = x.shape
    if not x.array.size:
        raise ImpossibleError("ONNX Runtime aborts")
    w = b.weights(count, gates * hidden, size)
    r = b.weights(count, gates * hidden, hidden)
    inputs: list[Drawn | None] = [x, w, r]
    if b.chance(0.6):
        inputs.append(b.constant(b.numbers((count, 2 * gates * hidden), "float32", -0.5, 0.5)))
        if not b.batch and b.chance(0.4):
            lengths = b.random.integers(1, steps + 1, samples).astype("int32") if steps else None
            inputs.append(b.constant(lengths) if lengths is not None and b.chance(0.5) else None)
            inputs.append(b.operand((count, samples, hidden), "float32"))
    if op == "GRU" and b.chance(0.5):
        layout["linear_before_reset"] = 1
    wanted = b.one_of([True], [True, True], [False, True])
    b.node(op, inputs, wanted, hidden_size=hidden, direction=direction, **layout)


# --- resizing ----------------------------------------------------------------------


@entry("Resize")
def resize(b: Builder, op: str) -> None:
    x = image(b, ("float32", "float32", "uint8"))
    if x.rank != 4:
        raise ImpossibleError("rank")
    mode = b.one_of("nearest", "linear", "linear", "cubic")
    if mode == "cubic" and x.dtype == "uint8":
        raise ImpossibleError("rounds")
    found: dict[str, Any] = {"mode": mode}
    coordinates = ["half_pixel", "asymmetric", "pytorch_half_pixel"]
    found["coordinate_transformation_mode"] = b.one_of(*coordinates)
    if mode == "nearest":
        found["nearest_mode"] = b.one_of("floor", "round_prefer_floor", "ceil", "round_prefer_ceil")
    if mode == "cubic" and b.chance(0.3):
        found["exclude_outside"] = 1
    if b.opset >= 18 and b.chance(0.2) and mode != "nearest" and x.dtype != "uint8":
        found["antialias"] = 1
    exact = mode == "nearest"
    if b.chance(0.5):
        scales = [1.0, 1.0, *(b.one_of(0.5, 1.0, 2.0, 1.5, 3.0) for _ in range(2))]
        b.node(op, [x, None, b.constant(np.asarray(scales, np.float32))], exact=exact, **found)
        return
    sizes = [*x.shape[:2], *(b.one_of(s, 2 * s, s + 1, max(1, s - 2)) for s in x.shape[2:])]
    if b.opset >= 18 and b.chance(0.5):
        operands = [x, None, None, b.ints(sizes[2:])]
        b.node(op, operands, exact=exact, axes=[2, 3], **found)
    else:
        b.node(op, [x, None, None, b.ints(sizes)], exact=exact, **found)


@entry("GridSample", "AffineGrid")
def grid(b: Builder, op: str) -> None:
    corners = b.between(0, 1)
    x = b.fresh((b.between(1, 2), b.one_of(1, 3), 5, 6), "float32")
    if (b.opset >= 20 and b.chance(0.5)) or op == "AffineGrid":
        array = np.eye(2, 3)[None] + b.random.uniform(-0.2, 0.2, (x.shape[0], 2, 3))
        theta = b.input(array.astype(np.float32))
        if b.batch:
            raise ImpossibleError("sizes are constants")
        size = b.ints([x.shape[0], 3, 4, 5])
        places = b.node("AffineGrid", [theta, size], align_corners=corners)[0]
    else:
        places = b.input(b.numbers((x.shape[0], 3, 4, 2), "float32", -1.1, 1.1))
    names = ("linear", "nearest", "cubic") if b.opset >= 20 else ("bilinear", "nearest", "bicubic")
    padding = b.one_of("zeros", "border", "reflection")
    b.node("GridSample", [x, places], align_corners=corners, mode=b.one_of(*names),
           padding_mode=padding)  # fmt: skip


# --- losses and attention ----------------------------------------------------------


@entry("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
def loss(b: Builder, op: str) -> None:
    x = b.pick(ranks=(2, 3))
    labels = b.random.integers(0, max(1, x.shape[1]), (x.shape[0], *x.shape[2:]))
    weights = [b.constant(b.numbers(x.shape[1:2], "float32", 0.2, 1))] if b.chance(0.4) else []
    reduction = b.one_of("none", "mean", "sum") if not b.batch else "none"
    outputs = [True, True] if op[0] == "S" and b.chance(0.3) else [True]
    b.node(op, [x, b.input(labels), *weights], outputs, reduction=reduction)


@entry("Attention")
def attention(b: Builder, op: str) -> None:
    n, heads, steps, size = b.between(1, 2), b.between(1, 3), b.between(1, 5), b.one_of(1, 4, 8)
    keys = b.between(1, 5)
    q = b.fresh((n, heads, steps, size), "float32")
    k, v = (b.input(b.numbers((q.shape[0], heads, keys, size), "float32")) for _ in range(2))
    mask = [b.operand((steps, keys), "float32")] if b.chance(0.4) else []
    b.node(op, [q, k, v, *mask], is_causal=b.between(0, 1) if not mask else 0)


@entry("RotaryEmbedding")
def rotary(b: Builder, op: str) -> None:
    n, heads, steps, half = b.between(1, 2), b.between(1, 3), b.between(1, 5), b.one_of(1, 2, 4)
    x = b.fresh((n, heads, steps, 2 * half), "float32")
    tables = [b.constant(b.numbers((steps, half), "float32", -1, 1)) for _ in range(2)]
    places = b.input(b.random.integers(0, steps, (x.shape[0], steps)))
    b.node(op, [x, *tables, places], interleaved=b.between(0, 1))
