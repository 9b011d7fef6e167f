"""What is known of values so far: symbolic shapes, elements of shape tensors."""

from __future__ import annotations

import itertools

from onnx import TensorProto, numpy_helper

from ....ir.graph import Node, Value
from ....ir.model import Model
from .expression import Expression, Size, opaque, symbol

Shape = tuple[Size, ...]

LIMIT = 64
"""Elements up to which a tensor is followed: shapes are short."""

INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)

_COUNTER = itertools.count()
"""Numbers of unknown sizes, unique over all analyses so that names never meet again."""


class Facts:
    """What rules ask of the values that a node reads."""

    def __init__(self, model: Model) -> None:
        self.opset = model.opset
        self._model = model
        self._shapes: dict[Value, Shape | None] = {}
        self._elements: dict[Value, list[Size] | None] = {}
        self._expressions: dict[str, Expression] = {}
        self._loops = 0

    def shape(self, value: Value | None) -> Shape | None:
        """The shape, in which unknown sizes are symbols of their own; None without a rank."""
        if value is None:
            return None
        if value not in self._shapes:
            self._shapes[value] = self._declared(value)
        return self._shapes[value]

    def elements(self, value: Value | None) -> list[Size] | None:
        """The elements of an integer tensor of rank 0 or 1, flat; None where unknown."""
        if value is None:
            return None
        if value not in self._elements:
            self._elements[value] = self._constant_elements(value)
        return self._elements[value]

    def integers(self, value: Value | None) -> list[int] | None:
        """The elements where all of them are numbers."""
        found = self.elements(value)
        if found is None or not all(isinstance(x, int) for x in found):
            return None
        return [x for x in found if isinstance(x, int)]

    def axes(self, node: Node) -> list[int] | None:
        """The `axes` attribute, or input 1 in newer opsets."""
        axes = node.get("axes")
        return list(axes) if axes is not None else self.integers(node.input(1))

    def is_vector(self, value: Value | None) -> bool:
        shape = self.shape(value)
        return shape is not None and len(shape) == 1

    def slice_bounds(self, node: Node) -> list[tuple[int, Size, Size, Size]] | None:
        """(axis, start, end, step) of every sliced axis; axes are not negative."""
        shape = self.shape(node.input(0))
        if "starts" in node.attributes:
            starts, ends, axes = node.get("starts"), node.get("ends"), node.get("axes")
            steps: list[Size] | None = None
        else:
            starts, ends = self.elements(node.input(1)), self.elements(node.input(2))
            axes, steps = self.integers(node.input(3)), self.elements(node.input(4))
            if (axes is None and node.input(3)) or (steps is None and node.input(4)):
                return None
        if shape is None or starts is None or ends is None:
            return None
        axes = axes if axes is not None else list(range(len(starts)))
        steps = steps if steps is not None else [1] * len(starts)
        axes = [axis % len(shape) for axis in axes] if shape else []
        if not len(axes) == len(starts) == len(ends) == len(steps):
            return None
        return list(zip(axes, starts, ends, steps, strict=True))

    def attribute_integer(self, tensor: TensorProto) -> int | None:
        """The element of a one-element integer tensor in an attribute."""
        if tensor.data_type not in INTEGERS:
            return None
        return int(numpy_helper.to_array(tensor).reshape(-1)[0])

    def unknown(self) -> Expression:
        """A size about which nothing is known."""
        return opaque("unknown", next(_COUNTER))

    def _declared(self, value: Value) -> Shape | None:
        shape = value.shape
        if shape is None:
            return None
        return tuple(s if isinstance(s, int) else self._named(s) for s in shape)

    def _named(self, name: str | None) -> Expression:
        if not name or (self._loops and name not in self._expressions):
            return self.unknown()
        if name not in self._expressions:
            self._expressions[name] = symbol(name)
        return self._expressions[name]

    def _constant_elements(self, value: Value) -> list[Size] | None:
        tensor = self._model.constant(value)
        if tensor is None or tensor.dtype not in INTEGERS or tensor.is_sparse:
            return None
        if len(tensor.shape) > 1 or tensor.size > LIMIT:
            return None
        return [int(x) for x in tensor.numpy().reshape(-1)]
