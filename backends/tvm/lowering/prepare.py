"""What happens to a simplified model before its nodes are lowered one by one."""

from __future__ import annotations

from ....ir.graph import Model
from ....ir.infer import infer_shapes
from ....passes.simplify import simplify_pipeline
from .backwards import infer_backwards
from .expand import expand
from .unroll import unroll

_ROUNDS = 8


def prepare(model: Model) -> None:
    """Leave only operators on tensors of static shape, as far as that is possible.

    Definitions are expanded, control flow is unrolled, and what becomes constant is
    folded, again and again, since each may make the others possible.
    """
    infer_shapes(model)
    for _ in range(_ROUNDS):
        changed = expand(model)
        changed = unroll(model) or changed
        if not changed:
            break
        for step in simplify_pipeline():
            step.run(model)
        infer_shapes(model)
    infer_backwards(model)
