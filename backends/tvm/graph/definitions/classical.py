"""Classical machine learning: what scikit-learn and the boosting libraries export.

Of strings nothing is compiled. A ZipMap's numbers are its operand: a row for each sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from .....ir.stand_ins import REQUIRE
from .....ir.tensor import Array, Tensor
from .body import ML, Body, definition

_NO_STRINGS = "compiled models have no strings"


def matrix(b: Body, index: int = 0) -> str:
    """An input as rows of features; a vector is one row."""
    x, rank = b.required(index), b.rank(index)
    if rank not in (1, 2):
        b.fail(f"input {index} has rank {rank}, not rows of features")
    return x if rank == 2 else b.unsqueezed(x, 0)


def _floats(b: Body, index: int = 0) -> str:
    return b.cast(matrix(b, index), np.float32)


def _numbers(b: Body, name: str) -> Array:
    """A list of numbers, an attribute."""
    return np.asarray(b.attribute(name, ()), np.float32)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _refuse_strings(b: Body, *names: str) -> None:
    if any(len(b.attribute(name, ())) for name in names):
        b.fail(_NO_STRINGS)


# --- features ------------------------------------------------------------------------------


@definition("ArrayFeatureExtractor", domain=ML)
def _extract(b: Body) -> list[str]:
    """Elements of the last axis by their number, from 0 on; a vector becomes one row."""
    index, known = b.reshaped(b.required(1), -1), b.constant(1)
    if known is None:
        index = _required(b, index, b("Not", b("Less", index, b.value(0, np.int64))))
    elif (known < 0).any():
        b.fail("it counts from the end")
    x = b.required(0) if b.rank(0) > 1 else b.unsqueezed(b.required(0), 0)
    return [b("Gather", x, index, axis=max(b.rank(0), 2) - 1)]


def _required(b: Body, x: str, *conditions: str) -> str:
    """x, where the conditions hold; else the run fails."""
    domain, op_type = REQUIRE
    name = f"required{len(b.nodes)}"
    b.nodes.append(helper.make_node(op_type, [x, *conditions], [name], domain=domain))
    return name


@definition("Binarizer", domain=ML)
def _binarizer(b: Body) -> list[str]:
    x = b.required(0)
    if b.dtype(0).kind == "f":
        x = _required(b, x, b("Not", b("IsNaN", x)))
    above = b("Greater", x, b.number(float(b.attribute("threshold", 0.0))))
    return [b.cast(above, b.dtype(0))]


@definition("FeatureVectorizer", domain=ML)
def _vectorizer(b: Body) -> list[str]:
    """Features of all inputs beside each other, of each as many as it says."""
    sizes = [int(i) for i in b.attribute("inputdimensions", ())]
    if len(sizes) != len(b.node.inputs):
        b.fail(f"{len(sizes)} sizes for {len(b.node.inputs)} inputs")
    parts = []
    for index, size in enumerate(sizes):
        x, own = _floats(b, index), b.size(index, -1)
        if own > size:
            x = b.sliced(x, 1, 0, size)
        elif own < size:
            b.fail(f"input {index} has {own} features, not {size}")
        parts.append(x)
    return [b("Concat", *parts, axis=1)]


@definition("Imputer", domain=ML)
def _imputer(b: Body) -> list[str]:
    """What is missing, a number or NaN, becomes the feature's number."""
    dtype = b.dtype(0)
    kind = "floats" if dtype.kind == "f" else "int64s"
    values = np.asarray(b.attribute(f"imputed_value_{kind}", ()), dtype)
    missing = b.attribute(f"replaced_value_{kind[:-1]}", 0)
    x = b.required(0)
    if values.size not in (1, b.size(0, -1)):
        b.fail(f"{values.size} numbers for {b.size(0, -1)} features")
    is_nan = dtype.kind == "f" and np.isnan(missing)
    found = b("IsNaN", x) if is_nan else b("Equal", x, b.number(missing))
    return [b("Where", found, b.value(values), x)]


@definition("LabelEncoder", domain=ML)
def _label_encoder(b: Body) -> list[str]:
    """Keys to values; whatever is no key becomes the default."""
    keys, values = _labels(b, "keys"), _labels(b, "values")
    if keys.size != values.size or not keys.size or keys.dtype != b.dtype(0):
        b.fail(f"{keys.size} keys of {keys.dtype} for {values.size} values")
    default = _default(b, values.dtype)
    x = b.unsqueezed(b.required(0), b.rank(0))
    table = b.value(keys)
    same = b("Equal", x, table)
    if keys.dtype.kind == "f" and np.isnan(keys).any() and b.version >= 4:
        same = b("Or", same, b("And", b("IsNaN", x), b("IsNaN", table)))
    hits = b.cast(same, np.int32)
    index = b("ArgMax", hits, axis=b.rank(0), keepdims=0)
    known = b.cast(b.reduced("ReduceMax", hits, b.rank(0), keepdims=0), bool)
    return [b("Where", known, b("Gather", b.value(values), index), b.value(default, values.dtype))]


