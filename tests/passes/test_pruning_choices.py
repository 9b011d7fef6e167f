"""Which of the ways that meet a goal pruning takes is written down, and what is lost by it."""

from __future__ import annotations

import pytest

from .pruning_choices import agree, cases, golden, lines_of

CASES = cases()
GOLDEN = golden()
SLOW = {"gqa_decoder by samples", "mobilenet_v2 by samples", "searched"}
"""Cases that take many seconds each; `bert by samples` and `residual` are the like in less."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES]
)
def test_pruning_chooses_what_it_chose(name: str) -> None:
    found = lines_of(CASES[name])
    differing = [
        f"{a}\n  was {b}" for a, b in zip(found, GOLDEN[name], strict=False) if not agree(a, b)
    ]
    assert not differing
    assert len(found) == len(GOLDEN[name])


def test_every_case_is_written_down() -> None:
    assert list(CASES) == list(GOLDEN)


def test_numbers_may_be_near_and_words_may_not() -> None:
    assert agree("layer a 0.101 to 0, 16 rows", "layer a 0.1 to 0, 16 rows")
    assert not agree("layer a 0.2 to 0, 16 rows", "layer a 0.1 to 0, 16 rows")
    assert not agree("layer a 0.1 to 0, 17 rows", "layer a 0.1 to 0, 16 rows")
    assert not agree("layer b 0.1", "layer a 0.1")
    assert not agree("kept 0-3 of a", "kept 0-4 of a")
