"""Dynamic quantization: int8 weights, and activations whose scale each run finds for itself.

Products and convolutions, those in bodies of If, Loop and Scan, too, become DynamicQuantizeLinear
and MatMulInteger or ConvInteger, and what scales their sums back; LSTMs DynamicQuantizeLSTM, and
other recurrent layers a Scan of such products where they are large enough. Nothing else changes,
and no samples are needed.

Products may have a scale for each row of activations, as for each token of a text. No operator
finds those: reductions do, rows times their reciprocals are rounded by a QuantizeLinear of scale 1
around 128, and sums are multiplied by a column of scales.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, MutableMapping

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ...ir.graph import Graph, Node, Value
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.ops import operator_of
from ...ir.tensor import Array, Tensor
from ..base import Context, Note, Pass, PassResult
from ..initializers import separate_initializers
from ..samples import Samples
from .opset import raise_opset
from .parameters import ValueRange
from .place import computes
from .recurrence import spell_out, why_not
from .restore import ALREADY
from .rules import Constants, Operands, Role, Weight, plan
from .static import kept_float
from .weights import FULL_RANGE, REDUCED_RANGE, quantize_weight

MICROSOFT = "com.microsoft"

COMPUTED = "both of its operands are computed; dynamic quantization is for constant weights"
OTHER = "dynamic quantization is for products and convolutions with constant weights"
TRANSPOSED = "its A is transposed"

SCAN_FROM = 1 << 17
"""Weights of a direction's states from which ONNX Runtime takes about as long for a Scan of integer
products as for the float operator, or less; artifacts do from a tenth of that on."""

AXES_AS_INPUT = 18
"""The first operator set in which ReduceMax has them so."""


@dataclasses.dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Quantize products and convolutions, with activations' scales found at run time.

    Options are those of `QuantizeStatic`; with `per_token` each row of what a product reads has
    a scale of its own. Recurrent layers that no operator stands for become a Scan where each step
    multiplies at least `scan_from` weights. Statistics: counts by operator of `quantized` and
    `skipped` nodes.
    """

    per_channel: bool = True
    per_token: bool = False
    reduce_range: bool = False
    scan_from: int = SCAN_FROM
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        """Quantize `model` in place."""
        return self.quantize(model, context)

    def quantize(
        self,
        model: Model,
        context: Context | None,
        *,
        refused: Mapping[int, str] | None = None,
        known: MutableMapping[str, ValueRange] | None = None,
    ) -> PassResult:
        """As `run`; `refused` are those of `QuantizeStatic`, in a model that is `prepared`; no
        ranges are measured."""
        raised = _raise_opset(model, context)
        separate_initializers(model)
        infer_shapes(model)
        kept = kept_float(model, self.ignore, self.only, {})
        nodes = self.nodes(model)
        kept |= {nodes[place]: why for place, why in (refused or {}).items()}
        found, reasons = self._candidates(model, kept)
        counts = Counter(node.op_type for node in found)
        left = [
            Note.at(node, why)
            for node, why in reasons.items()
            if why == ALREADY or _multiplies(node)
        ]
        limit = REDUCED_RANGE if self.reduce_range else FULL_RANGE
        writer = _DynamicWriter(
            model, limit, per_channel=self.per_channel, per_token=self.per_token
        )
        for node, operands in found.items():
            if operands is None:
                writer.replace_recurrent(node)
            elif operands.role is Role.RECURRENT:
                writer.replace_steps(node)
            else:
                writer.replace(node, operands)
        writer.finish()
        statistics = {
            "quantized": dict(sorted(counts.items())),
            "skipped": dict(sorted(Counter(note.op_type for note in left).items())),
            "activations": len(writer.activations),
        }
        if raised:
            statistics["opset"] = model.opset
        return PassResult(raised or bool(found), statistics, left)

    def prepared(self, model: Model, context: Context) -> Model:
        """A copy to which places of nodes refer."""
        copy = model.clone()
        _raise_opset(copy, context)
        return copy

    def nodes(self, model: Model) -> list[Node]:
        """What places count: nodes, and after each those of its bodies."""
        return list(model.graph.all_nodes())

    def units(self, model: Model, context: Context | None) -> list[int]:
        """Places of the nodes that become integer."""
        found, _ = self._candidates(model, kept_float(model, self.ignore, self.only, {}))
        return [place for place, node in enumerate(self.nodes(model)) if node in found]

    def _candidates(
        self, model: Model, kept: Mapping[Node, str]
    ) -> tuple[dict[Node, Operands | None], dict[Node, str]]:
        """Nodes that become integer, those that an operator of ONNX Runtime's stands for without
        operands, and why others stay float."""
        constants = Constants(model)
        found: dict[Node, Operands | None] = {}
        reasons: dict[Node, str] = {}
        for node in model.graph.all_nodes():
            answer = kept.get(node) or plan(node, constants)
            if isinstance(answer, str):
                reasons[node] = answer
            elif answer.role is Role.RECURRENT and self._has_operator(node):
                found[node] = None
            elif answer.role is Role.RECURRENT:
                why = why_not(node, constants, self.scan_from)
                if why is None:
                    found[node] = answer
                else:
                    reasons[node] = why
            elif not answer.role.is_compute or node.op_type == "ConvTranspose":
                reasons[node] = OTHER
            elif answer.weight is None:
                reasons[node] = COMPUTED
            elif node.get("transA", 0):
                reasons[node] = TRANSPOSED
            else:
                found[node] = answer
        return found, reasons

    def _has_operator(self, node: Node) -> bool:
        """Whether DynamicQuantizeLSTM computes a recurrent layer.

        Compiled code spells its steps out, so that their number must be known. All samples of a
        run share its scales, which rows that have scales of their own, and so an open batch,
        rule out.
        """
        if node.op_type != "LSTM" or any(node.input(position) is not None for position in (4, 7)):
            return False
        if any(node.get(name, 0) != 0 for name in ("clip", "input_forget", "layout")):
            return False
        names = [str(name).lower() for name in node.get("activations", ())]
        if names and names != ["sigmoid", "tanh", "tanh"] * (len(names) // 3):
            return False
        source = node.input(0)
        if source is None or not source.shape or not isinstance(source.shape[0], int):
            return False
        return not self.per_token or isinstance(source.shape[1], int)


def _raise_opset(model: Model, context: Context | None) -> bool:
    feeds = None
    if context is not None and context.calibration is not None:
        feeds, _ = next(Samples(model, context.calibration).feeds(1))
    return raise_opset(model, feeds)


def _multiplies(node: Node) -> bool:
    """Whether a node is one that dynamic quantization might be for."""
    record = operator_of(node)
    return record is not None and record.macs is not None and computes(node)


@dataclasses.dataclass(frozen=True)
class _Activation:
    """Integers, their scale, one number or one for each row, and their zero point."""

    integers: Value
    scale: Value
    zero_point: Value


SMALLEST_MAGNITUDE = 1e-30
"""Of a row: what is smaller counts as zeros, whose scale is no zero."""


class _DynamicWriter:
    """Puts integer operators in the place of float ones, with scales that a run computes."""

    def __init__(self, model: Model, limit: int, *, per_channel: bool, per_token: bool) -> None:
        self.model = model
        self.graph = model.graph
        """Of the node at hand."""
        self.constants = Constants(model)
        self.per_channel = per_channel
        self.per_token = per_token
        self.limit = limit
        self.activations: dict[tuple[Value, Graph, bool], _Activation] = {}
        self.shared: dict[object, tuple[Value, Value]] = {}
        self.in_place: dict[Node, list[Node]] = {}
        self.new: list[Node] = []
        self.dead: set[Node] = set()

    def replace(self, node: Node, operands: Operands) -> None:
        weight = operands.weight
        source, result = node.input(0), node.output(0)
        assert weight is not None
        assert source is not None
        assert result is not None
        assert node.graph is not None
        self.graph, self.new = node.graph, []
        self.in_place[node] = self.new
        is_convolution = node.op_type == "Conv"
        by_rows = self.per_token and not is_convolution
        activation = self.activation(source, by_rows=by_rows)
        integers, scale = self.weight(node, weight)
        inputs: list[Value | None] = [activation.integers, integers, activation.zero_point]
        if is_convolution:
            inputs.append(self.fixed("zp128", np.uint8(128)))
        kind = "ConvInteger" if is_convolution else "MatMulInteger"
        sums = self.made(kind, inputs, TensorProto.INT32, result)
        if is_convolution:
            sums_node = sums.producer
            assert sums_node is not None
            sums_node.attributes.update(node.attributes)
        floats = self.made("Cast", [sums], TensorProto.FLOAT, result)
        assert floats.producer is not None
        floats.producer.set("to", TensorProto.FLOAT)
        if by_rows:  # the product of both scales would be as large as the result
            scaled = self.made("Mul", [floats, scale], TensorProto.FLOAT, result)
            scaled = self.made("Mul", [scaled, activation.scale], TensorProto.FLOAT, result)
        else:
            factor = self.made("Mul", [activation.scale, scale], TensorProto.FLOAT, None)
            scaled = self.made("Mul", [floats, factor], TensorProto.FLOAT, result)
        if operands.bias is not None and operands.bias.factor != 0.0:
            bias = self.bias(node, operands.bias.position, operands.bias.factor)
            scaled = self.made("Add", [scaled, bias], TensorProto.FLOAT, result)
        self.take_over(node, result, scaled)

    def replace_recurrent(self, node: Node) -> None:
        """Let ONNX Runtime's operator for it take an LSTM's place."""
        assert node.graph is not None
        self.graph = node.graph
        inputs: list[Value | None] = [node.input(i) for i in range(8)]
        ends: list[Value | None] = []
        for position in (1, 2):
            source = node.input(position)
            assert source is not None
            array = np.swapaxes(
                self.constants.finite(source, node), 1, 2
            )  # [directions, in, 4 * hidden]
            axes = (1,) if self.per_channel else (1, 2)
            magnitude = np.abs(array).max(axis=axes, keepdims=True)
            scale = np.where(magnitude > 0, magnitude / self.limit, 1.0).astype(np.float32)
            integers = np.clip(np.rint(array / scale), -self.limit, self.limit).astype(np.int8)
            scale = scale.reshape(scale.shape[0], -1) if self.per_channel else scale.reshape(-1)
            hint = f"w{len(self.shared) + 1}"
            inputs[position] = self.initializer(f"{hint}.q", np.ascontiguousarray(integers))
            zero_point = self.initializer(f"{hint}.zp", np.zeros(scale.shape, np.int8))
            ends += [self.initializer(f"{hint}.s", scale), zero_point]
            self.shared[node, position] = (source, source)
        old = [value for value in node.inputs[1:3] if value is not None]
        node.op_type, node.domain = "DynamicQuantizeLSTM", MICROSOFT
        node.attributes.pop("layout", None)
        node.set_inputs([*inputs, *ends])
        if MICROSOFT not in self.model.opsets:
            self.model.extra.opset_import.add(domain=MICROSOFT, version=1)
        for value in old:
            self.drop(value)

    def replace_steps(self, node: Node) -> None:
        """Let a Scan, whose products are integer, take a recurrent layer's place."""
        old = [value for value in node.inputs if value is not None]
        for product in spell_out(self.model, node, self.constants):
            operands = plan(product, self.constants)
            assert isinstance(operands, Operands)
            self.replace(product, operands)
        for value in old:
            self.drop(value)

    def take_over(self, node: Node, result: Value, scaled: Value) -> None:
        """Let `scaled` be what the node's result was, under its name."""
        last = scaled.producer
        assert last is not None
        last.outputs = (result,)
        scaled.producer = None
        node.outputs = ()
        result.producer, result.output_index = last, 0
        old = [value for value in node.inputs if value is not None]
        node.detach_inputs()
        self.dead.add(node)
        for value in old:
            self.drop(value)

    def activation(self, source: Value, *, by_rows: bool) -> _Activation:
        found = self.activations.get((source, self.graph, by_rows))
        if found is None:
            hint = f"a{len(self.activations) + 1}"
            integers = Value(self.model.fresh_name(f"{hint}.q"))
            integers.set_tensor_type(TensorProto.UINT8, source.shape)
            write = self.quantize_rows if by_rows else self.quantize_whole
            found = self.activations[source, self.graph, by_rows] = write(source, integers, hint)
        return found

    def quantize_whole(self, source: Value, integers: Value, hint: str) -> _Activation:
        scale = Value(self.model.fresh_name(f"{hint}.s"))
        scale.set_tensor_type(TensorProto.FLOAT, ())
        zero_point = Value(self.model.fresh_name(f"{hint}.zp"))
        zero_point.set_tensor_type(TensorProto.UINT8, ())
        self.add(Node("DynamicQuantizeLinear", [source], [integers, scale, zero_point]))
        return _Activation(integers, scale, zero_point)

    def quantize_rows(self, source: Value, integers: Value, hint: str) -> _Activation:
        """Each row's largest magnitude becomes 127, around a zero point of 128."""
        ends = [self.reduced(kind, source) for kind in ("ReduceMax", "ReduceMin")]
        ends[1] = self.made("Neg", [ends[1]], TensorProto.FLOAT, ends[1])
        smallest = self.fixed("smallest", np.float32(SMALLEST_MAGNITUDE))
        magnitude = self.made("Max", [*ends, smallest], TensorProto.FLOAT, ends[0])
        limit = self.fixed("limit", np.float32(FULL_RANGE))
        factor = self.made("Div", [limit, magnitude], TensorProto.FLOAT, magnitude)
        scale = self.made("Div", [magnitude, limit], TensorProto.FLOAT, magnitude)
        steps = self.made("Mul", [source, factor], TensorProto.FLOAT, source)
        one, zero_point = self.fixed("one", np.float32(1)), self.fixed("zp128", np.uint8(128))
        self.add(Node("QuantizeLinear", [steps, one, zero_point], [integers]))
        return _Activation(integers, scale, zero_point)

    def reduced(self, kind: str, source: Value) -> Value:
        """The largest or smallest number of each row, as rows of one number."""
        inputs = [source]
        if self.model.opset >= AXES_AS_INPUT:
            inputs.append(self.fixed("last", np.asarray([-1], np.int64)))
        result = self.made(kind, inputs, TensorProto.FLOAT, None)
        if source.shape:
            result.set_tensor_type(TensorProto.FLOAT, (*source.shape[:-1], 1))
        if len(inputs) == 1:
            assert result.producer is not None
            result.producer.set("axes", [-1])
        return result

    def weight(self, node: Node, weight: Weight) -> tuple[Value, Value]:
        """Integers and scale, one for all or one for each output."""
        source = node.input(weight.position)
        assert source is not None
        transposed = node.op_type == "Gemm" and bool(node.get("transB", 0))
        axis = weight.axis if self.per_channel else None
        is_convolution = node.op_type == "Conv"
        key = (
            self.graph,
            Constants.origin(source),
            axis,
            transposed,
            weight.factor,
            is_convolution,
        )
        found = self.shared.get(key)
        if found is None:
            array = self.constants.finite(source, node) * np.float32(weight.factor)
            if transposed:
                array, axis = array.T, None if axis is None else 1 - axis
            quantized = quantize_weight(array, axis, self.limit, 0.0)
            integers: Array = quantized.integers
            scale: NDArray[np.float32] = quantized.scale
            if is_convolution:  # ONNX Runtime's ConvInteger takes unsigned weights only
                integers = (integers.astype(np.int16) + 128).astype(np.uint8)
                scale = scale.reshape(-1, *[1] * (array.ndim - 2)) if scale.ndim else scale
            hint = f"w{len(self.shared) + 1}"
            found = self.shared[key] = (
                self.initializer(f"{hint}.q", np.ascontiguousarray(integers)),
                self.initializer(f"{hint}.s", scale),
            )
        return found

    def fixed(self, hint: str, array: Array | np.generic) -> Value:
        """A constant that operators of a graph share."""
        key = (self.graph, hint)
        if key not in self.shared:
            value = self.initializer(hint, np.asarray(array))
            self.shared[key] = (value, value)
        return self.shared[key][0]

    def bias(self, node: Node, position: int, factor: float) -> Value:
        source = node.input(position)
        assert source is not None
        array = self.constants.finite(source, node) * np.float32(factor)
        if node.op_type == "Conv":
            weight = node.input(1)
            rank = 4 if weight is None or weight.shape is None else len(weight.shape)
            array = array.reshape(-1, *[1] * (rank - 2))
        key = (self.graph, "bias", Constants.origin(source), factor, array.shape)
        if key not in self.shared:
            value = self.initializer(f"b{len(self.shared) + 1}", array)
            self.shared[key] = (value, value)
        return self.shared[key][0]

    # --- pieces ---

    def initializer(self, hint: str, array: Array) -> Value:
        """Beside its reader: in the graph around a body ONNX Runtime would not find it."""
        return self.graph.add_initializer(self.model.fresh_name(hint), Tensor.from_array(array))

    def made(
        self, op_type: str, inputs: list[Value | None] | list[Value], dtype: int, like: Value | None
    ) -> Value:
        """The result of a new node, of a value's shape."""
        result = Value(self.model.fresh_name(op_type.lower()))
        result.set_tensor_type(dtype, None if like is None else like.shape)
        self.add(Node(op_type, inputs, [result]))
        return result

    def add(self, node: Node) -> None:
        node.graph = self.graph
        self.new.append(node)

    def drop(self, value: Value) -> None:
        """Remove a constant that nothing reads any more, and the nodes that only make it."""
        if value.uses or value.is_input:
            return
        producer = value.producer
        if producer is None:
            for graph in self.model.graph.all_graphs():
                if graph.initializers.get(value.name) is value:
                    del graph.initializers[value.name]
        elif producer.op_type in ("Constant", "Identity") and producer not in self.dead:
            sources = [v for v in producer.inputs if v is not None]
            producer.detach_inputs()
            self.dead.add(producer)
            for source in sources:
                self.drop(source)

    def finish(self) -> None:
        """Bring the new nodes into order.

        What reads an activation first quantizes it, also for nodes that come before.
        """
        for graph in list(self.model.graph.all_graphs()):
            if any(n in self.in_place or n in self.dead for n in graph.nodes):
                order: list[Node] = []
                for node in graph.nodes:
                    order += self.in_place.get(node, ())
                    if node not in self.dead:
                        order.append(node)
                graph.nodes = order
                graph.sort()
        for node in self.dead:
            node.graph = None
