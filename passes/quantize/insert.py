"""Insertion: the decided QDQ pairs, integer constants and absorbed clips, in the graph.

Names are short: in a small model long ones would outweigh the constants they name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...ir.graph import Graph, Node, Value
from ...ir.model import Model
from ...ir.tensor import Array, Tensor
from .bodies import graph_of, graphs
from .parameters import QuantParams, ValueRange, range_of
from .place import Placement
from .rules import Bias, Constants, Operands, Weight
from .weights import (
    QuantizedWeight,
    least_scale_for_bias,
    quantize_bias,
    quantize_weight,
)


def insert(
    model: Model,
    constants: Constants,
    placement: Placement,
    affines: Mapping[Value, QuantParams],
    *,
    cover: Callable[[ValueRange], QuantParams],
    weight_limit: int,
    per_channel: bool,
    channels: Mapping[Node, bool] | None = None,
) -> None:
    """Rewrite the main graph and bodies. `affines` holds the parameters of every source value;
    `cover` makes those of constants that are stored as activations are; `channels` says of some
    nodes whether their weights have a scale per channel."""
    writer = _PairWriter(model, constants, cover, weight_limit, per_channel, channels or {})
    merged = writer.absorb_clips(placement)
    for graph, value in (*placement.captured, *((graph_of(v), v) for v in placement.values)):
        assert graph is not None
        source = placement.sources[value]
        writer.quantize(graph, merged.get(value, value), source, affines[source], placement.nodes)
    for node, operands in placement.nodes.items():
        writer.quantize_constants(node, operands, placement, affines)
    writer.finish()


@dataclasses.dataclass(frozen=True)
class _Parameters:
    """Initializers of one value's parameters."""

    affine: QuantParams
    scale: Value
    zero_point: Value


