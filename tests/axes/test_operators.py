"""Every axes rule on every test case that ONNX ships for its operator.

Each case's float inputs are put behind an Einsum that makes all of their axes
prunable, its outputs before an Einsum that contracts them; then the model is pruned
at random and compared with the masked original.
"""

import string
import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.passes.reference import Session

from .oracle import assert_equals_masked, prune_at_random


def backend_cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [c for c in collect_testcases(None) if c.model is not None and c.data_sets]


CASES = {case.name: case for case in backend_cases()}
"""Cases by name."""


def contraction(rank, free):
    """An Einsum equation that maps every axis by a matrix, into or out of free axes."""
    old, new = string.ascii_lowercase[:rank], string.ascii_uppercase[:rank]
    return ",".join([old, *(o + n for o, n in zip(old, new, strict=True))]) + "->" + new


def wrap(case, rng):
    """The case's model with free axes at its float inputs; returns the model and feeds."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    inputs, _ = case.data_sets[0]
    nodes, feeds, kept_inputs = [], {}, []
    for info, array in zip(list(graph.input), inputs, strict=False):
        name = info.name
        if not isinstance(array, np.ndarray):
            kept_inputs.append(info)
            feeds[name] = array
        elif (
            array.dtype == np.float32
            and 0 < array.ndim <= 5
            and 0 < array.size
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


def check(name, seed):
    case = CASES[name]
    rng = np.random.default_rng(seed)
    proto, feeds = wrap(case, rng)
    try:
        model = from_proto(proto)
        Session(model, optimize=False).run(feeds)
    except (SecateurError, TypeError, ValueError) as error:
        pytest.skip(f"ONNX Runtime does not run it: {error}")
    result, predicted = prune_at_random(model, rng)
    assert_equals_masked(result, feeds, predicted, rtol=2e-4)
    return result


@pytest.mark.parametrize("name", CASES)
def test_pruning_around_an_operator_equals_masking(name):
    check(name, 0)
