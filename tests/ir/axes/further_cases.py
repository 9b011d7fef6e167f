"""Forms of operators that ONNX ships no case of, as cases like those that it ships.

Each has a node between inputs and outputs whose axes the tests around operators make free.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from secateur.ir.onnx_io import to_proto
from secateur.ir.text import parse_model
from tests.backend_cases import Case

FORMS = {
    "Conv of groups": """(%x: float[2, 4, 5, 5], %w: float[6, 2, 3, 3], %b: float[6])
        -> (%y: float[2, 6, 3, 3])
        %y = Conv(%x, %w, %b) {group = 2}""",
    "Conv of single channels": """(%x: float[2, 4, 5, 5], %w: float[4, 1, 3, 3])
        -> (%y: float[2, 4, 3, 3])
        %y = Conv(%x, %w) {group = 4}""",
    "ConvTranspose": """(%x: float[2, 3, 5, 5], %w: float[3, 4, 3, 3], %b: float[4])
        -> (%y: float[2, 4, 7, 7])
        %y = ConvTranspose(%x, %w, %b)""",
    "ConvTranspose of groups": """(%x: float[2, 4, 5, 5], %w: float[4, 3, 3, 3], %b: float[6])
        -> (%y: float[2, 6, 7, 7])
        %y = ConvTranspose(%x, %w, %b) {group = 2}""",
    "ConvInteger": """(%x: uint8[2, 3, 5, 5], %w: uint8[4, 3, 3, 3]) -> (%y: int32[2, 4, 3, 3])
        const %a: uint8[] = 0
        const %z: uint8[4] = [0, 0, 0, 0]
        %y = ConvInteger(%x, %w, %a, %z)""",
    "MatMulInteger of rows and columns": """(%x: uint8[3, 4], %w: uint8[4, 5])
        -> (%y: int32[3, 5])
        const %a: uint8[3] = [0, 0, 0]
        const %b: uint8[5] = [0, 0, 0, 0, 0]
        %y = MatMulInteger(%x, %w, %a, %b)""",
    "BatchNormalization": """(%x: float[2, 3, 4], %s: float[3], %b: float[3], %m: float[3])
        -> (%y: float[2, 3, 4])
        const %v: float[3] = [1, 2, 3]
        %y = BatchNormalization(%x, %s, %b, %m, %v)""",
    "DepthToSpace": """(%x: float[2, 12, 2, 3]) -> (%y: float[2, 3, 4, 6])
        %y = DepthToSpace(%x) {blocksize = 2, mode = "CRD"}""",
    "Squeeze of whatever is one": """(%x: float[2, 1, 3, 1, 4]) -> (%y: float[2, 3, 4])
        %y = Squeeze(%x)""",
}
"""ONNX's own operators."""

