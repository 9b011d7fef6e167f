"""Cases of the operators that ONNX Runtime has kernels for beside the standard's.

For each kernel that is registered for CPUs in `com.microsoft` and `ai.onnx.ml`, and each of the
types that it takes, a node of its operator's schema with operands of the shapes in `FORMS`, or,
where there are none, all of one shape. What ONNX Runtime runs on tensors is a case, whose results
are the expected; strings and maps are left out, and bytes whose products ONNX Runtime's own
instructions saturate on CPUs without VNNI.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from coverage import Case
from onnx import helper, numpy_helper

DOMAINS = ("ai.onnx.ml", "com.microsoft")
ML_OPSET, STANDARD_OPSET = 5, 17
GUESS = (2, 4)
"""The shape of all operands of an operator that isn't in `FORMS`."""

Form = tuple[list[Any], dict[str, Any]]
"""Operands, each a shape, the elements as a list, or None where it is left out; attributes."""

HALF_SUMS = 2.0**-8
"""Difference, as a share of the largest result, that adding up in float16 may make, as some kernels
do where artifacts add up in float32."""

RESULTS = {"DynamicQuantizeLSTM": 3, "EmbedLayerNormalization": 2, "Unique": 3}
"""Where more results are wanted than the schema requires."""

CONSTANT = {"w", "weight", "weights", "b", "scales", "r"}
"""Operands that are constants, besides those whose elements a form gives."""

_WINDOW: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
_IMAGE, _ROWS, _TOKENS = (1, 4, 8, 8), (5, 4), (2, 3, 8)
_TREE: dict[str, Any] = {
    "nodes_treeids": [0, 0, 0],
    "nodes_nodeids": [0, 1, 2],
    "nodes_featureids": [1, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_values": [0.5, 0.0, 0.0],
    "nodes_truenodeids": [1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0],
}


def _numbers(count: int, seed: int = 0) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).standard_normal(count).astype(np.float32)]


