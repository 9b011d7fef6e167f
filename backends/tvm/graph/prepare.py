"""What happens to a simplified model before its nodes are lowered one by one."""

from __future__ import annotations

import dataclasses

from ....ir.declarations import check_declarations
from ....ir.graph import Node, Value, normalize_domain
from ....ir.infer import infer_shapes
from ....ir.model import Model
from ....passes.simplify import FreezeDefaults, simplify_pipeline
from .backwards import infer_backwards
from .expand import RequiredRange, expand
from .sequences import Held, held_tensors, resolve_sequences
from .unroll import unroll
from .widen import widen_halves

_ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is known of a prepared model.

    `refused` are nodes that can't be compiled, with the reasons; `claims` values whose type
    only a declaration says; `bounds` ranges of values that runs must check; `held` what values
    hold that are no tensors.
    """

    refused: dict[Node, str]
    claims: set[Value]
    bounds: dict[Value, RequiredRange]
    held: dict[Value, Held]


def prepare(model: Model) -> Prepared:
    """Leave only operators on tensors of static shape, as far as that is possible.

    Definitions are expanded, control flow is unrolled, and what becomes constant is
    folded, again and again, since each may make the others possible. Gives the nodes
    for which it is not possible, with the reasons, and values that runs must check.
    """
    refused: dict[Node, str] = {}
    bounds: dict[Value, RequiredRange] = {}
    long: set[Node] = set()
    if FreezeDefaults().run(model).changed:  # an artifact's weights are its own
        _simplify(model)
    infer_shapes(model)
    for _ in range(_ROUNDS):
        changed = expand(model, refused, bounds)
        changed = resolve_sequences(model) or changed
        changed = unroll(model, refused, long) or changed
        if not changed:
            break
        _simplify(model)
        infer_shapes(model)
    if widen_halves(model):
        _simplify(model)
        infer_shapes(model)
    if _name_parts(model):
        infer_shapes(model)
    infer_backwards(model)
    return Prepared(refused, check_declarations(model), bounds, held_tensors(model))


def prepare_body(model: Model) -> Prepared:
    """As `prepare`, of a loop's body that has just become a model."""
    _simplify(model)
    return prepare(model)


def choose_branches(model: Model, refused: dict[Node, str]) -> bool:
    """Compute both branches of each If whose results have sizes that are known by now, though
    not when the model was prepared; whether there was any."""
    others = {node for node in model.graph.nodes if node.op_type != "If"}
    changed = unroll(model, refused, others)
    if changed:
        infer_shapes(model)
    return changed


def _name_parts(model: Model) -> bool:
    """Name the results of Split that nothing reads, whose sizes say where the others begin."""
    changed = False
    for node in model.graph.nodes:
        if node.op_type == "Split" and normalize_domain(node.domain) == "" and None in node.outputs:
            parts = []
            for index, value in enumerate(node.outputs):
                part = value or Value(model.fresh_name(f"{node.label}/part{index}"))
                part.producer, part.output_index = node, index
                parts.append(part)
            node.outputs = tuple(parts)
            changed = True
    return changed


def _simplify(model: Model) -> None:
    for step in simplify_pipeline():
        step.run(model)
