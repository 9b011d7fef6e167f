"""Lowering a model to a plan: rules in order, regions for the rest, then fusion."""

from __future__ import annotations

from collections.abc import Callable

from ....ir.errors import UnsupportedError
from ....ir.graph import Node
from ....ir.model import Model
from ..operators import RULES as LOOPS
from ..operators.base import Call
from ..plan import Plan, Tensor
from ..targets import Target
from . import convolution, elementwise, matmul, shapes
from .context import Constant, Lowering, Stored
from .fuse import fuse
from .prepare import prepare
from .regions import Regions, _outer_reads

RULES: dict[str, Callable[[Lowering, Node], bool]] = {
    **elementwise.RULES,
    **convolution.RULES,
    **matmul.RULES,
    **shapes.RULES,
}


def lower(model: Model, target: Target) -> Plan:
    """The fused plan of a model whose shapes are static and inferred.

    Raises UnsupportedError, naming the node, for what has no place in a compiled model.
    """
    prepare(model)
    lowering = Lowering(model, target)
    regions = Regions(lowering)
    for value in model.graph.inputs:
        if value.const is not None and model.constant(value) is not None:
            continue
        tensor = lowering.tensor(value)
        lowering.plan.inputs.append(tensor)
        lowering.items[value] = Stored(tensor)
    for node in model.graph.nodes:
        _lower_node(lowering, regions, node)
    regions.flush()
    for value in model.graph.outputs:
        item = lowering.item(value)
        tensor = lowering.stored(value)
        if isinstance(item, Constant) or tensor in lowering.plan.inputs:
            tensor = _copy_of(lowering, tensor)
        lowering.plan.outputs.append((value.name, tensor))
    fuse(lowering.plan)
    return lowering.plan


def _lower_node(lowering: Lowering, regions: Regions, node: Node) -> None:
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        return
    outputs = [v for v in node.outputs if v is not None]
    if outputs and all(v in lowering.items for v in outputs):
        return  # a rule of an earlier node covered this one
    if any(regions.defines(v) for v in _outer_reads(node)):
        if not _has_rule(node):
            regions.add(node)
            return
        regions.flush()
    if _is_standard(node):
        rule = None if _has_empty(lowering, node) else RULES.get(node.op_type)
        if rule is not None and rule(lowering, node):
            return
        loops = LOOPS.get(node.op_type)
        if loops is not None:
            loops(Call(lowering, node))
            return
        raise UnsupportedError(f"node '{node.label}' ({node.op_type}): no lowering")
    if node.domain != "com.microsoft":
        raise UnsupportedError(
            f"node '{node.label}' ({node.domain}::{node.op_type}): no lowering for this domain"
        )
    regions.add(node)


def _has_empty(lowering: Lowering, node: Node) -> bool:
    """Whether the node reads or defines a tensor without elements."""
    return any(v is not None and 0 in (v.shape or ()) for v in (*node.inputs, *node.outputs))


def _is_standard(node: Node) -> bool:
    return node.domain in ("", "ai.onnx")


def _has_rule(node: Node) -> bool:
    return _is_standard(node) and (node.op_type in RULES or node.op_type in LOOPS)


def _copy_of(lowering: Lowering, tensor: Tensor) -> Tensor:
    from ..plan import ElementwiseOp, View
    from ..programs import Program

    copy = Tensor(tensor.name + "/output", tensor.dtype, tensor.shape)
    lowering.emit(ElementwiseOp(tensor.name, [copy], [View.of(tensor)], Program((tensor.dtype,))))
    return copy
