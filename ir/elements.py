"""Sizes of the tensors that sequences and optionals hold."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, TensorShapeProto, TypeProto

from .graph import tensor_type
from .model import Model


def forget_names_of_elements(model: Model, inferred: GraphProto) -> None:
    """Let no size have a name that is one of a sequence's or an optional's type, as the model
    has it or as ONNX's inference found it.

    Each tensor of a sequence may have others, and what reads one takes over its name. Inputs
    keep theirs.
    """
    values = [v for graph in model.all_graphs() for v in graph.values()]
    others = [v for v in values if v.type is not None and tensor_type(v.type) is None]
    if not others:
        return
    types = [v.type for v in others]
    for graph in _graphs(inferred):
        infos = (*graph.input, *graph.value_info, *graph.output)
        types += [i.type for i in infos if tensor_type(i.type) is None]
    names = {d.dim_param for type_ in types for s in _shapes(type_) for d in s.dim} - {""}
    if not names:
        return
    for value in others:
        if any(d.dim_param for shape in _shapes(value.type) for d in shape.dim):
            type_ = TypeProto()
            type_.CopyFrom(value.type or type_)
            for shape in _shapes(type_):
                for size in shape.dim:
                    if size.dim_param:
                        size.ClearField("dim_param")
            value.type = type_
    for value in values:
        sizes = value.shape
        if value.is_input or value.const is not None or sizes is None:
            continue
        if tensor_type(value.type) is not None and not names.isdisjoint(sizes):
            value.set_tensor_type(value.dtype, [None if s in names else s for s in sizes])


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(body)


def _shapes(type_: TypeProto | None) -> Iterator[TensorShapeProto]:
    """The shapes of tensors within a type."""
    kind = None if type_ is None else type_.WhichOneof("value")
    if type_ is None or kind is None:
        return
    if kind in ("tensor_type", "sparse_tensor_type"):
        yield getattr(type_, kind).shape
    elif kind == "map_type":
        yield from _shapes(type_.map_type.value_type)
    else:
        yield from _shapes(getattr(type_, kind).elem_type)
