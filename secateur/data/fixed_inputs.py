"""What of a model's inputs and outputs is fixed before anything else happens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ir.model import Model
    from ..ir.tensor import Array
    from ..passes.base import Pass


@dataclasses.dataclass(frozen=True)
class FixedInputs:
    """`shapes` fixes inputs of open shape, by name; `freeze_defaults` makes constants of
    inputs that have a default value, `values` of inputs by name, whose values it gives as text.
    `outputs` are where the model ends, by names of values or nodes; empty for its own."""

    shapes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
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
            found.append(FixInputShapes(tuple((k, tuple(v)) for k, v in self.shapes.items())))
        return found

    def arrays(self, model: Model) -> dict[str, Array]:
        """The fixed values as inputs of the model in which they are inputs yet."""
        from ..passes.simplify.input_values import find_input, input_value

        return {name: input_value(find_input(model, name), v) for name, v in self.values.items()}
