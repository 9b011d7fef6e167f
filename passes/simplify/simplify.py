"""The whole simplification: every rule, again and again, until nothing changes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from onnx import TypeProto

from ...ir.collection import paused_garbage_collection
from ...ir.graph import Value, make_tensor_type, tensor_type, type_shape
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ..base import Context, Note, Pass, PassResult
from . import (
    activations,
    affine,
    movement,
    noops,
    normalizations,
    padding,
    pooling,
    products,
    recurrent,
    reshapes,
    shape_chains,
)
from .branches import stop_impossible_branches
from .conditions import inline_constant_conditions
from .dead import RemoveDeadNodes, remove_dead_nodes, remove_unused_initializers
from .duplicates import merge_computations, merge_constants
from .fold_constants import Limits, fold_constants, lift_constants
from .known_sizes import KnownSizes
from .rewriter import Rewriter

_ROUNDS = 10
"""Rounds after which simplification stops even if it still finds something."""


# Recognition comes first: folding a constant away hides the pattern it is part of.
_RULES = (
    noops.RULES
    + shape_chains.RULES
    + normalizations.RULES
    + activations.RULES
    + affine.RULES
    + products.RULES
    + padding.RULES
    + pooling.RULES
    + movement.RULES
    + reshapes.RULES
    + recurrent.RULES
)


@dataclasses.dataclass(frozen=True)
class Simplify(Pass):
    """Compute the same outputs with fewer nodes, in standard ONNX operators.

    Statistics count what each rule did; notes say which constants would have become too
    large and which normalisations stay, with the reason. With `allow_contrib` operators of
    ONNX Runtime's own (`com.microsoft`) serve where the opset lacks a standard one.
    """

    size_limit: int = 2**24
    weight_limit: int = 2**29
    allow_contrib: bool = False

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        before = sum(1 for _ in model.all_nodes())
        removed = RemoveDeadNodes().run(model).statistics
        lifted = lift_constants(model)  # as initializers they cost inference less
        limits = Limits(self.size_limit, self.weight_limit)
        run = _Rounds(model, limits, allow_contrib=self.allow_contrib)
        run.applied["fold_constants"] += lifted
        with paused_garbage_collection():
            run.until_known()
            stopped = stop_impossible_branches(model)
            if stopped:
                run.applied["stop_impossible_branches"] += len(stopped)
                run.until_known()
                run.notes += stopped
        removed["initializers"] += remove_unused_initializers(model)
        after = sum(1 for _ in model.all_nodes())
        applied = dict(+(run.applied + Counter({"remove_unused": sum(removed.values())})))
        statistics = {"nodes_before": before, "nodes_after": after, "rewrites": applied}
        return PassResult(bool(applied), statistics, run.notes)


class _Rounds:
    """Rounds of folding, rewriting and merging on one model."""

    def __init__(self, model: Model, limits: Limits, *, allow_contrib: bool) -> None:
        self.model = model
        self._allow_contrib = allow_contrib
        self.limits = limits
        self.applied: Counter[str] = Counter()
        self.notes: list[Note] = []
        self._is_settled = False
        self._has_declared = False
        self._leaves_open = False

    def until_known(self) -> None:
        """Run until neither rules nor inference find more."""
        for _ in range(_ROUNDS):
            if not self.until_settled():
                break

    def until_settled(self) -> bool:
        """Rounds until nothing changes; whether inference may know more of shapes now.

        It may where sizes were open when it ran and what it ran on has changed since.
        """
        before = self.applied.total()
        self._has_declared = self._is_settled = False
        with working_types(self.model):
            for _ in range(_ROUNDS):
                if not self.one_round():
                    break
            changed = self.applied.total() > before
            return self._has_declared or (changed and self._leaves_open)

    def one_round(self) -> bool:
        """Fold, rewrite, merge; whether another round may find more.

        In this order, since sharing a weight or a result ties the rules' hands.
        """
        before = self.applied.total()
        folded, too_large = fold_constants(self.model, self.limits)
        chosen = inline_constant_conditions(self.model)
        self.applied["remove_unused"] += remove_dead_nodes(self.model) if chosen else 0
        self.applied["fold_constants"] += folded
        self.applied["inline_constant_conditions"] += chosen
        if self._is_settled and not folded and not chosen:
            return False
        analysis = KnownSizes(self.model)
        analysis.run()
        rewriter = self._rewriter(analysis)
        rewriter.run()
        self.applied.update(rewriter.applied)
        while merged := self._merge(analysis):
            self.applied["merge"] += len(merged)
            rewriter = self._rewriter(analysis)
            rewriter.run(around=merged)
            self.applied.update(rewriter.applied)
            if not rewriter.applied:
                break  # one walk merges all there is
        self._is_settled = not analysis.is_stale
        self._has_declared |= analysis.has_declared
        self._leaves_open = analysis.leaves_open()
        affine.note_remaining(rewriter)
        self.notes = too_large + rewriter.notes
        return self.applied.total() > before

    def _rewriter(self, analysis: KnownSizes) -> Rewriter:
        return Rewriter(self.model, _RULES, analysis, allow_contrib=self._allow_contrib)

    def _merge(self, analysis: KnownSizes) -> list[Value]:
        constants = merge_constants(self.model)
        results, has_declared = merge_computations(self.model)
        analysis.is_stale |= has_declared
        analysis.has_declared |= has_declared
        return constants + results


@contextmanager
def working_types(model: Model) -> Iterator[None]:
    """Infer types for the time of the block; afterwards the interface is as declared.

    Inside, sizes have names that mean something to the analysis only. When the block
    ends, values keep known sizes and the names that the model had before.
    """
    names = {n for v in _typed_values(model) for n in v.shape or () if isinstance(n, str)}
    names -= {n for n in names if n.startswith(_MADE_UP)} - _names_of_inputs(model)
    for value in model.graph.outputs:
        _restrict_names(value, names)
    declared = {v.name: v.type for v in model.graph.outputs}
    if not _has_all_types(model):
        infer_shapes(model)
    yield
    for value in _typed_values(model):
        _restrict_names(value, names)
    for value in model.graph.outputs:
        kept = declared.get(value.name)
        if kept is not None:
            value.type = _completed(kept, value)


_MADE_UP = "unk__"
"""What names begin with that ONNX's inference gives to sizes that it doesn't know."""


def _names_of_inputs(model: Model) -> set[str]:
    return {n for v in model.graph.inputs for n in v.shape or () if isinstance(n, str)}


def _has_all_types(model: Model) -> bool:
    """Whether every node's result has a type with a rank and a number or name per axis."""
    return all(
        value is None or (value.shape is not None and None not in value.shape)
        for graph in model.graph.all_graphs()
        for node in graph.nodes
        for value in node.outputs
    )


def _typed_values(model: Model) -> Iterator[Value]:
    for graph in model.graph.all_graphs():
        yield from graph.values()


def _restrict_names(value: Value, names: set[str]) -> None:
    shape = value.shape
    if shape is not None and any(isinstance(n, str) and n not in names for n in shape):
        kept = [n if isinstance(n, int) or n in names else None for n in shape]
        value.set_tensor_type(value.dtype, kept)


def _completed(declared: TypeProto, value: Value) -> TypeProto:
    """An output's declaration; what it leaves open is filled in."""
    old, new = type_shape(declared), value.shape
    tensor = tensor_type(declared)
    if tensor is None or new is None:
        return declared
    if old is None:
        return make_tensor_type(tensor.elem_type, new)
    if len(old) != len(new) or not any(
        o is None and n is not None for o, n in zip(old, new, strict=True)
    ):
        return declared
    sizes = [n if o is None else o for o, n in zip(old, new, strict=True)]
    completed = TypeProto(denotation=declared.denotation)
    completed.tensor_type.CopyFrom(make_tensor_type(tensor.elem_type, sizes).tensor_type)
    return completed
