"""What happens to a simplified model before its nodes are lowered one by one."""

from __future__ import annotations

from ....ir.graph import Node
from ....ir.infer import infer_shapes
from ....ir.model import Model
from ....passes.simplify import simplify_pipeline
from .backwards import infer_backwards
from .expand import expand
from .sequences import resolve_sequences
from .unroll import unroll

_ROUNDS = 8


def prepare(model: Model) -> dict[Node, str]:
    """Leave only operators on tensors of static shape, as far as that is possible.

    Definitions are expanded, control flow is unrolled, and what becomes constant is
    folded, again and again, since each may make the others possible. Gives the nodes
    for which it is not possible, with the reasons.
    """
    refused: dict[Node, str] = {}
    _fix_defaults(model)
    infer_shapes(model)
    for _ in range(_ROUNDS):
        changed = expand(model, refused)
        changed = resolve_sequences(model) or changed
        changed = unroll(model, refused) or changed
        if not changed:
            break
        for step in simplify_pipeline():
            step.run(model)
        infer_shapes(model)
    infer_backwards(model)
    return refused


def _fix_defaults(model: Model) -> None:
    """Inputs with default values become constants: an artifact's weights are its own."""
    graph = model.graph
    defaults = [v for v in graph.inputs if v.const is not None]
    for value in defaults:
        value.is_input = False
    graph.inputs[:] = [v for v in graph.inputs if v.const is None]
    if defaults:
        for step in simplify_pipeline():
            step.run(model)
