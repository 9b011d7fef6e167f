"""Inputs that are sequences or optionals, by the shapes of the tensors that they hold."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TypeProto, helper

from ...ir.errors import SecateurError
from ...ir.graph import Dimension, Node, Value, make_tensor_type, tensor_type, type_shape
from ...ir.model import Model

InputShape = Sequence[int] | Sequence[Sequence[int]] | None
"""Sizes of a tensor; of each tensor of a sequence; None for an optional without one."""


def hold_tensors(model: Model, value: Value, given: InputShape) -> None:
    """Let an input that is a sequence or an optional be made in the graph, of inputs that are
    tensors. Raises SecateurError where `given` doesn't suit its type."""
    name, graph = value.name, model.graph
    is_optional, inner = _type_of(value)
    is_sequence = inner.WhichOneof("value") == "sequence_type"
    element = inner.sequence_type.elem_type if is_sequence else inner
    if tensor_type(element) is None:
        raise SecateurError(f"input '{name}' holds something else than tensors")
    if is_sequence:
        inner = _without_symbols(inner)
    if given is None and not is_optional:
        raise SecateurError(f"input '{name}' is no optional: it can't be none")
    if is_optional and value.is_graph_output:
        raise SecateurError(f"input '{name}' is an optional, and an output, too")
    value.type = helper.make_optional_type_proto(inner) if is_optional else inner
    if is_optional:
        value.name = model.fresh_name(f"{name}/optional")
    tensors: list[Value] = []
    made: list[Node] = []
    if given is not None and is_sequence:
        for index, sizes in enumerate(given):
            if not isinstance(sizes, Sequence):
                raise SecateurError(
                    f"input '{name}' is a sequence, and has a shape for each of its tensors, "
                    f"as in {name}=[2x3,4x3]"
                )
            tensors.append(_tensor(f"{name}[{index}]", element, sizes))
        op_type = "SequenceConstruct" if tensors else "SequenceEmpty"
        sequence = Value(model.fresh_name(f"{name}/sequence"), inner) if is_optional else value
        made.append(Node(op_type, tensors, [sequence]))
        if not tensors:
            made[0].set("dtype", int(element.tensor_type.elem_type))
    elif given is not None:
        tensors.append(_tensor(name, element, sizes_of_tensor(name, given)))
    if is_optional:
        held = [made[0].outputs[0]] if made else tensors
        made.append(Node("Optional", held, [value]))
        if not held:
            made[-1].set("type", inner)
    taken = {v.name for g in model.graph.all_graphs() for v in g.values()}
    for tensor in tensors:
        if tensor.name in taken:
            raise SecateurError(f"input '{name}': the model has another value '{tensor.name}'")
        tensor.is_input = True
    at = graph.inputs.index(value)
    graph.inputs[at : at + 1] = tensors
    value.is_input = False
    for node in made:
        node.graph = graph
    graph.nodes[:0] = made


def _type_of(value: Value) -> tuple[bool, TypeProto]:
    """Whether an input is an optional, and the type of what it holds or is."""
    kind = None if value.type is None else value.type.WhichOneof("value")
    if value.type is not None and kind == "optional_type":
        return True, value.type.optional_type.elem_type
    if value.type is not None and kind == "sequence_type":
        return False, value.type
    raise SecateurError(f"input '{value.name}' is neither a tensor, nor a sequence or an optional")


def _without_symbols(sequence: TypeProto) -> TypeProto:
    """The type without named sizes: each tensor of a sequence may have others."""
    tensor = sequence.sequence_type.elem_type.tensor_type
    shape = type_shape(sequence.sequence_type.elem_type)
    sizes = None if shape is None else [s if isinstance(s, int) else None for s in shape]
    return helper.make_sequence_type_proto(make_tensor_type(tensor.elem_type, sizes))


def _tensor(name: str, type_: TypeProto, sizes: Sequence[int]) -> Value:
    check_sizes(name, type_shape(type_), sizes)
    for axis, (old, new) in enumerate(zip(type_shape(type_) or (), sizes, strict=False)):
        if isinstance(old, int) and old != new:
            raise SecateurError(f"input '{name}': size {new} given for axis {axis}, which is {old}")
    return Value(name, make_tensor_type(type_.tensor_type.elem_type, sizes))


def sizes_of_tensor(name: str, given: InputShape) -> tuple[int, ...]:
    """The sizes of an input that is one tensor. Raises SecateurError for shapes of several."""
    sizes = tuple(size for size in given or () if isinstance(size, int))
    if given is None or len(sizes) != len(given):
        raise SecateurError(f"input '{name}' is a tensor, and has one shape, as in {name}=1x3")
    return sizes


def check_sizes(name: str, shape: Sequence[Dimension] | None, sizes: Sequence[int]) -> None:
    """Raise SecateurError where an input can't have so many axes, or such sizes."""
    if any(size < 0 for size in sizes):
        raise SecateurError(f"input '{name}': sizes can't be negative")
    if shape is not None and len(shape) != len(sizes):
        raise SecateurError(
            f"input '{name}' has {len(shape)} axes, the shape given has {len(sizes)}"
        )
