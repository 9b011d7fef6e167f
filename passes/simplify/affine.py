"""Per-channel scaling and shifting folded into the linear operator beside it.

BatchNormalization in inference, and Mul, Div, Add and Sub by a constant that varies
along channels only, are `y = scale * x + shift`. Conv, ConvTranspose, Gemm, MatMul
and BatchNormalization itself absorb that in their weights, computed in float64 and
rounded once.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from ...ir.graph import Node, Value
from ...ir.tensor import Array
from ..base import Note
from .rewriter import Rewriter, RuleSet, only_reader, producer
from .shapes import same_shape

RULES = RuleSet()


@dataclasses.dataclass(frozen=True)
class Affine:
    """`scale * source + shift`, float64 of shape [channels] or [1]; None: nothing to do."""

    source: Value
    scale: Array | None
    shift: Array | None


@RULES.on("BatchNormalization", "Mul", "Div", "Add", "Sub")
def fold_affine_into_producer(node: Node, rewriter: Rewriter) -> bool:
    """Conv -> BatchNormalization, Gemm -> Mul and the like: into the weights before."""
    for source in _possible_sources(node):
        linear = producer(source, *_ABSORB)
        if linear is None or source is None or only_reader(source) is not node:
            continue
        channels = _result_channels(linear, rewriter)
        affine = None if channels is None else match_affine(node, source, channels, rewriter)
        output = node.output(0)
        if affine is None or output is None or not output.can_be_replaced_by(source):
            continue
        with np.errstate(all="ignore"):
            absorbed = _ABSORB[linear.op_type](linear, affine, rewriter)
        if absorbed:
            return rewriter.replace(output, source)
    return False


@RULES.on("Conv", "Gemm", "MatMul")
def fold_affine_before(node: Node, rewriter: Rewriter) -> bool:
    """BatchNormalization -> Conv and the like: into the weights after, where no padding."""
    source = node.input(0)
    before = producer(source, "BatchNormalization", "Mul", "Div", "Add", "Sub")
    if before is None or source is None or only_reader(source) is not node:
        return False
    channels = _operand_channels(node, rewriter)
    for inner in _possible_sources(before):
        if inner is None or channels is None or not _keeps_shape(before, inner, source):
            continue
        affine = match_affine(before, inner, channels, rewriter)
        if affine is None:
            continue
        with np.errstate(all="ignore"):
            absorbed = _ABSORB_BEFORE[node.op_type](node, affine, rewriter)
        if absorbed:
            rewriter.set_input(node, 0, inner)
            return True
    return False


def note_remaining(rewriter: Rewriter) -> None:
    """Say of every BatchNormalization that is left why it could not be folded."""
    for node in rewriter.model.graph.all_nodes():
        if node.op_type == "BatchNormalization":
            rewriter.notes.append(Note.at(node, _why_left(node, rewriter)))


def _why_left(node: Node, rewriter: Rewriter) -> str:
    source = node.input(0)
    linear = producer(source, *_ABSORB)
    if source is None or linear is None:
        kind = (
            "a graph input"
            if source is None or source.producer is None
            else (f"the result of {source.producer.op_type}")
        )
        return f"its input is {kind}, not of a convolution or matrix product"
    if only_reader(source) is not node:
        return f"the result of '{linear.label}' is read elsewhere too"
    if _batch_normalization(node, source, rewriter) is None:
        return "it is in training mode, or its parameters are not constant"
    return f"the weights of '{linear.label}' are not constant, or of another axis"


# --- what is an affine map -----------------------------------------------------------


def _possible_sources(node: Node) -> tuple[Value | None, ...]:
    commutes = node.op_type in ("Add", "Mul", "Sub")
    return (node.input(0), node.input(1)) if commutes else (node.input(0),)


class Channels(NamedTuple):
    """Where channels lie: on `axis` (maybe negative) of `rank` axes (maybe unknown)."""

    size: int
    axis: int
    rank: int | None


def _keeps_shape(node: Node, source: Value, output: Value) -> bool:
    """Whether the constant operand of `node` does not enlarge `source` by broadcasting."""
    return node.op_type == "BatchNormalization" or same_shape(source, output)


def match_affine(
    node: Node, source: Value, channels: Channels, rewriter: Rewriter
) -> Affine | None:
    """`node` as an affine map of `source`, whose channels lie as `channels` says."""
    if node.op_type == "BatchNormalization":
        axis, rank = channels.axis, channels.rank
        if axis != 1 and (rank is None or axis + rank != 1):
            return None
        return _batch_normalization(node, source, rewriter)
    return _arithmetic(node, source, channels, rewriter)


def _batch_normalization(node: Node, source: Value, rewriter: Rewriter) -> Affine | None:
    training = node.get("training_mode", 0) or (rewriter.opset < 7 and not node.get("is_test", 0))
    extra = any(v is not None for v in node.outputs[1:])
    if training or extra or node.get("spatial", 1) != 1 or node.input(0) is not source:
        return None
    arrays = [rewriter.array(node.input(i)) for i in range(1, 5)]
    gamma, beta, mean, variance = (None if a is None else a.astype(np.float64) for a in arrays)
    if gamma is None or beta is None or mean is None or variance is None:
        return None
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + float(np.float32(node.get("epsilon", 1e-5))))
        return Affine(source, scale, beta - mean * scale)


def _arithmetic(node: Node, source: Value, channels: Channels, rewriter: Rewriter) -> Affine | None:
    if rewriter.opset < 7:  # broadcasting followed other rules
        return None
    first = node.input(0) is source
    other = node.input(1 if first else 0)
    array = rewriter.array(other)
    if array is None or other is source or array.dtype.kind != "f":
        return None
    vector = _along_channels(array.astype(np.float64), channels)
    if vector is None:
        return None
    if node.op_type == "Mul":
        return Affine(source, vector, None)
    if node.op_type == "Div":
        with np.errstate(all="ignore"):
            return Affine(source, 1.0 / vector, None)
    if node.op_type == "Add":
        return Affine(source, None, vector)
    if first:
        return Affine(source, None, -vector)
    return Affine(source, np.array([-1.0]), vector)


def _along_channels(array: Array, channels: Channels) -> Array | None:
    """A constant operand as a vector over channels, or None where it varies elsewhere."""
    size, axis, rank = channels
    if array.size == 1 and (array.ndim <= 1 or (rank is not None and array.ndim <= rank)):
        return array.reshape(1)
    if array.size != size or (rank is not None and array.ndim > rank):
        return None
    if rank is None:
        # Aligned at the last axis: a vector varies along it, whatever the rank.
        return array if array.ndim == 1 and axis == -1 else None
    place = axis % rank - (rank - array.ndim)
    return array.reshape(-1) if 0 <= place < array.ndim and array.shape[place] == size else None


# --- into the operator before ----------------------------------------------------------


def _result_channels(linear: Node, rewriter: Rewriter) -> Channels | None:
    """The channels of the operator's result, which its weights run along."""
    weight = rewriter.tensor(linear.input(1))
    if weight is None:
        return None
    shape, output = weight.shape, linear.output(0)
    rank = None if output is None else output.rank
    if linear.op_type == "Conv":
        return Channels(shape[0], 1, len(shape))
    if linear.op_type == "ConvTranspose":
        return Channels(shape[1] * linear.get("group", 1), 1, len(shape))
    if linear.op_type == "Gemm":
        return Channels(shape[0 if linear.get("transB", 0) else 1], 1, 2)
    if linear.op_type == "BatchNormalization":
        return Channels(shape[0], 1, rank)
    return Channels(shape[-1], -1, rank) if len(shape) >= 2 else None


