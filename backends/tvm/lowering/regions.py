"""Groups of nodes without a rule of our own, as small ONNX models for TVM's converters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import numpy_helper

from ....ir.errors import UnsupportedError
from ....ir.graph import Node, Value, node_reads
from ....ir.onnx_io import to_proto_without_weights
from ..plan import RegionOp, Tensor
from ..regions import convert
from ..unsupported import UnsupportedNodesError
from .context import Constant, Lowering, Stored


class Regions:
    """Collects consecutive nodes; `flush` turns them into one operation."""

    def __init__(self, lowering: Lowering) -> None:
        self.lowering = lowering
        self.pending: list[Node] = []
        self._protos: dict[Node, Any] | None = None

    def add(self, node: Node) -> None:
        self.pending.append(node)

    def defines(self, value: Value) -> bool:
        """Whether the value is the result of a node still pending."""
        return value.producer in self._pending_set()

    def _pending_set(self) -> set[Node | None]:
        return set(self.pending)

    def flush(self) -> None:
        """Emit the operation. Raises UnsupportedNodesError where TVM can't convert the nodes."""
        nodes, self.pending = self.pending, []
        if not nodes:
            return
        try:
            self._emit(nodes)
        except UnsupportedError as error:
            raise UnsupportedNodesError(dict.fromkeys(nodes, str(error)), [], []) from None

    def _emit(self, nodes: list[Node]) -> None:
        lowering = self.lowering
        inside = set(nodes)
        reads = dict.fromkeys(v for n in nodes for v in outer_reads(n))
        inputs: list[tuple[str, Tensor]] = []
        constants: list[onnx.TensorProto] = []
        for value in reads:
            if value.producer in inside:
                continue
            item = lowering.item(value)
            if isinstance(item, Constant):
                constants.append(numpy_helper.from_array(item.dequantized(), value.name))
            else:
                inputs.append((value.name, lowering.stored(value)))
        results = [
            v
            for n in nodes
            for v in n.outputs
            if v is not None
            and (v.is_graph_output or any(_top(u, inside) is None for u in v.users))
        ]
        outputs = [lowering.tensor(v) for v in results]
        model = self._model(nodes, inputs, constants, results)
        converted = convert(model, lowering.target)
        label = nodes[0].label
        lowering.emit(RegionOp(label, outputs, [t for _, t in inputs], model, converted))
        for value, tensor in zip(results, outputs, strict=True):
            lowering.items[value] = Stored(tensor)

    def _model(
        self,
        nodes: Sequence[Node],
        inputs: Sequence[tuple[str, Tensor]],
        constants: Sequence[onnx.TensorProto],
        results: Sequence[Value],
    ) -> Any:
        model = self.lowering.model
        if self._protos is None:
            proto = to_proto_without_weights(model, 0)
            self._protos = dict(zip(model.graph.nodes, proto.graph.node, strict=True))
        graph = onnx.GraphProto(name="region")
        graph.node.extend(self._protos[n] for n in nodes)
        for name, tensor in inputs:
            dtype = onnx.helper.np_dtype_to_tensor_dtype(_numpy(tensor.dtype))
            graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, tensor.shape))
        graph.initializer.extend(constants)
        for value in results:
            graph.output.append(
                onnx.helper.make_tensor_value_info(
                    value.name, value.dtype, self.lowering.shape(value)
                )
            )
        for node in nodes:
            for inner in node.outputs:
                if inner is not None and inner.type is not None and inner not in results:
                    graph.value_info.append(onnx.ValueInfoProto(name=inner.name, type=inner.type))
        return onnx.helper.make_model(
            graph,
            opset_imports=list(model.extra.opset_import),
            ir_version=model.extra.ir_version,
            functions=[],
        )


def _numpy(name: str) -> Any:
    import numpy as np

    return np.dtype(name)


def outer_reads(node: Node) -> list[Value]:
    """Values that a node reads, its subgraphs' captures included, their own values not."""
    own: set[Value] = set()
    for graph in node.subgraphs():
        for inner in graph.all_graphs():
            own.update(inner.values())
    return [v for v in node_reads(node) if v not in own]


def _top(node: Node, inside: set[Node]) -> Node | None:
    """The node of `inside` that `node` is or lies in."""
    current: Node | None = node
    while current is not None:
        if current in inside:
            return current
        current = current.graph.parent if current.graph is not None else None
    return None
