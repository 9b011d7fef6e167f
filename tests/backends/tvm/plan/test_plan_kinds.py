"""Which forms of operators have fast kernels is written down: results alone don't tell."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

from .plan_kinds import PATH, text


def test_fast_rules_take_the_forms_that_they_took() -> None:
    assert text().splitlines() == PATH.read_text(encoding="utf-8").splitlines()
