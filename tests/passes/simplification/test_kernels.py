"""Kernels of folding, each by ONNX's own cases of its operator."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import pytest

from secateur.ir.graph import Node
from secateur.ir.onnx_io import from_proto
from secateur.passes.simplify.kernels import KERNELS, compute
from tests.backend_cases import generated_cases

Array = Any


class Case(NamedTuple):
    name: str
    node: Node
    operands: list[Array | None]
    result: Array

    @property
    def plain(self) -> bool:
        """Whether NumPy has the types itself."""
        arrays = [array for array in (*self.operands, self.result) if array is not None]
        return all(a.dtype.isbuiltin == 1 and a.dtype.kind in "biuf" for a in arrays)


@functools.cache
def cases() -> dict[str, Case]:
    """Cases of one node that has a kernel; of products, which have one of integers, integers."""
    found = {}
    for case in generated_cases():
        (*before, proto) = case.model.graph.node
        if before or proto.op_type not in KERNELS or not case.data:
            continue
        feeds, results = case.data[0]
        if not all(isinstance(array, np.ndarray) for array in (*feeds, *results)):
            continue
        values = dict(zip((v.name for v in case.model.graph.input), feeds, strict=True))
        operands, result = [values.get(name) for name in proto.input], results[0]
        (node,) = from_proto(case.model).graph.nodes
        if node.op_type == "ReduceProd":
            operands[0] = np.rint(operands[0]).astype(np.int64)
            axes = None if len(operands) < 2 else tuple(operands[1])
            keep = bool(node.get("keepdims", 1))
            result = np.prod(operands[0], axis=axes, keepdims=keep, dtype=np.int64)
        found[case.name] = Case(case.name, node, operands, result)
    return found


def assert_same(found: Array | None, case: Case) -> None:
    assert found is not None, case.name
    assert found.dtype == case.result.dtype, case.name
    np.testing.assert_array_equal(found, case.result, err_msg=case.name)


DECLINED = {
    "test_div_int32_trunc": "negative integers",
    "test_range_float_type_positive_delta": "sums that round",
    "test_range_float16_type_positive_delta": "sums that round",
}


def test_kernels_compute_what_cases_say_and_decline_no_others() -> None:
    """What a kernel declines ONNX Runtime computes: slower, so that no other test tells."""
    seen = set()
    for case in cases().values():
        found = compute(case.node, case.operands)
        if case.name in DECLINED:
            assert found is None
        elif case.plain:
            assert_same(found, case)
            seen.add(case.node.op_type)
        else:
            assert found is None or case.node.op_type != "Cast", case.name
            assert found is None or found.tobytes() == case.result.tobytes(), case.name
    assert seen == KERNELS.keys()
    assert cases().keys() >= DECLINED.keys()


OPERANDS = {
    "Slice": ("starts", "ends", "axes"),
    "Squeeze": ("axes",),
    "Unsqueeze": ("axes",),
    "ReduceProd": ("axes",),
    "Reshape": ("shape",),
}


@pytest.mark.parametrize("op_type", OPERANDS)
def test_operands_may_be_attributes_as_in_old_operator_sets(op_type: str) -> None:
    names = OPERANDS[op_type]
    tried = 0
    for case in cases().values():
        first, *rest = case.operands
        if case.node.op_type != op_type or not 0 < len(rest) <= len(names):
            continue
        node = Node(op_type, [None], [None], dict(case.node.attributes))
        for name, operand in zip(names, rest, strict=False):
            assert operand is not None
            node.set(name, operand.tolist())
        assert_same(compute(node, [first]), case)
        tried += 1
    assert tried
