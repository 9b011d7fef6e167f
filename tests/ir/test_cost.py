"""What shapes with symbols cost."""

from __future__ import annotations

import pytest

from secateur.ir.cost import count, known_shape
from secateur.ir.graph import Value
from secateur.ir.infer import infer_shapes
from secateur.ir.text import parse_model


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


@pytest.mark.parametrize(
    ("equation", "operands", "macs"),
    [("ij->ji", "%x", 0), ("ij,kj->ik", "%x, %x", 12), ("ij, ij -> i", "%x, %x", 6)],
)
def test_einsum_multiplies_where_it_has_two_operands(
    equation: str, operands: str, macs: int
) -> None:
    model = parse_model(f'''
model <ir_version = 9, opset = ["" = 17]>
graph g (%x: float[2, 3]) -> (%y: float[*]) {{
  %y = Einsum({operands}) {{equation = "{equation}"}}
}}
''')
    infer_shapes(model)
    assert count(model).macs == macs
