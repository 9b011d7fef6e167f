"""Raises a model's operator set to the first version that can express per-channel QDQ."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, version_converter

from ...ir.errors import SecateurError, UnsupportedError
from ...ir.graph import Graph
from ...ir.model import Model
from ...ir.onnx_io import from_proto, to_proto, to_proto_without_weights
from ...ir.reference import Session, one_line
from ...ir.tensor import Array

QDQ_OPSET = 13
"""DequantizeLinear has `axis` from opset 13 on; IR version 7 goes with it."""

_IR_VERSION = 7


def raise_opset(model: Model, feeds: Mapping[str, Array]) -> bool:
    """Convert an older model in place, if need be, and check it on one run's inputs.

    Weights take no part in the conversion. Raises UnsupportedError where ONNX's
    converter fails or changes what the model computes.
    """
    if "" not in model.opsets or model.opset >= QDQ_OPSET:
        return False
    before = Session(model, optimize=False).run(feeds)
    converted = _convert(model)
    try:
        after = Session(converted, optimize=False).run(feeds)
    except SecateurError as error:
        raise UnsupportedError(f"{_failure(model)}: {error}") from None
    for name, expected in before.items():
        if not _agree(expected, after[name]):
            raise UnsupportedError(f"{_failure(model)}: output '{name}' would change")
    model.graph, model.extra = converted.graph, converted.extra
    return True


def _convert(model: Model) -> Model:
    if model.functions:
        raise UnsupportedError(f"{_failure(model)}: it has local functions")
    nested = any(g.initializers for g in model.graph.all_graphs() if g is not model.graph)
    proto = to_proto(model) if nested else to_proto_without_weights(model, 1024)
    try:
        result = version_converter.convert_version(proto, QDQ_OPSET)
    except Exception as error:  # the converter raises bare RuntimeError and others
        raise UnsupportedError(f"{_failure(model)}: {one_line(error)}") from None
    converted = from_proto(result, model.path)
    _restore_weights(converted.graph, model.graph)
    converted.extra = _extra(model)
    if model.opset <= 10:
        _pin_resize(converted.graph)
    if model.extra.ir_version < 4:
        _free_initializers(converted.graph)
    return converted


def _extra(model: Model) -> ModelProto:
    extra = ModelProto()
    extra.CopyFrom(model.extra)
    for entry in extra.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = QDQ_OPSET
    extra.ir_version = max(extra.ir_version, _IR_VERSION)
    return extra


def _restore_weights(graph: Graph, original: Graph) -> None:
    """Turn the inputs that stood for weights back into initializers."""
    inputs = []
    declared = {value.name for value in original.inputs}
    for value in graph.inputs:
        source = original.initializers.get(value.name)
        if source is not None:
            assert source.const is not None
            value.const = source.const
            value.is_input = value.name in declared
            graph.initializers[value.name] = value
        if value.name in declared:
            inputs.append(value)
    graph.inputs = inputs


def _free_initializers(graph: Graph) -> None:
    """Before IR version 4 initializers had to be listed as inputs; now that would make
    them overridable."""
    for value in graph.initializers.values():
        value.is_input = False
    graph.inputs = [v for v in graph.inputs if v.const is None]


def _pin_resize(graph: Graph) -> None:
    """Resize 11 has other defaults than Resize 10 and Upsample, which the converter ignores."""
    for node in graph.all_nodes():
        if node.op_type == "Resize":
            node.set("coordinate_transformation_mode", "asymmetric")
            node.set("nearest_mode", "floor")


def _agree(expected: Array, actual: Array) -> bool:
    if expected.dtype.kind != "f":
        return bool(np.array_equal(expected, actual))
    scale = float(np.abs(expected).max(initial=0.0))
    return expected.shape == actual.shape and bool(
        np.allclose(expected, actual, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)
    )


def _failure(model: Model) -> str:
    return (
        f"quantization needs opset {QDQ_OPSET} and the model, of opset {model.opset}, "
        "can't be converted (export it anew)"
    )
