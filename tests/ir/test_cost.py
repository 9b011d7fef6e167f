"""What shapes with symbols cost."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.cost import count, known_shape
from secateur.ir.graph import Value
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
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


@pytest.mark.parametrize("axis", [0, -3])
def test_what_a_scan_computes_counts_for_each_step(axis: int) -> None:
    """Also where its body holds weights that inference doesn't look at."""
    for width in (4, 300):
        proto = scan(width, axis)
        model = from_proto(proto)
        infer_shapes(model)
        cost = count(model)
        assert cost.uncounted == []
        assert cost.macs == 7 * 2 * width * width
        (body,) = model.graph.nodes[0].subgraphs()
        assert [v.shape for v in body.outputs] == [(2, width)] * 2
        assert model.graph.outputs[1].shape == (7, 2, width)


def scan(width: int, axis: int) -> onnx.ModelProto:
    def info(name: str, shape: list[int] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["b", "w"], ["m"]),
            helper.make_node("Add", ["m", "a"], ["c"]),
            helper.make_node("Identity", ["c"], ["d"]),
        ],
        "body",
        [info("a", [2, width]), info("b", [2, width])],
        [info("c", None), info("d", None)],
        [numpy_helper.from_array(np.zeros((width, width), np.float32), "w")],
    )
    attributes = {"num_scan_inputs": 1, "scan_input_axes": [axis], "body": body}
    graph = helper.make_graph(
        [helper.make_node("Scan", ["s", "x"], ["y", "z"], **attributes)],
        "g",
        [info("s", [2, width]), info("x", [7, 2, width])],
        [info("y", None), info("z", None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
