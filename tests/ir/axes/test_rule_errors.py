"""An axes rule that fails by a mistake of its own is an error that names it, and no lock."""

from __future__ import annotations

import dataclasses

import pytest

from secateur.ir.dependencies import analysis
from secateur.ir.errors import RuleError
from secateur.ir.text import parse_model
from secateur.passes.prune import inspect_groups

MODEL = """
model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[2, 3]) -> (%y: float[2, 4]) {
  const %w: float[3, 4] = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]
  %h = MatMul(%x, %w)
  %y = Neg @minus(%h)
}"""


def rule_that_raises(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    known = analysis.operator_of

    def a_rule(view: object) -> None:
        raise error

    def found(node, opset):
        record = known(node, opset)
        return dataclasses.replace(record, axes=a_rule) if node.op_type == "Neg" else record

    monkeypatch.setattr(analysis, "operator_of", found)


@pytest.mark.parametrize("error", [KeyError("axis"), TypeError("x"), AttributeError("y")])
def test_a_mistake_of_a_rule_is_an_error(error, monkeypatch: pytest.MonkeyPatch) -> None:
    rule_that_raises(error, monkeypatch)
    with pytest.raises(RuleError, match=r"node 'minus' \(Neg\): the rule .*a_rule failed: "):
        inspect_groups(parse_model(MODEL))


@pytest.mark.parametrize("error", [IndexError("axis 7"), ValueError("rank")])
def test_what_a_node_says_wrongly_locks(error, monkeypatch: pytest.MonkeyPatch) -> None:
    rule_that_raises(error, monkeypatch)
    locks = [group.as_dict()["lock"] for group in inspect_groups(parse_model(MODEL))]
    assert locks
    assert all(lock is not None for lock in locks)
