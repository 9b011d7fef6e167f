"""Recurrent layers as the products that they are made of: a Scan whose body is one step.

The products of the inputs with their weights lie in front of the Scan, those of the states in its
body, as MatMul of constant weights, which dynamic quantization is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from ...ir.graph import Dimension, Graph, Node, Value
from ...ir.model import Model
from ...ir.ops.recurrent import DEFAULT_ACTIVATIONS, GATES
from ...ir.tensor import Array, Tensor
from .rules import Constants

FUNCTIONS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
"""Operators of the activations that layers may have."""

LENGTHS, INITIAL_H, INITIAL_C, PEEPHOLES = 4, 5, 6, 7
"""Positions of inputs."""


def why_not(node: Node, constants: Constants, fewest: int) -> str | None:
    """The reason why a layer with constant weights isn't spelled out; None where it is.

    `fewest` are the weights of a direction's states from which that is faster.
    """
    if node.input(LENGTHS) is not None:
        return "its sequences have lengths of their own"
    if node.input(PEEPHOLES) is not None:
        return "it has peepholes"
    for name, what in (("layout", "its batch comes first"), ("input_forget", "its gates are tied")):
        if node.get(name, 0) != 0:
            return what
    unknown = [name for name in _activations(node) if name.lower() not in FUNCTIONS]
    if unknown:
        return f"its activation '{unknown[0]}' isn't among {', '.join(FUNCTIONS.values())}"
    if node.input(3) is not None and constants.get(node.input(3)) is None:
        return "its bias is not a constant"
    weight = constants.get(node.input(2))
    assert weight is not None
    count = int(np.prod(weight.shape[1:]))
    if count < fewest:
        return (
            f"each step multiplies {count:,} weights: below {fewest:,} steps with integers are "
            "slower than those of the float operator"
        )
    return None


def spell_out(model: Model, node: Node, constants: Constants) -> list[Node]:
    """Put a Scan for each direction in a layer's place; the products in it and in front of it."""
    return _SpelledOut(model, node, constants).spell_out()


def _activations(node: Node) -> list[str]:
    directions = 2 if node.get("direction", "forward") == "bidirectional" else 1
    default = DEFAULT_ACTIVATIONS[node.op_type] * directions
    return [str(name) for name in node.get("activations", default)]


