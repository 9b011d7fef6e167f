"""What computing in 16 bits does: to each product's own result, and to the model's outputs.

Products and convolutions of float32 whose operands are rounded to bfloat16 or float16 and whose
sums are not: what artifacts compute, in ONNX Runtime, by Casts before the operators.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping

from onnx import TensorProto

from ..ir.graph import Node, Value, normalize_domain
from ..ir.model import Model
from ..ir.reference import Session
from ..ir.tensor import Array
from .fidelity import FidelityTotals
from .losses import OutputFidelity
from .opset import ConvertOpset
from .retype import widen

FLOOR_DB = 30.0
"""Signal to noise ratio of an operator's own result below which it stays in float32."""

_TYPES = {"bfloat16": TensorProto.BFLOAT16, "float16": TensorProto.FLOAT16}

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_CASTS_BFLOAT = 13
"""First version of the operator set that has bfloat16."""

Feeds = Iterable[Mapping[str, Array]]


@dataclasses.dataclass(frozen=True)
class HalfError:
    """What rounding the operands of one operator alone does to its result; infinite where
    nothing, minus infinity where the result is no number any more."""

    node: str
    op_type: str
    sqnr_db: float

    @property
    def is_good(self) -> bool:
        return self.sqnr_db >= FLOOR_DB


def half_errors(model: Model, dtype: str, feeds: Feeds) -> list[HalfError]:
    """Of every product and convolution of float32 in the main graph, worst first."""
    probe = _castable(model)
    sums = [_measured(probe, node, dtype) for node in _products(probe)]
    if not sums:
        return []
    labels = [(node.label, node.op_type) for node in _products(probe)]
    probe.graph.replace_outputs([value for pair in sums for value in pair])
    names = [(signal.name, noise.name) for signal, noise in sums]
    session = Session(probe, optimize=False, threads=0, trial=True)
    totals = [[0.0, 0.0] for _ in sums]
    for feed in feeds:
        found = session.run(feed)
        for total, pair in zip(totals, names, strict=True):
            for i in (0, 1):
                total[i] += float(found[pair[i]])
    errors = [
        HalfError(label, op_type, _decibels(*total))
        for (label, op_type), total in zip(labels, totals, strict=True)
    ]
    return sorted(errors, key=lambda error: error.sqnr_db)


def half_fidelity(
    model: Model, dtype: str, nodes: Collection[str], feeds: Feeds
) -> tuple[int, list[OutputFidelity]]:
    """Samples, and how near outputs are to the model's own when `nodes`, by label, round."""
    exact, rounded = _castable(model), _castable(model)
    for node in _products(rounded):
        if node.label in nodes:
            for index in (0, 1):
                node.set_input(index, _rounded(rounded, node.input(index), dtype))
    rounded.graph.sort()
    first = Session(exact, optimize=False, threads=0, trial=True)
    second = Session(rounded, optimize=False, threads=0, trial=True)
    totals = FidelityTotals()
    for feed in feeds:
        rows = next((len(a) for a in feed.values() if a.ndim), 1)
        totals.add(first.run(feed), second.run(feed), rows, rows)
    return totals.samples, totals.outputs()


def products_in_bodies(model: Model) -> list[Node]:
    """Products and convolutions in bodies of If, Loop and Scan, which nobody measures."""
    return [
        node
        for graph in model.graph.all_graphs()
        if graph is not model.graph
        for node in graph.nodes
        if node.op_type in _PRODUCTS and normalize_domain(node.domain) == ""
    ]


def _castable(model: Model) -> Model:
    """A copy whose operator set has all types. Raises UnsupportedError."""
    copy = model.clone()
    widen(copy)  # as artifacts do with products in float16
    if copy.opset < _CASTS_BFLOAT:
        ConvertOpset(_CASTS_BFLOAT).run(copy)
    return copy


def _products(model: Model) -> list[Node]:
    return [
        node
        for node in model.graph.nodes
        if node.op_type in _PRODUCTS
        and normalize_domain(node.domain) == ""
        and all(_is_float(node.input(i)) for i in (0, 1))
        and not _is_restored(node.input(0))
        and not node.name.startswith(_OWN)
    ]


_OWN = "secateur_halves/"


def _is_float(value: Value | None) -> bool:
    return value is not None and value.dtype == TensorProto.FLOAT


def _is_restored(value: Value | None) -> bool:
    """Whether what is multiplied are integers."""
    node = value.producer if value is not None else None
    return node is not None and node.op_type == "DequantizeLinear"


def _rounded(model: Model, value: Value | None, dtype: str) -> Value:
    assert value is not None
    return _cast(model, _cast(model, value, _TYPES[dtype]), TensorProto.FLOAT)


def _cast(model: Model, value: Value, dtype: int) -> Value:
    return _apply(model, "Cast", [value], dtype, to=int(dtype))


def _measured(model: Model, node: Node, dtype: str) -> tuple[Value, Value]:
    """Sums of squares of a result and of its difference to what rounded operands give."""
    result = node.output(0)
    assert result is not None
    operands = [_rounded(model, node.input(i), dtype) for i in (0, 1)]
    inputs = [*operands, *node.inputs[2:]]
    other = Value(model.fresh_name("halves"))
    copy = Node(node.op_type, inputs, [other], dict(node.attributes), domain=node.domain)
    copy.name = _OWN + node.label
    model.graph.add_node(copy)
    noise = _apply(model, "Sub", [result, other])
    double = TensorProto.DOUBLE
    signal, error = (
        _apply(model, "ReduceSumSquare", [_cast(model, value, double)], double, keepdims=0)
        for value in (result, noise)
    )
    return signal, error


def _apply(
    model: Model,
    op_type: str,
    inputs: list[Value],
    dtype: int = TensorProto.FLOAT,
    **attributes: int,
) -> Value:
    result = Value(model.fresh_name("halves"))
    result.set_tensor_type(dtype, None)
    node = Node(op_type, inputs, [result])
    for name, value in attributes.items():
        node.set(name, value)
    model.graph.add_node(node)
    return result


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    if not math.isfinite(signal) or not math.isfinite(noise) or signal == 0:
        return -math.inf
    return 10 * math.log10(signal / noise)
