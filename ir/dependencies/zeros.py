"""Whether a value is zero wherever the channel that it is computed from is zero.

A channel whose weights make it zero stays zero through Relu or a product, but becomes one
half by Sigmoid. The layer that reads it has a weight to take that share from; a plain sum
over such channels would lose it.
"""

from __future__ import annotations

from ..axes import dims
from ..axes.dims import ONE
from ..axes.facts import Analysis
from ..graph import Node, Value, normalize_domain

_PRODUCERS = frozenset(
    {
        "Attention",
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "GRU",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LSTM",
        "LayerNormalization",
        "MatMul",
        "RNN",
    }
)
"""Operators whose weights make the channels of their results, and make them zero."""

_NOT_ZERO_AT_ZERO = frozenset(
    {
        "Acos",
        "Cos",
        "Cosh",
        "Equal",
        "Exp",
        "GreaterOrEqual",
        "HardSigmoid",
        "Hardmax",
        "LessOrEqual",
        "Log",
        "LogSoftmax",
        "Not",
        "Reciprocal",
        "Sigmoid",
        "Softmax",
        "Softplus",
    }
)

_SUMS = frozenset({"Add", "Max", "Mean", "Min", "Sub", "Sum", "Where"})
"""Operators for which a constant that all channels share isn't zero in any of them."""


def is_lasting(analysis: Analysis, node: Node) -> bool:
    """Whether the results of a node may be other than zero where all channels are zero."""
    if normalize_domain(node.domain) != "" or node.op_type in _PRODUCERS:
        return False
    if node.op_type in _NOT_ZERO_AT_ZERO:
        return True
    operands = [v for v in node.inputs if v is not None]
    lasting = [v in analysis.lasting for v in operands]
    if node.op_type in ("And", "Mul"):
        return all(x or analysis.is_fixed(v) for v, x in zip(operands, lasting, strict=True))
    if node.op_type in ("Div", "Pow"):
        return lasting[0] or analysis.is_fixed(operands[0])
    if node.op_type in _SUMS and any(_is_shared(analysis, node, v) for v in operands):
        return True
    return any(lasting)


def _is_shared(analysis: Analysis, node: Node, constant: Value) -> bool:
    """Whether a constant other than zero stands along a whole axis that may be pruned."""
    if not analysis.is_fixed(constant) or not node.outputs or node.outputs[0] is None:
        return False
    shape, axes = constant.shape, analysis.axes.get(node.outputs[0])
    if shape is None or axes is None:
        return False
    along = [
        axis
        for position, axis in enumerate(reversed(axes))
        if position >= len(shape) or shape[-1 - position] == 1
    ]
    if all(axis == ONE or dims.is_locked(axis) for axis in along):
        return False
    tensor = analysis.model.constant(constant)
    return tensor is None or bool(tensor.numpy().any())
