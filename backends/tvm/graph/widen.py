"""Models in float16 computed in float32, as ONNX Runtime does on CPUs.

There operators without kernels for float16 are computed in float32, and nothing is rounded
between them; casts of the model's own still round. Where no product or convolution is in
float16, nothing is gained by it and types stay.
"""

from __future__ import annotations

from onnx import TensorProto

from ....ir.graph import Node, normalize_domain
from ....ir.model import Model
from ....passes.retype import widen

HEAVY = frozenset({"Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
"""Operators that have fast kernels in float32 and none in float16."""


def widen_halves(model: Model) -> bool:
    """Let nodes that compute in float16 do so in float32, where that gains something; whether."""
    if not any(_is_half(node) for node in model.graph.nodes):
        return False
    return widen(model)


def is_heavy(node: Node) -> bool:
    """Whether a node has one of these operators."""
    return node.op_type in HEAVY and normalize_domain(node.domain) == ""


def _is_half(node: Node) -> bool:
    first = node.input(0)
    return is_heavy(node) and first is not None and first.dtype == TensorProto.FLOAT16
