"""Shape rules of products: of matrices, of blocks of weights, and Einsum."""

from __future__ import annotations

from collections.abc import Sequence

from ..einsum import is_letter, read_equation
from ..graph import Node
from ..stand_ins import BLOCK_PRODUCT, TREE_SUMS
from . import expressions as e
from .expressions import Size
from .facts import Facts, Shape
from .registry import shape_rule
from .shapes import broadcast_shapes


@shape_rule("MatMul")
def matmul(node: Node, facts: Facts) -> Sequence[Shape | None]:
    a, b = facts.shape(node.input(0)), facts.shape(node.input(1))
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return [None]
    if len(a) > 2 or len(b) > 2:
        return [(*broadcast_shapes([a[:-2], b[:-2]]), a[-2], b[-1])]
    return [(a[0], b[1])]


@shape_rule(BLOCK_PRODUCT[1])
def block_product(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    return [None if not shape else (*shape[:-1], int(node.get("columns", 0)))]


@shape_rule(TREE_SUMS[1])
def tree_sums(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shape = facts.shape(node.input(0))
    return [None if not shape else (shape[0], int(node.get("targets", 1)))]


@shape_rule("Gemm")
def gemm(node: Node, facts: Facts) -> Sequence[Shape | None]:
    a, b = facts.shape(node.input(0)), facts.shape(node.input(1))
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return [None]
    return [(a[1 if node.get("transA", 0) else 0], b[0 if node.get("transB", 0) else 1])]


@shape_rule("Einsum")
def einsum(node: Node, facts: Facts) -> Sequence[Shape | None]:
    shapes = [facts.shape(value) for value in node.inputs]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return [None]
    try:
        equation = read_equation(str(node.get("equation", "")), [len(s) for s in known])
    except ValueError:
        return [None]
    sizes: dict[str, Size] = {}
    for labels, shape in zip(equation.operands, known, strict=True):
        for label, size in zip(labels, shape, strict=True):
            before = sizes.get(label, 1)
            if is_letter(label) and before != 1 and size != 1:  # then they are equal
                sizes[label] = size if isinstance(size, int) else before
            else:
                sizes[label] = e.broadcast(before, size)
    return [tuple(sizes[label] for label in equation.result)]
