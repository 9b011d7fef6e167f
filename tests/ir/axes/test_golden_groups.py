"""What can go around each operator is what `golden_groups.py` once found."""

from __future__ import annotations

import pytest

from . import golden_groups
from .test_operators import CASES, OPERATORS

GOLDEN = golden_groups.read()


@pytest.mark.parametrize("op_type", [o for o, names in OPERATORS.items() if {*names} & {*GOLDEN}])
def test_groups_around_an_operator(op_type: str) -> None:
    for name in OPERATORS[op_type]:
        if name in GOLDEN:
            assert golden_groups.described(name) == GOLDEN[name], name


def test_every_case_is_there() -> None:
    assert len(GOLDEN) > 700
    assert len({*GOLDEN} & {*CASES}) > 700
