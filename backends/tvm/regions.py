"""Lowering what has no kernel of our own through TVM's ONNX converters and legalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax, tirx

from ...ir.errors import UnsupportedError
from .targets import Target

if TYPE_CHECKING:
    from .emit import Emitter


def convert(model: Any, target: Target) -> Any:
    """A module whose `main` computes a region's ONNX model, its operators legalised.

    Raises UnsupportedError, naming the nodes, where TVM can't convert them.
    """
    from tvm.relax.frontend.onnx import from_onnx

    t = relax.transform
    try:
        module = from_onnx(model, keep_params_in_input=False)
        with tvm.target.Target(target.llvm()):
            return tvm.transform.Sequential(
                [
                    t.DecomposeOpsForInference(),
                    t.LegalizeOps(),
                    t.AnnotateTIROpPattern(),
                    t.FoldConstant(),
                    t.FuseOps(),
                    t.FuseTIR(),
                    t.DeadCodeElimination(["main"]),
                ]
            )(module)
    except Exception as error:  # TVM raises whatever its converters happen to raise
        nodes = ", ".join(f"'{n.name or n.output[0]}' ({n.op_type})" for n in model.graph.node[:5])
        reason = " ".join(str(error).split())[-200:]
        raise UnsupportedError(f"can't lower {nodes}: {reason or type(error).__name__}") from None


def add(emitter: Emitter, module: Any, name: str) -> Any:
    """Add a region's functions to a module under names of their own; returns `main`'s."""
    renamed: dict[Any, Any] = {}
    for variable, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc):
            anonymous = function.without_attr("global_symbol")
            renamed[variable] = emitter.add_function(variable.name_hint, anonymous)
    main = _Rename(renamed).visit_expr(module["main"])
    main = main.without_attr("global_symbol")
    return emitter.builder.add_func(main, name)


@relax.expr_functor.mutator
class _Rename(relax.PyExprMutator):  # type: ignore[misc]
    """Replaces references to global functions."""

    def __init__(self, renamed: dict[Any, Any]) -> None:
        super().__init__()
        self.renamed = {v.name_hint: g for v, g in renamed.items()}

    def visit_global_var_(self, gvar: Any) -> Any:
        return self.renamed.get(gvar.name_hint, gvar)
