"""Inputs of fixed size: what was computed from their shape becomes constant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ...ir.errors import SecateurError
from ...ir.graph import Dimension, Value, tensor_type
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ..base import Context, Pass, PassResult
from .input_elements import InputShape, check_sizes, hold_tensors, sizes_of_tensor


@dataclasses.dataclass(frozen=True)
class FixInputShapes(Pass):
    """Give inputs the shapes in `shapes`: pairs of an input's name and its sizes.

    A symbolic size that gets a number has that number everywhere in the model. Raises
    SecateurError where an input doesn't exist, or its rank or a known size differ.

    An input that is a sequence has a shape for each of its tensors, and becomes inputs
    `name[0]`, `name[1]`, ...: a model doesn't say how many there are. One that is optional has
    the shape of what it holds, or None for nothing, and is no input then; so is an empty sequence.
    """

    shapes: tuple[tuple[str, InputShape], ...]

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        inputs = {v.name: v for v in model.graph.inputs if v.const is None}
        symbols: dict[str, int] = {}
        for name, sizes in self.shapes:
            if name not in inputs:
                raise SecateurError(
                    f"the model has no input '{name}'; its inputs are {', '.join(sorted(inputs))}"
                )
            value = inputs[name]
            if tensor_type(value.type) is None:
                hold_tensors(model, value, sizes)
                continue
            _bind(value, sizes_of_tensor(name, sizes), symbols)
        replace_symbols(model, symbols)
        infer_shapes(model)
        return PassResult(bool(self.shapes), {"symbols": symbols})


def _bind(value: Value, sizes: tuple[int, ...], symbols: dict[str, int]) -> None:
    shape = value.shape
    check_sizes(value.name, shape, sizes)
    for axis, (old, new) in enumerate(zip(shape or (), sizes, strict=False)):
        known = symbols.setdefault(old, new) if isinstance(old, str) else old
        if known is not None and known != new:
            what = f"'{old}', which is {known} elsewhere" if isinstance(old, str) else str(old)
            raise SecateurError(
                f"input '{value.name}': size {new} given for axis {axis}, which is {what}"
            )
    value.set_tensor_type(value.dtype, sizes)


def replace_symbols(model: Model, symbols: Mapping[str, int]) -> None:
    """Let symbolic sizes be numbers everywhere; what outputs say besides is forgotten."""
    for graph in model.graph.all_graphs():
        for value in graph.values():
            _substitute(value, symbols)
    for value in model.graph.outputs:
        _open(value)


def _substitute(value: Value, symbols: Mapping[str, int]) -> None:
    shape = value.shape
    if value.const is None and shape is not None and any(size in symbols for size in shape):
        sizes: list[Dimension] = [symbols.get(s, s) if isinstance(s, str) else s for s in shape]
        value.set_tensor_type(value.dtype, sizes)


def _open(value: Value) -> None:
    """Forget sizes that depended on the inputs: inference finds them anew."""
    shape = value.shape
    if value.const is None and shape is not None and not all(isinstance(s, int) for s in shape):
        sizes = [s if isinstance(s, int) else None for s in shape]
        value.set_tensor_type(value.dtype, sizes)
