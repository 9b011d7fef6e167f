"""Bases and oddities by name, and what both are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper

Oddity = Callable[[ModelProto], "ModelProto | None"]

BASES: dict[str, Callable[[], ModelProto]] = {}
ODDITIES: dict[str, Oddity] = {}


def base(function: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
    BASES[function.__name__] = function
    return function


def oddity(function: Oddity) -> Oddity:
    ODDITIES[function.__name__] = function
    return function


def all_oddities() -> Iterator[tuple[str, str]]:
    """Pairs of a base and an oddity that goes with it."""
    for base_name in BASES:
        for name in ODDITIES:
            yield base_name, name


def make(base_name: str, name: str) -> ModelProto | None:
    """The odd model; None where the oddity does nothing to that base, or breaks it."""
    proto = BASES[base_name]()
    before = proto.SerializeToString(deterministic=True)
    try:
        found = ODDITIES[name](proto)
    except (IndexError, KeyError):  # there is no such thing in that base
        return None
    proto = proto if found is None else found
    if proto.SerializeToString(deterministic=True) == before:
        return None
    return proto if passes_checker(proto) or loads(proto) else None


def passes_checker(proto: ModelProto) -> bool:
    try:
        onnx.checker.check_model(proto)
    except Exception:  # the checker raises several unrelated types
        return False
    return True


def loads(proto: ModelProto) -> bool:
    """Whether ONNX Runtime loads a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # ONNX Runtime raises a family of unrelated types
        return False
    return True


def weights(name: str, *shape: int) -> TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def floats(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def model(graph: onnx.GraphProto, opset: int = 17, ir_version: int = 8) -> ModelProto:
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def with_every_name_changed(proto: ModelProto, change: Callable[[str], str]) -> ModelProto:
    """A copy whose values, in subgraphs too, have other names."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    _rename(copy.graph, change)
    return copy


def _rename(graph: onnx.GraphProto, change: Callable[[str], str]) -> None:
    for named in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        named.name = change(named.name)
    for node in graph.node:
        for names in (node.input, node.output):
            changed = [name and change(name) for name in names]
            del names[:]
            names.extend(changed)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, change)
