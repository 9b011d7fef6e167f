"""Whether a value is zero wherever the channel that it is computed from is zero.

A channel whose weights make it zero stays zero through Relu or a product, but becomes one
half by Sigmoid. The layer that reads it has a weight to take that share from; a plain sum
over such channels would lose it.
"""

from __future__ import annotations

from ..axes import dims
from ..axes.dims import ONE
from ..axes.facts import Analysis
from ..graph import Node, Value, normalize_domain
from ..ops import Trait, traits

_ELEMENT_BY_ELEMENT = Trait.SAME_SHAPE | Trait.BROADCASTS


def is_lasting(analysis: Analysis, node: Node) -> bool:
    """Whether the results of a node may be other than zero where all channels are zero."""
    known = traits(node)
    if normalize_domain(node.domain) != "" or Trait.WEIGHTED in known:
        return False
    operands = [v for v in node.inputs if v is not None]
    lasting = [v in analysis.lasting for v in operands]
    if Trait.ZERO_AT_ANY_ZERO in known:
        return all(x or analysis.is_fixed(v) for v, x in zip(operands, lasting, strict=True))
    if Trait.ZERO_AT_FIRST_ZERO in known:
        return lasting[0] or analysis.is_fixed(operands[0])
    if known & _ELEMENT_BY_ELEMENT and not _is_zero_at_zero(analysis, node, known):
        return True
    if Trait.BROADCASTS in known and any(_is_shared(analysis, node, v) for v in operands):
        return True
    return any(lasting)


def _is_zero_at_zero(analysis: Analysis, node: Node, known: Trait) -> bool:
    if node.op_type != "Clip":
        return Trait.ZERO_AT_ZERO in known
    bounds = [node.get("min", 0), node.get("max", 0)]
    for index in (1, 2):
        if node.input(index) is not None:
            tensor = analysis.model.constant(node.input(index))
            if tensor is None:
                return False
            bounds[index - 1] = tensor.numpy().reshape(())
    return bool(bounds[0] <= 0 <= bounds[1])


def _is_shared(analysis: Analysis, node: Node, constant: Value) -> bool:
    """Whether a constant other than zero stands along a whole axis that may be pruned."""
    if not analysis.is_fixed(constant) or not node.outputs or node.outputs[0] is None:
        return False
    shape, axes = constant.shape, analysis.axes.get(node.outputs[0])
    if shape is None or axes is None:
        return False
    along = [
        axis
        for position, axis in enumerate(reversed(axes))
        if position >= len(shape) or shape[-1 - position] == 1
    ]
    if all(axis == ONE or dims.is_locked(axis) for axis in along):
        return False
    tensor = analysis.model.constant(constant)
    return tensor is None or bool(tensor.numpy().any())
