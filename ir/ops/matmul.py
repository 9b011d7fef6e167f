"""Matrix products: Gemm, MatMul with broadcast batch axes, Einsum."""

from __future__ import annotations

import math
from collections import defaultdict

from ..axes.dims import ONE, Axis
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from ..einsum import read_equation
from ..graph import Node
from .elementwise import broadcast
from .records import MICROSOFT, ShapeOf, Trait, macs, rule


@rule("Gemm", traits=Trait.WEIGHTED)
@rule("FusedGemm", domain=MICROSOFT)
def gemm(r: NodeAxes) -> None:
    r.set(gemm_axes(r, 1, 2))


def gemm_axes(r: NodeAxes, second: int, added: int) -> tuple[Axis, Axis]:
    """Those of the first operand by the `second`, to which the `added` one is broadcast."""
    a, b = r.axes(0), r.axes(second)
    if len(a) != 2 or len(b) != 2:
        raise Opaque("operands have to be matrices")
    rows, inner = reversed(a) if r.get("transA", 0) else a
    inner_b, columns = reversed(b) if r.get("transB", 0) else b
    r.unify(inner, inner_b)
    r.contract(inner, 0, second)
    if r.has(added):
        broadcast(r, [(rows, columns), r.axes(added)])
    return rows, columns


@rule("MatMul", traits=Trait.WEIGHTED)
@rule("FusedMatMul", domain=MICROSOFT)
def matmul(r: NodeAxes) -> None:
    if r.get("transBatchA", 0) or r.get("transBatchB", 0):
        raise Opaque("transposed batch axes")
    r.set(matmul_axes(r, _transposed(r, 0, "transA"), _transposed(r, 1, "transB"), (0, 1)))


