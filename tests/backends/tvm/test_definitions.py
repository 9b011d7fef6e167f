"""Operators of ONNX Runtime's own domain that need more than floats as operands: against it.

Each case is a node with its operands and how many results it has; cases of a group are one model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import UnsupportedError
from secateur.ir.onnx_io import from_proto

from .graphs import reference

Array = Any
ML = "ai.onnx.ml"
F32, U8, I8, I32 = np.float32, np.uint8, np.int8, np.int32


@dataclasses.dataclass
class Case:
    """A node; operands that `varies` names are inputs of the model, others constants."""

    op_type: str
    operands: list[Array | None]
    varies: tuple[int, ...] = (0,)
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    results: int = 1
    domain: str = "com.microsoft"
    compared: int = 3
    """Results that are compared: ONNX Runtime leaves some slots of caches as they were."""


class Draw:
    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)

    def floats(self, *shape: int) -> Array:
        return self.random.standard_normal(shape).astype(F32)

    def bytes(self, *shape: int) -> Array:
        return self.random.integers(0, 256, shape).astype(U8)

    def signed(self, *shape: int) -> Array:
        return self.random.integers(-127, 128, shape).astype(I8)

    def narrow(self, *shape: int) -> Array:
        """Whose products ONNX Runtime adds rightly also on CPUs where its sums saturate."""
        return self.random.integers(-64, 65, shape).astype(I8)

    def integers(self, high: int, *shape: int, dtype: Any = I32) -> Array:
        return self.random.integers(0, high, shape).astype(dtype)


def pair(scale: float, zero: int, dtype: Any = U8) -> list[Array]:
    return [F32(scale), dtype(zero)]


def elementwise_cases() -> Iterator[Case]:
    d = Draw()
    x, y = pair(0.05, 120), pair(0.03, 100)
    for op_type in ("QLinearAdd", "QLinearMul"):
        for shape in ((2, 3, 8), (8,)):
            b = d.bytes(*shape)
            yield Case(op_type, [d.bytes(2, 3, 8), *x, b, *y, *pair(0.06, 128)], (0, 3))
    yield Case("QLinearSigmoid", [d.bytes(2, 3, 8), *x, *pair(1 / 256, 0)])
    yield Case(
        "QLinearLeakyRelu", [d.bytes(2, 3, 8), *x, *pair(0.05, 20)], attributes={"alpha": 0.2}
    )
    for axis, opset in ((-1, 13), (1, 13), (1, 12)):
        operands = [d.bytes(2, 3, 8), *x, *pair(1 / 256, 0)]
        yield Case("QLinearSoftmax", operands, attributes={"axis": axis, "opset": opset})
    operands = [*x, d.bytes(2, 3, 4), *y, d.bytes(2, 5, 4), *x]
    yield Case("QLinearConcat", operands, (2, 5), {"axis": 1})
    condition = d.integers(2, 2, 3, dtype=bool)
    operands = [condition, d.bytes(2, 3), *x, d.bytes(2, 3), *y, *pair(0.05, 90)]
    yield Case("QLinearWhere", operands, (0, 1, 4))
    yield Case("QuantizeLinear", [d.floats(3, 5), *pair(0.1, 100)])
    yield Case("DequantizeLinear", [d.bytes(3, 5), *pair(0.1, 100)])


def sixteen_bit_cases() -> Iterator[Case]:
    """Which the standard's operators don't have before operator set 21."""
    d = Draw(11)
    x = d.floats(3, 5) * F32(1000)
    for dtype, zero in ((np.uint16, 30000), (np.int16, -5)):
        numbers = d.integers(30000, 3, 5).astype(dtype)
        yield Case("QuantizeLinear", [x, *pair(0.02, zero, dtype)])
        yield Case("DequantizeLinear", [numbers, *pair(0.02, zero, dtype)])
        scales, zeros = np.linspace(0.01, 0.05, 5, dtype=F32), np.arange(5).astype(dtype)
        for axis in (1, -1):
            yield Case("QuantizeLinear", [x, scales, zeros], attributes={"axis": axis})
            yield Case("DequantizeLinear", [numbers, scales, zeros], attributes={"axis": axis})
    yield Case("DequantizeLinear", [d.integers(30000, 3, 5).astype(np.int16), F32(0.1), None])


def packed_table_cases() -> Iterator[Case]:
    d = Draw(12)
    for bits, block, leading in ((4, 16, (9,)), (4, 32, (9, 2)), (8, 16, (9,)), (4, 64, (9,))):
        width = 64
        blocks = width // block
        table, scales = d.bytes(*leading, width * bits // 8), d.floats(*leading, blocks)
        zeros = d.bytes(*leading, -(-blocks * bits // 8))
        axes = {"bits": bits, "block_size": block, "quantize_axis": len(leading)}
        for index in (d.integers(9, 2, 3), d.integers(9, 4).astype(np.int64)):
            for point in (None, zeros):
                operands = [table, index, scales, point]
                yield Case("GatherBlockQuantized", operands, (1,), axes)


def image_cases() -> Iterator[Case]:
    d = Draw(1)
    x, y = pair(0.05, 120), pair(0.3, 128)
    window = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}
    for last in (0, 1):
        own = {"channels_last": last}
        yield Case("QLinearGlobalAveragePool", [d.bytes(1, 8, 7, 7), *x, *y], attributes=own)
        operands = [d.bytes(1, 8, 8, 8), *x, *y]
        yield Case("QLinearAveragePool", operands, attributes={**window, **own})
        image = d.bytes(1, 9, 9, 8) if last else d.bytes(1, 8, 9, 9)
        weights, bias = d.narrow(16, 8, 3, 3), d.integers(900, 16) - 450
        operands = [image, *x, weights, *pair(0.02, 0, I8), *y, bias]
        yield Case("QLinearConv", operands, attributes={"pads": [1] * 4, **own})
    yield Case("NhwcMaxPool", [d.bytes(1, 8, 9, 5)], attributes=window)
    channels = [np.linspace(0.01, 0.05, 16, dtype=F32), np.zeros(16, I8)]
    for scales in (pair(0.02, 0, I8), channels):
        operands = [d.bytes(1, 8, 9, 9), *x, d.narrow(16, 8, 3, 3), *scales, *y]
        yield Case("QLinearConv", operands, attributes={"pads": [1] * 4}, domain="")


def product_cases() -> Iterator[Case]:
    d = Draw(2)
    x, y = pair(0.05, 120), pair(0.5, 100)
    columns = [np.linspace(0.01, 0.05, 16, dtype=F32), np.zeros(16, I8)]
    for transposed in (0, 1):
        weights = d.signed(16, 8) if transposed else d.signed(8, 16)
        bias, own = d.integers(900, 16) - 450, {"transB": transposed}
        operands = [d.bytes(4, 8), *x, weights, *pair(0.02, 0, I8), bias]
        yield Case("QGemm", [*operands, *y], attributes=own)
        yield Case("QGemm", [d.bytes(4, 8), *x, weights, *columns, bias], attributes=own)
    for scales in (pair(0.02, 3, I8), [columns[0], np.arange(16, dtype=I8)]):
        operands = [d.bytes(4, 8), d.signed(8, 16), F32(0.05), scales[0], U8(120), scales[1]]
        yield Case("MatMulIntegerToFloat", [*operands, d.floats(16)], (0, 2, 4))
    yield Case("DynamicQuantizeMatMul", [d.floats(4, 8), d.signed(8, 16), F32(0.02), I8(0), None])
    operands = [d.floats(2, 4, 8), d.signed(8, 16), columns[0], None, d.floats(16)]
    yield Case("DynamicQuantizeMatMul", operands)
    for scales in (pair(0.02, 0, I8), columns):
        operands = [d.bytes(4, 8), *x, d.signed(8, 16), *scales, *y]
        yield Case("QLinearMatMul", operands, domain="")
    operands = [d.bytes(2, 4, 8), *x, d.bytes(2, 8, 16), *pair(0.02, 20), *y]
    yield Case("QLinearMatMul", operands, (0, 3), domain="")
    yield Case("TransposeMatMul", [d.floats(8, 3), d.floats(8, 4)], (0, 1), {"transA": 1})
    yield Case("MatMulInteger16", [d.integers(99, 3, 4, dtype=np.int16),
                                   d.integers(99, 4, 3, dtype=np.int16)], (0, 1))  # fmt: skip
    for bits, block, points in ((4, 32, 0), (4, 32, 1), (8, 16, 1), (4, 64, 2), (2, 32, 1)):
        depth, width = 80, 19
        blocks = -(-depth // block)
        zeros = [None, d.bytes(width * -(-blocks * bits // 8)), d.floats(width * blocks)][points]
        operands = [d.floats(3, depth), d.bytes(width, blocks, block * bits // 8),
                    d.floats(width * blocks), zeros]  # fmt: skip
        sizes = {"K": depth, "N": width, "bits": bits, "block_size": block}
        yield Case("MatMulNBits", operands, attributes=sizes)


def attention_cases() -> Iterator[Case]:
    d = Draw(3)
    batch, steps, heads, size = 2, 5, 2, 4
    width = heads * size

    def fused(**attributes: Any) -> tuple[list[Array], dict[str, Any]]:
        operands = [d.floats(batch, steps, width), d.floats(width, 3 * width), d.floats(3 * width)]
        return operands, {"num_heads": heads, **attributes}

    masks = [None, I32([3, 5]), I32([3, 5, 1, 0]), d.integers(2, batch, steps),
             d.integers(2, batch, steps, steps)]  # fmt: skip
    for mask in masks:
        operands, attributes = fused(scale=0.3)
        varies = (0,) if mask is None else (0, 3)
        yield Case("Attention", [*operands, mask], varies, attributes)
    operands, attributes = fused(unidirectional=1)
    past = d.floats(2, batch, heads, 3, size)
    yield Case("Attention", [*operands, None, past], (0, 4), attributes, 2)
    operands, attributes = fused()
    bias = d.floats(batch, heads, steps, steps)
    yield Case("Attention", [*operands, None, None, bias], (0, 5), attributes)
    operands = [d.floats(batch, steps, width), d.floats(width, 2 * width + 12)]
    attributes = {"num_heads": heads, "qkv_hidden_sizes": [width, width, 12]}
    yield Case("Attention", [*operands, d.floats(2 * width + 12)], (0,), attributes)
    for mask in (None, I32([3, 5])):
        operands = [d.bytes(batch, steps, width), d.signed(width, 3 * width), d.floats(3 * width),
                    F32(0.02), F32(0.01), mask, U8(120), I8(0)]  # fmt: skip
        yield Case("QAttention", operands, (0, 3, 6), {"num_heads": heads})
    query = d.floats(batch, steps, width)
    own: dict[str, Any] = {"num_heads": heads}
    cross = [query, d.floats(batch, 7, width), d.floats(batch, 7, 12), d.floats(2 * width + 12)]
    yield Case("MultiHeadAttention", cross, (0, 1, 2), own, 3)
    mask = d.integers(2, batch, steps)
    causal = {**own, "unidirectional": 1}
    yield Case("MultiHeadAttention", [query, query, query, None, mask], (0, 4), causal)
    kept = [d.floats(batch, heads, 7, size) for _ in range(2)]
    yield Case("MultiHeadAttention", [query, *kept], (0, 1, 2), own)
    before = [d.floats(batch, heads, 3, size) for _ in range(2)]
    bias = d.floats(1, 1, steps, steps + 3)
    operands = [query, query, query, None, None, bias, *before]
    yield Case("MultiHeadAttention", operands, (0, 5, 6, 7), own, 3)
    tables = [d.floats(16, size // 2) for _ in range(2)]
    for pairs in (0, 1):
        turned = {"interleaved": pairs}
        yield Case("RotaryEmbedding", [query, np.int64([2]), *tables], (0, 1), turned)
        places = d.integers(16, batch, steps, dtype=np.int64)
        operands = [d.floats(batch, heads, steps, size), places, *tables]
        yield Case("RotaryEmbedding", operands, (0, 1), turned)
    part = {"num_heads": heads, "rotary_embedding_dim": 4}
    places = d.integers(16, batch, steps, dtype=np.int64)
    yield Case("RotaryEmbedding", [d.floats(batch, heads, steps, 8), places,
                                   *(d.floats(16, 2) for _ in range(2))], (0, 1), part)  # fmt: skip


def grouped_attention_cases() -> Iterator[Case]:
    d = Draw(4)
    size, heads, groups = 16, 4, 2
    for batch, steps, past, total, last, more in (
        (1, 5, 0, 5, [4], {}),
        (2, 5, 0, 5, [4, 4], {"do_rotary": 1}),
        (1, 1, 16, 7, [6], {}),
        (2, 1, 16, 9, [6, 8], {"do_rotary": 1, "rotary_interleaved": 1}),
        (1, 1, 6, 7, [6], {"do_rotary": 1}),
        (1, 5, 0, 5, [4], {"local_window_size": 3}),
    ):
        widths = (heads * size, groups * size, groups * size)
        operands: list[Array | None] = [d.floats(batch, steps, w) for w in widths]
        operands += [d.floats(batch, groups, past, size) if past else None for _ in range(2)]
        operands += [I32(last), I32(total)]
        if more.get("do_rotary"):
            operands += [d.floats(32, size // 2) for _ in range(2)]
        varies = (0, 1, 2, 3, 4, 5) if past else (0, 1, 2, 5)
        attributes = {"num_heads": heads, "kv_num_heads": groups, **more}
        whole = 3 if not past or past < total else 1
        yield Case("GroupQueryAttention", operands, varies, attributes, 3, compared=whole)


def other_cases() -> Iterator[Case]:
    d = Draw(5)
    words, positions, kinds = d.floats(9, 8), d.floats(12, 8), d.floats(2, 8)
    ids = d.integers(9, 2, 5)
    operands = [ids, d.integers(2, 2, 5), words, positions, kinds, d.floats(8), d.floats(8),
                d.integers(2, 2, 5)]  # fmt: skip
    yield Case("EmbedLayerNormalization", operands, (0, 1, 7), results=2)
    operands = [ids, None, words, positions, None, d.floats(8), d.floats(8)]
    yield Case("EmbedLayerNormalization", operands, (0,), {"epsilon": 1e-5}, 3)
    yield Case("Trilu", [d.floats(3, 4), np.int64(1)])
    yield Case("ExpandDims", [d.floats(3, 4), I32(-1)])
    yield Case("Pad", [d.floats(3, 4), np.int64([1, 0, 2, 1]), F32(0.5)])
    yield Case("CDist", [d.floats(3, 4), d.floats(5, 4)], (0, 1), {"metric": "euclidean"})
    yield Case("CDist", [d.floats(3, 4), d.floats(5, 4)], (0, 1), {"metric": "sqeuclidean"})
    yield Case("GatherND", [d.floats(3, 4), I32([[0, 1], [2, 3]])], (0, 1))
    grid = d.floats(1, 3, 4, 2) / 2
    yield Case("GridSample", [d.floats(1, 2, 5, 6), grid], (0, 1))
    yield Case("Range", [F32(1), F32(7), F32(2)], ())


def recurrent_cases() -> Iterator[Case]:
    d = Draw(6)
    hidden = 8
    for direction, batch in (("forward", 1), ("reverse", 3), ("bidirectional", 1)):
        count = 2 if direction == "bidirectional" else 1
        states = [d.floats(count, batch, hidden) if batch > 1 else None for _ in range(2)]
        scale, zero = np.full(count, 0.02, F32), np.zeros(count, I8)
        operands = [d.floats(6, batch, 5), d.signed(count, 5, 4 * hidden),
                    d.signed(count, hidden, 4 * hidden), d.floats(count, 8 * hidden), None, *states,
                    None, scale, zero, scale, zero]  # fmt: skip
        varies = (0, 5, 6) if batch > 1 else (0,)
        attributes = {"hidden_size": hidden, "direction": direction}
        yield Case("DynamicQuantizeLSTM", operands, varies, attributes, 3)


def features_cases() -> Iterator[Case]:
    d = Draw(7)
    rows = d.floats(5, 4)
    rows[0, 0], rows[1, 1], rows[2] = np.nan, np.inf, 0
    whole = d.integers(4, 5, 4, dtype=np.int64)

    def case(op_type: str, *operands: Array, **attributes: Any) -> Case:
        return Case(op_type, list(operands), tuple(range(len(operands))), attributes, domain=ML)

    yield case("Scaler", rows, offset=[1.0, 2, 3, 4], scale=[0.5, 1, 2, 3])
    yield case("Scaler", rows, offset=[1.0], scale=[0.5])
    for norm in ("MAX", "L1", "L2"):
        yield case("Normalizer", rows, norm=norm)
    yield case("Binarizer", np.nan_to_num(rows), threshold=0.3)
    missing = {"imputed_value_floats": [1.0, 2, 3, 4], "replaced_value_float": np.nan}
    yield case("Imputer", rows, **missing)
    yield case("Imputer", whole, imputed_value_int64s=[9], replaced_value_int64=0)
    yield case("OneHotEncoder", whole, cats_int64s=[0, 1, 2], zeros=1)
    yield case("OneHotEncoder", whole, cats_int64s=[3, 0, 1, 2], zeros=0)
    keys = {"keys_int64s": [0, 1, 2, 1], "values_floats": [0.5, 1.5, 2.5, 3.5]}
    yield case("LabelEncoder", whole, **keys, default_float=-7.0)
    keys = {"keys_floats": [0.0, np.inf], "values_int64s": [5, 6]}
    yield case("LabelEncoder", rows, **keys)
    yield case("FeatureVectorizer", rows, rows[:, :2].copy(), inputdimensions=[4, 2])
    yield case("ArrayFeatureExtractor", rows, np.int64([3, 1]))


def linear_cases() -> Iterator[Case]:
    d = Draw(8)
    rows = d.floats(5, 4)
    rows[2] = 0
    for transform in ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"):
        x = rows * F32(0.01) if transform == "PROBIT" else rows
        more = {"post_transform": transform}
        weights = [float(i) for i in d.floats(12)]
        own = {"coefficients": weights, "intercepts": [0.1, 0.2, 0.3], "targets": 3}
        yield Case("LinearRegressor", [x], (0,), {**own, **more}, domain=ML)
        for count in (1, 2, 3):
            if count == 1 and transform == "PROBIT":
                continue
            labels = [7, 9] if count == 1 else [5, 3, 8][:count]
            own = {"coefficients": weights[: 4 * count], "intercepts": [0.1] * count}
            own |= {"classlabels_ints": labels, "multi_class": 0}
            yield Case("LinearClassifier", [x], (0,), {**own, **more}, 2, ML)
    for kernel in ("LINEAR", "RBF", "POLY", "SIGMOID"):
        own = {"coefficients": [float(i) for i in d.floats(3)], "rho": [0.3], "n_supports": 3}
        own |= {"support_vectors": [float(i) for i in d.floats(12)], "kernel_type": kernel}
        own |= {"kernel_params": [0.5, 0.25, 3.0]}
        yield Case("SVMRegressor", [rows], (0,), own, domain=ML)
    yield from svm_classifier_cases(d, rows)


def svm_classifier_cases(d: Draw, rows: Array) -> Iterator[Case]:
    """Two classes, whose one score is written as two, and several, with a score for each pair."""
    for counts in ([3, 2], [2, 3, 1], [1, 2, 2, 1]):
        total, classes = sum(counts), len(counts)
        own: dict[str, Any] = {
            "vectors_per_class": counts,
            "support_vectors": [float(i) for i in d.floats(4 * total)],
            "coefficients": [float(i) for i in d.floats((classes - 1) * total)],
            "rho": [float(i) for i in d.floats(classes * (classes - 1) // 2)],
            "classlabels_ints": [5, 3, 8, 1][:classes],
            "kernel_params": [0.5, 0.25, 3.0],
        }
        for kernel in ("LINEAR", "RBF", "POLY", "SIGMOID"):
            yield Case("SVMClassifier", [rows], (0,), {**own, "kernel_type": kernel}, 2, ML)
        for transform in ("LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"):
            more = {"kernel_type": "RBF", "post_transform": transform}
            yield Case("SVMClassifier", [rows], (0,), {**own, **more}, 2, ML)
    own = {"coefficients": [float(i) for i in d.floats(12)], "rho": [0.3]}
    own |= {"kernel_type": "LINEAR", "kernel_params": [0.5, 0.25, 3.0]}
    yield Case("SVMClassifier", [rows], (0,), {**own, "classlabels_ints": [2, 4, 6]}, 2, ML)


MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


def forest(d: Draw, trees: int, depth: int, modes: tuple[str, ...]) -> dict[str, list[Any]]:
    """Full trees over four features, split at multiples of one half, as some of them are."""
    found: dict[str, list[Any]] = {}

    def add(**fields: Any) -> None:
        for name, value in fields.items():
            found.setdefault(f"nodes_{name}", []).append(value)

    for tree in range(trees):
        for node in range(2 ** (depth + 1) - 1):
            leaf = node >= 2**depth - 1
            add(
                treeids=tree,
                nodeids=node,
                featureids=0 if leaf else int(d.integers(4)),
                values=0.0 if leaf else round(2 * float(d.floats())) / 2,
                modes="LEAF" if leaf else modes[int(d.integers(len(modes)))],
                truenodeids=0 if leaf else 2 * node + 1,
                falsenodeids=0 if leaf else 2 * node + 2,
                missing_value_tracks_true=int(d.integers(2)),
            )
    return found


def leaves(d: Draw, nodes: dict[str, list[Any]], prefix: str, targets: list[int], *,
           positive: bool = False, sparse: bool = False) -> dict[str, list[Any]]:  # fmt: skip
    """A weight of each target for each leaf, or of some or none."""
    found: dict[str, list[Any]] = {f"{prefix}_{n}": [] for n in ("treeids", "nodeids", "ids")}
    weights = []
    own = zip(nodes["nodes_modes"], nodes["nodes_treeids"], nodes["nodes_nodeids"], strict=True)
    for mode, tree, node in own:
        for target in targets if mode == "LEAF" else ():
            if sparse and d.integers(2):
                continue
            found[f"{prefix}_treeids"].append(tree)
            found[f"{prefix}_nodeids"].append(node)
            found[f"{prefix}_ids"].append(target)
            weight = float(d.floats())
            weights.append(abs(weight) / 4 if positive else weight)
    return {**found, f"{prefix}_weights": weights}


def tree_cases() -> Iterator[Case]:
    d = Draw(9)
    rows = (2 * d.floats(6, 4)).round() / 2
    rows[0, 0], rows[1, 1], rows[2] = np.nan, np.inf, 0
    for modes in (*((m,) for m in MODES), MODES):
        aggregates = ("SUM", "AVERAGE", "MIN", "MAX") if modes == MODES else ("SUM",)
        for aggregate in aggregates:
            nodes = forest(d, 5, 3, modes)
            own = {**nodes, **leaves(d, nodes, "target", [0, 1]), "n_targets": 2}
            more = {"aggregate_function": aggregate, "base_values": [0.5, 0.25]}
            yield Case("TreeEnsembleRegressor", [rows], (0,), {**own, **more}, domain=ML)
    kinds = [(3, [0, 1, 2], (0, 3), False), (2, [0, 1], (0, 1, 2), False)]
    kinds += [(2, [t], (0, 1, 2), sparse) for t in (0, 1) for sparse in (False, True)]
    kinds += [(2, [0, 1], (0, 2), True)]  # one base value leaves numbers undefined there
    for count, targets, bases, sparse in kinds:
        for transform in ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"):
            for base in bases:
                nodes = forest(d, 4, 2, MODES[:1])
                positive = bool(d.integers(2))
                own = leaves(d, nodes, "class", targets, positive=positive, sparse=sparse)
                more: dict[str, Any] = {"post_transform": transform}
                more |= {"classlabels_int64s": list(range(10, 10 + count))}
                more |= {"base_values": [0.1, 0.2, 0.3][:base]} if base else {}
                attributes = {**nodes, **own, **more}
                yield Case("TreeEnsembleClassifier", [rows], (0,), attributes, 2, ML)


CLASSICAL = {"features": features_cases, "linear": linear_cases, "trees": tree_cases}

GROUPS = {
    **CLASSICAL,
    "attention": attention_cases,
    "elementwise": elementwise_cases,
    "grouped_attention": grouped_attention_cases,
    "image": image_cases,
    "other": other_cases,
    "packed_table": packed_table_cases,
    "product": product_cases,
    "recurrent": recurrent_cases,
    "sixteen_bit": sixteen_bit_cases,
}


def joined(cases: list[Case]) -> tuple[onnx.ModelProto, dict[str, Array], set[str]]:
    """One model of all cases, what it is fed, and the results that are compared."""
    nodes, feeds, constants, outputs = [], dict[str, Array](), dict[str, Array](), list[str]()
    compared = set[str]()
    for number, case in enumerate(cases):
        names = []
        for index, operand in enumerate(case.operands):
            names.append("" if operand is None else f"x{number}_{index}")
            if operand is not None:
                kept = feeds if index in case.varies else constants
                kept[names[-1]] = np.asarray(operand)
        results = [f"y{number}_{i}" for i in range(case.results)]
        nodes.append(
            helper.make_node(
                case.op_type, names, results, f"n{number}", domain=case.domain, **case.attributes
            )
        )
        outputs += results
        compared.update(results[: case.compared])
    graph = helper.make_graph(
        nodes,
        "cases",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in feeds.items()
        ],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(x, n) for n, x in constants.items()],
    )
    versions = {"": 17, "com.microsoft": 1, ML: 3}
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9), feeds, compared


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_definitions_of_a_group(tmp_path: Path, group: str) -> None:
    cases = list(GROUPS[group]())
    proto, feeds, compared = joined(cases)
    compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")
    found = Runtime(tmp_path / "m.so").run(feeds)
    for name, expected in reference(proto, feeds).items():
        if name not in compared:
            continue
        case = cases[int(name[1:].split("_")[0])]
        message = f"{name} {case.op_type} {case.attributes}"
        assert found[name].dtype == expected.dtype, message
        assert found[name].shape == expected.shape, message
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(found[name], expected, 1e-4, 2e-5, err_msg=message)
        else:
            np.testing.assert_array_equal(found[name], expected, err_msg=message)


def test_rows_of_classical_models_are_samples(tmp_path: Path) -> None:
    """Any number of rows, also none, and what scikit-learn's exporter ends in: a ZipMap."""
    d = Draw(11)
    nodes = forest(d, 3, 2, MODES[:1])
    attributes = {**nodes, **leaves(d, nodes, "class", [0, 1, 2])}
    labels = {"classlabels_int64s": [4, 5, 6]}
    graph = helper.make_graph(
        [
            helper.make_node("Scaler", ["x"], ["s"], domain=ML, offset=[0.1], scale=[2.0]),
            helper.make_node("TreeEnsembleClassifier", ["s"], ["label", "scores"], "trees",
                             domain=ML, post_transform="SOFTMAX", **attributes, **labels),
            helper.make_node("ZipMap", ["scores"], ["map"], domain=ML, **labels),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [onnx.ValueInfoProto(name=name) for name in ("label", "map")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 3)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")
    runtime = Runtime(tmp_path / "m.so")
    for count in (0, 1, 7):
        rows = d.floats(count, 4)
        found = runtime.run({"x": rows})
        assert found["map"].shape == (count, 3)
        if count:
            expected = reference(proto, {"x": rows})
            np.testing.assert_array_equal(found["label"], expected["label"])
            scores = [[row[i] for i in (4, 5, 6)] for row in expected["map"]]
            np.testing.assert_allclose(found["map"], scores, rtol=1e-5)


@pytest.mark.parametrize("damage", ["feature", "circle", "target", "sizes"])
def test_trees_that_lead_astray_are_refused(tmp_path: Path, damage: str) -> None:
    d = Draw(12)
    nodes = forest(d, 2, 2, MODES[:1])
    attributes = {**nodes, **leaves(d, nodes, "target", [0])}
    if damage == "feature":
        attributes["nodes_featureids"][0] = 4
    elif damage == "circle":
        attributes["nodes_truenodeids"][1] = 0
    elif damage == "target":
        attributes["target_ids"][0] = -1
    else:
        attributes["nodes_values"].pop()
    proto, _, _ = joined([Case("TreeEnsembleRegressor", [d.floats(1, 4)], (0,), attributes,
                               domain=ML)])  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"'n0' \(TreeEnsembleRegressor\): its "):
        compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")


def test_a_form_without_definition_is_refused_with_its_reason(tmp_path: Path) -> None:
    d = Draw()
    operands = [d.floats(3, 64), d.bytes(8, 2, 16), d.floats(16), None, d.integers(2, 64)]
    sizes = {"K": 64, "N": 8, "bits": 4, "block_size": 32}
    proto, _, _ = joined([Case("MatMulNBits", operands, attributes=sizes)])
    with pytest.raises(UnsupportedError, match=r"'n0' \(MatMulNBits\): its order of groups"):
        compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prob_a": [-1.0], "prob_b": [0.1]},
            r"its probabilities \(prob_a\) are found by iteration",
        ),
        ({"vectors_per_class": [2, 1]}, "20 numbers of 3 support vectors for 2 classes"),
        ({"rho": [0.1, 0.2]}, "2 numbers rho for 1 pairs"),
        ({"post_transform": "PROBIT"}, "post_transform PROBIT of one score"),
    ],
)
def test_support_vector_machines_that_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    d = Draw()
    attributes = next(svm_classifier_cases(d, d.floats(5, 4))).attributes | changes
    proto, _, _ = joined([Case("SVMClassifier", [d.floats(5, 4)], (0,), attributes, 2, ML)])
    with pytest.raises(UnsupportedError, match=rf"'n0' \(SVMClassifier\): {message}"):
        compile_model(from_proto(proto), parse_target("native"), tmp_path / "m.so")
