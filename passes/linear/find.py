"""Which nodes of a model can be solved anew, and what each should aim at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Node, Value, node_reads, normalize_domain
from ...ir.model import Model
from ...ir.ops import operator_of
from ...ir.tensor import FLOAT_TYPES, Array, Tensor
from .contraction import Contraction, einsum_labelling, gemm_labelling, matmul_labelling
from .layers import BiasPlace, ConvolutionLayer, Layer, Normalization, Solvable
from .recurrent import find_recurrent


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


def find_layer(model: Model, node: Node) -> Solvable | str | None:
    """The layer that a node is, why it can't be solved, or None where it has no weights.

    Other nodes may read the same weights.
    """
    kind = normalize_domain(node.domain), node.op_type
    if kind in _RECURRENT:
        return find_recurrent(model, node)
    build = _BUILDERS.get(kind)
    source, result = node.input(0), node.output(0)
    if build is None or source is None or result is None:
        return "no rule solves this operator" if _has_matrix(model, node) else None
    return build(model, node, source, result)


def _has_matrix(model: Model, node: Node) -> bool:
    """Whether a node multiplies values of its input by constants of two axes or more, and adds."""
    operator = operator_of(node)
    if operator is not None and operator.macs is None:
        return False
    constants = [model.constant(value) for value in node.inputs if value is not None]
    floats = [t for t in constants if t is not None and t.dtype in FLOAT_TYPES]
    computed = any(
        value is not None and value.dtype in FLOAT_TYPES and tensor is None
        for value, tensor in zip((v for v in node.inputs if v is not None), constants, strict=True)
    )
    return computed and any(sum(size > 1 for size in t.shape) >= 2 for t in floats)


def give_biases(model: Model) -> list[Node]:
    """Let every product with constants that has no bias be followed by an Add of zeros.

    Returns the nodes that this needed; those whose zeros stay can go again.
    """
    added = []
    for node in [node for graph in model.graph.all_graphs() for node in graph.nodes]:
        layer = find_layer(model, node)
        if isinstance(layer, Contraction) and layer.place is None:
            added.append(_give_bias(model, layer))
    return added


def _give_bias(model: Model, layer: Contraction) -> Node:
    node, weights, result = layer.node, layer.weights, layer.result
    graph = node.graph
    assert graph is not None
    hidden = Value(model.fresh_name(f"{result.name}_product"), result.type)
    node.outputs = (hidden,)
    hidden.producer, hidden.output_index = node, 0
    zeros = Tensor.from_array(np.zeros(layer.bias_shape, weights.numpy().dtype), weights.dtype)
    bias = graph.add_initializer(model.fresh_name(f"{result.name}_bias"), zeros)
    add = Node("Add", [hidden, bias], [result], name=model.fresh_name(f"{node.label}_bias"))
    add.graph = graph
    graph.nodes.insert(graph.nodes.index(node) + 1, add)
    return add


def drop_zero_biases(model: Model, added: list[Node]) -> None:
    """Undo `give_biases` where nothing became of it."""
    dead = []
    for add in added:
        zeros = add.input(1)
        vector = model.constant(zeros)
        hidden, result = add.input(0), add.output(0)
        assert zeros is not None
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
        assert add.graph is not None
        if not zeros.uses:
            del add.graph.initializers[zeros.name]
    for graph in dict.fromkeys(add.graph for add in dead):
        assert graph is not None
        graph.remove_nodes([add for add in dead if add.graph is graph])


def find_aim(model: Model, layer: Layer, positions: Mapping[Node, int]) -> Aim:
    """The sum that a layer's output goes into, where the other summand is known by then.

    `positions` are those of nodes among all; without the layer's there is no such sum.

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
            and layer.node in positions
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


_Found = Layer | str | None


def _weights(model: Model, node: Node, source: Value, position: int = 1) -> Tensor | str | None:
    """A node's constant weights; why it has none that could be solved for."""
    tensor = model.constant(node.input(position))
    if tensor is None:
        return "its weights are computed"
    return None if model.constant(source) is not None else tensor


def _convolution(model: Model, node: Node, source: Value, result: Value) -> _Found:
    weights = _weights(model, node, source)
    if not isinstance(weights, Tensor):
        return weights
    if node.input(2) is not None and model.constant(node.input(2)) is None:
        return "its bias is computed"
    return ConvolutionLayer(model, node, source, result)


