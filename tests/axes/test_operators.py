"""Every axes rule on every test case that ONNX ships for its operator.

Each case's float inputs are put behind an Einsum that makes all of their axes
prunable, its outputs before an Einsum that contracts them; then the model is pruned
at random and compared with the masked original.
"""

import string
from collections import defaultdict

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.passes.reference import Session

from ..backend_cases import generated_cases
from .oracle import assert_equals, assert_equals_masked, prune_at_random, run_masked


def cases_by_operator():
    """Names of the cases by the operator of their last node."""
    found = defaultdict(list)
    for case in CASES.values():
        found[case.model.graph.node[-1].op_type if case.model.graph.node else ""].append(case.name)
    return found


CASES = {case.name: case for case in generated_cases() if case.data}
"""Cases by name."""
OPERATORS = cases_by_operator()

CONSTANT_CHANNELS = {"test_mvn"}
"""Cases in which ONNX Runtime makes all channels NaN if one, masked, is constant."""


def contraction(rank, free):
    """An Einsum equation that maps every axis by a matrix, into or out of free axes."""
    old, new = string.ascii_lowercase[:rank], string.ascii_uppercase[:rank]
    return ",".join([old, *(o + n for o, n in zip(old, new, strict=True))]) + "->" + new


def wrap(case, rng):
    """The case's model with free axes at its float inputs; returns the model and feeds."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    inputs, _ = case.data[0]
    nodes, feeds, kept_inputs = [], {}, []
    for info, array in zip(list(graph.input), inputs, strict=False):
        name = info.name
        if not isinstance(array, np.ndarray):
            kept_inputs.append(info)
            feeds[name] = array
        elif (
            array.dtype == np.float32
            and 0 < array.ndim <= 5
            and array.size > 0
            and max(array.shape) <= 64
        ):
            matrices = []
            for axis, size in enumerate(array.shape):
                matrix = rng.uniform(0.1, 1.0, (size, size)).astype(np.float32)
                graph.initializer.append(numpy_helper.from_array(matrix, f"{name}_in{axis}"))
                matrices.append(f"{name}_in{axis}")
            equation = contraction(array.ndim, True)
            nodes.append(
                helper.make_node("Einsum", [f"{name}_raw", *matrices], [name], equation=equation)
            )
            kept_inputs.append(
                helper.make_tensor_value_info(f"{name}_raw", TensorProto.FLOAT, array.shape)
            )
            feeds[f"{name}_raw"] = array
        elif array.size <= 1024 and array.dtype.kind in "iub":
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
        if (
            tensor.elem_type != TensorProto.FLOAT
            or not 0 < len(shape) <= 5
            or not 0 < min(shape) <= max(shape) <= 64
        ):
            outputs.append(info)
            continue
        matrices = []
        for axis, size in enumerate(shape):
            matrix = rng.standard_normal((size, 2)).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(matrix, f"{info.name}_out{axis}"))
            matrices.append(f"{info.name}_out{axis}")
        equation = contraction(len(shape), False)
        closing.append(
            helper.make_node(
                "Einsum", [info.name, *matrices], [f"{info.name}_end"], equation=equation
            )
        )
        outputs.append(
            helper.make_tensor_value_info(f"{info.name}_end", TensorProto.FLOAT, [2] * len(shape))
        )
    middle = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *middle, *closing])
    del graph.output[:]
    graph.output.extend(outputs)
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = max(opset.version, 13)
            break
    else:
        model.opset_import.append(helper.make_opsetid("", 21))
    return model, feeds


def check(name, seed, share=None):
    """Prune around one case. Whether ONNX Runtime runs it at all."""
    rng = np.random.default_rng(seed)
    proto, feeds = wrap(CASES[name], rng)
    try:
        result = prune_at_random(from_proto(proto), rng, share)
        expected = run_masked(result, feeds)
    except Exception:
        if runs(proto, feeds):
            raise
        return False
    if name in CONSTANT_CHANNELS and not all(np.isfinite(v).all() for v in expected.values()):
        return False
    try:
        assert_equals(result, feeds, expected, rtol=2e-4)
    except AssertionError:  # unless by rounding
        assert_equals_masked(result, feeds, rtol=2e-4)
    return True


def runs(proto, feeds):
    try:
        Session(from_proto(proto), optimize=False).run(feeds)
    except (SecateurError, TypeError, ValueError):
        return False
    return True


def check_operator(op_type, seeds, share=None):
    checked, failures = 0, []
    for name in OPERATORS[op_type]:
        for seed in seeds:
            try:
                checked += check(name, seed, share)
            except Exception as error:  # reported with the case's name below
                failures.append(f"{name}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
    if not checked:
        pytest.skip("ONNX Runtime runs none of the cases")


@pytest.mark.parametrize("op_type", OPERATORS)
def test_pruning_around_an_operator_equals_masking(op_type):
    check_operator(op_type, [0])


@pytest.mark.slow
@pytest.mark.parametrize("share", [None, 0.9, 1.0])
@pytest.mark.parametrize("op_type", OPERATORS)
def test_pruning_much_around_an_operator_equals_masking(op_type, share):
    check_operator(op_type, range(1, 6), share)
