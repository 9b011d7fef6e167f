"""Simplification: the same function with fewer nodes, in standard ONNX operators."""

from __future__ import annotations

import dataclasses

from ...ir.model import Model
from ..base import Context, Pass, PassResult
from ..inline import InlineFunctions
from ..opset import ConvertOpset
from . import affine, noops
from .dead import RemoveDeadNodes
from .defaults import FreezeDefaults
from .fold_constants import FoldConstants
from .input_shapes import FixInputShapes
from .input_values import FixInputValues
from .outputs import CutOutputs
from .preprocessing import EmbedPreprocessing
from .rewriter import Rewriter
from .simplify import Simplify, working_types

__all__ = [
    "ConvertOpset",
    "CutOutputs",
    "EmbedPreprocessing",
    "FixInputShapes",
    "FixInputValues",
    "FoldBatchNormalization",
    "FoldConstants",
    "FreezeDefaults",
    "InlineFunctions",
    "RemoveDeadNodes",
    "RemoveNoOps",
    "Simplify",
    "simplify_pipeline",
]


@dataclasses.dataclass(frozen=True)
class RemoveNoOps(Pass):
    """Remove operators that hand on their input unchanged."""

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        with working_types(model):
            rewriter = Rewriter(model, noops.RULES)
            rewriter.analysis.run()
            changed = rewriter.run()
        return PassResult(changed, {"removed": dict(rewriter.applied)}, rewriter.notes)


@dataclasses.dataclass(frozen=True)
class FoldBatchNormalization(Pass):
    """Fold BatchNormalization and scaling and shifting by constants into linear operators.

    Notes every BatchNormalization that is left, with the reason.
    """

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        with working_types(model):
            rewriter = Rewriter(model, affine.RULES)
            changed = rewriter.run()
            affine.note_remaining(rewriter)
        return PassResult(changed, {"folded": dict(rewriter.applied)}, rewriter.notes)


def simplify_pipeline() -> list[Pass]:
    """The passes that simplify a model, in order."""
    return [Simplify()]
