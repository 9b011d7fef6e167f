"""What of a model's inputs is fixed before anything else happens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .passes.base import Pass


@dataclasses.dataclass(frozen=True)
class FixedInputs:
    """`shapes` fixes inputs of open shape, by name; `freeze_defaults` makes constants of
    inputs that have a default value."""

    shapes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    freeze_defaults: bool = False

    def passes(self) -> list[Pass]:
        """The passes that fix them, in order."""
        from .passes.simplify import FixInputShapes, FreezeDefaults

        found: list[Pass] = []
        if self.freeze_defaults:
            found.append(FreezeDefaults())
        if self.shapes:
            found.append(FixInputShapes(tuple((k, tuple(v)) for k, v in self.shapes.items())))
        return found