class _PairWriter:
    """Writes pairs of QuantizeLinear and DequantizeLinear around nodes that become integer."""

    def __init__(
        self,
        model: Model,
        constants: Constants,
        cover: Callable[[ValueRange], QuantParams],
        weight_limit: int,
        per_channel: bool,
        channels: Mapping[Node, bool],
    ) -> None:
        self.model = model
        self.graphs = graphs(model)
        self.channels = channels
        self.constants = constants
        self.cover = cover
        self.weight_limit = weight_limit
        self.per_channel = per_channel
        self.counts: dict[str, int] = {}
        self.parameters: dict[Value, _Parameters] = {}
        self.scale_of: dict[Value, NDArray[np.float32]] = {}
        self.zero_points: dict[tuple[Graph, str, int, int | None], Value] = {}
        self.shared: dict[object, Value] = {}
        self.at_start: dict[Graph, list[Node]] = {}
        self.after: dict[Node, list[Node]] = {}
        self.before: dict[Node, list[Node]] = {}
        self.dead: set[Node] = set()
        self.replaced: list[Value] = []

    # --- activations ---

    def absorb_clips(self, placement: Placement) -> dict[Value, Value]:
        """Remove the absorbed nodes. Returns what stands for each of their results."""
        merged: dict[Value, Value] = {}
        for value, node in placement.absorbed.items():
            result = node.outputs[0]
            assert result is not None
            node.detach_inputs()
            if value.shape is None:
                value.type = result.type
            result.replace_uses(value)
            merged[result] = value
            self.dead.add(node)
        return merged

    def quantize(
        self,
        graph: Graph,
        value: Value,
        source: Value,
        affine: QuantParams,
        integer: Mapping[Node, Operands],
    ) -> None:
        """Put a QDQ pair behind `value` in `graph`: its own, or a body that reads it from outside.

        All readers of an integer operator's result in its own graph see the rounded values, so
        that backends can keep the integers; of others only the graph's integer operators do.
        """
        name = self.name("a")
        parameters = self.parameters_of(source, affine, name)
        quantized = self.value(f"{name}.q", _code(affine.dtype), value)
        result = self.value(name, TensorProto.FLOAT, value)
        ends = [parameters.scale, parameters.zero_point]
        restore = self.node(graph, "DequantizeLinear", [quantized, *ends], result)
        producer = value.producer
        if producer is not None and producer.graph is not graph:
            producer = None  # nothing of this graph
        if producer in integer:
            value.replace_uses(result)
        else:
            for user, position in list(value.uses):
                if (
                    isinstance(user, Node)
                    and user.graph is graph
                    and user in integer
                    and position in integer[user].activations
                ):
                    user.set_input(position, result)
        reduce = self.node(graph, "QuantizeLinear", [value, *ends], quantized)
        self.scale_of[result] = np.asarray(affine.scale, np.float32)
        if producer is None:
            self.at_start.setdefault(graph, []).extend([reduce, restore])
        else:
            self.after.setdefault(producer, []).extend([reduce, restore])

    def parameters_of(self, source: Value, affine: QuantParams, name: str) -> _Parameters:
        found = self.parameters.get(source)
        if found is None:
            scale = self.initializer(f"{name}.s", np.asarray(affine.scale, np.float32))
            zero_point = self.zero_point(affine.dtype, affine.zero_point, None)
            found = self.parameters[source] = _Parameters(affine, scale, zero_point)
        return found

    # --- constants ---

    def quantize_constants(
        self,
        node: Node,
        operands: Operands,
        placement: Placement,
        affines: Mapping[Value, QuantParams],
    ) -> None:
        for position in operands.constants:
            source = node.input(position)
            assert source is not None
            self.replace(node, position, self.operand(source, affines.get(source), node))
        bias = self.bias_array(node, operands) if operands.bias is not None else None
        for weight in operands.weights:
            self.replace(node, weight.position, self.weight(node, weight, bias))
        if operands.bias is not None:
            self.put_bias(node, operands, operands.bias, bias)

    def operand(self, source: Value, affine: QuantParams | None, node: Node) -> Value:
        """A constant stored as activations are; `affine` where others share its parameters."""
        key = ("operand", node.graph, self.constants.origin(source))
        found = self.shared.get(key)
        if found is None:
            array = self.constants.finite(source, node)
            affine = affine or self.cover(range_of(array))
            name = self.name("c")
            parameters = self.parameters_of(source, affine, name)
            integers = self.initializer(f"{name}.q", affine.quantize(array))
            found = self.shared[key] = self.value(name, TensorProto.FLOAT, source)
            ends = [parameters.scale, parameters.zero_point]
            restore = self.node(node.graph, "DequantizeLinear", [integers, *ends], found)
            self.before.setdefault(node, []).append(restore)
            self.scale_of[found] = np.asarray(affine.scale, np.float32)
        return found

    def weight(self, node: Node, weight: Weight, bias: Array | None) -> Value:
        source = node.input(weight.position)
        assert source is not None
        axis = weight.axis if self.channels.get(node, self.per_channel) else None
        array = self.constants.finite(source, node)
        least = self.least_scale(node, array, axis, bias)
        explicit = node.op_type == "Gemm"  # ONNX Runtime's QGemm needs the zero point spelled out
        key = (
            "weight",
            node.graph,
            self.constants.origin(source),
            axis,
            weight.factor,
            least.tobytes(),
            explicit,
        )
        found = self.shared.get(key)
        if found is None:
            if weight.factor != 1.0:
                array = array * np.float32(weight.factor)
            quantized = quantize_weight(array, axis, self.weight_limit, least)
            found = self.shared[key] = self.constant(node, "w", quantized, explicit=explicit)
        if weight.factor != 1.0:
            del node.attributes["alpha"]
        return found

    def least_scale(
        self, node: Node, weight: Array, axis: int | None, bias: Array | None
    ) -> NDArray[np.float64]:
        """Bounds the weight's scale, per channel or for all, so that the bias fits int32."""
        if bias is None:
            return np.zeros(())
        least = least_scale_for_bias(bias, float(self.scale(node.input(0))))
        if axis is None:
            return np.asarray(least.max(initial=0.0))
        # Rows of a Gemm's C and groups of a ConvTranspose share the weight's channels.
        return np.asarray(least.reshape(-1, weight.shape[axis]).max(axis=0))

    def bias_array(self, node: Node, operands: Operands) -> Array | None:
        """The bias as real numbers, one for each output channel; None for no effect."""
        bias = operands.bias
        assert bias is not None
        source = node.input(bias.position)
        assert source is not None
        if bias.factor == 0.0:
            return None
        array = self.constants.finite(source, node)
        if bias.factor != 1.0:
            array = array * np.float32(bias.factor)
        weight = self.constants.get(node.input(1)) if operands.weight is not None else None
        if node.op_type == "Gemm" and operands.weight is not None and weight is not None:
            array = _gemm_bias(array, weight.shape[operands.weight.axis or 0])
        return array

    def put_bias(self, node: Node, operands: Operands, bias: Bias, array: Array | None) -> None:
        if bias.factor != 1.0:
            del node.attributes["beta"]
        source = node.input(bias.position)
        assert source is not None
        if array is None:
            self.replaced.append(source)
            node.set_inputs(node.inputs[: bias.position])
            return
        weight_scale = self.scale(node.input(1))
        if weight_scale.ndim and weight_scale.size != array.shape[-1]:
            weight_scale = np.tile(weight_scale, array.shape[-1] // weight_scale.size)
        quantized = quantize_bias(array, float(self.scale(node.input(0))), weight_scale)
        self.replace(node, bias.position, self.constant(node, "b", quantized, explicit=False))

    def constant(
        self, node: Node, kind: str, quantized: QuantizedWeight, *, explicit: bool
    ) -> Value:
        """Integers and scale as initializers, and the DequantizeLinear that reads them."""
        name = self.name(kind)
        graph = node.graph
        integers = self.initializer(f"{name}.q", quantized.integers, graph)
        inputs = [integers, self.initializer(f"{name}.s", quantized.scale, graph)]
        if explicit:
            length = quantized.scale.size if quantized.scale.ndim else None
            inputs.append(self.zero_point(quantized.integers.dtype, 0, length, graph))
        result = self.value(name, TensorProto.FLOAT, integers)
        restore = self.node(graph, "DequantizeLinear", inputs, result)
        if quantized.axis is not None:
            restore.set("axis", quantized.axis)
        self.before.setdefault(node, []).append(restore)
        self.scale_of[result] = quantized.scale
        return result

    def scale(self, value: Value | None) -> NDArray[np.float32]:
        assert value is not None
        return self.scale_of[value]

    # --- pieces ---

    def name(self, kind: str) -> str:
        """`a1`, `w1`, ...: activations, constants, weights and biases, each counted."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return f"{kind}{self.counts[kind]}"

    def value(self, hint: str, dtype: int, like: Value) -> Value:
        return Value(self.model.fresh_name(hint), helper.make_tensor_type_proto(dtype, like.shape))

    def node(self, graph: Graph | None, op_type: str, inputs: list[Value], output: Value) -> Node:
        node = Node(op_type, inputs, [output])
        node.graph = graph
        return node

    def initializer(self, hint: str, array: Array, graph: Graph | None = None) -> Value:
        """In the main graph, whose constants bodies may read, or where ONNX Runtime has to find
        them, as it has weights, beside their reader."""
        graph = graph or self.model.graph
        return graph.add_initializer(self.model.fresh_name(hint), Tensor.from_array(array))

    def zero_point(
        self,
        dtype: np.dtype[np.generic],
        value: int,
        length: int | None,
        graph: Graph | None = None,
    ) -> Value:
        """A zero point, one initializer of a graph for all that are equal."""
        key = (graph or self.model.graph, dtype.name, value, length)
        found = self.zero_points.get(key)
        if found is None:
            array = np.full(() if length is None else (length,), value, dtype)
            hint = f"zp{value}" if length is None else f"zp{value}x{length}"
            found = self.zero_points[key] = self.initializer(hint, array, graph)
        return found

    def replace(self, node: Node, position: int, value: Value) -> None:
        old = node.input(position)
        if old is not None:
            self.replaced.append(old)
        node.set_input(position, value)

    # --- the end ---

    def finish(self) -> None:
        """Bring the new nodes into order, and drop constants that nothing reads any more."""
        for graph in self.graphs:
            order = list(self.at_start.get(graph, ()))
            for node in graph.nodes:
                if node not in self.dead:
                    order += [*self.before.get(node, ()), node, *self.after.get(node, ())]
            graph.nodes = order
        unused: set[Node] = set()
        for value in self.replaced:
            self.drop(value, unused)
        for graph in self.graphs:
            graph.remove_nodes([node for node in unused if node.graph is graph])
        for node in self.dead:
            node.graph = None

    def drop(self, value: Value, unused: set[Node]) -> None:
        if value.uses:
            return
        if value.producer is not None:
            unused.add(value.producer)
            source = value.producer.input(0)
            value.producer.detach_inputs()
            if source is not None:
                self.drop(source, unused)
        elif not value.is_input:
            for graph in self.graphs:
                if graph.initializers.get(value.name) is value:
                    del graph.initializers[value.name]


def _gemm_bias(array: Array, channels: int) -> Array:
    """Gemm's C with its last axis spelled out: [channels], or [rows, channels]."""
    shape = (channels,) if array.ndim < 2 or array.shape[0] == 1 else (array.shape[0], channels)
    return np.broadcast_to(array.reshape(array.shape[-len(shape) :]), shape)


def _code(dtype: np.dtype[np.generic]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))
