"""Constant subgraphs computed by ONNX Runtime, many nodes in one session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import ModelProto, TensorProto

from ...ir.errors import SecateurError
from ...ir.graph import Graph, Node, Value
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.tensor import Array, Tensor
from ..initializers import SEPARATE_SINCE

_EMBEDDED_ELEMENTS = 4096
"""Constants up to this size go into the session's model, larger ones are fed in."""

EXCHANGED_TYPES = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.BOOL,
        TensorProto.STRING,
        TensorProto.INT8,
        TensorProto.INT16,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.UINT8,
        TensorProto.UINT16,
        TensorProto.UINT32,
        TensorProto.UINT64,
    }
)
"""Element types that ONNX Runtime takes and returns as numpy arrays."""


class ConstantGraph:
    """A model of its own made of nodes whose inputs are all constant.

    `nodes` are in execution order and have no subgraphs; each input is in `known`, is
    a constant of the model, or the output of an earlier one. They may come from
    several graphs.
    """

    def __init__(
        self, model: Model, nodes: Iterable[Node], known: Mapping[Value, Array] | None = None
    ) -> None:
        extra = ModelProto()
        extra.CopyFrom(model.extra)
        extra.ir_version = max(extra.ir_version, SEPARATE_SINCE)
        self.model = Model(Graph("constants"), extra)
        self.feeds: dict[str, Array] = {}
        self._source = model
        self._known = known or {}
        self._copies: dict[Value, Value] = {}
        for node in nodes:
            self._add(node)

    def infer(self) -> None:
        """Infer the types of all values (see `copy_of`)."""
        infer_shapes(self.model)

    def copy_of(self, value: Value) -> Value:
        """This graph's counterpart of a value that one of the nodes reads or defines."""
        return self._copies[value]

    def run(self, wanted: Sequence[Value]) -> dict[Value, Array]:
        """The elements of the `wanted` values. Raises SecateurError where a node fails."""
        from ...ir.reference import Session

        if not wanted:
            return {}
        for value in wanted:
            self.model.graph.add_output(self._copies[value])
        session = Session(self.model, optimize=False, trial=True)
        names = [self._copies[value].name for value in wanted]
        found = session.run({n: self.feeds[n] for n in session.input_names}, names)
        return {value: found[name] for value, name in zip(wanted, names, strict=True)}

    def _add(self, node: Node) -> None:
        inputs = [None if v is None else self._operand(v) for v in node.inputs]
        outputs: list[Value | None] = []
        for value in node.outputs:
            if value is None:
                outputs.append(None)
                continue
            copy = self._copies[value] = Value(f"v{len(self._copies)}", value.type)
            outputs.append(copy)
        self.model.graph.add_node(
            Node(node.op_type, inputs, outputs, dict(node.attributes), domain=node.domain)
        )

    def _operand(self, value: Value) -> Value:
        if value not in self._copies:
            self._copies[value] = self._constant(value, f"v{len(self._copies)}")
        return self._copies[value]

    def _constant(self, value: Value, name: str) -> Value:
        if value in self._known:
            tensor = Tensor.from_array(self._known[value])
        else:
            found = self._source.constant(value)
            assert found is not None
            tensor = found
        graph = self.model.graph
        if tensor.size <= _EMBEDDED_ELEMENTS or tensor.dtype not in EXCHANGED_TYPES:
            # As an array: what is embedded must not refer to files beside the model.
            return graph.add_initializer(name, Tensor.from_array(tensor.numpy(), tensor.dtype))
        copy = Value(name)
        copy.set_tensor_type(tensor.dtype, tensor.shape)
        graph.add_input(copy)
        self.feeds[name] = tensor.numpy()
        return copy


def evaluate(
    model: Model,
    nodes: Sequence[Node],
    wanted: Iterable[Value],
    known: Mapping[Value, Array] | None = None,
) -> dict[Value, Array]:
    """Elements of those `wanted` tensors that ONNX Runtime can compute from constants.

    Where it refuses the nodes together they are halved until the culprit is alone;
    the culprit and what depends on it are left out.
    """
    known = dict(known or {})
    values = list(dict.fromkeys(wanted))
    try:
        found = ConstantGraph(model, nodes, known).run(values)
    except SecateurError:
        if len(nodes) <= 1:
            return {}
    else:
        tensors = {v: x for v, x in found.items() if not isinstance(x, list | dict | None)}
        return {v: np.asarray(x) for v, x in tensors.items()}
    middle = len(nodes) // 2
    results: dict[Value, Array] = {}
    for half in (nodes[:middle], nodes[middle:]):
        runnable = _runnable(model, half, known | results)
        inside = set(runnable)
        needed = [v for v in values if v.producer in inside]
        needed += [v for n in nodes[middle:] for v in n.inputs if v and v.producer in inside]
        results |= evaluate(model, runnable, needed, known | results)
    return {v: results[v] for v in values if v in results}


def _runnable(model: Model, nodes: Iterable[Node], known: Mapping[Value, Array]) -> list[Node]:
    """Those of `nodes` whose inputs are known or come from others of them."""
    kept: list[Node] = []
    inside: set[Node] = set()
    for node in nodes:
        if all(
            v is None or v.producer in inside or v in known or model.constant(v) is not None
            for v in node.inputs
        ):
            kept.append(node)
            inside.add(node)
    return kept
