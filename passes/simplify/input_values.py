"""Inputs of fixed value: what depends on them alone is computed once and for all."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from onnx import TensorProto, helper

from ...ir.errors import SecateurError
from ...ir.graph import Value, tensor_type
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.tensor import Array, Tensor
from ..base import Context, Pass, PassResult
from ..initializers import SEPARATE_SINCE, separate_initializers
from .input_shapes import replace_symbols

_TRUTH = {"true": True, "false": False, "1": True, "0": False}


@dataclasses.dataclass(frozen=True)
class FixInputValues(Pass):
    """Make constants of inputs: pairs of an input's name and its value as text.

    The input is none any more, and callers don't give it. A list has commas, as in `1,2.5`.
    Raises SecateurError where an input doesn't exist or can't have that value.
    """

    values: tuple[tuple[str, str], ...]

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        if not self.values:
            return PassResult(False)
        separate_initializers(model)
        model.extra.ir_version = max(model.extra.ir_version, SEPARATE_SINCE)
        symbols: dict[str, int] = {}
        for name, text in self.values:
            value = find_input(model, name)
            array = input_value(value, text)
            for size, known in zip(value.shape or (), array.shape, strict=False):
                if isinstance(size, str) and symbols.setdefault(size, known) != known:
                    raise SecateurError(
                        f"input '{name}': {known} elements given for '{size}', which is "
                        f"{symbols[size]} elsewhere"
                    )
            dtype = value.dtype
            value.is_input = False
            model.graph.inputs.remove(value)
            model.graph.make_initializer(value, Tensor.from_array(array, dtype))
        replace_symbols(model, symbols)
        infer_shapes(model)
        return PassResult(True, {"fixed": len(self.values)})


def find_input(model: Model, name: str) -> Value:
    """The input of that name. Raises SecateurError where there is none."""
    for value in model.graph.inputs:
        if value.name == name:
            return value
    known = ", ".join(sorted(v.name for v in model.graph.inputs)) or "none"
    raise SecateurError(f"the model has no input '{name}'; its inputs are {known}")


def input_value(value: Value, text: str) -> Array:
    """The array that a text stands for, of an input's type and shape. Raises SecateurError."""
    if tensor_type(value.type) is None or value.dtype == TensorProto.UNDEFINED:
        raise SecateurError(f"input '{value.name}' is no tensor, and can't be fixed")
    words = text.split(",") if text else []
    array = _elements(value, words)
    shape = value.shape
    if shape is None:
        return array.reshape(()) if len(words) == 1 else array
    sizes = [s if isinstance(s, int) else None for s in shape]
    if None in sizes:
        known = math.prod(s for s in sizes if s is not None)
        if sizes.count(None) == 1 and known and not array.size % known:
            sizes[sizes.index(None)] = array.size // known
    if None in sizes or math.prod(s for s in sizes if s is not None) != array.size:
        wanted = ", ".join("?" if s is None else str(s) for s in shape)
        raise SecateurError(
            f"input '{value.name}' has the shape [{wanted}], {array.size} values are given"
        )
    return array.reshape([s for s in sizes if s is not None])


def _elements(value: Value, words: list[str]) -> Array:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.dtype))
    try:
        if value.dtype == TensorProto.STRING:
            return np.array(words, object)
        if dtype == np.bool_:
            return np.array([_TRUTH[word.strip().lower()] for word in words], np.bool_)
        if dtype.kind in "iu":
            return np.array([int(word) for word in words], dtype)
        return np.array([float(word) for word in words]).astype(dtype)
    except (ValueError, KeyError, OverflowError, TypeError):
        kind = TensorProto.DataType.Name(value.dtype).lower()
        raise SecateurError(
            f"input '{value.name}' is of type {kind}, which has no value '{','.join(words)}'"
        ) from None
