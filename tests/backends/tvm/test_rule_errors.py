"""Rules that fail by a mistake of their own: the error names rule and node, and nothing goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.cache import Cache
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.emission import emit as emission
from secateur.backends.tvm.lowering import lower
from secateur.backends.tvm.lowering.loops.base import RULES as LOOPS
from secateur.backends.tvm.plan.operations import ElementwiseOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import RuleError, UnsupportedError
from secateur.ir.model import Model
from secateur.ir.text import parse_model

TARGET = parse_target("x86-64-v3")
MISTAKES = [KeyError("strides"), TypeError("no number"), AttributeError("x"), AssertionError("y")]


def model() -> Model:
    return parse_model("""
model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[2, 3]) -> (%y: float[2, 3]) {
  %h = Abs(%x)
  %y = Neg(%h)
}""")


def open_model() -> Model:
    return parse_model("""
model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[2, n]) -> (%y: float[2, n]) {
  const %axis: int64[] = 1
  %h = CumSum(%x, %axis)
  %y = Neg(%h)
}""")


def failing(error: Exception) -> Any:
    def a_rule(*arguments: object) -> bool:
        raise error

    return a_rule


@pytest.mark.parametrize("made", [model, open_model], ids=["known", "open"])
@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("error", MISTAKES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("table", [lower.RULES, LOOPS], ids=["fast", "loops"])
def test_a_rule_that_fails_is_named(
    table: dict[str, Any],
    error: Exception,
    fallback: bool,
    made: Callable[[], Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if table is LOOPS:
        monkeypatch.delitem(lower.RULES, "Neg")
    monkeypatch.setitem(table, "Neg", failing(error))
    with pytest.raises(RuleError, match=rf"node 'y' \(Neg\): the rule .*a_rule failed: .*{error}"):
        compile_model(made(), TARGET, tmp_path / "m.so", cache=Cache(None), fallback=fallback)
    assert not list(tmp_path.iterdir())


def test_the_emission_of_an_operation_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(emission._RULES, ElementwiseOp, failing(KeyError("layout")))
    with pytest.raises(RuleError, match=r"node '[hy]' \((Abs|Neg)\): the rule .*a_rule failed"):
        compile_model(model(), TARGET, tmp_path / "m.so", cache=Cache(None), fallback=True)


@pytest.mark.parametrize("error", [IndexError("axis 7"), ValueError("shapes"), ZeroDivisionError()])
def test_sizes_that_lead_nowhere_are_the_node_s_own(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lower.RULES, "Neg", failing(error))
    with pytest.raises(UnsupportedError, match=r"node 'y' \(Neg\): its attributes or operands"):
        compile_model(model(), TARGET, tmp_path / "m.so", cache=Cache(None))
