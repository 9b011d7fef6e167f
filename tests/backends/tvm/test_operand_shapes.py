"""Operands of every shape but the right one: what ONNX Runtime refuses is refused, too.

From ONNX's own cases of each operator whose operands are checked (`operands.py`): one operand has
an element more along one axis, or its one number has another rank.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

pytest.importorskip("tvm")

from secateur.backends.tvm.lowering.loops import operands
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from tests.backend_cases import Case, generated_cases

Array = Any

CHECKED = sorted({*operands._RULES, *operands._NUMBERS, *operands._CHANNELS})
MOST = 3
"""Cases of an operator."""

TARGET = parse_target("native")


def cases() -> dict[str, list[Case]]:
    """Of one node each on tensors, by operator; first those of the most operands."""
    found = collections.defaultdict(list)
    for case in generated_cases():
        nodes = case.model.graph.node
        if len(nodes) != 1 or nodes[0].op_type not in CHECKED or not case.data:
            continue
        if all(isinstance(x, np.ndarray) and x.size for x in case.data[0][0]):
            found[nodes[0].op_type].append(case)
    order = {n: sorted(c, key=lambda c: -len(c.model.graph.input)) for n, c in found.items()}
    return {name: chosen[:MOST] for name, chosen in order.items()}


CASES = cases()


def resized(array: Array, shape: tuple[int, ...]) -> Array:
    return np.resize(array, shape).astype(array.dtype)


def larger(array: Array) -> Iterator[Array]:
    for axis, size in enumerate(array.shape):
        yield resized(array, (*array.shape[:axis], size + 1, *array.shape[axis + 1 :]))
    if not array.shape:
        yield resized(array, (2,))


PER_ROW = {"QLinearMatMul"}
"""Their scales may be as many as rows or columns, as ONNX says and ONNX Runtime doesn't."""


def model_of(case: Case, index: int, array: Array, *, keep: bool = False) -> onnx.ModelProto:
    """The case with one operand of another shape; `keep` the results' shapes as they are."""
    graph = case.model.graph
    inputs = [*graph.input]
    inputs[index] = helper.make_tensor_value_info(
        inputs[index].name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
    )
    outputs = [
        o if keep else helper.make_tensor_value_info(o.name, o.type.tensor_type.elem_type, None)
        for o in graph.output
    ]
    changed = helper.make_graph([*graph.node], "shapes", inputs, outputs)
    return helper.make_model(changed, opset_imports=[*case.model.opset_import], ir_version=8)


def refusal(model: onnx.ModelProto) -> str:
    """Why the model isn't compiled, if it isn't."""
    try:
        loaded = from_proto(model)
        infer_shapes(loaded)
        lower(loaded, TARGET)
    except SecateurError as error:
        return str(error)
    return ""


def is_true(reason: str, shapes: dict[str, tuple[int, ...]], what: str) -> None:
    """A reason names an operand that there is, with the shape that it has."""
    assert "is missing" not in reason, f"{what}: {reason}"
    said = re.search(r"operand '(.*?)' has shape (\[.*?\])", reason)
    if said is not None:
        assert said[2] == str(list(shapes[said[1]])), f"{what}: {reason}"


def runs(model: onnx.ModelProto, feeds: dict[str, Array]) -> bool:
    try:
        Session(from_proto(model), trial=True).run(feeds)
    except SecateurError:
        return False
    return True


@pytest.mark.parametrize("op_type", [name for name in CHECKED if name in CASES.keys() - PER_ROW])
def test_operands_of_another_size_are_refused(op_type: str) -> None:
    for case in CASES[op_type]:
        arrays = case.data[0][0]
        names = [value.name for value in case.model.graph.input]
        if not runs(case.model, dict(zip(names, arrays, strict=True))):
            continue
        for index in range(1, len(arrays)):
            for array in larger(arrays[index]):
                model = model_of(case, index, array)
                reason = refusal(model)
                if reason:
                    shapes = [a.shape for a in arrays]
                    shapes[index] = array.shape
                    is_true(reason, dict(zip(names, shapes, strict=True)), case.name)
                else:
                    feeds = dict(
                        zip(names, [*arrays[:index], array, *arrays[index + 1 :]], strict=True)
                    )
                    assert runs(model, feeds), f"{case.name}: {names[index]} of {array.shape}"


@pytest.mark.parametrize("op_type", [name for name in CHECKED if name in CASES])
def test_one_number_has_any_rank_that_is_valid(op_type: str) -> None:
    for case in CASES[op_type]:
        arrays = case.data[0][0]
        names = [value.name for value in case.model.graph.input]
        if refusal(case.model):
            continue
        for index in range(1, len(arrays)):
            if arrays[index].shape not in ((), (1,)):
                continue
            array = arrays[index].reshape(() if arrays[index].ndim else (1,))
            model = model_of(case, index, array, keep=True)
            reason = refusal(model)
            if reason:
                feeds = dict(
                    zip(names, [*arrays[:index], array, *arrays[index + 1 :]], strict=True)
                )
                assert not runs(model, feeds), f"{case.name}: {names[index]}: {reason}"