CONTRIB = {
    "Attention": """(%x: float[2, 3, 8], %w: float[8, 24], %b: float[24]) -> (%y: float[2, 3, 8])
        %y = Attention(%x, %w, %b) {num_heads = 2}""",
    "Attention masked": """
        (%x: float[2, 3, 8], %w: float[8, 24], %b: float[24]) -> (%y: float[2, 3, 8])
        const %m: int32[2, 3] = [[1, 1, 1], [1, 1, 0]]
        %y = Attention(%x, %w, %b, %m) {num_heads = 2}""",
    "Attention of lengths": """
        (%x: float[2, 3, 8], %w: float[8, 24], %b: float[24]) -> (%y: float[2, 3, 8])
        const %m: int32[2] = [3, 2]
        %y = Attention(%x, %w, %b, %m) {num_heads = 2}""",
    "BiasAdd": """(%x: float[2, 3, 4], %b: float[4], %z: float[2, 3, 4]) -> (%y: float[2, 3, 4])
        %y = BiasAdd(%x, %b, %z)""",
    "BiasGelu": """(%x: float[2, 3, 4], %b: float[4]) -> (%y: float[2, 3, 4])
        %y = BiasGelu(%x, %b)""",
    "DequantizeLinear": """(%x: uint8[2, 3, 4]) -> (%y: float[2, 3, 4])
        const %s: float[3] = [0.5, 1, 2]
        const %z: uint8[3] = [0, 0, 0]
        %y = DequantizeLinear(%x, %s, %z) {axis = 1}""",
    "DynamicQuantizeMatMul": """(%x: float[3, 4]) -> (%y: float[3, 5])
        const %w: uint8[4, 5] = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 1], [2, 3, 4, 5, 6], [7, 8, 9, 1, 2]]
        const %s: float[5] = [1, 2, 3, 4, 5]
        const %z: uint8[5] = [1, 2, 3, 4, 5]
        const %b: float[5] = [1, 2, 3, 4, 5]
        %y = DynamicQuantizeMatMul(%x, %w, %s, %z, %b)""",
    "FusedConv": """
        (%x: float[2, 3, 5, 5], %w: float[4, 3, 3, 3], %b: float[4], %z: float[2, 4, 3, 3])
        -> (%y: float[2, 4, 3, 3])
        %y = FusedConv(%x, %w, %b, %z) {activation = "Relu"}""",
    "FusedGemm": """(%x: float[4, 3], %w: float[5, 4], %b: float[5]) -> (%y: float[3, 5])
        %y = FusedGemm(%x, %w, %b) {transA = 1, transB = 1, activation = "Relu"}""",
    "FusedMatMul": """(%a: float[2, 4, 3], %b: float[2, 5, 4]) -> (%y: float[2, 3, 5])
        %y = FusedMatMul(%a, %b) {transA = 1, transB = 1}""",
    "FusedMatMul with batches inside": """
        (%a: float[3, 2, 4], %b: float[2, 4, 5]) -> (%y: float[2, 3, 5])
        %y = FusedMatMul(%a, %b) {transBatchA = 1}""",
    "GemmFastGelu": """(%x: float[2, 3, 4], %w: float[4, 5], %b: float[5]) -> (%y: float[2, 3, 5])
        %y = GemmFastGelu(%x, %w, %b)""",
    "GridSample": """(%x: float[2, 3, 4, 5], %g: float[2, 6, 7, 2]) -> (%y: float[2, 3, 6, 7])
        %y = GridSample(%x, %g)""",
    "GroupNorm": """(%x: float[2, 3, 4, 6], %g: float[6], %b: float[6]) -> (%y: float[2, 3, 4, 6])
        %y = GroupNorm(%x, %g, %b) {groups = 3, activation = 0}""",
    "GroupNorm of channels first": """
        (%x: float[2, 6, 3, 4], %g: float[6], %b: float[6]) -> (%y: float[2, 6, 3, 4])
        %y = GroupNorm(%x, %g, %b) {groups = 3, activation = 0, channels_last = 0}""",
    "Inverse": """(%x: float[2, 3, 4, 4]) -> (%y: float[2, 3, 4, 4])
        %y = Inverse(%x)""",
    "MatMulIntegerToFloat": """(%x: uint8[3, 4], %w: uint8[4, 5], %b: float[5])
        -> (%y: float[3, 5])
        const %s: float[] = 0.5
        const %t: float[5] = [1, 2, 3, 4, 5]
        const %z: uint8[] = 0
        %y = MatMulIntegerToFloat(%x, %w, %s, %t, %z, _, %b)""",
    "MultiHeadAttention": """
        (%q: float[2, 3, 8], %k: float[2, 5, 8], %v: float[2, 5, 8], %b: float[24])
        -> (%y: float[2, 3, 8])
        %y = MultiHeadAttention(%q, %k, %v, %b) {num_heads = 2}""",
    "QGemm": """(%x: uint8[3, 4], %w: uint8[4, 5]) -> (%y: float[3, 5])
        const %s: float[] = 0.5
        const %z: uint8[] = 0
        const %t: float[5] = [1, 2, 3, 4, 5]
        const %u: uint8[5] = [0, 0, 0, 0, 0]
        const %b: int32[5] = [1, 2, 3, 4, 5]
        %y = QGemm(%x, %s, %z, %w, %t, %u, %b)""",
    "QLinearAdd": """(%x: uint8[2, 3, 4], %t: uint8[3, 1]) -> (%y: uint8[2, 3, 4])
        const %s: float[] = 0.5
        const %z: uint8[] = 0
        %y = QLinearAdd(%x, %s, %z, %t, %s, %z, %s, %z)""",
    "QLinearAveragePool": """(%x: uint8[2, 3, 4, 5]) -> (%y: uint8[2, 3, 3, 4])
        const %s: float[] = 0.5
        const %z: uint8[] = 0
        %y = QLinearAveragePool(%x, %s, %z, %s, %z) {kernel_shape = [2, 2]}""",
    "QLinearAveragePool of channels last": """(%x: uint8[2, 4, 5, 3]) -> (%y: uint8[2, 3, 4, 3])
        const %s: float[] = 0.5
        const %z: uint8[] = 0
        %y = QLinearAveragePool(%x, %s, %z, %s, %z) {kernel_shape = [2, 2], channels_last = 1}""",
    "QLinearConcat": """(%a: uint8[2, 3, 4], %b: uint8[2, 5, 4]) -> (%y: uint8[2, 8, 4])
        const %s: float[] = 0.5
        const %z: uint8[] = 0
        %y = QLinearConcat(%s, %z, %a, %s, %z, %b, %s, %z) {axis = -2}""",
    "QLinearGlobalAveragePool of channels last": """(%x: uint8[2, 4, 5, 3])
        -> (%y: uint8[2, 1, 1, 3])
        const %s: float[] = 0.5
        const %z: uint8[] = 0
        %y = QLinearGlobalAveragePool(%x, %s, %z, %s, %z) {channels_last = 1}""",
    "QLinearGlobalAveragePool": """(%x: uint8[2, 3, 4, 5]) -> (%y: uint8[2, 3, 1, 1])
        const %s: float[] = 0.5
        const %z: uint8[] = 0
        %y = QLinearGlobalAveragePool(%x, %s, %z, %s, %z)""",
    "QLinearSoftmax": """(%x: uint8[2, 3, 4]) -> (%y: uint8[2, 3, 4])
        const %s: float[] = 0.5
        const %z: uint8[] = 0
        %y = QLinearSoftmax(%x, %s, %z, %s, %z) {axis = 1, opset = 13}""",
    "QLinearSoftmax of one axis": """(%x: uint8[2, 3, 4]) -> (%y: uint8[2, 3, 4])
        const %s: float[] = 0.5
        const %z: uint8[] = 0
        %y = QLinearSoftmax(%x, %s, %z, %s, %z) {axis = 1, opset = 11}""",
    "QLinearWhere": """(%c: bool[2, 1, 4], %a: uint8[2, 3, 1], %b: uint8[3, 4])
        -> (%y: uint8[2, 3, 4])
        const %s: float[] = 0.5
        const %z: uint8[] = 0
        %y = QLinearWhere(%c, %a, %s, %z, %b, %s, %z, %s, %z)""",
    "SkipLayerNormalization": """(%x: float[2, 3, 4], %t: float[2, 3, 4], %g: float[4],
        %b: float[4], %c: float[4]) -> (%y: float[2, 3, 4], %sum: float[2, 3, 4])
        %y, _, _, %sum = SkipLayerNormalization(%x, %t, %g, %b, %c)""",
    "SkipSimplifiedLayerNormalization": """(%x: float[2, 3, 4], %t: float[2, 3, 4], %g: float[4])
        -> (%y: float[2, 3, 4])
        %y = SkipSimplifiedLayerNormalization(%x, %t, %g)""",
}
"""Those of ONNX Runtime's domain."""


def further_cases() -> list[Case]:
    found = [_case(name, text) for name, text in FORMS.items()]
    return [*found, *(_case(f"contrib {name}", text) for name, text in CONTRIB.items())]


def _case(name: str, text: str) -> Case:
    interface, call = re.split(r"\n\s*(?=const|%y)", text, maxsplit=1)
    if name.startswith("contrib"):
        call = re.sub(r"= (\w+)\(", r'= "com.microsoft"::\1(', call)
    head = 'model <ir_version = 9, opset = ["" = 17, "com.microsoft" = 1]>'
    model = to_proto(parse_model(f"{head}\ngraph g {interface} {{\n{call}\n}}"))
    random = np.random.default_rng(0)
    inputs = [_values(random, value.type.tensor_type) for value in model.graph.input]
    return Case(name, model, [(inputs, [])])


def _values(random: np.random.Generator, tensor: Any) -> Any:
    shape = [d.dim_value for d in tensor.shape.dim]
    kind = {1: np.float32, 2: np.uint8, 9: bool}[tensor.elem_type]
    if kind is np.float32:
        return random.standard_normal(shape).astype(kind)
    return random.integers(0, 2 if kind is bool else 100, shape).astype(kind)