def _labels(b: Body, what: str) -> Array:
    """The keys or values of a LabelEncoder that are numbers."""
    _refuse_strings(b, f"{what}_strings", "classes_strings")
    for name, dtype in (("int64s", np.int64), ("floats", np.float32)):
        found = b.attribute(f"{what}_{name}", ())
        if len(found):
            return np.asarray(found, dtype)
    tensor = b.attribute(f"{what}_tensor", None)
    if tensor is None:
        b.fail(f"it has no {what}")
    array = _array(tensor)
    if array.dtype.kind not in "iuf":
        b.fail(_NO_STRINGS)
    return array.reshape(-1)


def _default(b: Body, dtype: np.dtype[Any]) -> Array:
    tensor = b.attribute("default_tensor", None)
    if tensor is not None:
        return _array(tensor).reshape(-1)[0].astype(dtype)
    given = b.attribute("default_int64", -1) if dtype.kind in "iu" else b.attribute(
        "default_float", -0.0
    )  # fmt: skip
    return np.asarray(given, dtype)


def _array(tensor: Tensor | TensorProto) -> Array:
    return numpy_helper.to_array(tensor) if isinstance(tensor, TensorProto) else tensor.numpy()


@definition("Normalizer", domain=ML)
def _normalizer(b: Body) -> list[str]:
    """Rows divided by their largest number, or their L1 or L2 norm; by nothing where that is 0."""
    x = b.cast(b.required(0), np.float32)
    axis = b.rank(0) - 1
    if axis not in (0, 1):
        b.fail(f"input 0 has rank {axis + 1}")
    norm = _text(b.attribute("norm", "MAX"))
    zero = b.value(0, np.float32)
    if norm == "MAX":  # of numbers
        lowest = b.value(np.finfo(np.float32).min, np.float32)
        size = b.reduced("ReduceMax", b("Where", b("IsNaN", x), lowest, x), axis)
    elif norm == "L1":
        size = b.reduced("ReduceSum", b("Abs", x), axis)
    elif norm == "L2":
        size = b("Sqrt", b.reduced("ReduceSum", b("Mul", x, x), axis))
    else:
        b.fail(f"norm {norm!r} isn't known")
    none = b("Equal", size, zero)
    return [b("Div", x, b("Where", none, b.value(1, np.float32), size))]


@definition("OneHotEncoder", domain=ML)
def _one_hot(b: Body) -> list[str]:
    """1 where the category is; of others nothing, or the run fails."""
    _refuse_strings(b, "cats_strings")
    categories = np.asarray(b.attribute("cats_int64s", ()), np.int64)
    if not categories.size:
        b.fail("it has no categories")
    x = b.unsqueezed(b.cast(b.required(0), np.int64), b.rank(0))
    result = b.cast(b("Equal", x, b.value(categories)), np.float32)
    if not int(b.attribute("zeros", 1)):
        known = b.cast(b.reduced("ReduceMax", result, b.rank(0), keepdims=0), bool)
        result = _required(b, result, known)
    return [result]


@definition("Scaler", domain=ML)
def _scaler(b: Body) -> list[str]:
    offset, scale = _numbers(b, "offset"), _numbers(b, "scale")
    size = b.size(0, -1)
    if any(a.size not in (1, size) for a in (offset, scale)):
        b.fail(f"{offset.size} offsets and {scale.size} scales for {size} features")
    x = b.cast(b.required(0), np.float32)
    return [b("Mul", b("Sub", x, b.value(offset)), b.value(scale))]


@definition("ZipMap", domain=ML)
def _zip_map(b: Body) -> list[str]:
    """The numbers alone: the map's keys are the model's classes, the same in each row."""
    x = matrix(b)
    return [b("Identity", x)]


# --- scores --------------------------------------------------------------------------------


def transformed(b: Body, scores: str, name: str | None = None) -> str:
    """Scores [rows, classes] as the node's `post_transform` says, or a name given."""
    if name is None:
        name = _text(b.attribute("post_transform", "NONE"))
    if name not in _TRANSFORMS:
        b.fail(f"post_transform {name!r} isn't known")
    return _TRANSFORMS[name](b, scores)


def _softmax(b: Body, x: str) -> str:
    return b("Softmax", x, axis=1)


