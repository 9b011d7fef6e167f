"""Quantization: scales and zero points are sliced with the axis that they belong to."""

from __future__ import annotations

from ..axes import dims
from ..axes.dims import ONE
from ..axes.facts import Axes
from ..axes.node_axes import NodeAxes, Opaque
from .convolution import SPATIAL
from .elementwise import broadcast
from .matmul import gemm_axes, gemm_macs, per_axis
from .records import MICROSOFT, Trait, macs, rule
from .reduction import normalized
from .spatial import windowed


@rule("DequantizeLinear", "QuantizeLinear", traits=Trait.SAME_SHAPE | Trait.ZERO_AT_ZERO)
@rule("DequantizeLinear", "QuantizeLinear", domain=MICROSOFT)
def quantize_linear(r: NodeAxes) -> None:
    axes = r.axes(0)
    for index in (1, 2):
        if r.has(index):
            _tie_quantization(r, axes, r.axes(index))
    r.set(axes)


@rule("DynamicQuantizeLinear", traits=Trait.SAME_SHAPE | Trait.ZERO_AT_ZERO)
def dynamic_quantize_linear(r: NodeAxes) -> None:
    """The range always holds zero, so that what is removed, zero, doesn't change it."""
    axes = r.axes(0)
    for axis in axes:
        r.contract(axis, 0)
    r.set(axes)
    for scalar in (1, 2):
        r.set((), scalar)


def _tie_quantization(r: NodeAxes, axes: Axes, parameter: Axes) -> None:
    """A scale or zero point: per tensor, per axis, or per block of an axis."""
    if not parameter or all(axis == ONE for axis in parameter):
        return
    axis = normalized(r.get("axis", 1), len(axes))
    if len(parameter) == 1:
        r.unify(parameter[0], axes[axis])
        return
    if len(parameter) != len(axes):
        raise Opaque(f"a scale of rank {len(parameter)} for a tensor of rank {len(axes)}")
    for position, (whole, part) in enumerate(zip(axes, parameter, strict=True)):
        if position == axis:
            r.lock_all((whole, part), "quantized in blocks along this axis")
        else:
            r.unify(whole, part)


@rule("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_binary(r: NodeAxes) -> None:
    r.set(broadcast(r, [r.axes(0), r.axes(3)]))


@rule("QGemm", domain=MICROSOFT)
def qgemm(r: NodeAxes) -> None:
    """A, its scale and zero point, B with its (per column), C, output scale and zero point."""
    rows, columns = gemm_axes(r, 3, 6)
    for index in (4, 5):
        if r.has(index):
            per_axis(r, r.axes(index), columns)
    r.set((rows, columns))


@rule("QLinearWhere", domain=MICROSOFT)
def qlinear_where(r: NodeAxes) -> None:
    """Condition, then X and Y, each with scale and zero point."""
    r.set(broadcast(r, [r.axes(0), r.axes(1), r.axes(4)]))


@rule("QLinearLeakyRelu", "QLinearSigmoid", domain=MICROSOFT)
def qlinear_unary(r: NodeAxes) -> None:
    r.set(r.axes(0))


@rule("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(r: NodeAxes) -> None:
    axes = r.axes(0)
    first = normalized(r.get("axis", -1), len(axes))
    over = axes[first : first + 1] if r.get("opset", 13) >= 13 else axes[first:]
    r.lock_all(over, "softmax over this axis")
    r.set(axes)


@rule("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(r: NodeAxes) -> None:
    """Inputs: output scale and zero point, then (tensor, scale, zero point) each."""
    operands = [r.axes(i) for i in range(2, len(r.node.inputs), 3)]
    axis = normalized(r.get("axis", 0), len(operands[0]))
    for other in operands[1:]:
        for position, (a, b) in enumerate(zip(operands[0], other, strict=True)):
            if position != axis:
                r.unify(a, b)
    joined = dims.concat([axes[axis] for axes in operands])
    r.set((*operands[0][:axis], joined, *operands[0][axis + 1 :]))


@rule("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(r: NodeAxes) -> None:
    last = r.get("channels_last", 0)
    r.set(windowed(r, r.axes(0), slice(1, -1) if last else slice(2, None)))


@rule("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool(r: NodeAxes) -> None:
    axes = r.axes(0)
    channel = len(axes) - 1 if r.get("channels_last", 0) else 1
    spatial = [a for i, a in enumerate(axes) if i not in (0, channel)]
    r.lock_all(spatial, SPATIAL)
    r.set(tuple(a if i in (0, channel) else ONE for i, a in enumerate(axes)))


macs("QGemm", domain=MICROSOFT)(gemm_macs)
