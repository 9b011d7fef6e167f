"""Which nodes of a model can be solved anew, and what each should aim at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Node, Value, normalize_domain
from ...ir.model import Model
from ...ir.tensor import FLOAT_TYPES, Array, Tensor
from .layers import ConvolutionLayer, Layer, Normalization, Product


@dataclass(frozen=True)
class Aim:
    """What a layer's output, plus `beside` if given, should be equal to in the original.

    `activation` is the range that what follows clips to, (-inf, inf) where nothing does: where
    the original lies outside of it, anything on the same side does.
    """

    value: Value
    beside: Value | None
    low: float
    high: float


def find_layer(model: Model, node: Node) -> Layer | str | None:
    """The layer that a node is, why it can't be solved, or None where it has no weights."""
    build = _BUILDERS.get(node.op_type) if normalize_domain(node.domain) == "" else None
    source, result = node.input(0), node.output(0)
    if build is None or source is None or result is None:
        return "no rule solves this operator" if _has_matrix(model, node) else None
    weights = model.constant(node.input(1))
    if weights is None:
        if node.op_type not in ("Gemm", "MatMul"):
            return "its weights are computed"
        return "its weights are the left operand" if _has_matrix(model, node) else None
    value = node.input(1)
    assert value is not None
    if len(value.uses) > 1:
        return "other nodes read its weights, too"
    if model.constant(source) is not None:
        return None
    return build(model, node, source, result, weights)


def _has_matrix(model: Model, node: Node) -> bool:
    """Whether a node combines values of its input with constants of two axes or more."""
    constants = [model.constant(value) for value in node.inputs if value is not None]
    floats = [t for t in constants if t is not None and t.dtype in FLOAT_TYPES]
    computed = any(
        value is not None and value.dtype in FLOAT_TYPES and tensor is None
        for value, tensor in zip((v for v in node.inputs if v is not None), constants, strict=True)
    )
    return computed and any(sum(size > 1 for size in t.shape) >= 2 for t in floats)


def give_biases(model: Model) -> list[Node]:
    """Let every MatMul with a constant matrix be followed by an Add of a constant vector.

    Returns the nodes that this needed; those whose vector stays zero can go again.
    """
    added = []
    for node in list(model.graph.nodes):
        if node.op_type != "MatMul" or normalize_domain(node.domain) != "":
            continue
        layer = find_layer(model, node)
        if not isinstance(layer, Product) or layer.bias_node is not None:
            continue
        weights, result = layer.weights, layer.result
        hidden = Value(model.fresh_name(f"{result.name}_product"), result.type)
        node.outputs = (hidden,)
        hidden.producer, hidden.output_index = node, 0
        zeros = Tensor.from_array(np.zeros(weights.shape[1], weights.numpy().dtype), weights.dtype)
        bias = model.graph.add_initializer(model.fresh_name(f"{result.name}_bias"), zeros)
        name = model.fresh_name(f"{node.label}_bias")
        add = Node("Add", [hidden, bias], [result], name=name)
        add.graph = model.graph
        model.graph.nodes.insert(model.graph.nodes.index(node) + 1, add)
        added.append(add)
    return added


def drop_zero_biases(model: Model, added: list[Node]) -> None:
    """Undo `give_biases` where nothing became of it."""
    dead = []
    for add in added:
        vector = model.constant(add.input(1))
        hidden, result = add.input(0), add.output(0)
        assert hidden is not None
        assert result is not None
        if vector is None or vector.numpy().any():
            continue
        product = hidden.producer
        assert product is not None
        add.detach_inputs()
        product.outputs = (result,)
        result.producer, result.output_index = product, 0
        add.outputs = ()
        dead.append(add)
    model.graph.remove_nodes(dead)


def find_aim(model: Model, layer: Layer, positions: Mapping[Node, int]) -> Aim:
    """The sum that a layer's output goes into, where the other summand is known by then.

    The multi-branch rule of He et al., "Channel Pruning for Accelerating Very Deep Neural
    Networks", 2017: what the other summand now lacks, this one makes up for.
    """
    value, beside = layer.result, None
    users = value.users
    if len(users) == 1 and len(value.uses) == 1 and users[0].op_type == "Add":
        add = users[0]
        other = next((v for v in add.inputs if v is not value), None)
        result = add.output(0)
        if (
            other is not None
            and result is not None
            and model.constant(other) is None
            and value.shape is not None
            and value.shape == other.shape == result.shape
            and positions.get(other.producer, -1) < positions[layer.node]  # type: ignore[arg-type]
        ):
            value, beside = result, other
    ranges = {
        _clipped(model, use.user) if isinstance(use.user, Node) else None for use in value.uses
    }
    low, high = ranges.pop() or _WHOLE if len(ranges) == 1 else _WHOLE
    return Aim(value, beside, low, high)