def _softmax_zero(b: Body, x: str) -> str:
    """Zeros have no part in the sum."""
    top = b.reduced("ReduceMax", x, 1)
    counts = b("Greater", b("Abs", x), b.value(1e-7, np.float32))
    zero = b.value(0, np.float32)
    parts = b("Where", counts, b("Exp", b("Sub", x, top)), zero)
    others = b("Where", counts, zero, b("Mul", x, b("Exp", b("Neg", top))))
    return b("Div", b("Add", parts, others), b.reduced("ReduceSum", parts, 1))


def _probit(b: Body, x: str) -> str:
    """The quantile of a normal distribution, by Winitzki's approximation of erf's inverse."""

    def number(value: float) -> str:
        return b.value(value, np.float32)

    x = b("Sub", b("Mul", x, number(2)), number(1))
    log = b("Log", b("Mul", b("Sub", number(1), x), b("Add", number(1), x)))
    v = b("Add", number(2 / (np.pi * 0.147)), b("Mul", number(0.5), log))
    root = b("Sqrt", b("Sub", b("Mul", v, v), b("Mul", number(1 / 0.147), log)))
    size = b("Sqrt", b("Sub", root, v))
    signed = b("Where", b("Less", x, number(0)), b("Neg", size), size)
    return b("Mul", number(np.sqrt(2)), signed)


_TRANSFORMS: dict[str, Callable[[Body, str], str]] = {
    "NONE": lambda b, x: x,
    "LOGISTIC": lambda b, x: b("Sigmoid", x),
    "SOFTMAX": _softmax,
    "SOFTMAX_ZERO": _softmax_zero,
    "PROBIT": _probit,
}


def class_labels(b: Body, integers: str, count: int) -> Array:
    """A classifier's labels, which have to be numbers."""
    strings = "classlabels_strings"
    if len(b.attribute(strings, ())) and b.wants(0):
        b.fail(f"its labels are strings, and {_NO_STRINGS}; the scores alone can be compiled")
    found = np.asarray(b.attribute(integers, ()), np.int64)
    return found if found.size else np.arange(max(count, 2), dtype=np.int64)


def best(b: Body, scores: str, labels: Array) -> str:
    """The label of the highest score of each row."""
    return b("Gather", b.value(labels), b("ArgMax", scores, axis=1, keepdims=0))


def binary(b: Body, above: str, labels: Array) -> str:
    """The second label where a condition [rows, 1] holds."""
    first, second = (b.value(labels[i], np.int64) for i in (0, 1))
    return b.squeezed(b("Where", above, second, first), 1)


@definition("LinearRegressor", domain=ML)
def _linear_regressor(b: Body) -> list[str]:
    return [transformed(b, _linear(b, int(b.attribute("targets", 1))))]


def _linear(b: Body, targets: int) -> str:
    coefficients, intercepts = _numbers(b, "coefficients"), _numbers(b, "intercepts")
    features = b.size(0, -1)
    if targets < 1 or coefficients.size != targets * features:
        b.fail(f"{coefficients.size} coefficients of {targets} targets for {features} features")
    scores = b("MatMul", _floats(b), b.value(coefficients.reshape(targets, features).T.copy()))
    if intercepts.size == targets:
        scores = b("Add", scores, b.value(intercepts))
    return scores


@definition("LinearClassifier", domain=ML)
def _linear_classifier(b: Body) -> list[str]:
    """Of one row of coefficients and two labels the second class's score is 1 minus the other's."""
    features = b.size(0, -1)
    count = _numbers(b, "coefficients").size // max(features, 1)
    scores = _linear(b, count)
    labels = class_labels(b, "classlabels_ints", count)
    zero = b.value(0, np.float32)
    if count > 1:
        return [best(b, scores, labels), transformed(b, scores)]
    label = binary(b, b("Greater", scores, zero), labels)
    if _text(b.attribute("post_transform", "NONE")) == "LOGISTIC":
        return [label, b("Sigmoid", b("Concat", b("Neg", scores), scores, axis=1))]
    if _text(b.attribute("post_transform", "NONE")) == "PROBIT":
        b.fail("post_transform PROBIT of one score for two classes")
    one = b.value(1, np.float32)
    return [label, b("Concat", b("Sub", one, scores), scores, axis=1)]


