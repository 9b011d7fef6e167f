"""What a caller has to give a model."""

from __future__ import annotations

from ..ir.graph import Value
from ..ir.model import Model


def model_inputs(model: Model) -> list[Value]:
    """The inputs that a caller has to feed: those without a default."""
    return [v for v in model.graph.inputs if v.const is None]