_WHOLE = (-np.inf, np.inf)


def _clipped(model: Model, node: Node) -> tuple[float, float] | None:
    """The range that a node clips its input to, if that is all that it does."""
    if normalize_domain(node.domain) != "":
        return None
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    limits = []
    for position, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        operand = node.input(position)
        tensor = model.constant(operand)
        if operand is not None and tensor is None:
            return None
        limits.append(float(node.get(name, default) if tensor is None else tensor.numpy()))
    return limits[0], limits[1]


def _convolution(
    model: Model, node: Node, source: Value, result: Value, weights: Tensor
) -> Layer | str:
    if node.input(2) is not None and model.constant(node.input(2)) is None:
        return "its bias is computed"
    return ConvolutionLayer(model, node, source, result)


def _gemm(model: Model, node: Node, source: Value, result: Value, weights: Tensor) -> Layer | str:
    bias = node.input(2)
    tensor = model.constant(bias)
    if bias is not None and tensor is None:
        return "its bias is computed"
    width = weights.shape[0 if node.get("transB", 0) else 1]
    if tensor is not None and tensor.size not in (1, width):
        return "its bias differs from row to row"
    if not node.get("alpha", 1.0) or not node.get("beta", 1.0):
        return "it multiplies by zero"
    return Product(model, node, source, result)


def _matmul(model: Model, node: Node, source: Value, result: Value, weights: Tensor) -> Layer | str:
    if len(weights.shape) != 2:
        return "its weights are not one matrix"
    add = _adds_vector(model, result, weights.shape[1])
    total = result if add is None else add.output(0)
    assert total is not None
    return Product(model, node, source, total, add)


def _adds_vector(model: Model, value: Value, size: int) -> Node | None:
    """The Add of a constant vector, all that reads a value."""
    users = value.users
    if len(users) != 1 or len(value.uses) != 1 or users[0].op_type != "Add":
        return None
    add = users[0]
    other = next((v for v in add.inputs if v is not value), None)
    vector = model.constant(other)
    if vector is None or other is None or len(other.uses) > 1 or add.output(0) is None:
        return None
    shape = vector.shape
    is_vector = len(shape) <= max(value.rank or 1, 1) and shape[-1:] in ((), (1,), (size,))
    return add if is_vector and math.prod(shape[:-1]) == 1 else None


def _batch_normalization(
    model: Model, node: Node, source: Value, result: Value, weights: Tensor
) -> Layer | str:
    tensors = [model.constant(node.input(position)) for position in (2, 3, 4)]
    if any(t is None for t in tensors) or node.get("training_mode", 0):
        return "its statistics are computed"
    mean, variance = (np.asarray(t.numpy(), np.float64) for t in tensors[1:] if t is not None)
    deviation = np.sqrt(variance + node.get("epsilon", 1e-5))

    def normalized(x: Array) -> Array:
        shape = [-1] + [1] * (x.ndim - 2)
        found: Array = (x - mean.reshape(shape)) / deviation.reshape(shape)
        return found

    return Normalization(model, node, source, result, 1, normalized)


def _layer_normalization(
    model: Model, node: Node, source: Value, result: Value, weights: Tensor
) -> Layer | str:
    rank = source.rank
    if rank is None or node.get("axis", -1) not in (-1, rank - 1) or len(weights.shape) != 1:
        return "it normalizes several axes"
    if node.input(2) is not None and model.constant(node.input(2)) is None:
        return "its bias is computed"
    epsilon = node.get("epsilon", 1e-5)

    def normalized(x: Array) -> Array:
        x = x.astype(np.float64)
        centred = x - x.mean(axis=-1, keepdims=True)
        found: Array = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + epsilon)
        return found

    return Normalization(model, node, source, result, rank - 1, normalized)


def _instance_normalization(
    model: Model, node: Node, source: Value, result: Value, weights: Tensor
) -> Layer | str:
    groups = int(node.get("num_groups", 0))
    if model.constant(node.input(2)) is None:
        return "its bias is computed"
    shape = source.shape
    if shape is None or len(shape) < 2 or shape[1] != weights.size:
        return "it scales groups of channels"
    epsilon = node.get("epsilon", 1e-5)

    def normalized(x: Array) -> Array:
        parts = groups or x.shape[1]
        split = x.astype(np.float64).reshape(x.shape[0], parts, -1)
        centred = split - split.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + epsilon)
        found: Array = (centred / deviation).reshape(x.shape)
        return found

    return Normalization(model, node, source, result, 1, normalized)


_BUILDERS: dict[str, Callable[[Model, Node, Value, Value, Tensor], Layer | str]] = {
    "BatchNormalization": _batch_normalization,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _gemm,
    "GroupNormalization": _instance_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "MatMul": _matmul,
}
