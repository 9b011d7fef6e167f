"""What definitions of operators by standard ones are written with, and the table of them.

`DEFINITIONS` is the whole list: what isn't in it, or in the loops, is refused, and left to ONNX
Runtime with fallback. Semantics are those of ONNX Runtime's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import onnx
from onnx import FunctionProto, NodeProto, helper, numpy_helper

from .....ir.errors import UnsupportedError
from .....ir.graph import Node, Value, normalize_domain
from .....ir.model import Model
from .....ir.ops.records import MICROSOFT, ML
from .....ir.tensor import Array

__all__ = ["DEFINITIONS", "MICROSOFT", "ML", "Body", "Declined", "NotReady", "define", "definition"]


class Declined(Exception):  # noqa: N818 - a definition's answer, not an error
    """The node stays as it is: plain loops compute its form."""


class NotReady(UnsupportedError):  # noqa: N818 - others may have to be replaced first
    """What a definition has to know of an operand isn't known yet."""


class Body:
    """The nodes of one node's definition. Inputs that it lacks are None."""

    def __init__(self, node: Node, model: Model) -> None:
        self.node, self.model, self.opset = node, model, model.opset
        self.nodes: list[NodeProto] = []
        self.inputs = [f"in{i}" if v is not None else None for i, v in enumerate(node.inputs)]

    @property
    def version(self) -> int:
        """The version of the operator set of the node's domain."""
        return self.model.opsets.get(self.node.domain, 1)

    # --- nodes ---

    def __call__(self, op_type: str, *inputs: str | None, **attributes: Any) -> str:
        """Add a node; the name of its result. Operands that are None are left out."""
        return self.several(op_type, 1, *inputs, **attributes)[0]

    def several(
        self, op_type: str, count: int, *inputs: str | None, **attributes: Any
    ) -> list[str]:
        """Add a node of several results."""
        first = sum(len(n.output) for n in self.nodes)
        names = [f"t{first + i}" for i in range(count)]
        given = [name or "" for name in inputs]
        while given and not given[-1]:
            given.pop()
        self.nodes.append(helper.make_node(op_type, given, names, **attributes))
        return names

    def internal(self, operator: tuple[str, str], inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node of an operator inside the compiler, by domain and name."""
        domain, op_type = operator
        result = self(op_type, *inputs, **attributes)
        self.nodes[-1].domain = domain
        return result

    def value(self, array: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        """A constant."""
        return self("Constant", value=numpy_helper.from_array(np.asarray(array, dtype)))

    def number(self, value: float, like: int = 0) -> str:
        """A number of an input's type."""
        return self.value(value, self.dtype(like))

    def integers(self, *values: int) -> str:
        return self.value(values, np.int64)

    def cast(self, x: str, to: npt.DTypeLike) -> str:
        """A conversion to a type of NumPy's."""
        return self("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))

    # --- operators whose form depends on the operator set ---

    def reduced(self, op_type: str, x: str, *axes: int, keepdims: int = 1) -> str:
        since = 13 if op_type == "ReduceSum" else 18
        if self.opset >= since:
            return self(op_type, x, self.integers(*axes), keepdims=keepdims)
        return self(op_type, x, axes=list(axes), keepdims=keepdims)

    def unsqueezed(self, x: str, *axes: int) -> str:
        if self.opset >= 13:
            return self("Unsqueeze", x, self.integers(*axes))
        return self("Unsqueeze", x, axes=list(axes))

    def squeezed(self, x: str, *axes: int) -> str:
        if self.opset >= 13:
            return self("Squeeze", x, self.integers(*axes))
        return self("Squeeze", x, axes=list(axes))

    def split(self, x: str, axis: int, sizes: Sequence[int]) -> list[str]:
        if self.opset >= 13:
            return self.several("Split", len(sizes), x, self.integers(*sizes), axis=axis)
        return self.several("Split", len(sizes), x, axis=axis, split=list(sizes))

    def sliced(self, x: str, axis: int, start: int, stop: int) -> str:
        if self.opset < 10:
            return self("Slice", x, axes=[axis], starts=[start], ends=[stop])
        operands = (self.integers(i) for i in (start, stop, axis))
        return self("Slice", x, *operands)

    def reshaped(self, x: str, *sizes: int) -> str:
        return self("Reshape", x, self.integers(*sizes))

    def dequantized(self, x: str, scale: str, zero: str | None, **attributes: Any) -> str:
        """DequantizeLinear, whose axis operator sets before 13 don't have."""
        if self.opset < 13:
            attributes.clear()
        return self("DequantizeLinear", x, scale, zero, **attributes)

    # --- what is known of the node ---

    def given(self, index: int) -> str | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def required(self, index: int) -> str:
        found = self.given(index)
        if found is None:
            self.fail(f"input {index} is missing")
        return found

    def _value(self, index: int) -> Value:
        found = self.node.input(index)
        if found is None:
            self.fail(f"input {index} is missing")
        return found

    def dtype(self, index: int) -> np.dtype[Any]:
        """The element type of an input."""
        value = self._value(index)
        if not value.dtype:
            raise NotReady(self._text(f"the type of input {index} isn't known"))
        return helper.tensor_dtype_to_np_dtype(value.dtype)

    def shape(self, index: int) -> tuple[int | str | None, ...]:
        """An input's shape, whose sizes may be open."""
        value = self._value(index)
        if value.shape is None:
            raise NotReady(self._text(f"the rank of input {index} isn't known"))
        return value.shape

    def rank(self, index: int) -> int:
        return len(self.shape(index))

    def size(self, index: int, axis: int) -> int:
        """A size that has to be known."""
        shape = self.shape(index)
        if not -len(shape) <= axis < len(shape):
            self.fail(f"input {index} has rank {len(shape)}")
        found = shape[axis]
        if not isinstance(found, int):
            raise NotReady(self._text(f"the size of axis {axis} of input {index} isn't known"))
        return found

    def constant(self, index: int) -> Array | None:
        """The elements of an input that is a constant; None where it isn't given, or computed."""
        value = self.node.input(index)
        tensor = None if value is None else self.model.constant(value)
        return None if tensor is None else np.asarray(tensor.numpy())

    def known(self, index: int) -> Array:
        found = self.constant(index)
        if found is None:
            self._value(index)
            self.fail(f"input {index} is computed at run time")
        return found

    def attribute(self, name: str, default: Any) -> Any:
        return self.node.get(name, default)

    def attributes(self, *names: str) -> dict[str, Any]:
        """Those attributes that the node has, to be handed on."""
        return {name: self.node.get(name) for name in names if name in self.node.attributes}

    def widen(self) -> bool:
        """Let operands of float16 be read as float32; whether the first is one."""
        for index, name in enumerate(self.inputs):
            if name is not None and self.dtype(index) == np.float16:
                self.inputs[index] = self.cast(name, np.float32)
        return self.dtype(0) == np.float16

    def wants(self, index: int) -> bool:
        found = self.node.output(index)
        return found is not None and bool(found.uses or found.is_graph_output)

    def without(self, inputs: Mapping[int, str], attributes: Mapping[str, object]) -> None:
        """Refuse inputs, and attributes that aren't zero, of forms that nothing defines."""
        for index, name in inputs.items():
            if self.given(index) is not None:
                self.fail(f"its {name} isn't supported")
        for name, default in attributes.items():
            if self.attribute(name, default) != default:
                self.fail(f"attribute {name} isn't supported")

    def fail(self, reason: str) -> NoReturn:
        raise self.error(reason)

    def error(self, reason: str) -> UnsupportedError:
        """Why this form of the node isn't defined, with its name."""
        return UnsupportedError(self._text(reason))

    def _text(self, reason: str) -> str:
        return f"node '{self.node.label}' ({self.node.op_type}): {reason}"


Definition = Callable[[Body], Sequence[str | None]]
"""Gives the names of a node's results in order; None for those that it doesn't compute."""

DEFINITIONS: dict[tuple[str, str], Definition] = {}
"""Definitions by domain and operator."""


def definition(*op_types: str, domain: str = MICROSOFT) -> Callable[[Definition], Definition]:
    """Register the definition of some operators."""

    def register(function: Definition) -> Definition:
        for op_type in op_types:
            if (domain, op_type) in DEFINITIONS:
                raise ValueError(f"{domain}::{op_type} has two definitions")
            DEFINITIONS[domain, op_type] = function
        return function

    return register


def define(node: Node, model: Model) -> FunctionProto:
    """A node's definition.

    Raises UnsupportedError where its form has none, NotReady where more has to be known, and
    Declined where plain loops compute it.
    """
    body = Body(node, model)
    results = DEFINITIONS[normalize_domain(node.domain), node.op_type](body)
    names = [f"out{i}" for i in range(len(node.outputs))]
    for index, name in enumerate(names):
        result = results[index] if index < len(results) else None
        if result is not None:
            body.nodes.append(helper.make_node("Identity", [result], [name]))
        elif body.wants(index):
            body.fail(f"output {index} isn't supported")
    return helper.make_function(
        "",
        node.op_type,
        [f"in{i}" for i in range(len(body.inputs))],
        names,
        body.nodes,
        [onnx.helper.make_opsetid("", model.opset)],
    )
