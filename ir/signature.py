"""What an operator's signature demands of a node: arity, attributes, element types.

Signatures come from `onnx.defs`, in the version that the node's scope imports, and
from the model's own functions. Operators known to neither pass unchecked, since a
model may use custom domains.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from onnx import AttributeProto, TensorProto, TypeProto, defs

from .errors import ModelError
from .graph import Node, Value, normalize_domain
from .model import Function, Model

_Schema = defs.OpSchema


class _Parameter(NamedTuple):
    """A formal input or output; `variable` names the type variable it binds, or is ''."""

    name: str
    variable: str
    types: frozenset[str]
    optional: bool
    variadic: bool


class _Signature(NamedTuple):
    """What an operator takes and gives in one version, as its schema says."""

    inputs: tuple[_Parameter, ...]
    outputs: tuple[_Parameter, ...]
    input_count: tuple[int, int]
    output_count: tuple[int, int]
    attributes: dict[str, int]
    required: frozenset[str]


class Signatures:
    """Checks nodes of one scope: a model's graphs, or one of its functions' bodies."""

    def __init__(self, model: Model, function: Function | None = None) -> None:
        self._functions = model.functions
        self._opsets = model.opsets if function is None else function.opsets

    def check(self, node: Node) -> None:
        """Raise ModelError where `node` breaks the signature of its operator."""
        function = self._functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            _check_call(node, function)
            return
        domain = normalize_domain(node.domain)
        version = self._opsets.get(domain)
        if version is None:
            raise ModelError(
                f"{at(node)}: the model imports no operator set '{domain or 'ai.onnx'}'"
            )
        signature = _signature(node.op_type, version, domain)
        if signature is None:
            return
        _check_count(node, "inputs", len(node.inputs), signature.input_count)
        _check_count(node, "outputs", len(node.outputs), signature.output_count)
        _check_missing(node, node.inputs, signature.inputs)
        _check_attributes(node, signature)
        _check_types(node, signature)


@cache
def _signature(op_type: str, version: int, domain: str) -> _Signature | None:
    if not defs.has(op_type, version, domain):
        return None
    schema = defs.get_schema(op_type, version, domain)
    if schema.deprecated:
        return None
    return _Signature(
        tuple(_parameter(p) for p in schema.inputs),
        tuple(_parameter(p) for p in schema.outputs),
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        {name: int(a.type.value) for name, a in schema.attributes.items()},  # type: ignore[attr-defined]
        frozenset(name for name, a in schema.attributes.items() if a.required),
    )


def _parameter(formal: _Schema.FormalParameter) -> _Parameter:
    variadic = formal.option == _Schema.FormalParameterOption.Variadic
    return _Parameter(
        formal.name,
        formal.type_str if formal.is_homogeneous and "(" not in formal.type_str else "",
        frozenset(formal.types),
        formal.option != _Schema.FormalParameterOption.Single,
        variadic,
    )


def _check_call(node: Node, function: Function) -> None:
    _check_count(node, "inputs", len(node.inputs), (0, len(function.graph.inputs)))
    _check_count(node, "outputs", len(node.outputs), (0, len(function.graph.outputs)))


def _check_count(node: Node, what: str, count: int, allowed: tuple[int, int]) -> None:
    low, high = allowed
    if not low <= count <= high:
        span = str(low) if low == high else f"{low} or more" if high > 10**6 else f"{low} to {high}"
        raise ModelError(f"{at(node)}: has {count} {what}, the operator takes {span}")


def _check_missing(
    node: Node, values: tuple[Value | None, ...], formal: tuple[_Parameter, ...]
) -> None:
    for value, parameter in zip(values, formal, strict=False):
        if value is None and not parameter.optional:
            raise ModelError(f"{at(node)}: input '{parameter.name}' is missing")


def _check_attributes(node: Node, signature: _Signature) -> None:
    for name, attribute in node.attributes.items():
        expected = signature.attributes.get(name)
        if expected is None:
            raise ModelError(f"{at(node)}: the operator has no attribute '{name}'")
        if attribute.proto.type != expected:
            kind = AttributeProto.AttributeType.Name
            raise ModelError(
                f"{at(node)}: attribute '{name}' is of type {kind(attribute.proto.type)}, "
                f"not {kind(expected)}"
            )
    missing = signature.required.difference(node.attributes)
    if missing:
        raise ModelError(f"{at(node)}: attribute '{min(missing)}' is missing")


def _check_types(node: Node, signature: _Signature) -> None:
    bound: dict[str, str] = {}
    _bind_types(node, "input", node.inputs, signature.inputs, bound)
    _bind_types(node, "output", node.outputs, signature.outputs, bound)


def _bind_types(
    node: Node,
    what: str,
    values: Iterable[Value | None],
    formal: tuple[_Parameter, ...],
    bound: dict[str, str],
) -> None:
    last = len(formal) - 1
    for index, value in enumerate(values):
        kind = type_string(value) if value is not None else None
        if value is None or kind is None:
            continue
        parameter = formal[min(index, last)]
        if kind not in parameter.types:
            raise ModelError(
                f"{at(node)}: {what} {index} '{value.name}' is a {kind}, "
                f"which '{parameter.name}' does not take"
            )
        if parameter.variable:
            other = bound.setdefault(parameter.variable, kind)
            if other != kind:
                raise ModelError(
                    f"{at(node)}: {what} {index} '{value.name}' is a {kind}, "
                    f"but the operator's other operands are {other}"
                )


def type_string(value: Value) -> str | None:
    """A value's type as `onnx.defs` writes it, `tensor(float)`; None where unknown."""
    if value.const is not None:
        return _tensor_string(value.const.dtype)
    return None if value.type is None else _type_string(value.type)


def _type_string(type: TypeProto) -> str | None:
    kind = type.WhichOneof("value")
    if kind == "tensor_type":
        return _tensor_string(type.tensor_type.elem_type)
    if kind == "sparse_tensor_type":
        inner = _tensor_string(type.sparse_tensor_type.elem_type)
        return None if inner is None else f"sparse_{inner}"
    if kind == "sequence_type":
        return _wrap("seq", type.sequence_type.elem_type)
    if kind == "optional_type":
        return _wrap("optional", type.optional_type.elem_type)
    if kind == "map_type":
        key = _tensor_string(type.map_type.key_type)
        value = _type_string(type.map_type.value_type)
        if key is None or value is None:
            return None
        return f"map({key[7:-1]},{value})"  # keys are written bare: map(int64,tensor(float))
    return None


def _wrap(constructor: str, inner: TypeProto) -> str | None:
    text = _type_string(inner)
    return None if text is None else f"{constructor}({text})"


@cache
def _tensor_string(dtype: int) -> str | None:
    if dtype == TensorProto.UNDEFINED or dtype not in TensorProto.DataType.values():
        return None
    return f"tensor({TensorProto.DataType.Name(dtype).lower()})"


def at(node: Node) -> str:
    """How errors name a node."""
    return f"node '{node.label}' ({node.op_type})"
