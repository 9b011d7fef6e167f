"""Every axes rule on every test case that ONNX ships for its operator, or `further_cases.py` has.

Each case's inputs are put behind an Einsum that makes all of their axes prunable, its
outputs before an Einsum that contracts them; then the model is pruned at random and
compared with the masked original. Every operator loses indices of its own operands in
some case, or stands in `LOCKED` with what must be said of it.
"""

import string
from collections import defaultdict

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from tests.backend_cases import generated_cases

from .further_cases import further_cases
from .oracle import assert_equals, assert_equals_masked, prune_at_random, run_masked


def cases_by_operator():
    """Names of the cases by the operator of their last node."""
    found = defaultdict(list)
    for case in CASES.values():
        found[case.model.graph.node[-1].op_type if case.model.graph.node else ""].append(case.name)
    return found


CASES = {case.name: case for case in [*generated_cases(), *further_cases()] if case.data}
"""Cases by name."""
OPERATORS = cases_by_operator()

UNTYPED = {
    "contrib QLinearAveragePool of channels last",
    "contrib QLinearGlobalAveragePool of channels last",
}
"""Cases whose result no inference knows the type of, which masks would need."""

CONSTANT_CHANNELS = {"test_mvn"}
"""Cases in which ONNX Runtime makes all channels NaN if one, masked, is constant."""

SIZES_IN_INPUTS = {"ConstantOfShape", "Resize", "Upsample"}
"""Operators whose inputs of rank 1 determine sizes: they stay constant."""

WIDTH = 4
"""Channels of cases that have one, where the operator takes more."""

LARGEST = 64
"""Elements along an axis that matrices are made for."""

OPSETS = (21, 17, 13)
"""Where ONNX Runtime lacks an operator at a case's own opset."""

EXACT = 2**24
"""Integers below are exact in single precision."""

NO_RULE = "no axes rule for this operator"

LOCKED = {
    "ArrayFeatureExtractor": NO_RULE,
    "Bernoulli": NO_RULE,
    "Binarizer": NO_RULE,
    "BlackmanWindow": NO_RULE,
    "CausalConvWithState": NO_RULE,
    "ConcatFromSequence": NO_RULE,
    "EyeLike": NO_RULE,
    "HammingWindow": NO_RULE,
    "HannWindow": NO_RULE,
    "If": "a constant result of a subgraph",
    "LabelEncoder": NO_RULE,
    "LinearAttention": NO_RULE,
    "Loop": "one entry per iteration",
    "MaxUnpool": NO_RULE,
    "MelWeightMatrix": NO_RULE,
    "NonMaxSuppression": NO_RULE,
    "NonZero": NO_RULE,
    "OptionalGetElement": NO_RULE,
    "OptionalHasElement": NO_RULE,
    "Range": "counted by Range",
    "RegexFullMatch": NO_RULE,
    "RoiAlign": "regions are data",
    "STFT": "the transform runs along this axis",
    "SequenceAt": NO_RULE,
    "SequenceMap": NO_RULE,
    "SplitToSequence": NO_RULE,
    "StringSplit": NO_RULE,
    "TfIdfVectorizer": NO_RULE,
    "TreeEnsemble": NO_RULE,
    "Unique": NO_RULE,
}
"""Operators none of whose operands loses an index, and what a lock says of them."""

NOTHING_FREE = {
    "Constant": "constants come out of no layer",
    "ConstantOfShape": "constants come out of no layer",
    "SequenceInsert": "sequences come out of no layer",
    "SequenceLength": "sequences come out of no layer",
    "Size": "counts what the interface fixes",
    "StringConcat": "strings come out of no layer",
    "StringNormalizer": "strings come out of no layer",
}
"""Operators none of whose operands has an axis that could be free, and why."""

NOT_RUN = {
    "Adagrad": "ONNX Runtime has no such operator",
    "Adam": "ONNX Runtime has no such operator",
    "BiasAdd": "ONNX Runtime has it for graphics processors alone",
    "FlexAttention": "ONNX Runtime has no such operator",
    "GemmFastGelu": "ONNX Runtime has it for graphics processors alone",
    "Gradient": "ONNX Runtime has no such operator",
    "GroupNorm": "ONNX Runtime has it for graphics processors alone",
    "ImageDecoder": "ONNX Runtime has no such operator",
    "MeanVarianceNormalization": "see CONSTANT_CHANNELS",
    "Momentum": "ONNX Runtime has no such operator",
    "Scatter": "gone when Einsum came",
    "SwiGLU": "ONNX Runtime has no such operator",
    "Upsample": "gone when Einsum came",
}
"""Operators of which no case can be compared, and why. Newer versions may run some."""

