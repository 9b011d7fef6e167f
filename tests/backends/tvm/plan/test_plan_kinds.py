"""Which forms of operators have fast kernels is written down: results alone don't tell."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

from .plan_kinds import cases, golden, lines_of

GOLDEN = golden()


@pytest.mark.parametrize("name", GOLDEN)
def test_fast_rules_take_the_forms_that_they_took(name: str) -> None:
    assert lines_of(name) == GOLDEN[name]


def test_every_form_is_written_down() -> None:
    assert list(cases()) == list(GOLDEN)
