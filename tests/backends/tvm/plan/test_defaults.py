"""What a node leaves out has its default: the same plan as where it is stated, kernels included."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.compile import one_sample
from secateur.backends.tvm.lowering import lower
from secateur.backends.tvm.plan.operations import LoopsOp
from secateur.backends.tvm.plan.text import print_plan
from secateur.backends.tvm.targets import parse_target
from secateur.backends.tvm.tensorir.digest import digest
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from tests.backend_cases import generated_cases, stated_and_left_out

TARGET = "x86-64-v3"


def first_cases() -> dict[str, onnx.ModelProto]:
    """One of ONNX's cases for each of its operators."""
    found: dict[str, onnx.ModelProto] = {}
    for case in generated_cases():
        nodes = case.model.graph.node
        if len(nodes) == 1 and nodes[0].domain in ("", "ai.onnx"):
            found.setdefault(nodes[0].op_type, case.model)
    return found


def parts_of(plan: Any) -> Iterator[str]:
    yield print_plan(plan)
    for op in plan.operations:
        if isinstance(op, LoopsOp):
            yield digest(op.build())
        for array in vars(op).values():
            if isinstance(array, np.ndarray):
                yield hashlib.sha256(array.tobytes()).hexdigest()


def described(model: onnx.ModelProto) -> list[str]:
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    try:
        plan = lower.lower(one_sample(from_proto(model))[0], parse_target(TARGET))
        return list(parts_of(plan))
    except SecateurError as error:
        return [str(error)]


@pytest.mark.parametrize("rules", ["fast", "plain"])
def test_what_is_left_out_is_the_default(rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if rules == "plain":
        monkeypatch.setattr(lower, "RULES", {})
    compared, differing = 0, []
    for op_type, model in first_cases().items():
        for name, (stated, left_out) in stated_and_left_out(model):
            wanted, found = described(stated), described(left_out)
            differing += [(op_type, name)] if wanted != found else []
            compared += len(wanted) > 1
    assert compared > 80
    assert differing == []
