"""Questions about shapes and small integer operands that several rules ask."""

from __future__ import annotations

import math

from ...ir.graph import Dimension, Node, Value
from .rewriter import Rewriter


def static_shape(value: Value | None) -> tuple[int, ...] | None:
    """The shape where every size is known, else None."""
    shape = None if value is None else value.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(size for size in shape if isinstance(size, int))


def same_size(a: Dimension, b: Dimension) -> bool:
    """Whether two sizes are certainly equal: the same number or the same symbol."""
    return a is not None and a == b


def same_shape(a: Value | None, b: Value | None) -> bool:
    """Whether two values certainly have the same shape in every run."""
    first, second = (None if v is None else v.shape for v in (a, b))
    if first is None or second is None or len(first) != len(second):
        return False
    return all(same_size(x, y) for x, y in zip(first, second, strict=True))


def is_definite(node: Node, rewriter: Rewriter) -> bool:
    """Whether a reshaping node's result has as many axes whatever sizes are unknown.

    Squeeze without axes, or with none of them, removes those that turn out to have size 1.
    """
    if node.op_type != "Squeeze":
        return True
    axes = integers(rewriter, node, "axes", 1)
    if axes or (axes is None and node.input(1) is not None):
        return True
    source = node.input(0)
    shape = None if source is None else source.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return False
    return axes is None or 1 not in shape  # inference takes an empty list for no axis


def same_after_reshape(before: Value | None, after: Value | None) -> bool:
    """Whether a reshape between two values changes nothing.

    As `same_shape`, but one size may be unknown: the number of elements decides it,
    provided that the other sizes are known and not zero.
    """
    if same_shape(before, after):
        return True
    first, second = (None if v is None else v.shape for v in (before, after))
    if first is None or second is None or len(first) != len(second):
        return False
    pairs = list(zip(first, second, strict=True))
    differing = [i for i, pair in enumerate(pairs) if not same_size(*pair)]
    rest = [size for i, size in enumerate(first) if i not in differing]
    known = all(isinstance(size, int) for size in rest)
    if len(differing) != 1 or not known:
        return False
    both_known = all(isinstance(size, int) for size in pairs[differing[0]])
    return not both_known and math.prod(size for size in rest if isinstance(size, int)) != 0


def integers(rewriter: Rewriter, node: Node, attribute: str, index: int) -> list[int] | None:
    """An operand that is an attribute in old opsets and input `index` in new ones.

    None where it is absent or no constant (`node.input(index)` tells which).
    """
    if attribute in node.attributes:
        return [int(x) for x in node.get(attribute)]
    return rewriter.ints(node.input(index))