def _product(model: Model, node: Node, source: Value, result: Value) -> _Found:
    constants = [model.constant(value) for value in node.inputs[:2]]
    if constants.count(None) == 2 and any(_is_fixed(model, v) for v in node.inputs[:2]):
        return "its weights are computed"
    if len(constants) < 2 or constants.count(None) != 1:
        return None  # of two values that depend on the inputs, or of constants alone
    position = 0 if constants[0] is not None else 1
    weights, value = constants[position], node.input(1 - position)
    assert weights is not None
    assert value is not None
    if math.prod(weights.shape) == 0:
        return None
    scale, place = 1.0, None
    try:
        if node.op_type == "Einsum":
            labelling = einsum_labelling(node, position)
        elif node.op_type == "MatMul":
            labelling = matmul_labelling(value, weights.shape, position)
        else:
            labelling = gemm_labelling(node, position)
            scale, factor = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
            if not scale or not factor:
                return "it multiplies by zero"
            place = BiasPlace(node, 2, factor)
    except ValueError as error:
        return f"{error}"
    layer = Contraction(model, node, value, result, position, labelling, scale=scale, place=place)
    if node.op_type != "Gemm":
        return _with_bias(model, layer)
    bias = model.constant(node.input(2))
    if node.input(2) is not None and bias is None:
        return "its bias is computed"
    if bias is not None and not layer.is_bias(bias.shape):
        return "its bias differs from row to row"
    return layer


FARTHEST = 64
"""Nodes between constants and a weight that is computed from them, at most."""


def _is_fixed(model: Model, value: Value | None) -> bool:
    """Whether a value is computed from constants only, by a few nodes."""
    waiting, seen = [value], set[Value]()
    while waiting and len(seen) < FARTHEST:
        current = waiting.pop()
        if current is None or current in seen or model.constant(current) is not None:
            continue
        if current.producer is None:
            return False
        seen.add(current)
        waiting += node_reads(current.producer)
    return not waiting


def _with_bias(model: Model, layer: Contraction) -> Contraction:
    """The layer with the Add of its bias, if there is one."""
    add = _adds_constant(model, layer.result, layer.is_bias)
    if add is None:
        return layer
    total = add.output(0)
    assert total is not None
    position = 1 if add.input(0) is layer.result else 0
    return Contraction(
        model,
        layer.node,
        layer.source,
        total,
        layer.position,
        layer.labelling,
        place=BiasPlace(add, position),
    )


def _adds_constant(
    model: Model, value: Value, fits: Callable[[Sequence[int]], bool]
) -> Node | None:
    """The Add of a constant of a fitting shape, which nothing else reads, to a value that
    nothing else reads."""
    users = value.users
    if len(users) != 1 or len(value.uses) != 1 or users[0].op_type != "Add":
        return None
    add = users[0]
    other = next((v for v in add.inputs if v is not value), None)
    constant = model.constant(other)
    if constant is None or other is None or len(other.uses) > 1 or add.output(0) is None:
        return None
    return add if fits(constant.shape) else None


def _scaling(model: Model, node: Node, source: Value, result: Value) -> _Found:
    """A Mul by a constant for each channel, as of a normalization that was written out."""
    constants = [model.constant(value) for value in node.inputs]
    if len(constants) != 2 or constants.count(None) != 1:
        return None
    position = 0 if constants[0] is not None else 1
    weights, value = constants[position], node.input(1 - position)
    assert value is not None
    assert weights is not None
    rank = value.rank
    axes = [axis - len(weights.shape) for axis, size in enumerate(weights.shape) if size > 1]
    if rank is None or len(axes) != 1 or rank + axes[0] < 1 or len(weights.shape) > rank:
        return None
    shape = value.shape
    if shape is None or shape[axes[0]] != weights.size:
        return None

    def fits(other: Sequence[int]) -> bool:
        behind = len(other) + axes[0]
        return all(size == 1 or axis == behind for axis, size in enumerate(other))

    add = _adds_constant(model, result, fits)
    place = None
    if add is not None and add.output(0) is not None:
        place = BiasPlace(add, 1 if add.input(0) is result else 0)
        result = add.outputs[0]  # type: ignore[assignment]
    return Normalization(
        model,
        node,
        value,
        result,
        rank + axes[0],
        _as_it_is,
        by_element=True,
        position=position,
        place=place,
    )