class _SpelledOut:
    """One layer while nodes for it are written, into `graph` and `nodes`."""

    def __init__(self, model: Model, node: Node, constants: Constants) -> None:
        assert node.graph is not None
        self.model, self.node = model, node
        self.outer = self.graph = node.graph
        self.nodes: list[Node] = []
        self.products: list[Node] = []
        self.kind, self.gates = node.op_type, GATES[node.op_type]
        self.clip = float(node.get("clip", 0.0))
        self.reset_after = self.kind == "GRU" and bool(node.get("linear_before_reset", 0))
        direction = str(node.get("direction", "forward"))
        self.reverse = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[direction]
        x, weights, state_weights, bias = (node.input(position) for position in range(4))
        assert x is not None
        assert weights is not None
        assert state_weights is not None
        self.x = x
        self.weights = constants.finite(weights, node)
        self.state_weights = constants.finite(state_weights, node)
        self.hidden = int(self.state_weights.shape[2])
        size = (len(self.reverse), 2 * self.gates * self.hidden)
        self.bias = np.zeros(size, np.float32) if bias is None else constants.finite(bias, node)
        self.steps, self.batch = (x.shape or (None, None))[:2]
        self.read = [value is not None and bool(value.uses) for value in node.outputs]

    def spell_out(self) -> list[Node]:
        results: list[list[Value]] = [[], [], []]
        for number in range(len(self.reverse)):
            for found, value in zip(results, self.direction(number), strict=False):
                if value is not None:
                    found.append(value)
        for old, read, found, axis in zip(
            self.node.outputs, self.read, results, (1, 0, 0), strict=False
        ):
            if old is not None and read:
                each = [self.op("Unsqueeze", [v, self.ints(axis)], None) for v in found]
                new = self.op("Concat", each, old.shape, axis=axis)
                self.take_over(old, new)
        place = self.outer.nodes.index(self.node)
        self.node.detach_inputs()
        self.node.graph = None
        self.outer.nodes[place : place + 1] = self.nodes
        return self.products

    def take_over(self, old: Value, new: Value) -> None:
        """Let `old` be the result that `new` is, under its own name."""
        last = new.producer
        assert last is not None
        last.outputs = (old,)
        old.producer, old.output_index = last, 0

    def direction(self, number: int) -> list[Value | None]:
        """The states of all steps, where they are read, and the last ones."""
        width, lead = self.hidden, (self.steps, self.batch)
        own, late = np.split(self.bias[number], 2)
        if self.reset_after:  # of the hidden gate the state's bias is inside of the reset
            own = own + np.concatenate([late[: 2 * width], np.zeros(width, np.float32)])
            late = np.concatenate([np.zeros(2 * width, np.float32), late[2 * width :]])
        else:
            own = own + late
        gates = self.product(self.x, self.weights[number], lead)
        gates = self.op("Add", [gates, self.constant("bias", own)], (*lead, len(own)))
        sequences = [gates] if self.kind != "GRU" else self.parts(gates, [2 * width, width])
        given = [self.node.input(INITIAL_H)]
        given += [self.node.input(INITIAL_C)] if self.kind == "LSTM" else []
        states = [self.initial(value, number) for value in given]
        return self.scan(number, states, sequences, late)

    def scan(
        self, number: int, states: list[Value], sequences: list[Value], late: Array
    ) -> list[Value | None]:
        """As `direction`, of states before the first step and what inputs give to each step."""
        size, every = (self.batch, self.hidden), self.read[0]
        body = Graph(f"{self.node.label}_step{number}")
        outer, self.nodes, self.graph = self.nodes, body.nodes, body
        read = [self.value("state", size) for _ in states]
        own = [self.value("inputs", (v.shape or (None,))[1:]) for v in sequences]
        new = self.step(number, read, own, late)
        if every:
            new.append(self.op("Identity", [new[0]], size))
        for value in (*read, *own):
            body.add_input(value)
        for value in new:
            body.add_output(value)
        self.nodes, self.graph = outer, self.outer
        results: list[Value | None] = [self.value("state", size) for _ in states]
        if every:
            results.append(self.value("states", (self.steps, *size)))
        scan = Node("Scan", [*states, *sequences], results)
        scan.name = self.model.fresh_name(f"{self.node.label}_scan")
        scan.set("body", body)
        body.parent = scan
        scan.set("num_scan_inputs", len(sequences))
        if self.reverse[number]:
            scan.set("scan_input_directions", [1] * len(sequences))
            if every:
                scan.set("scan_output_directions", [1])
        self.add(scan)
        return [results[-1] if every else None, *results[: len(states)]]

    def initial(self, given: Value | None, number: int) -> Value:
        """A state before the first step: zeros where none is given."""
        shape = (self.batch, self.hidden)
        if given is not None:
            index = self.constant("direction", np.asarray(number, np.int64))
            return self.op("Gather", [given, index], shape, axis=0)
        if isinstance(self.batch, int):
            return self.constant("zeros", np.zeros((self.batch, self.hidden), np.float32))
        sizes = self.op("Shape", [self.x], (3,), dtype=TensorProto.INT64)
        batch = self.op("Gather", [sizes, self.ints(1)], (1,), dtype=TensorProto.INT64, axis=0)
        both = [batch, self.ints(self.hidden)]
        sizes = self.op("Concat", both, (2,), dtype=TensorProto.INT64, axis=0)
        return self.op("ConstantOfShape", [sizes], shape)

    # --- one step ---

    def step(
        self, number: int, states: Sequence[Value], inputs: Sequence[Value], late: Array
    ) -> list[Value]:
        """The states behind a step."""
        weights = self.state_weights[number]
        count = len(DEFAULT_ACTIVATIONS[self.kind])
        names = _activations(self.node)[number * count : (number + 1) * count]
        functions = [FUNCTIONS[name.lower()] for name in names]
        if self.kind == "GRU":
            return [self.gru(states[0], inputs, weights, late, functions)]
        size = (self.batch, self.gates * self.hidden)
        gates = self.op("Add", [self.product(states[0], weights, size[:1]), inputs[0]], size)
        if self.kind == "RNN":
            return [self.activate(functions[0], gates)]
        first, last = self.parts(gates, [3 * self.hidden, self.hidden])
        i, o, f = self.parts(self.activate(functions[0], first), [self.hidden] * 3)
        added = self.each("Mul", i, self.activate(functions[1], last))
        cell = self.each("Add", self.each("Mul", f, states[1]), added)
        return [self.each("Mul", o, self.op(functions[2], [cell], cell.shape)), cell]

    def gru(
        self,
        state: Value,
        inputs: Sequence[Value],
        weights: Array,
        late: Array,
        functions: Sequence[str],
    ) -> Value:
        """With the reset gate behind the product of the state, or in front of it."""
        width, lead = self.hidden, (self.batch,)
        if self.reset_after:
            sums = self.product(state, weights, lead)
            sums = self.op("Add", [sums, self.constant("bias", late)], (self.batch, 3 * width))
            sums, hidden = self.parts(sums, [2 * width, width])
        else:
            sums = self.product(state, weights[: 2 * width], lead)
        gates = self.activate(functions[0], self.each("Add", sums, inputs[0]))
        update, reset = self.parts(gates, [width, width])
        if self.reset_after:
            hidden = self.each("Mul", reset, hidden)
        else:
            hidden = self.product(self.each("Mul", reset, state), weights[2 * width :], lead)
        candidate = self.activate(functions[1], self.each("Add", hidden, inputs[1]))
        kept = self.each("Mul", update, self.each("Sub", state, candidate))
        return self.each("Add", candidate, kept)

    def activate(self, function: str, value: Value) -> Value:
        if self.clip:
            ends = [self.constant("clip", np.float32(end)) for end in (-self.clip, self.clip)]
            value = self.op("Clip", [value, *ends], value.shape)
        return self.op(function, [value], value.shape)

    # --- pieces ---

    def product(self, source: Value, weights: Array, lead: Sequence[Dimension]) -> Value:
        """By weights whose rows are outputs."""
        columns = self.constant("weight", np.ascontiguousarray(weights.T))
        result = self.op("MatMul", [source, columns], (*lead, len(weights)))
        assert result.producer is not None
        result.producer.name = self.model.fresh_name(f"{self.node.label}_product")
        self.products.append(result.producer)
        return result

    def parts(self, value: Value, widths: list[int]) -> list[Value]:
        """A value's last axis in parts."""
        lead = (value.shape or ())[:-1]
        results = [self.value("part", (*lead, width)) for width in widths]
        self.add(Node("Split", [value, self.ints(*widths)], results))
        assert results[0].producer is not None
        results[0].producer.set("axis", -1)
        return results

    def each(self, op_type: str, left: Value, right: Value) -> Value:
        return self.op(op_type, [left, right], left.shape)

    def op(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        shape: Sequence[Dimension] | None,
        *,
        dtype: int = TensorProto.FLOAT,
        **attributes: Any,
    ) -> Value:
        result = self.value(op_type.lower(), shape, dtype)
        node = Node(op_type, inputs, [result])
        for name, attribute in attributes.items():
            node.set(name, attribute)
        self.add(node)
        return result

    def value(
        self, hint: str, shape: Sequence[Dimension] | None, dtype: int = TensorProto.FLOAT
    ) -> Value:
        result = Value(self.model.fresh_name(f"{self.node.label}_{hint}"))
        result.set_tensor_type(dtype, shape)
        return result

    def constant(self, hint: str, array: Array | np.generic) -> Value:
        name = self.model.fresh_name(f"{self.node.label}_{hint}")
        return self.graph.add_initializer(name, Tensor.from_array(np.asarray(array)))

    def ints(self, *numbers: int) -> Value:
        return self.constant("ints", np.asarray(numbers, np.int64))

    def add(self, node: Node) -> None:
        node.graph = self.graph
        self.nodes.append(node)
