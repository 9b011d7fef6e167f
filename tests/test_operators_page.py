"""docs/operators.md: fresh, and with an answer for every operator there is."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

from secateur.ir.errors import SecateurError
from secateur.reporting import operators
from secateur.reporting.operators import PAGE, Name, known_operators, page, unconsidered, versions


def test_the_page_is_fresh() -> None:
    written = PAGE.read_text(encoding="utf-8")
    if versions() not in written:
        pytest.skip("the page is about other versions of onnx and ONNX Runtime")
    assert page() == written, "run `python -m secateur.reporting.operators`"


def test_every_operator_has_been_considered() -> None:
    assert not unconsidered(known_operators())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (Name("", "Unheard"), "ai.onnx::Unheard: no record"),
        (Name("com.microsoft", "Unheard"), "com.microsoft::Unheard: no record"),
    ],
)
def test_what_nobody_considered_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: Name, says: str
) -> None:
    monkeypatch.setattr(operators, "known_operators", lambda: [name])
    with pytest.raises(SecateurError, match=says):
        page()


def test_a_lowering_has_to_be_considered(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.backends.tvm.lowering.lower import NOT_LOWERED

    monkeypatch.delitem(NOT_LOWERED, "StringConcat")
    with pytest.raises(SecateurError, match="StringConcat: neither lowered nor"):
        page()