MOST_CASES = 8
"""Cases of an operator that are tested by default; slow tests take twice as many."""


def contraction(rank):
    """An Einsum equation that maps every axis by a matrix, into or out of free axes."""
    old, new = string.ascii_lowercase[:rank], string.ascii_uppercase[:rank]
    return ",".join([old, *(o + n for o, n in zip(old, new, strict=True))]) + "->" + new


def fits(shape):
    """Whether matrices for every axis of a shape stay small."""
    return 0 < len(shape) <= 5 and 0 < min(shape) <= max(shape) <= LARGEST


def readers(graph):
    """The first node that reads each value, and at which position."""
    found = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            found.setdefault(name, (node, position))
    return found


def can_open(array, node, position):
    """Whether an input can come out of a layer: floating-point ones, and others that are
    of the type of the operator's first, which holds its data and not where to find it."""
    if not isinstance(array, np.ndarray) or not fits(array.shape):
        return False
    if array.ndim == 1 and node.op_type in SIZES_IN_INPUTS:
        return False
    if array.dtype.kind in "iu" and node.op_type in ("Div", "Mod") and position:
        return False  # masking would divide by zero
    if array.dtype in (np.float16, np.float32, np.float64):
        return True
    if array.dtype.kind not in "iub" or abs(array.astype(np.float64)).max() >= EXACT:
        return False
    if node.domain not in ("", "ai.onnx"):
        return array.size > 1
    formal = onnx.defs.get_schema(node.op_type, domain=node.domain).inputs
    kinds = [formal[min(i, len(formal) - 1)].type_str for i in (0, position)]
    return array.size > 1 and kinds[0] == kinds[1]


def layer_matrix(array, size, rng):
    """Of a layer before an input: any floats, and as whole as the input's numbers."""
    if array.dtype.kind == "f":
        return rng.uniform(0.1, 1.0, (size, size)).astype(np.float32)
    return rng.permutation(np.eye(size, dtype=np.float32))


def resized(model, arrays):
    """The case with more than one channel, and with shorter vectors; None where there is
    nothing to change or ONNX Runtime doesn't run it."""
    wide, wide_arrays = onnx.ModelProto(), []
    wide.CopyFrom(model)
    del wide.graph.value_info[:]
    for info, array in zip(wide.graph.input, arrays, strict=False):
        sizes = info.type.tensor_type.shape.dim
        if isinstance(array, np.ndarray) and array.ndim > 2 and array.shape[1] == 1:
            array = np.repeat(array, WIDTH, axis=1)
            sizes[1].dim_value = WIDTH
        elif isinstance(array, np.ndarray) and array.ndim == 1 and len(array) > LARGEST:
            array = array[:LARGEST]
            sizes[0].dim_value = LARGEST
        wide_arrays.append(array)
    for info in wide.graph.output:
        info.type.tensor_type.ClearField("shape")
    if all(a is b for a, b in zip(arrays, wide_arrays, strict=True)):
        return None
    results = outputs_of(wide, wide_arrays)
    if results is None:
        return None
    for info in wide.graph.output:
        info.CopyFrom(
            helper.make_tensor_value_info(
                info.name, info.type.tensor_type.elem_type, np.shape(results[info.name])
            )
        )
    return wide, wide_arrays


def outputs_of(model, arrays):
    feeds = {i.name: a for i, a in zip(model.graph.input, arrays, strict=False)}
    try:
        return Session(from_proto(model), optimize=False).run(feeds)
    except (SecateurError, TypeError, ValueError):
        return None


