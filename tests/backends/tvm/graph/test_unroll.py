"""Loops that count by themselves: unrolled in time that grows with their steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.graph import unroll
from secateur.ir.onnx_io import from_proto

from ..joined import Part, compile_parts
from ..test_small_graphs import case

BODY = """
    (int64 step, bool before, int64 i, float[3] x) => (bool go, int64 next, float[3] y)
    {{ one = Constant<value_int=1>() next = Add(i, one) f = Cast<to=1>(next)
       half = Constant<value_float=0.5>() h = Mul(x, half) y = Add(h, f)
       n = Constant<value_int={steps}>() less = Less(next, n) go = Identity(less) }}
"""


def counting(steps: int) -> Part:
    body = BODY.format(steps=steps)
    return case(
        "(float[3] v) => (float[3] w) { yes = Constant<value=bool {1}>()"
        " zero = Constant<value_int=0>()"
        f" j, w = Loop<body = b {body}>(, yes, zero, v) }}",
        v=np.float32([1, -2, 3]),
    )


def nodes_computed(steps: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Nodes that were computed to decide when a loop ends."""
    model = from_proto(counting(steps).model)
    loop = next(n for n in model.graph.nodes if n.op_type == "Loop")
    unroll_evaluate, seen = unroll.evaluate, []

    def evaluate(given: Any, nodes: Any, *others: Any) -> Any:
        seen.extend(nodes)
        return unroll_evaluate(given, nodes, *others)

    with monkeypatch.context() as patch:
        patch.setattr(unroll, "evaluate", evaluate)
        made = unroll.UNROLLED["Loop"](model, loop)
    assert made is not None
    assert sum(node.op_type == "Less" for node in made) == steps
    return len(seen)


def test_conditions_are_followed_back_by_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three nodes of each step: the counter, the comparison and an Identity's operand."""
    short, long = (nodes_computed(steps, monkeypatch) for steps in (10, 40))
    assert 0 < short < long <= 4 * short


def test_loops_that_count_equal_onnx_runtime(tmp_path: Path) -> None:
    parts = [counting(steps) for steps in (1, 2, 7, 40)]
    (joined,) = compile_parts(parts, tmp_path)
    found = joined.run({prefix: part.feeds for prefix, part in joined.parts.items()})
    for prefix, part in joined.parts.items():
        expected = part.reference(part.feeds)
        assert expected is not None
        np.testing.assert_allclose(found[prefix]["w"], expected["w"], 1e-6)
