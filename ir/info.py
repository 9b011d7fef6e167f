"""What files declare, as it is meant: exporters have their own ways of leaving sizes open."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import (
    FunctionProto,
    ModelProto,
    TensorProto,
    TensorShapeProto,
    TypeProto,
    ValueInfoProto,
)

from .errors import ModelError
from .graph import normalize_domain


def read_declaration(info: ValueInfoProto) -> ValueInfoProto:
    """The declaration itself, or where it has sizes below 0 a copy that leaves those open.

    Exporters write -1 for sizes known at run time only, and runtimes take it for that. The
    symbols "?", "-1" and "None" mean the same.
    Raises ModelError for element types that ONNX doesn't have, and symbols that are no text.
    """
    is_open = False
    for tensor in _tensor_types(info.type):
        if tensor.elem_type not in _ELEMENT_TYPES:
            raise ModelError(f"'{info.name}' has the unknown element type {tensor.elem_type}")
        check_text(*(dimension.dim_param for dimension in tensor.shape.dim))
        is_open |= any(map(_is_left_open, tensor.shape.dim))
    if not is_open:
        return info
    copy = ValueInfoProto()
    copy.CopyFrom(info)
    for tensor in _tensor_types(copy.type):
        for dimension in filter(_is_left_open, tensor.shape.dim):
            dimension.ClearField("value")
    return copy


def check_text(*texts: str) -> None:
    """Refuse names that are not UTF-8: the protobuf library hands those out as bytes."""
    for text in texts:
        if not isinstance(text, str):
            raise ModelError(f"the name {text!r} is not UTF-8 text")


def _is_left_open(dimension: TensorShapeProto.Dimension) -> bool:
    return dimension.dim_value < 0 or dimension.dim_param in _NAMELESS


_NAMELESS = ("?", "-1", "None")
"""What exporters write for unknown sizes where a symbol belongs: equal ones differ."""


_ELEMENT_TYPES = frozenset(TensorProto.DataType.values())


def _tensor_types(
    type: TypeProto,
) -> Iterator[TypeProto.Tensor | TypeProto.SparseTensor]:
    """The tensor types in a type: itself, or those of its elements."""
    kind = type.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        yield getattr(type, kind)
    elif kind in ("sequence_type", "optional_type"):
        yield from _tensor_types(getattr(type, kind).elem_type)
    elif kind == "map_type":
        yield from _tensor_types(type.map_type.value_type)


def import_once(extra: ModelProto | FunctionProto) -> None:
    """Keep the last import of each operator set, the one that ONNX Runtime goes by.

    Raises ModelError for versions that are none.
    """
    for entry in extra.opset_import:
        if not -_VERSIONS <= entry.version < _VERSIONS:
            raise ModelError(f"operator set '{entry.domain}' has no version {entry.version}")
    last = {normalize_domain(entry.domain): entry for entry in extra.opset_import}
    if len(last) < len(extra.opset_import):
        kept = list(last.values())
        del extra.opset_import[:]
        extra.opset_import.extend(kept)


_VERSIONS = 2**31
"""Versions of operator sets are numbers of 32 bits."""
