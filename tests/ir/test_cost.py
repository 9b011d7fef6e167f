"""What shapes with symbols cost."""

from __future__ import annotations

import pytest

from secateur.ir.cost import known_shape
from secateur.ir.graph import Value


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ("batch", 1),
        ("16*batch", 16),
        ("4*(rows//2 + 3)*columns", 12),
        ("min(32, sequence)", 1),
        ("max(2, sequence)", 2),
        ("batch size", 1),
        ("1 - batch", 1),
        ("2//(batch - 1)", 1),
        ("9**9**9", 1),
        ("(" * 250 + "a" + ")" * 250, 1),
        ("0.5*batch", 1),
        (None, 1),
    ],
)
def test_symbols_count_as_one(size: str | None, counts: int) -> None:
    value = Value("x")
    value.set_tensor_type(1, [3, size])
    assert known_shape(value) == (3, counts)