def wrap(case, rng):
    """The case's model with free axes at its inputs; returns the model and feeds."""
    source, arrays = resized(case.model, case.data[0][0]) or (case.model, case.data[0][0])
    model = onnx.ModelProto()
    model.CopyFrom(source)
    graph = model.graph
    nodes, feeds, kept_inputs = [], {}, []
    reader = readers(graph)
    for info, array in zip(list(graph.input), arrays, strict=False):
        name = info.name
        if name in reader and can_open(array, *reader[name]):
            raw, result = f"{name}_raw", name
            if array.dtype != np.float32:
                result = f"{name}_float"
                to = info.type.tensor_type.elem_type
                nodes.append(helper.make_node("Cast", [result], [name], to=to))
            matrices = [f"{name}_in{axis}" for axis in range(array.ndim)]
            for matrix, size in zip(matrices, array.shape, strict=True):
                made = layer_matrix(array, size, rng)
                graph.initializer.append(numpy_helper.from_array(made, matrix))
            equation = contraction(array.ndim)
            layer = helper.make_node("Einsum", [raw, *matrices], [result], equation=equation)
            nodes.insert(0, layer)
            kept_inputs.append(helper.make_tensor_value_info(raw, TensorProto.FLOAT, array.shape))
            feeds[raw] = array.astype(np.float32)
        elif isinstance(array, np.ndarray) and array.size <= 1024 and array.dtype.kind in "fiub":
            graph.initializer.append(numpy_helper.from_array(array, name))
        else:
            kept_inputs.append(info)
            feeds[name] = array
    del graph.input[:]
    graph.input.extend(kept_inputs)
    closing, outputs = [], []
    for info in list(graph.output):
        tensor = info.type.tensor_type
        shape = [d.dim_value for d in tensor.shape.dim]
        if tensor.elem_type in (0, TensorProto.STRING) or not fits(shape):
            outputs.append(info)
            continue
        name, end = info.name, f"{info.name}_end"
        if tensor.elem_type != TensorProto.FLOAT:
            name = f"{info.name}_float"
            closing.append(helper.make_node("Cast", [info.name], [name], to=TensorProto.FLOAT))
        matrices = [f"{info.name}_out{axis}" for axis in range(len(shape))]
        for matrix, size in zip(matrices, shape, strict=True):
            made = rng.standard_normal((size, 2)).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(made, matrix))
        equation = contraction(len(shape))
        closing.append(helper.make_node("Einsum", [name, *matrices], [end], equation=equation))
        outputs.append(helper.make_tensor_value_info(end, TensorProto.FLOAT, [2] * len(shape)))
    middle = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *middle, *closing])
    del graph.output[:]
    graph.output.extend(outputs)
    return at_newest_opset(model, feeds), feeds


def at_newest_opset(model, feeds):
    """The model at its own opset, at least that of Einsum, or an older one that runs."""
    own = [o for o in model.opset_import if o.domain in ("", "ai.onnx")]
    opset = own[0] if own else model.opset_import.add(version=OPSETS[0])
    newest = max(opset.version, OPSETS[-1])
    for version in (newest, *(v for v in OPSETS if v < newest)):
        opset.version = version
        if runs(model, feeds):
            return model
    opset.version = newest
    return model


def check(name, seed, share=None):
    """Prune around one case. What was pruned; None where ONNX Runtime doesn't run it."""
    rng = np.random.default_rng(seed)
    proto, feeds = wrap(CASES[name], rng)
    if name in UNTYPED or not runs(proto, feeds):
        return None
    result = prune_at_random(from_proto(proto), rng, share)
    expected = run_masked(result, feeds)
    if name in CONSTANT_CHANNELS and not all(np.isfinite(v).all() for v in expected.values()):
        return None
    try:
        assert_equals(result, feeds, expected, rtol=2e-4)
    except AssertionError:  # unless by rounding
        assert_equals_masked(result, feeds, rtol=2e-4)
    return result


def runs(proto, feeds):
    try:
        Session(from_proto(proto), optimize=False).run(feeds)
    except (SecateurError, TypeError, ValueError):
        return False
    return True


def touches(result, op_type):
    """Whether an operand or result of such an operator loses indices."""
    return any(
        value is not None and value.name in result.record.values
        for node in result.original.all_nodes()
        if node.op_type == op_type
        for value in (*node.inputs, *node.outputs)
    )


def check_operator(op_type, seeds, share=None, most=None):
    """Check cases of an operator, and that some prune it or that it is known not to."""
    results, failures = [], []
    names = OPERATORS[op_type]
    for name in names[:: -(-len(names) // most) if most else 1]:
        for seed in seeds:
            try:
                result = check(name, seed, share)
            except Exception as error:  # reported with the case's name below
                failures.append(f"{name}: {type(error).__name__}: {error}")
            else:
                results += [result] if result is not None else []
    assert not failures, "\n".join(failures)
    pruned = [result for result in results if touches(result, op_type)]
    if op_type in LOCKED:
        assert not pruned
        locks = [group.lock for result in results for group in result.groups]
        assert any(k and k.op_type == op_type and LOCKED[op_type] in k.reason for k in locks)
    elif op_type in NOTHING_FREE:
        assert results
        assert not any(group.lock is None for result in results for group in result.groups)
    else:
        assert pruned or (op_type in NOT_RUN and not results)


@pytest.mark.parametrize("op_type", OPERATORS)
def test_pruning_around_an_operator_equals_masking(op_type):
    check_operator(op_type, [0], most=MOST_CASES)


@pytest.mark.slow
@pytest.mark.parametrize("op_type", OPERATORS)
def test_pruning_much_around_an_operator_equals_masking(op_type):
    check_operator(op_type, [1], 0.9, most=2 * MOST_CASES)
