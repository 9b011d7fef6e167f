"""Lowering what has no kernel of our own through TVM's ONNX converters and legalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from ...ir.errors import UnsupportedError
from .schedule import Buffer, nbytes
from .targets import Target


def convert(model: Any, target: Target) -> Any:
    """A module whose `main` computes a region's ONNX model, its operators legalised.

    Raises UnsupportedError, naming the nodes, where TVM can't convert them.
    """
    from tvm.relax.frontend.onnx import from_onnx

    t = relax.transform
    try:
        module = from_onnx(model, keep_params_in_input=False)
        with tvm.target.Target(target.llvm()):
            module = tvm.transform.Sequential(
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
        parameters = [_buffer(p.ty) for p in module["main"].params]
        calls(module, parameters, lambda kind, function, buffers: None)  # or ValueError
        return module
    except Exception as error:  # TVM raises whatever its converters happen to raise
        nodes = ", ".join(f"'{n.name or n.output[0]}' ({n.op_type})" for n in model.graph.node[:5])
        reason = " ".join(str(error).split())[-200:]
        raise UnsupportedError(f"can't lower {nodes}: {reason or type(error).__name__}") from None


Add = Callable[[str, Any, Sequence[Buffer]], None]
"""Takes a kernel's kind, its function, and the buffers of a call."""


def calls(module: Any, arguments: Sequence[Buffer], add: Add) -> list[Buffer]:
    """`add` the calls that a converted region's `main` makes; the buffers of its results.

    Raises ValueError where it does anything but call kernels on known shapes.
    """
    return _Walk(arguments, add).run(module)


class _Walk:
    """Follows the bindings of a module's `main`: calls of kernels, and names for results."""

    def __init__(self, arguments: Sequence[Buffer], add: Add) -> None:
        self.arguments, self.add = arguments, add
        self.values: dict[Any, list[Buffer]] = {}

    def run(self, module: Any) -> list[Buffer]:
        main = module["main"]
        for parameter, buffer in zip(main.params, self.arguments, strict=True):
            self.values[parameter] = [buffer]
        for block in main.body.blocks:
            for binding in block.bindings:
                self.values[binding.var] = self.value(module, binding.value, binding.var)
        return self.value(module, main.body.body, None)

    def value(self, module: Any, expression: Any, variable: Any) -> list[Buffer]:
        """The buffers of an expression, of which tuples have several."""
        if expression in self.values:
            return self.values[expression]
        if isinstance(expression, relax.Constant):
            array = expression.data.numpy()
            return [Buffer(array.nbytes, array=array)]
        if isinstance(expression, relax.Tuple):
            return [b for f in expression.fields for b in self.value(module, f, None)]
        if isinstance(expression, relax.TupleGetItem):
            return [self.value(module, expression.tuple_value, None)[expression.index]]
        is_call = isinstance(expression, relax.Call) and variable is not None
        if is_call and expression.op.name == "relax.call_tir" and len(expression.args) == 2:
            function = module[expression.args[0]]
            read = self.value(module, expression.args[1], None)
            fields = getattr(variable.ty, "fields", [variable.ty])
            written = [_buffer(field) for field in fields]
            _check(function)
            self.add(expression.args[0].name_hint, function, [*read, *written])
            return written
        raise ValueError(f"it became {type(expression).__name__} {str(expression)[:80]}")


def _check(function: Any) -> None:
    """Raise ValueError where a kernel calls what artifacts don't have."""

    def visit(node: Any) -> None:
        if isinstance(node, tirx.Call) and "packed" in getattr(node.op, "name", ""):
            raise ValueError(f"it calls {node.args[0]}")

    tirx.stmt_functor.post_order_visit(function.body, visit)


def _buffer(kind: Any) -> Buffer:
    """Memory for a tensor of a type. Raises ValueError where its shape isn't static."""
    shape = [int(d) for d in kind.shape]
    return Buffer(nbytes(shape, str(np.dtype(str(kind.dtype)))))
