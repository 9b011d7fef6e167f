"""What of a model's inputs and outputs is fixed before anything else happens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..ir.model import Model
    from ..ir.tensor import Array
    from ..passes.base import Pass
    from ..passes.simplify.input_elements import InputShape as InputShape


@dataclasses.dataclass(frozen=True)
class FixedInputs:
    """`shapes` fixes inputs of open shape, by name, also the tensors that a sequence or an
    optional holds (passes/simplify/input_elements.py); `freeze_defaults` makes constants of
    inputs that have a default value, `values` of inputs by name, whose values it gives as text.
    `outputs` are where the model ends, by names of values or nodes; empty for its own."""

    shapes: Mapping[str, InputShape] = dataclasses.field(default_factory=dict)
    freeze_defaults: bool = False
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    outputs: Sequence[str] = ()

    def passes(self) -> list[Pass]:
        """The passes that fix them, in order."""
        from ..passes.simplify import CutOutputs, FixInputShapes, FixInputValues, FreezeDefaults

        found: list[Pass] = []
        if self.outputs:
            found.append(CutOutputs(tuple(self.outputs)))
        if self.values:
            found.append(FixInputValues(tuple(self.values.items())))
        if self.freeze_defaults:
            found.append(FreezeDefaults())
        if self.shapes:
            found.append(FixInputShapes(tuple(self.shapes.items())))
        return found

    def originals(self, model: Model, feed: Mapping[str, Array]) -> dict[str, Any]:
        """What the model gets in which nothing is fixed yet, where it gets `feed` once fixed."""
        from ..ir.graph import tensor_type
        from ..passes.simplify.input_values import find_input, input_value

        found: dict[str, Any] = dict(feed)
        for name, text in self.values.items():
            found[name] = input_value(find_input(model, name), text)
        for name, shapes in self.shapes.items():
            if tensor_type(find_input(model, name).type) is None and name not in feed:
                count = range(len(shapes or ()))
                found[name] = None if shapes is None else [feed[f"{name}[{i}]"] for i in count]
        return found
