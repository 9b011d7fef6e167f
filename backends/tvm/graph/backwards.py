"""Backward shape inference: an operand has the static shape of a result that shares it."""

from __future__ import annotations

from ....ir.graph import Node, Value, normalize_domain
from ....ir.infer import infer_shapes
from ....ir.model import Model
from ....ir.ops import Trait, traits


def infer_backwards(model: Model) -> None:
    """Go from results to operands of the same shape; then infer forwards again."""
    changed = False
    for node in reversed(model.graph.nodes):
        if normalize_domain(node.domain) == "":
            changed = _from_output(node) or changed
    if changed:
        infer_shapes(model)


def _from_output(node: Node) -> bool:
    if node.op_type == "Unique":
        return _share_count(node)
    x, y = node.input(0), node.output(0)
    if x is None or y is None or not _is_static(y) or _is_static(x):
        return False
    others = [v for v in node.inputs[1:] if v is not None]
    same = Trait.SAME_SHAPE in traits(node)
    if node.op_type in ("Add", "Sub", "Mul", "Div", "Pow"):
        same = all(v.shape is not None and all(d == 1 for d in v.shape) for v in others)
        same = same and (x.shape is None or len(x.shape) == len(y.shape or ()))
        same = same and all(len(v.shape or ()) <= len(y.shape or ()) for v in others)
        same = (same and x.rank is not None) or (same and not any(v.rank for v in others))
    if not same or not x.dtype:
        return False
    x.set_tensor_type(x.dtype, y.shape)
    return True


def _share_count(node: Node) -> bool:
    """Let results of Unique have as many entries as one of them is declared to have."""
    x = node.input(0)
    if x is None or x.rank is None:
        return False
    axis = int(node.get("axis", 0)) % max(x.rank, 1)
    places = [(node.output(index), place) for index, place in ((0, axis), (1, 0), (3, 0))]
    shapes = [(v, list(v.shape), place) for v, place in places if v is not None and v.shape]
    count = next((s[place] for _, s, place in shapes if isinstance(s[place], int)), None)
    changed = False
    for value, shape, place in shapes:
        if count is not None and shape[place] != count:
            shape[place] = count
            value.set_tensor_type(value.dtype, shape)
            changed = True
    return changed


def _is_static(value: Value) -> bool:
    return value.shape is not None and all(isinstance(d, int) for d in value.shape)
