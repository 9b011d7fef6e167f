"""Which operands become integers, or why a node stays float: every form and every reason."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

from secateur.ir.text import parse_model
from secateur.passes.quantize import rules
from secateur.passes.quantize.rules import Bias, Constants, Operands, Role, Weight

CONSTANTS = """
  const %two: float[2, 2] = [[1, 2], [3, 4]]
  const %three: float[2, 2, 2] = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
  const %kernel: float[2, 2, 1] = [[[1], [2]], [[3], [4]]]
  const %bias: float[2] = [1, 2]
  const %zero: float[] = 0
  const %one: float[1] = [1]
  const %wide: double[2, 2] = [[1, 2], [3, 4]]
  const %none: float[2, 0] = []
  const %pads: int64[6] = [0, 0, 1, 0, 0, 1]
  const %scales: float[3] = [1, 1, 2]
  const %rows: float[1, 2, 2] = [[[1, 2], [3, 4]]]
  const %places: int64[1] = [1]
  const %sizes: int64[2] = [2, -1]
"""

CONV, MATMUL, ELEMENTWISE = Role.CONVOLUTION, Role.MATMUL, Role.ELEMENTWISE

RECURRENT = Operands(Role.RECURRENT, (0,), weight=Weight(1, 1), recurrent_weight=Weight(2, 1))

FORMS: dict[str, Operands | str] = {
    "Conv(%i, %kernel)": Operands(CONV, (0,), weight=Weight(1, 0)),
    "Conv(%i, %kernel, %bias)": Operands(CONV, (0,), weight=Weight(1, 0), bias=Bias(2)),
    "ConvTranspose(%i, %kernel)": Operands(CONV, (0,), weight=Weight(1, 1)),
    "Conv(%i, %k)": "its weight is not a constant",
    "Conv(%i, %given)": (
        "its weight 'given' is an input with a default, which a caller may override"
    ),
    "Conv(%i, %two)": "its weight has no spatial axis",
    "Conv(%i, %kernel, %v)": "its bias is not a constant",
    "Gemm(%x, %two)": Operands(MATMUL, (0,), weight=Weight(1, 1, 1.0)),
    "Gemm(%x, %two, %bias) {alpha = 0.5, beta = 2.0, transB = 1}": Operands(
        MATMUL, (0,), weight=Weight(1, 0, 0.5), bias=Bias(2, 2.0)
    ),
    "Gemm(%x, %y)": Operands(MATMUL, (0, 1)),
    "Gemm(%x, %y, %bias) {beta = 0.5}": Operands(MATMUL, (0, 1), bias=Bias(2, 0.5)),
    "Gemm(%x, %y) {alpha = 0.5}": "alpha is not 1 and B is not a constant to multiply by it",
    "Gemm(%two, %x)": "its A is a constant",
    "Gemm(%x, %two, %v)": "its C is not a constant",
    "MatMul(%x, %two)": Operands(MATMUL, (0,), weight=Weight(1, 1)),
    "MatMul(%x, %three)": Operands(MATMUL, (0,), weight=Weight(1, None)),
    "MatMul(%two, %x)": Operands(MATMUL, (1,), constants=(0,)),
    "MatMul(%x, %y)": Operands(MATMUL, (0, 1)),
    "MatMul(%two, %two)": "both operands are constants",
    "GRU(%i, %rows, %rows) {hidden_size = 2}": RECURRENT,
    "LSTM(%i, %rows, %rows, _, _, %k) {hidden_size = 2}": RECURRENT,
    "RNN(%i, %rows, %k) {hidden_size = 2}": "its recurrent weight is not a constant",
    "RNN(%i, %k, %rows) {hidden_size = 2}": "its weight is not a constant",
    "RNN(%rows, %rows, %rows) {hidden_size = 2}": "its inputs are a constant",
    "Add(%x, %y)": Operands(ELEMENTWISE, (0, 1)),
    "Add(%x, %two)": Operands(ELEMENTWISE, (0,), (1,)),
    "Mul(%two, %x)": Operands(ELEMENTWISE, (1,), (0,)),
    "Mul(%two, %two)": "both operands are constants",
    "Add(%x, %given)": "'given' is an input with a default value, which a caller may override",
    "Add(%x, %untyped)": "constant 'untyped' is not float32",
    "Add(%x, %none)": "constant 'none' is empty",
    "Add(%d, %d)": "'d' is double; only float32 is quantized",
    "Add(%x, %wide)": "'wide' is double; only float32 is quantized",
    "Concat(%x, %two, %y) {axis = 0}": Operands(ELEMENTWISE, (0, 2), (1,)),
    "Concat(%two, %two) {axis = 0}": "all operands are constants",
    "Sigmoid(%x)": Operands(ELEMENTWISE, (0,)),
    "LeakyRelu(%two)": "its operand is a constant",
    "AveragePool(%i) {kernel_shape = [2]}": Operands(Role.POOLING, (0,)),
    "GlobalAveragePool(%i)": Operands(Role.POOLING, (0,)),
    "MaxPool(%i) {kernel_shape = [2]}": Operands(Role.POOLING, (0,), shares_parameters=True),
    "Relu(%x)": Operands(Role.CLIPPING, (0,)),
    "Clip(%x, %zero, %one)": Operands(Role.CLIPPING, (0,)),
    "Clip(%x)": Operands(Role.CLIPPING, (0,)),
    "Clip(%x, %s)": "its bounds are not constants",
    "Clip(%x, _, %bias)": "its bounds are not constants",
    "Gather(%x, %places)": Operands(ELEMENTWISE, (0,), shares_parameters=True),
    "Gather(%two, %places)": Operands(ELEMENTWISE, (), constants=(0,), shares_parameters=True),
    "Transpose(%x)": Operands(ELEMENTWISE, (0,), shares_parameters=True),
    "Reshape(%x, %sizes)": Operands(ELEMENTWISE, (0,), shares_parameters=True),
    "Reshape(%two, %sizes)": "its operand is a constant",
    "Pad(%i, %pads)": Operands(ELEMENTWISE, (0,), shares_parameters=True),
    "Pad(%i, %pads, %zero)": Operands(ELEMENTWISE, (0,), shares_parameters=True),
    'Pad(%i, %pads, %one) {mode = "edge"}': Operands(ELEMENTWISE, (0,), shares_parameters=True),
    "Pad(%i, %pads, %one)": "it pads with something else than zero",
    "Pad(%i, %pads, %s)": "it pads with something else than zero",
    "Resize(%i, _, %scales)": Operands(ELEMENTWISE, (0,), shares_parameters=True),
    'Resize(%i, _, %scales) {mode = "linear"}': (
        "ONNX Runtime resizes integers only by the nearest neighbour"
    ),
    'Resize(%i, %scales, %scales) {coordinate_transformation_mode = "tf_crop_and_resize"}': (
        "it fills in an extrapolation value"
    ),
    "BatchNormalization(%x, %bias, %bias, %bias, %bias)": rules.REASONS["BatchNormalization"],
    "Softmax(%x)": rules.REASONS["Softmax"],
    "LogSoftmax(%x)": rules.REASONS["LogSoftmax"],
    "Tanh(%x)": "ONNX Runtime has no integer kernel for this operator",
    '"com.microsoft"::Gelu(%x)': "domain 'com.microsoft' is not quantized",
}
"""Nodes, and what their rules answer."""


OTHERS = [
    "it also returns indices",
    "its result is of unknown type; only float32 is quantized",
]
"""Reasons that lie in results."""


def answer(node: str, results: str = "%r", types: str = ": float[*]") -> Operands | str:
    """What the rule says of one node."""
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 17, "com.microsoft" = 1]>
graph g (%x: float[2, 2], %y: float[2, 2], %i: float[1, 2, 8], %k: float[2, 2, 1], %v: float[2],
         %s: float[], %d: double[2, 2], %given: float[2, 2]) -> (%out: float[2, 2]) {{
  {CONSTANTS}
  const %given: float[2, 2] = [[1, 2], [3, 4]]
  %untyped = Identity(%wide)
  %out = Relu(%x)
  {results} = {node} {types}
}}""")
    return rules.plan(model.graph.nodes[-1], Constants(model))


@pytest.mark.parametrize("node", FORMS)
def test_every_form(node: str) -> None:
    assert answer(node) == FORMS[node]


def test_other_results() -> None:
    assert answer("MaxPool(%i) {kernel_shape = [2]}", "%r, %t", "") == OTHERS[0]
    assert answer("Add(%x, %y)", types="") == OTHERS[1]


def test_every_reason_is_given() -> None:
    """By one of the forms above; names that are put in stand for any."""
    given = [*(a for a in FORMS.values() if isinstance(a, str)), *OTHERS]
    for node in ast.walk(ast.parse(inspect.getsource(rules))):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant | ast.JoinedStr):
            parts = node.value.values if isinstance(node.value, ast.JoinedStr) else [node.value]
            texts = [
                re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".*" for p in parts
            ]
            reason = "".join(texts)
            if " " in reason:
                assert any(re.search(reason, text) for text in given), reason