def _into_conv(node: Node, affine: Affine, rewriter: Rewriter) -> bool:
    weight = rewriter.array(node.input(1))
    if weight is None:
        return False
    channels = weight.shape[0]
    scale = _spread(affine.scale, channels)
    new = None if scale is None else weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return _update(node, new, weight, affine, channels, rewriter)


def _into_conv_transpose(node: Node, affine: Affine, rewriter: Rewriter) -> bool:
    weight = rewriter.array(node.input(1))
    if weight is None:
        return False
    groups = node.get("group", 1)
    inputs, per_group = weight.shape[:2]
    scale = _spread(affine.scale, groups * per_group)
    new = None
    if scale is not None:
        grouped = weight.reshape(groups, inputs // groups, per_group, -1)
        new = (grouped * scale.reshape(groups, 1, per_group, 1)).reshape(weight.shape)
    return _update(node, new, weight, affine, groups * per_group, rewriter)


def _into_gemm(node: Node, affine: Affine, rewriter: Rewriter) -> bool:
    weight = rewriter.array(node.input(1))
    if weight is None:
        return False
    transposed = node.get("transB", 0)
    channels = weight.shape[0 if transposed else 1]
    scale = _spread(affine.scale, channels)
    new = None
    if scale is not None:
        new = weight * (scale.reshape(-1, 1) if transposed else scale)
    beta = float(node.get("beta", 1.0)) if node.input(2) is not None else 1.0
    if not _update(node, new, weight, affine, channels, rewriter, beta):
        return False
    if affine.shift is not None and node.get("beta", 1.0) != 1.0:
        node.set("beta", 1.0)
    return True


def _into_matmul(node: Node, affine: Affine, rewriter: Rewriter) -> bool:
    weight = rewriter.array(node.input(1))
    if weight is None:
        return False
    channels = weight.shape[-1]
    scale = _spread(affine.scale, channels)
    new = None if scale is None else weight * scale
    if affine.shift is not None:
        return _as_gemm(node, new, weight, affine, channels, rewriter)
    return new is not None and _set_all(node, {1: new}, weight, rewriter)


def _as_gemm(
    node: Node,
    new_weight: Array | None,
    weight: Array,
    affine: Affine,
    channels: int,
    rewriter: Rewriter,
) -> bool:
    """A product of matrices that gets a bias is Gemm."""
    if any(v is None or v.rank != 2 for v in node.inputs) or rewriter.opset < 7:
        return False
    if not _update(node, new_weight, weight, affine, channels, rewriter):
        return False
    node.op_type = "Gemm"
    return True


def _into_batch_normalization(node: Node, affine: Affine, rewriter: Rewriter) -> bool:
    source = node.input(0)
    if source is None or _batch_normalization(node, source, rewriter) is None:
        return False
    gamma, beta = rewriter.array(node.input(1)), rewriter.array(node.input(2))
    assert gamma is not None
    assert beta is not None
    new_gamma, new_beta = gamma.astype(np.float64), beta.astype(np.float64)
    scale, shift = _spread(affine.scale, gamma.size), _spread(affine.shift, gamma.size)
    if scale is not None:
        new_gamma, new_beta = new_gamma * scale, new_beta * scale
    if shift is not None:
        new_beta = new_beta + shift
    return _set_all(node, {1: new_gamma, 2: new_beta}, gamma, rewriter)


_ABSORB = {
    "Conv": _into_conv,
    "ConvTranspose": _into_conv_transpose,
    "Gemm": _into_gemm,
    "MatMul": _into_matmul,
    "BatchNormalization": _into_batch_normalization,
}


def _update(
    node: Node,
    new_weight: Array | None,
    weight: Array,
    affine: Affine,
    channels: int,
    rewriter: Rewriter,
    beta: float = 1.0,
) -> bool:
    """Set weight and bias (input 2, times `beta`) of a convolution or Gemm."""
    scale, shift = _spread(affine.scale, channels), _spread(affine.shift, channels)
    updates: dict[int, Array] = {} if new_weight is None else {1: new_weight}
    old_bias = node.input(2)
    bias = rewriter.array(old_bias)
    if old_bias is not None and bias is None:
        return False
    if bias is None:
        if shift is not None:
            updates[2] = shift
    else:
        # A Gemm whose beta stays scales its bias itself.
        new = bias.astype(np.float64) * (beta if shift is not None else 1.0)
        new = new * scale if scale is not None else new
        updates[2] = new + shift if shift is not None else new
    return _set_all(node, updates, weight, rewriter)


# --- into the operator after -----------------------------------------------------------


def _operand_channels(node: Node, rewriter: Rewriter) -> Channels | None:
    """The channels of the operator's input 0, which its weights run along."""
    weight = rewriter.tensor(node.input(1))
    source = node.input(0)
    if weight is None or source is None or len(weight.shape) < 2:
        return None
    shape = weight.shape
    if node.op_type == "Conv":
        return Channels(shape[1] * node.get("group", 1), 1, len(shape))
    if node.op_type == "Gemm":
        count = shape[1 if node.get("transB", 0) else 0]
        return Channels(count, 0 if node.get("transA", 0) else 1, 2)
    return Channels(shape[-2], -1, source.rank)


def _before_conv(node: Node, affine: Affine, rewriter: Rewriter) -> bool:
    weight = rewriter.array(node.input(1))
    if weight is None:
        return False
    automatic = node.get("auto_pad", "NOTSET")
    padded = any(node.get("pads", [])) or automatic not in ("NOTSET", "VALID")
    groups = node.get("group", 1)
    outputs, per_group = weight.shape[:2]
    grouped = weight.astype(np.float64).reshape(groups, outputs // groups, per_group, -1)
    scale = _spread(affine.scale, groups * per_group)
    shift = _spread(affine.shift, groups * per_group)
    if shift is not None and padded and shift.any():
        return False  # padding happens between the two: zeros are not shifted
    added = None
    if shift is not None:
        by_group = shift.reshape(groups, 1, per_group, 1)
        added = (grouped * by_group).sum(axis=(2, 3)).reshape(outputs)
    new = None
    if scale is not None:
        new = (grouped * scale.reshape(groups, 1, per_group, 1)).reshape(weight.shape)
    return _update(node, new, weight, Affine(affine.source, None, added), outputs, rewriter)


def _before_gemm(node: Node, affine: Affine, rewriter: Rewriter) -> bool:
    weight = rewriter.array(node.input(1))
    if weight is None:
        return False
    transposed = node.get("transB", 0)
    wide = weight.astype(np.float64)
    rows = wide.T if transposed else wide  # [inputs, outputs]
    scale, shift = (_spread(a, rows.shape[0]) for a in (affine.scale, affine.shift))
    added = None
    if shift is not None:
        added = float(node.get("alpha", 1.0)) * (shift @ rows)
    new = None
    if scale is not None:
        new = rows * scale.reshape(-1, 1)
        new = new.T if transposed else new
    beta = float(node.get("beta", 1.0)) if node.input(2) is not None else 1.0
    shifted = Affine(affine.source, None, added)
    if not _update(node, new, weight, shifted, rows.shape[1], rewriter, beta):
        return False
    if added is not None and node.get("beta", 1.0) != 1.0:
        node.set("beta", 1.0)
    return True


def _before_matmul(node: Node, affine: Affine, rewriter: Rewriter) -> bool:
    weight = rewriter.array(node.input(1))
    if weight is None:
        return False
    scale, shift = (_spread(a, weight.shape[-2]) for a in (affine.scale, affine.shift))
    new = None if scale is None else weight * scale.reshape(-1, 1)
    if shift is not None and weight.ndim == 2:
        shifted = Affine(affine.source, None, shift @ weight.astype(np.float64))
        return _as_gemm(node, new, weight, shifted, weight.shape[1], rewriter)
    return shift is None and new is not None and _set_all(node, {1: new}, weight, rewriter)


_ABSORB_BEFORE = {"Conv": _before_conv, "Gemm": _before_gemm, "MatMul": _before_matmul}


# --- shared ------------------------------------------------------------------------------


def _spread(vector: Array | None, channels: int) -> Array | None:
    return None if vector is None else np.broadcast_to(vector, (channels,))


def _set_all(node: Node, updates: dict[int, Array], like: Array, rewriter: Rewriter) -> bool:
    """Round to the weight's type and store, or nothing where a number would not survive."""
    with np.errstate(all="ignore"):
        rounded = {index: array.astype(like.dtype) for index, array in updates.items()}
    if not all(np.isfinite(array).all() for array in rounded.values()):
        return False
    for index, array in rounded.items():
        hint = f"{node.label}_bias" if node.input(index) is None else ""
        rewriter.set_constant(node, index, array, hint)
    return True