def _machine(classes: int) -> dict[str, Any]:
    """A support vector machine with two vectors for each class."""
    return {
        "vectors_per_class": [2] * classes,
        "support_vectors": _numbers(8 * classes, 1),
        "coefficients": _numbers(2 * classes * (classes - 1), 2),
        "rho": _numbers(classes * (classes - 1) // 2, 3),
        "classlabels_ints": list(range(3, 3 + classes)),
        "kernel_params": [0.5, 0.25, 3.0],
    }


_PROBABLE = {"prob_a": [-1.5], "prob_b": [0.1]}
_KERNELS = [{"kernel_type": k} for k in ("LINEAR", "RBF", "POLY", "SIGMOID")]
_Q = [[0.05], [3]]
"""Scale and zero point."""

FORMS: dict[str, list[Form]] = {
    "ArrayFeatureExtractor": [([_ROWS, [0, 2]], {})],
    "Attention": [
        ([_TOKENS, (8, 24), (24,)], {"num_heads": 2}),
        ([_TOKENS, (8, 24), (24,)], {"num_heads": 2, "unidirectional": 1}),
        ([_TOKENS, (8, 24), (24,), [2, 3]], {"num_heads": 2}),
        ([_TOKENS, (8, 24), (24,), None, (2, 2, 2, 5, 4)], {"num_heads": 2}),
    ],
    "BiasGelu": [([_TOKENS, (8,)], {})],
    "CDist": [([_ROWS, (3, 4)], {"metric": m}) for m in ("euclidean", "sqeuclidean")],
    "CategoryMapper": [([[1, 2, 3]], {"cats_int64s": [1, 2], "cats_strings": ["a", "b"]})],
    "ConvTransposeWithDynamicPads": [([_IMAGE, (4, 2, 3, 3), [1, 1, 1, 1]], {"strides": [2, 2]})],
    "CropAndResize": [
        ([_IMAGE, [[0.1, 0.1, 0.9, 0.8]], np.zeros(1), [4, 4]], {"mode": m})
        for m in ("bilinear", "nearest")
    ],
    "DequantizeLinear": [([_ROWS, [0.1], [3]], {}), ([_ROWS, [0.1], None], {})],
    "DynamicQuantizeLSTM": [
        ([(3, 2, 4), (1, 4, 20), (1, 5, 20), None, None, None, None, None,
          np.full(1, 0.02), np.zeros(1), np.full(1, 0.02), np.zeros(1)], {"hidden_size": 5}),
    ],
    "DynamicQuantizeMatMul": [
        ([_TOKENS, (8, 6), [0.02]], {}),
        ([_TOKENS, (8, 6), [0.02], [1], (6,)], {}),
    ],
    "DynamicTimeWarping": [([(1, 4, 5)], {})],
    "EmbedLayerNormalization": [
        ([[[1, 2, 3]], [[0, 1, 0]], (9, 8), (6, 8), (2, 8), (8,), (8,)], {}),
        ([[[1, 2, 3]], None, (9, 8), (6, 8), None, (8,), (8,)], {"epsilon": 0.1}),
        ([[[1, 2, 3]], [[0, 1, 0]], (9, 8), (6, 8), (2, 8), (8,), (8,), [[1, 1, 0]]], {}),
    ],
    "ExpandDims": [([_ROWS, [1]], {})],
    "FastGelu": [([_TOKENS], {}), ([_TOKENS, (8,)], {})],
    "FeatureVectorizer": [([_ROWS], {"inputdimensions": [4]})],
    "FusedConv": [
        ([_IMAGE, (6, 4, 3, 3), (6,)], {"activation": a}) for a in ("Relu", "Sigmoid", "Tanh")
    ],
    "FusedGemm": [
        ([_ROWS, (4, 6), (6,)], {"activation": a}) for a in ("Relu", "LeakyRelu", "Tanh")
    ],
    "FusedMatMul": [([_ROWS, (4, 6)], {"alpha": 0.5}), ([_ROWS, (6, 4)], {"transB": 1})],
    "GatedAdd": [([_TOKENS, _TOKENS, (2, 3, 1)], {})],
    "GatedRMSNorm": [([_TOKENS, (8,), _TOKENS], {})],
    "BranchwiseRMSNorm": [([_TOKENS, (8,)], {"num_branches": 1})],
    "GatherBlockQuantized": [
        ([(8, 32), [1, 3], (8, 1)], {"block_size": 32, "bits": 8, "quantize_axis": 1}),
        ([(8, 16), [1, 3], (8, 1)], {"block_size": 32, "bits": 4, "quantize_axis": 1}),
    ],
    "GatherND": [([_ROWS, [[0, 1], [2, 3]]], {})],
    "GridSample": [
        ([_IMAGE, (1, 5, 6, 2)], {"mode": m, "padding_mode": p})
        for m in ("bilinear", "nearest", "bicubic")
        for p in ("zeros", "border", "reflection")
    ],
    "GroupQueryAttention": [
        ([(1, 3, 32), (1, 3, 16), (1, 3, 16), None, None, [[2]], [3]],
         {"num_heads": 2, "kv_num_heads": 1}),
        ([(1, 3, 32), (1, 3, 16), (1, 3, 16), None, None, [[2]], [3]],
         {"num_heads": 2, "kv_num_heads": 1, "local_window_size": 2}),
    ],
    "Imputer": [
        ([_ROWS], {"imputed_value_floats": [1.5], "replaced_value_float": float("nan")}),
        ([_ROWS], {"imputed_value_int64s": [1, 2, 3, 4], "replaced_value_int64": 0}),
    ],
    "Inverse": [([(2, 4, 4)], {})],
    "LabelEncoder": [
        ([[1, 2, 5]], {"keys_int64s": [1, 2], "values_int64s": [10, 20]}),
        ([[1, 2, 5]], {"keys_int64s": [1, 2], "values_floats": [1.5, 2.5]}),
        ([[1, 2, 5]], {"keys_floats": [1.0, 2.0], "values_floats": [1.5, 2.5]}),
        ([[1, 2, 5]], {"keys_floats": [1.0, 2.0], "values_int64s": [1, 2]}),
        *(
            ([[1, 2, 5]], {"keys_tensor": np.asarray([1, 2], k), "values_tensor":
                           np.asarray([7, 9], v), "default_tensor": np.asarray([4], v)})
            for k, v in (("int64", "int64"), ("float32", "float32"), ("double", "double"),
                         ("int64", "int16"), ("int64", "float32"))
        ),
    ],
    "LinearClassifier": [
        ([_ROWS], {"coefficients": _numbers(4 * n), "intercepts": [0.1] * n, "post_transform": t,
                   "classlabels_ints": [3, 5, 7][: max(n, 2)]})
        for n in (1, 2, 3)
        for t in ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")
    ],
    "LinearRegressor": [
        ([_ROWS], {"coefficients": _numbers(4), "intercepts": [0.1]}),
        ([_ROWS], {"coefficients": _numbers(8), "intercepts": [0.1, 0.2], "targets": 2}),
    ],
    "MatMulInteger16": [([_ROWS, (4, 6)], {})],
    "MatMulIntegerToFloat": [
        ([_ROWS, (4, 6), [0.1], [0.2]], {}),
        ([_ROWS, (4, 6), [0.1], [0.2], [3], [1], (6,)], {}),
    ],
    "MatMulNBits": [
        ([(3, 64), (8, 64 // b, b * n // 8), (8 * (64 // b),)],
         {"K": 64, "N": 8, "bits": n, "block_size": b})
        for n in (2, 4, 8)
        for b in (16, 32, 64)
    ],
    "MaxpoolWithMask": [([_IMAGE, (1, 1, 8, 8)], {"kernel_shape": [3, 3]})],
    "MultiHeadAttention": [
        ([_TOKENS, _TOKENS, _TOKENS], {"num_heads": 2}),
        ([_TOKENS, _TOKENS, _TOKENS, (24,)], {"num_heads": 2, "unidirectional": 1}),
    ],
    "NhwcMaxPool": [([(1, 8, 8, 4)], _WINDOW)],
    "Normalizer": [([_ROWS], {"norm": n}) for n in ("MAX", "L1", "L2")],
    "OneHotEncoder": [([[1, 2, 5]], {"cats_int64s": [1, 2, 5], "zeros": 1})],
    "Pad": [([_ROWS, [0, 1, 1, 0]], {"mode": m}) for m in ("constant", "reflect", "edge")],
    "QAttention": [
        ([_TOKENS, (8, 24), (24,), [0.02], [0.01], None, [3], [1]], {"num_heads": 2}),
    ],
    "QGemm": [
        ([_ROWS, *_Q, (4, 6), *_Q, (6,), *_Q], {}),
        ([_ROWS, *_Q, (6, 4), *_Q, (6,)], {"transB": 1}),
    ],
    "QLinearAdd": [([_ROWS, *_Q, _ROWS, *_Q, *_Q], {}), ([_ROWS, *_Q, (4,), *_Q, *_Q], {})],
    "QLinearMul": [([_ROWS, *_Q, _ROWS, *_Q, *_Q], {}), ([_ROWS, *_Q, (4,), *_Q, *_Q], {})],
    "QLinearAveragePool": [([_IMAGE, *_Q, *_Q], _WINDOW)],
    "QLinearConcat": [([*_Q, _ROWS, *_Q, _ROWS, *_Q], {"axis": 1})],
    "QLinearConv": [([_IMAGE, *_Q, (6, 4, 3, 3), *_Q, *_Q, (6,)], {})],
    "QLinearGlobalAveragePool": [([_IMAGE, *_Q, *_Q], {})],
    "QLinearLeakyRelu": [([_ROWS, *_Q, *_Q], {"alpha": 0.2})],
    "QLinearSigmoid": [([_ROWS, *_Q, [0.0039], [0]], {})],
    "QLinearSoftmax": [([_ROWS, *_Q, [0.0039], [0]], {"opset": o, "axis": -1}) for o in (11, 13)],
    "QLinearWhere": [([_ROWS, _ROWS, *_Q, _ROWS, *_Q, *_Q], {})],
    "QuantizeLinear": [([_ROWS, [0.1], [3]], {})],
    "Range": [([[1], [9], [2]], {})],
    "RotaryEmbedding": [
        ([(1, 3, 8), np.zeros(1), (4, 4), (4, 4)], {}),
        ([(1, 2, 3, 8), [[0, 1, 2]], (4, 4), (4, 4)], {"interleaved": 1}),
    ],
    "SVMClassifier": [
        *(([_ROWS], {**_machine(n), **k}) for n in (2, 3) for k in _KERNELS),
        ([_ROWS], {**_machine(2), **_PROBABLE, "kernel_type": "RBF"}),
    ],
    "SVMRegressor": [
        ([_ROWS], {"n_supports": 3, "support_vectors": _numbers(12), "coefficients": _numbers(3),
                   "rho": [0.2], "kernel_params": [0.5, 0.25, 3.0], **k})
        for k in _KERNELS
    ],
    "Scaler": [([_ROWS], {"scale": [0.5], "offset": [1.0]}),
               ([_ROWS], {"scale": [0.5, 1.0, 2.0, 3.0], "offset": [1.0, 0.0, 2.0, 1.0]})],
    "SkipLayerNormalization": [
        ([_TOKENS, _TOKENS, (8,)], {}),
        ([_TOKENS, _TOKENS, (8,), (8,), (8,)], {"epsilon": 0.1}),
    ],
    "SkipSimplifiedLayerNormalization": [
        ([_TOKENS, _TOKENS, (8,)], {}),
        ([_TOKENS, _TOKENS, (8,), (8,)], {}),
    ],
    "TransposeMatMul": [([(4, 5), (4, 6)], {"transA": 1})],
    "TreeEnsemble": [
        ([_ROWS], {"tree_roots": [0], "nodes_featureids": [1],
                   "nodes_modes": {"tensor": [0], "dtype": "uint8"},
                   "nodes_splits": {"tensor": [0.5]}, "nodes_truenodeids": [0],
                   "nodes_trueleafs": [1],
                   "nodes_falsenodeids": [1], "nodes_falseleafs": [1], "leaf_targetids": [0, 0],
                   "leaf_weights": {"tensor": [0.75, 0.5]}, "n_targets": 1})
    ],
    "TreeEnsembleClassifier": [
        ([_ROWS], {**_TREE, "class_treeids": [0, 0], "class_nodeids": [1, 2], "class_ids": [0, 1],
                   "class_weights": [0.75, 0.5], "classlabels_int64s": labels,
                   "post_transform": t})
        for t in ("NONE", "LOGISTIC", "SOFTMAX")
        for labels in ([3, 4], [3, 4, 5])
    ],
    "TreeEnsembleRegressor": [
        ([_ROWS], {**_TREE, "target_treeids": [0, 0], "target_nodeids": [1, 2],
                   "target_ids": [0, 0], "target_weights": [0.75, 0.5], "n_targets": 1,
                   "aggregate_function": a})
        for a in ("SUM", "AVERAGE", "MIN", "MAX")
    ],
    "Trilu": [([(4, 4)], {"upper": u}) for u in (0, 1)],
    "UnfoldTensor": [([(2, 8)], {"dim": 1, "size": 3, "step": 2})],
    "Unique": [([(6,)], {})],
    "ZipMap": [([(5, 3)], {"classlabels_int64s": [0, 1, 2]})],
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Registered:
    """An operator that kernels are registered for, with the types of each of them."""

    schema: Any
    types: tuple[Mapping[str, tuple[str, ...]], ...]

    @property
    def name(self) -> str:
        return str(self.schema.name)


def registered() -> list[Registered]:
    """The operators that ONNX Runtime's CPU kernels are registered for, by their newest schema."""
    from onnxruntime.capi._pybind_state import get_all_opkernel_def
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    kernels: dict[tuple[str, str], list[Mapping[str, tuple[str, ...]]]] = {}
    for kernel in get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider" and kernel.domain in DOMAINS:
            types = {k: tuple(v) for k, v in kernel.type_constraints.items()}
            kernels.setdefault((kernel.domain, kernel.op_name), []).append(types)
    newest: dict[tuple[str, str], Any] = {}
    for schema in get_all_operator_schema():
        key = (schema.domain, schema.name)
        if key not in kernels or schema.since_version > ML_OPSET or schema.deprecated:
            continue
        if key not in newest or newest[key].since_version < schema.since_version:
            newest[key] = schema
    return [Registered(newest[key], tuple(kernels[key])) for key in sorted(newest)]


def registered_cases() -> Iterator[tuple[str, Case]]:
    """Pairs of operator and case, of all that ONNX Runtime runs."""
    for operator in registered():
        seen: set[bytes] = set()
        for types in operator.types:
            for chosen in _choices(operator, types):
                for form in FORMS.get(operator.name) or [_guess(operator)]:
                    case = _case(operator, chosen, form, len(seen))
                    proto = None if case is None else case.model.SerializeToString()
                    if case is not None and proto is not None and proto not in seen:
                        seen.add(proto)
                        yield operator.name, case


def _choices(
    operator: Registered, types: Mapping[str, tuple[str, ...]]
) -> Iterator[dict[str, str]]:
    """One type for each parameter: the first of all, then every other of one of them."""
    known = {c.type_param_str: tuple(c.allowed_type_strs) for c in operator.schema.type_constraints}
    known |= types
    first = {name: allowed[0] for name, allowed in known.items() if allowed}
    yield first
    for name, allowed in types.items():
        for other in allowed[1:]:
            yield {**first, name: other}


def _guess(operator: Registered) -> Form:
    """Operands of one shape for what the schema requires."""
    required = [i for i in operator.schema.inputs if "Optional" not in str(i.option)]
    return [GUESS for _ in required], {}


def _case(operator: Registered, types: Mapping[str, str], form: Form, number: int) -> Case | None:
    """The case of a form with these types; None where ONNX Runtime doesn't run it."""
    operands, attributes = form
    schema = operator.schema
    random = np.random.default_rng(zlib.crc32(f"{operator.name}{number}".encode()))
    names, inputs, constants, feeds = [], [], [], {}
    for index, operand in enumerate(operands):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        names.append("" if operand is None else f"x{index}")
        if operand is None:
            continue
        dtype = _dtype(types.get(formal.typeStr, formal.typeStr))
        if formal.typeStr == "TV":  # tensors, each with a scale and a zero point
            dtype = np.dtype(np.uint8 if index % 3 != 0 else np.float32)
        if dtype is None:
            return None
        array = _array(operand, dtype, random)
        if index and (isinstance(operand, (list, np.ndarray)) or formal.name.lower() in CONSTANT):
            constants.append(numpy_helper.from_array(array, names[-1]))
            continue
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(helper.make_tensor_value_info(names[-1], kind, array.shape))
        feeds[names[-1]] = array
    made = {k: _attribute(k, v, types) for k, v in attributes.items()}
    required = [o for o in schema.outputs if "Optional" not in str(o.option)]
    results = [f"y{i}" for i in range(RESULTS.get(operator.name, len(required)))]
    node = helper.make_node(operator.name, names, results, domain=schema.domain, **made)
    declared = [onnx.ValueInfoProto(name=name) for name in results]
    graph = helper.make_graph([node], operator.name, inputs, declared, constants)
    version = min(schema.since_version, ML_OPSET) if schema.domain == DOMAINS[0] else 1
    opsets = [helper.make_opsetid("", STANDARD_OPSET), helper.make_opsetid(schema.domain, version)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    expected = _run(model, feeds)
    if expected is None or not all(_is_numeric(each) for each in expected):
        return None
    text = ",".join(types.values()).replace("tensor", "")
    name = f"{operator.name}_{number}{text}"
    largest = max(np.abs(np.nan_to_num(e.astype(np.float64))).max(initial=0.0) for e in expected)
    rounding = HALF_SUMS * largest if "float16" in text else 2e-5
    return Case(name, model, list(feeds.values()), expected, 1e-4, rounding)


def _is_numeric(result: Any) -> bool:
    return isinstance(result, np.ndarray) and result.dtype.kind not in "OSU"


def _dtype(text: str) -> np.dtype[Any] | None:
    """The type of a tensor as schemas write it; None for strings and what isn't a tensor."""
    names = {"float": "float32", "double": "float64"}
    inner = text.removeprefix("tensor(").removesuffix(")")
    if not text.startswith("tensor(") or inner == "string":
        return None
    try:
        return np.dtype(names.get(inner, inner))
    except TypeError:
        import ml_dtypes

        found = getattr(ml_dtypes, inner, None)
        return None if found is None else np.dtype(found)


def _array(operand: Any, dtype: np.dtype[Any], random: np.random.Generator) -> Any:
    if isinstance(operand, np.ndarray):
        return operand.astype(dtype)
    if isinstance(operand, list):
        array = np.asarray(operand).astype(dtype)
        return array.reshape(()) if array.shape == (1,) else array
    if dtype == np.bool_:
        return random.integers(0, 2, operand).astype(np.bool_)
    if dtype.kind in "iu":
        low, high = {"int8": (-32, 32), "uint8": (0, 256)}.get(dtype.name, (0, 4))
        return random.integers(low, high, operand).astype(dtype)
    return random.standard_normal(operand).astype(np.float32).astype(dtype)


def _attribute(name: str, value: Any, types: Mapping[str, str]) -> Any:
    if isinstance(value, np.ndarray):
        return numpy_helper.from_array(value, name)
    kind = _dtype(types.get("T", "")) if isinstance(value, dict) else None
    if kind is not None:
        return numpy_helper.from_array(np.asarray(value["tensor"], value.get("dtype", kind)), name)
    return value


def _run(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any] | None:
    """The results; None where ONNX Runtime refuses the model or what it is fed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        return list(session.run(None, dict(feeds)))
    except Exception:  # ONNX Runtime raises a family of unrelated types
        return None