@rule("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(r: NodeAxes) -> None:
    """FastGelu(X @ W + bias); despite its name a batched product."""
    out = matmul_axes(r, r.axes(0), r.axes(1), (0, 1))
    if r.has(2):
        broadcast(r, [out, r.axes(2)])
    r.set(out)


@rule("MatMulInteger", traits=Trait.WEIGHTED)
@rule("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer(r: NodeAxes) -> None:
    to_float = r.node.op_type == "MatMulIntegerToFloat"
    out = matmul_axes(r, r.axes(0), r.axes(1), (0, 1))
    for index, axis in _quantization_inputs(to_float, out):
        if r.has(index):
            per_axis(r, r.axes(index), axis)
    r.set(out)


@rule("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(r: NodeAxes) -> None:
    """A, quantized by its range (see DynamicQuantizeLinear), B, its scale, zero point, bias."""
    for axis in r.axes(0):
        r.contract(axis, 0)  # its range is measured
    out = matmul_axes(r, r.axes(0), r.axes(1), (0, 1))
    for index in (2, 3, 4):
        if r.has(index):
            per_axis(r, r.axes(index), out[-1])
    r.set(out)


@rule("QLinearMatMul", traits=Trait.WEIGHTED)
def qlinear_matmul(r: NodeAxes) -> None:
    out = matmul_axes(r, r.axes(0), r.axes(3), (0, 3))
    for index, axis in ((1, -2), (2, -2), (4, -1), (5, -1)):
        per_axis(r, r.axes(index), out[axis] if len(out) >= -axis else ONE)
    r.set(out)


def _quantization_inputs(to_float: bool, out: Axes) -> list[tuple[int, Axis]]:
    """Positions of per-row and per-column scales, zero points and bias."""
    columns = out[-1] if out else ONE
    rows = out[-2] if len(out) > 1 else ONE
    if to_float:
        return [(2, rows), (3, columns), (4, rows), (5, columns), (6, columns)]
    return [(2, rows), (3, columns)]


def per_axis(r: NodeAxes, axes: Axes, axis: Axis) -> None:
    """Tie a scalar-or-vector parameter (scale, zero point, bias) to an axis."""
    for candidate in axes:
        if candidate != ONE:
            r.unify(candidate, axis)


def _transposed(r: NodeAxes, index: int, attribute: str) -> Axes:
    axes = r.axes(index)
    return (*axes[:-2], axes[-1], axes[-2]) if r.get(attribute, 0) and len(axes) > 1 else axes


def matmul_axes(r: NodeAxes, a: Axes, b: Axes, operands: tuple[int, int]) -> Axes:
    """numpy.matmul: contract a's last with b's second to last axis, broadcast the rest.

    `operands` are the positions of a and b among the inputs.
    """
    if not a or not b:
        raise Opaque("operands have to have at least one axis")
    rows, a_inner = a[-2:-1], a[-1]
    b_inner = b[-2] if len(b) > 1 else b[0]
    columns = b[-1:] if len(b) > 1 else ()
    r.unify(a_inner, b_inner)
    r.contract(a_inner, *operands)
    batch = broadcast(r, [a[:-2], b[:-2]])
    return batch + rows + columns


@rule("Einsum", traits=Trait.WEIGHTED)
def einsum(r: NodeAxes) -> None:
    try:
        ranks = [len(r.axes(index)) for index in range(len(r.node.inputs))]
        equation = read_equation(r.get("equation", ""), ranks)
    except ValueError as error:
        raise Opaque(str(error)) from None
    axes: dict[str, Axis] = {}
    having: dict[str, list[int]] = defaultdict(list)
    for index, labels in enumerate(equation.operands):
        for label, axis in zip(labels, r.axes(index), strict=True):
            known = axes.get(label, ONE)
            if known == ONE:
                axes[label] = axis
            elif axis != ONE:
                r.unify(known, axis)
            if axis != ONE:
                having[label].append(index)
    for label, indices in having.items():
        if label not in equation.result:
            r.contract(axes[label], *indices)
    r.set(tuple(axes[label] for label in equation.result))


@rule("Det")
def det(r: NodeAxes) -> None:
    axes = r.axes(0)
    r.lock_all(axes[-2:], "determinant of this matrix")
    r.set(axes[:-2])


@rule("Inverse", domain=MICROSOFT, traits=Trait.SAME_SHAPE)
def inverse(r: NodeAxes) -> None:
    """[..., n, n]: a matrix for each index of the axes before."""
    axes = r.axes(0)
    r.lock_all(axes[-2:], "inverse of this matrix")
    r.set(axes)


@macs("Inverse", domain=MICROSOFT)
def inverse_macs(node: Node, shape: ShapeOf) -> int:
    """n steps of elimination, each over the n rows of a matrix and its inverse."""
    *matrices, n, _ = shape(node.input(0))
    return math.prod(matrices) * n * n * 2 * n


@macs("Gemm")
@macs("FusedGemm", domain=MICROSOFT)
def gemm_macs(node: Node, shape: ShapeOf) -> int:
    a = shape(node.input(0))
    return math.prod(shape(node.output(0))) * (a[0] if node.get("transA", 0) else a[-1])


@macs("MatMul", "MatMulInteger", "QLinearMatMul")
@macs("FusedMatMul", "GemmFastGelu", "MatMulIntegerToFloat", domain=MICROSOFT)
@macs("DynamicQuantizeMatMul", domain=MICROSOFT)
def matmul_macs(node: Node, shape: ShapeOf) -> int:
    a = shape(node.input(0))
    inner = a[-2] if node.get("transA", 0) and len(a) > 1 else a[-1]
    return math.prod(shape(node.output(0))) * inner


@macs("Einsum")
def einsum_macs(node: Node, shape: ShapeOf) -> int:
    """Product of the sizes of all labels; exact for two operands."""
    if len(node.inputs) < 2:
        return 0
    shapes = [shape(value) for value in node.inputs]
    try:
        equation = read_equation(node.get("equation", ""), [len(own) for own in shapes])
    except ValueError:  # shapes that nothing is known of
        return 0
    sizes: dict[str, int] = {}
    for labels, own in zip(equation.operands, shapes, strict=True):
        for label, size in zip(labels, own, strict=True):
            sizes[label] = size if sizes.get(label, 1) == 1 else sizes[label]
    return math.prod(sizes.values())