@definition("SVMRegressor", domain=ML)
def _svm_regressor(b: Body) -> list[str]:
    """Support vectors, or, without any, one row of coefficients."""
    supports = int(b.attribute("n_supports", 0))
    coefficients, rho = _numbers(b, "coefficients"), _numbers(b, "rho")
    features = b.size(0, -1)
    x = _floats(b)
    if rho.size < 1 or coefficients.size != (supports or features):
        b.fail(f"{coefficients.size} coefficients for {supports} support vectors")
    if supports:
        vectors = _numbers(b, "support_vectors")
        if vectors.size != supports * features:
            b.fail(f"{supports} support vectors of {vectors.size} numbers")
        x = _kernel(b, x, vectors.reshape(supports, features))
    scores = b("Add", b("MatMul", x, b.value(coefficients.reshape(-1, 1))), b.value(rho[:1]))
    if int(b.attribute("one_class", 0)):
        above = b("Greater", scores, b.value(0, np.float32))
        return [b("Where", above, b.value(1, np.float32), b.value(-1, np.float32))]
    return [transformed(b, scores)]


@definition("SVMClassifier", domain=ML)
def _svm_classifier(b: Body) -> list[str]:
    """A vote of each pair of classes; without support vectors the highest score."""
    if len(b.attribute("prob_a", ())):
        b.fail("its probabilities (prob_a) are found by iteration; decision scores can be compiled")
    counts = [int(count) for count in b.attribute("vectors_per_class", ())]
    coefficients, rho = _numbers(b, "coefficients"), _numbers(b, "rho")
    x, features = _floats(b), b.size(0, -1)
    if not counts:
        classes = coefficients.size // max(features, 1)
        labels = class_labels(b, "classlabels_ints", classes)
        if (
            classes < 3
            or len(labels) != classes
            or rho.size < 1
            or coefficients.size % max(features, 1)
        ):
            b.fail(f"{coefficients.size} coefficients without support vectors")
        columns = coefficients.reshape(classes, features).T.copy()
        scores = b("Add", b("MatMul", x, b.value(columns)), b.value(rho[:1]))
        return [best(b, scores, labels), transformed(b, scores)]
    classes, supports = len(counts), sum(counts)
    vectors = _numbers(b, "support_vectors")
    labels = class_labels(b, "classlabels_ints", classes)
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    fits = vectors.size == supports * features and min(counts) >= 0 and classes > 1
    if not fits or coefficients.size != (classes - 1) * supports or len(labels) != classes:
        b.fail(f"{vectors.size} numbers of {supports} support vectors for {classes} classes")
    if rho.size != len(pairs):
        b.fail(f"{rho.size} numbers rho for {len(pairs)} pairs of classes")
    table = coefficients.reshape(classes - 1, supports)
    ends = np.cumsum([0, *counts])
    weights = np.zeros((supports, len(pairs)), np.float32)
    votes = np.zeros((len(pairs), classes), np.float32)
    for pair, (i, j) in enumerate(pairs):
        own, other = slice(ends[i], ends[i + 1]), slice(ends[j], ends[j + 1])
        weights[own, pair], weights[other, pair] = table[j - 1, own], table[i, other]
        votes[pair, i], votes[pair, j] = 1, -1
    kernel = _kernel(b, x, vectors.reshape(supports, features))
    scores = b("Add", b("MatMul", kernel, b.value(weights)), b.value(rho))
    zero = b.value(0, np.float32)
    won = b.cast(b("Greater", scores, zero), np.float32)
    lost = b.value((votes < 0).sum(0).astype(np.float32))
    label = best(b, b("Add", b("MatMul", won, b.value(votes)), lost), labels)
    if classes > 2:
        return [label, transformed(b, scores)]
    name = _text(b.attribute("post_transform", "NONE"))
    if name in ("NONE", "LOGISTIC"):
        return [label, transformed(b, b("Concat", b("Neg", scores), scores, axis=1))]
    if name == "PROBIT":
        b.fail("post_transform PROBIT of one score for two classes")
    one = b.value(1, np.float32)
    return [label, b("Concat", b("Sub", one, scores), scores, axis=1)]


def _kernel(b: Body, x: str, vectors: Array) -> str:
    """The kernel's value of each row with each support vector."""
    name = _text(b.attribute("kernel_type", "LINEAR"))
    gamma, offset, degree = (*_numbers(b, "kernel_params"), 0.0, 0.0, 0.0)[:3]
    if name == "RBF":
        difference = b("Sub", b.unsqueezed(x, 1), b.value(vectors[None]))
        squares = b.reduced("ReduceSum", b("Mul", difference, difference), 2, keepdims=0)
        return b("Exp", b("Mul", squares, b.value(-gamma, np.float32)))
    products = b("MatMul", x, b.value(vectors.T.copy()))
    if name == "LINEAR":
        return products
    scaled = b("Mul", products, b.value(gamma, np.float32))
    scaled = b("Add", scaled, b.value(offset, np.float32))
    if name == "POLY":
        return b("Pow", scaled, b.value(degree, np.float32))
    if name == "SIGMOID":
        return b("Tanh", scaled)
    raise b.error(f"kernel_type {name!r} isn't known")
