"""Which forms of operators have fast kernels is written down: results alone don't tell."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.compile import one_sample
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import ElementwiseOp, PoolingOp, ReshapeOp, RowsOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.text import parse_model

from .plan_kinds import OPEN_FORMS, TARGET, cases, golden, lines_of, open_line_of

GOLDEN = golden()


@pytest.mark.parametrize("name", OPEN_FORMS)
def test_fast_rules_take_the_open_forms_that_they_took(name: str) -> None:
    assert [open_line_of(name)] == GOLDEN[f"open {name}"]


@pytest.mark.parametrize("name", [name for name in GOLDEN if not name.startswith("open ")])
def test_fast_rules_take_the_forms_that_they_took(name: str) -> None:
    assert lines_of(name) == GOLDEN[name]


def test_every_form_is_written_down() -> None:
    assert [*cases(), *(f"open {name}" for name in OPEN_FORMS)] == list(GOLDEN)


@pytest.mark.parametrize(("dtype", "kind"), [("uint8", "sum"), ("int8", "sum"), (None, "average")])
def test_bytes_of_an_image_are_summed_as_integers(dtype: str | None, kind: str) -> None:
    """And scaled once, as QLinearGlobalAveragePool does; floats are averaged."""
    head = "float[1, 8, 5, 5]" if dtype is None else f"{dtype}[1, 8, 5, 5]"
    value = "%x" if dtype is None else "%d"
    node = "" if dtype is None else "%d = DequantizeLinear(%x, %s, %z)"
    zero = "" if dtype is None else f"const %z: {dtype}[] = 3"
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: {head}) -> (%y: float[1, 8, 1, 1]) {{
  const %s: float[] = 0.5
  {zero}
  {node}
  %y = GlobalAveragePool({value})
}}""")
    plan = lower(one_sample(model)[0], parse_target(TARGET))
    assert [op.kind for op in plan.operations if isinstance(op, PoolingOp)] == [kind]


@pytest.mark.parametrize(
    "node",
    [
        "%b = Identity(%a)",
        "%b = Dropout(%a)",
        "%b, %mask = Dropout(%a)",
        "%b, %mask = Dropout(%a, %ratio)",
        "%b, %mask = Dropout(%a, %ratio, %no)",
        "%b = Dropout(%a, %ratio, %no)",
        "%b = Reshape(%a, %sizes)",
        "%b = Flatten(%a)",
        "%b = Squeeze(%a, %none)",
    ],
)
def test_what_keeps_all_elements_in_their_order_computes_nothing(node: str) -> None:
    """Also where it has further results, or operands, that nobody reads."""
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[4, 6]) -> (%y: float[*]) {{
  const %ratio: float[] = 0.5
  const %no: bool[] = false
  const %sizes: int64[2] = [6, 4]
  const %none: int64[0] = []
  %a = Relu(%x)
  {node}
  %y = Softmax(%b)
}}""")
    operations = lower(one_sample(model)[0], parse_target(TARGET)).operations
    assert [type(op) for op in operations if not isinstance(op, ReshapeOp)] == [
        ElementwiseOp,
        RowsOp,
    ]


@pytest.mark.parametrize("op_type", ["Max", "Min"])
@pytest.mark.parametrize(
    ("shape", "views"), [([1], 1), ([1, 1], 1), ([2], 2), ([6], 2), ([4, 1], 2)]
)
def test_one_number_is_a_bound_and_several_are_an_operand(
    op_type: str, shape: list[int], views: int
) -> None:
    values, columns = np.full(shape, 0.5).tolist(), max(shape[-1], 2)
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[4, {columns}]) -> (%y: float[4, {columns}]) {{
  const %c: float{shape} = {values}
  %y = {op_type}(%x, %c)
}}""")
    plan = lower(one_sample(model)[0], parse_target(TARGET))
    (op,) = (op for op in plan.operations if isinstance(op, ElementwiseOp))
    assert len(op.views) == views
