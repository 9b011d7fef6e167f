"""How to draw a node of each operator that can be lowered: elementwise, reductions, quantization.

An entry takes a builder and the operator and adds a node, with operands and attributes in
several forms, to values that the graph has; or raises ImpossibleError. `random_movement.py` and
`random_images.py` have the entries of the other operators, `LEFT_OUT` those that have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import helper

from secateur.ir.ops import Trait, with_trait

from .random_builder import ANY, FLOATS, NUMBERS, Builder, Drawn, ImpossibleError

Entry = Callable[[Builder, str], None]

ENTRIES: dict[str, Entry] = {}

LEFT_OUT = {
    **dict.fromkeys(with_trait(Trait.RANDOM) - {"Dropout"}, "its results are random"),
    "Scatter": "of operator sets up to 10",
    "Upsample": "of operator sets up to 9",
    "Unique": "its rule refuses, since the results' sizes depend on data",
    "SequenceMap": "its operands are sequences",
    "SimplifiedLayerNormalization": "ONNX has no schema of it; see test_contrib.py",
    **dict.fromkeys(
        ("BitCast", "CausalConvWithState", "CumProd", "LinearAttention", "SwiGLU"),
        "of an operator set that ONNX Runtime doesn't have",
    ),
}  # fmt: skip

REALS = ("float32", "float32", "float32", "float64", "float16")


def entry(*op_types: str) -> Callable[[Entry], Entry]:
    """Register an entry for some operators."""

    def register(function: Entry) -> Entry:
        ENTRIES.update(dict.fromkeys(op_types, function))
        return function

    return register


def code(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


# --- elementwise -------------------------------------------------------------------


@entry(
    "Abs", "Atan", "Asinh", "Cos", "Elu", "Erf", "Exp", "Celu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Sign", "Sin", "Softplus",
    "Softsign", "Swish", "Tanh", "ThresholdedRelu", "Shrink", "Gelu",
)  # fmt: skip
def unary(b: Builder, op: str) -> None:
    integers = op in ("Abs", "Neg", "Relu", "Sign", "Identity")
    x = b.pick(NUMBERS if integers else REALS, range(6))
    attributes: dict[str, float | str] = {}
    if op in ("Elu", "Celu", "LeakyRelu", "ThresholdedRelu", "Swish", "HardSigmoid"):
        attributes["alpha"] = b.one_of(0.01, 0.2, 0.5, 1.0, 1.5)
    if op == "Gelu":
        attributes["approximate"] = b.one_of("none", "tanh")
    if op == "Shrink":
        attributes.update(lambd=0.5, bias=b.one_of(0.0, 0.5))
    if b.chance(0.3):
        attributes = {}
    b.node(op, [x], exact=op in ("Abs", "Neg", "Relu", "Sign", "Identity"), **attributes)


@entry("Cosh", "Sinh", "Tan", "Acos", "Asin", "Atanh", "Acosh", "Log", "Sqrt", "Reciprocal")
def unary_within(b: Builder, op: str) -> None:
    low, high = {
        "Acos": (-0.9, 0.9), "Asin": (-0.9, 0.9), "Atanh": (-0.9, 0.9), "Acosh": (1.1, 1e3),
        "Log": (0.05, math.inf), "Sqrt": (0.0, math.inf), "Reciprocal": (0.1, math.inf),
        "Cosh": (-6, 6), "Sinh": (-6, 6), "Tan": (-1.3, 1.3),
    }[op]  # fmt: skip
    kinds = REALS if op in ("Log", "Sqrt", "Reciprocal") else REALS[:4]
    b.node(op, [b.within(b.pick(kinds, range(6)), low, high)])


@entry("Floor", "Ceil", "Round")
def rounding(b: Builder, op: str) -> None:
    b.node(op, [b.pick(REALS, range(5))], exact=True)


@entry("IsNaN")
def is_nan(b: Builder, op: str) -> None:
    b.node(op, [b.pick(REALS)])


@entry("IsInf")
def is_inf(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float64"))
    zero = b.node("Sub", [x, x])[0] if b.chance(0.5) else x
    b.node(op, [zero], detect_negative=b.between(0, 1), detect_positive=b.between(0, 1))


def partner(b: Builder, x: Drawn, low: float = -2, high: float = 2) -> Drawn:
    """An operand that broadcasts with another, in either direction."""
    shape = list(x.shape)
    for axis in range(len(shape)):
        if b.chance(0.3):
            shape[axis] = 1
    form = b.random.random()
    if form < 0.2:
        shape = []
    elif form < 0.45 and shape:
        shape = shape[b.between(0, len(shape)) :]
    elif form < 0.55 and len(shape) < 4:
        shape = [1 if b.batch else b.between(1, 2), *shape]
    elif form < 0.75:
        shape = list(x.shape)
    return b.operand(shape, x.dtype, low, high)


def swapped(b: Builder, x: Drawn, y: Drawn) -> list[Drawn]:
    return [y, x] if b.chance(0.4) else [x, y]


@entry("Add", "Sub", "Mul")
def arithmetic(b: Builder, op: str) -> None:
    x = b.pick(NUMBERS, range(5))
    b.node(op, swapped(b, x, partner(b, x)))


@entry("Div")
def division(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float32", "float64", "float16", "int64", "int32"), range(5))
    if x.dtype in FLOATS:
        y = b.within(partner(b, x, 0.3, 2), 0.2, math.inf)
    else:
        divisors = [d for d in range(-5, 6) if d]
        y = b.constant(b.random.choice(divisors, b.one_of((), (1,), x.shape)).astype(x.dtype))
        if b.batch and y.shape and y.shape[0] != 1:
            raise ImpossibleError("a batch of constants")
    b.node(op, [x, y])


@entry("Mod")
def modulo(b: Builder, op: str) -> None:
    x = b.pick(("float32", "int64", "int32"), range(5))
    if x.dtype in FLOATS:
        b.node(op, [x, b.constant(np.float32(b.one_of(0.75, -1.3)))], fmod=1)
    else:
        divisor = b.constant(np.asarray(b.one_of(-3, 2, 5), x.dtype))
        b.node(op, [x, divisor], fmod=b.between(0, 1))


@entry("Pow")
def power(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float32", "float64", "int64", "int32"), range(5))
    if x.dtype in FLOATS:
        if b.chance(0.4):
            b.node(op, [x, b.constant(np.asarray(b.one_of(1, 2, 3), b.one_of("int64", x.dtype)))])
            return
        x = b.within(x, 0.1, math.inf)
        exponent = b.one_of(0.5, -0.5, -1.0, 2.0, 1.7)
        y = b.constant(np.asarray(exponent, x.dtype)) if b.chance(0.6) else partner(b, x)
        b.node(op, [x, y])
    else:
        b.node(op, [x, b.constant(np.asarray(b.one_of(0, 1, 2, 3), x.dtype))])


@entry("Max", "Min", "Sum", "Mean")
def variadic(b: Builder, op: str) -> None:
    kinds = (*REALS, "int64", "int32") if op in ("Max", "Min") else REALS[:4]
    x = b.pick(kinds, range(5))
    others = [partner(b, x) for _ in range(b.between(0, 2))]
    b.node(op, [x, *others], exact=op in ("Max", "Min"))


@entry("Clip")
def clip(b: Builder, op: str) -> None:
    x = b.pick(NUMBERS, range(5))
    low = b.constant(np.asarray(0 if x.dtype == "uint8" else b.one_of(-1, 0), x.dtype))
    high = b.constant(np.asarray(b.one_of(1, 6), x.dtype))
    b.node(op, b.one_of([x, low, high], [x, low], [x, None, high], [x]), exact=True)


@entry("PRelu")
def prelu(b: Builder, op: str) -> None:
    x = b.pick(REALS[:4], (1, 2, 3, 4))
    channels = [s if i == 1 else 1 for i, s in enumerate(x.shape)]
    shape = b.one_of((1,), tuple(channels[1:]), x.shape, x.shape[-1:])
    b.node(op, [x, b.operand(shape, x.dtype, -0.5, 1.5)])


@entry("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def comparison(b: Builder, op: str) -> None:
    x = b.pick((*NUMBERS, *(("bool",) if op == "Equal" else ())), range(5))
    b.node(op, swapped(b, x, partner(b, x)))


def condition(b: Builder, ranks: Sequence[int] = range(5)) -> Drawn:
    """A value of truth, of a comparison where the graph has none."""
    if any(v.dtype == "bool" for v in b.values) and b.chance(0.6):
        return b.pick(("bool",), ranks)
    x = b.pick(("float32", "int64"), ranks)
    return b.node("Less", [x, partner(b, x)])[0]


@entry("And", "Or", "Xor")
def logic(b: Builder, op: str) -> None:
    x = condition(b)
    b.node(op, swapped(b, x, partner(b, x)))


@entry("Not")
def negation(b: Builder, op: str) -> None:
    b.node(op, [condition(b)])


@entry("Where")
def where(b: Builder, op: str) -> None:
    test = condition(b)
    x = b.pick(ANY, (test.rank,), lambda v: v.shape == test.shape)
    y = partner(b, x)
    b.node(op, [test, *swapped(b, x, y)], exact=True)


@entry("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift")
def bits(b: Builder, op: str) -> None:
    if op == "BitShift":
        x = b.pick(("uint8",), range(5))
        y = b.constant(b.random.integers(0, 8, b.one_of((), (1,))).astype("uint8"))
        b.node(op, [x, y], direction=b.one_of("LEFT", "RIGHT"))
        return
    x = b.pick(("int64", "int32", "uint8"), range(5))
    b.node(op, [x] if op == "BitwiseNot" else swapped(b, x, partner(b, x)))


@entry("Cast", "CastLike")
def cast(b: Builder, op: str) -> None:
    x = b.pick(ANY, range(5))
    target = b.one_of("float32", "float32", "float64", "float16", "int64", "int32", "bool", "uint8")
    if target == "uint8" and x.dtype in (*FLOATS, "int64", "int32"):
        x = b.node("Abs", [x])[0]
    if op == "Cast":
        b.node(op, [x], exact=target != "float16", to=code(target))
    else:
        b.node(op, [x, b.pick((target,), range(5))], exact=target != "float16")


@entry("Dropout")
def dropout(b: Builder, op: str) -> None:
    x = b.pick(REALS[:4], range(1, 5))
    ratio = [b.constant(np.float32(0.5))] if b.chance(0.5) else []
    b.node(op, [x, *ratio], b.one_of([True], [True, True]), exact=True)


# --- rows --------------------------------------------------------------------------


@entry("Softmax", "LogSoftmax", "Hardmax", "LpNormalization")
def rows(b: Builder, op: str) -> None:
    x = b.pick(REALS if op.endswith("oftmax") else REALS[:4], (1, 2, 3, 4))
    p = {"p": b.between(1, 2)} if op == "LpNormalization" else {}
    axis = b.axis(x.rank) if b.chance(0.7) else None
    b.node(op, [x], axis=axis, **p)


@entry(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def reduction(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float32", "float32", "float64", "int32", "int64"), (1, 2, 3, 4, 5))
    if op == "ReduceLogSum":
        x = b.within(x, 0.1, math.inf)
    axes = b.axes(x.rank) if b.batch or b.chance(0.85) else None
    inputs: list[Drawn | None] = [x]
    attributes: dict[str, object] = {"keepdims": b.one_of(None, 0, 1)}
    since = 13 if op == "ReduceSum" else 18
    if b.opset >= since:
        if axes is not None:
            inputs.append(b.ints(axes))
        elif b.chance(0.3):
            attributes["noop_with_empty_axes"] = 1
    else:
        attributes["axes"] = axes
    b.node(op, inputs, exact=op in ("ReduceMax", "ReduceMin"), **attributes)


@entry("ArgMax", "ArgMin")
def argument(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float32", "float64", "int32"), (1, 2, 3, 4))
    last = b.one_of(None, 0, 1)
    b.node(
        op, [x], axis=b.axis(x.rank), keepdims=b.between(0, 1), select_last_index=last, exact=True
    )


@entry("CumSum")
def cumulative(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float64", "int32", "int64"), (1, 2, 3, 4))
    axis = b.constant(np.asarray(b.axis(x.rank), b.one_of("int32", "int64")))
    b.node(op, [x, axis], exclusive=b.between(0, 1), reverse=b.between(0, 1))


@entry("TopK")
def top(b: Builder, op: str) -> None:
    x = b.pick(("float32", "float32", "float64", "int64"), (1, 2, 3, 4))
    axis = b.axis(x.rank)
    count = b.ints([b.between(1, max(1, x.shape[axis]))])
    largest = b.between(0, 1)
    b.node(op, [x, count], 2, axis=axis, largest=largest, sorted=1, exact=True)


@entry("LayerNormalization", "RMSNormalization")
def layer_normalization(b: Builder, op: str) -> None:
    x = b.pick(REALS[:4], (2, 3, 4))
    axis = b.axis(x.rank)
    shape = b.one_of(x.shape[axis:], x.shape[-1:])
    scale = b.operand(shape, x.dtype, 0.5, 1.5)
    bias = [b.operand(shape, x.dtype)] if op == "LayerNormalization" and b.chance(0.7) else []
    extra = op == "LayerNormalization" and b.chance(0.2)
    outputs = [True, True, True] if extra else [True]
    b.node(op, [x, scale, *bias], outputs, axis=axis, epsilon=b.one_of(None, 1e-3))


@entry("InstanceNormalization", "GroupNormalization", "BatchNormalization")
def channel_normalization(b: Builder, op: str) -> None:
    x = b.pick(REALS[:4], (2, 3, 4, 4, 5) if op == "BatchNormalization" else (3, 4, 4, 5))
    if not x.array.size:
        raise ImpossibleError("ONNX Runtime reads foreign memory")
    channels = x.shape[1]
    groups = b.one_of(*(g for g in range(1, channels + 1) if channels % g == 0)) if channels else 1
    per_group = op == "GroupNormalization" and b.opset < 21
    count = groups if per_group else channels
    scale = b.operand((count,), x.dtype, 0.5, 1.5)
    bias = b.operand((count,), x.dtype)
    more: list[Drawn] = []
    if op == "BatchNormalization":
        more = [b.operand((count,), x.dtype), b.operand((count,), x.dtype, 0.3, 2)]
    number = {"num_groups": groups} if op == "GroupNormalization" else {}
    b.node(op, [x, scale, bias, *more], epsilon=b.one_of(None, 1e-3), **number)


@entry("MeanVarianceNormalization")
def mean_variance(b: Builder, op: str) -> None:
    x = b.pick(ranks=(3, 4))
    b.node(op, [x], axes=b.axes(x.rank, signed=False) if x.rank != 4 or b.batch else None)


@entry("LRN")
def local_response(b: Builder, op: str) -> None:
    b.node(op, [b.pick(ranks=(4,))], size=b.one_of(1, 3, 5), alpha=0.1, beta=b.one_of(0.75, 0.5))


# --- quantization ------------------------------------------------------------------


def parameters(b: Builder, x: Drawn, dtype: str) -> tuple[list[Drawn], int | None]:
    """Scale and zero point of a tensor, or of each index of an axis."""
    axis = b.axis(x.rank, signed=False) if x.rank > 1 and b.chance(0.25) else None
    shape = () if axis is None else (x.shape[axis],)
    scale = b.constant(b.random.uniform(0.01, 0.05, shape).astype(np.float32))
    spread = (100, 150) if dtype == "uint8" else (-20, 20)
    zero = np.zeros(shape, dtype) if axis is not None else b.random.integers(*spread, shape)
    return [scale, b.constant(np.asarray(zero).astype(dtype))], axis


def quantized(b: Builder, x: Drawn) -> Drawn:
    """A value of floats, quantized and dequantized."""
    dtype = b.one_of("int8", "uint8")
    operands, axis = parameters(b, x, dtype)
    q = b.node("QuantizeLinear", [x, *operands], axis=axis)[0]
    return b.node("DequantizeLinear", [q, *operands], axis=axis)[0]


@entry("QuantizeLinear", "DequantizeLinear")
def quantize(b: Builder, op: str) -> None:
    """A pair, or a part of it, before and after another operator."""
    if op == "DequantizeLinear" and b.chance(0.3):
        x = b.pick(("uint8",), (1, 2, 3, 4))
        operands, axis = parameters(b, x, "uint8")
        b.node(op, [x, *operands], axis=axis)
        return
    x = quantized(b, b.pick(ranks=(1, 2, 3, 4)))
    if b.chance(0.6):
        inner = b.one_of("Add", "Mul", "Relu", "Sigmoid", "MatMul", "Conv", "MaxPool", "Softmax",
                         "AveragePool", "Concat", "Reshape", "Transpose", "GlobalAveragePool",
                         "Gemm", "Slice", "HardSwish", "Tanh", "LeakyRelu", "Clip")  # fmt: skip
        ENTRIES[inner](b, inner)
        y = b.values[-1]
        if y.dtype == "float32" and y.rank:
            quantized(b, y)
    elif b.chance(0.3):
        b.node("Identity", [x], exact=True)


@entry("DynamicQuantizeLinear")
def quantize_dynamically(b: Builder, op: str) -> None:
    if b.batch:
        raise ImpossibleError("mixes samples")
    b.node(op, [b.pick(ranks=(1, 2, 3))], 3)