def _as_it_is(x: Array) -> Array:
    return x


def _batch_normalization(model: Model, node: Node, source: Value, result: Value) -> _Found:
    weights = _weights(model, node, source)
    if not isinstance(weights, Tensor):
        return weights
    tensors = [model.constant(node.input(position)) for position in (2, 3, 4)]
    if any(t is None for t in tensors) or node.get("training_mode", 0):
        return "its statistics are computed"
    mean, variance = (np.asarray(t.numpy(), np.float64) for t in tensors[1:] if t is not None)
    deviation = np.sqrt(variance + node.get("epsilon", 1e-5))

    def normalized(rows: Array) -> Array:
        found: Array = (rows - mean[:, None, None]) / deviation[:, None, None]
        return found

    place = BiasPlace(node, 2)
    return Normalization(model, node, source, result, 1, normalized, by_element=True, place=place)


def _layer_normalization(model: Model, node: Node, source: Value, result: Value) -> _Found:
    """LayerNormalization; RMSNormalization and its older name, which don't centre or shift."""
    weights = _weights(model, node, source)
    if not isinstance(weights, Tensor):
        return weights
    centres = node.op_type == "LayerNormalization"
    rank = source.rank
    if rank is None or node.get("axis", -1) not in (-1, rank - 1) or len(weights.shape) != 1:
        return "it normalizes several axes"
    if node.input(2) is not None and model.constant(node.input(2)) is None:
        return "its bias is computed"
    epsilon = node.get("epsilon", 1e-5)

    def normalized(x: Array) -> Array:
        return _normalized(x.astype(np.float64), epsilon, centres=centres)

    place = BiasPlace(node, 2) if centres else None
    return Normalization(model, node, source, result, rank - 1, normalized, place=place)


def _normalized(x: Array, epsilon: float, *, centres: bool) -> Array:
    """Over the last axis."""
    if centres:
        x = x - x.mean(axis=-1, keepdims=True)
    found: Array = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + epsilon)
    return found


def _skip_normalization(model: Model, node: Node, source: Value, result: Value) -> _Found:
    """The contributed operators that normalize a sum, which is their fourth result."""
    total = node.output(3)
    weights = _weights(model, node, source, 2)
    if not isinstance(weights, Tensor):
        return weights
    if total is None:
        return "the sum that it normalizes is no result of it"
    centres = node.op_type == "SkipLayerNormalization"
    if centres and node.input(3) is not None and model.constant(node.input(3)) is None:
        return "its bias is computed"
    rank = source.rank
    if rank is None:
        return "the rank of its input is unknown"
    epsilon = node.get("epsilon", 1e-12)

    def normalized(x: Array) -> Array:
        return _normalized(x.astype(np.float64), epsilon, centres=centres)

    place = BiasPlace(node, 3) if centres else None
    return Normalization(model, node, total, result, rank - 1, normalized, position=2, place=place)


def _instance_normalization(model: Model, node: Node, source: Value, result: Value) -> _Found:
    weights = _weights(model, node, source)
    if not isinstance(weights, Tensor):
        return weights
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
        return _normalized(split, epsilon, centres=True).reshape(x.shape)

    return Normalization(model, node, source, result, 1, normalized, place=BiasPlace(node, 2))


MICROSOFT = "com.microsoft"

_RECURRENT = {("", "GRU"), ("", "LSTM"), ("", "RNN")}

_BUILDERS: dict[tuple[str, str], Callable[[Model, Node, Value, Value], _Found]] = {
    ("", "BatchNormalization"): _batch_normalization,
    ("", "Conv"): _convolution,
    ("", "ConvTranspose"): _convolution,
    ("", "Einsum"): _product,
    ("", "Gemm"): _product,
    ("", "GroupNormalization"): _instance_normalization,
    ("", "InstanceNormalization"): _instance_normalization,
    ("", "LayerNormalization"): _layer_normalization,
    ("", "MatMul"): _product,
    ("", "Mul"): _scaling,
    ("", "RMSNormalization"): _layer_normalization,
    ("", "SimplifiedLayerNormalization"): _layer_normalization,
    (MICROSOFT, "SkipLayerNormalization"): _skip_normalization,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip_normalization,
}
