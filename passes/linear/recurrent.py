"""LSTM, GRU and RNN: what their gates sum up of inputs and of previous states.

The sums in front of the gates' activations are linear in the weights (ONNX, LSTM, GRU and RNN:
"Equations"). Previous states are those of a given run, so that no step depends on what is
solved for at another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Node, Value
from ...ir.model import Model
from ...ir.ops.recurrent import DEFAULT_ACTIVATIONS, GATES
from ...ir.partition import extract
from ...ir.reference import Session
from ...ir.tensor import Array, Tensor
from .layers import Solvable, replace
from .moments import Doubles

_LENGTHS, _STATE, _CELL = 4, 5, 6
"""Positions of inputs that may be left out."""


@dataclass(frozen=True)
class GateSum:
    """Gates that are summed alike: of inputs, of previous states, or of both.

    `resets` tells that states are multiplied by the reset gate first.
    """

    gates: tuple[int, ...]
    of_inputs: bool = True
    of_states: bool = True
    resets: bool = False


@dataclass(frozen=True)
class Steps:
    """What a recurrent layer saw over a run, without the steps behind the end of a sequence.

    `inputs` [steps, in]; `states` before each step and `reset`, its reset gate or None,
    [directions, steps, hidden].
    """

    inputs: Array
    states: Array
    reset: Array | None


class RecurrentLayer(Solvable):
    """the weights as matrices [directions * parts, in + hidden, out]."""

    def __init__(self, model: Model, node: Node) -> None:
        super().__init__(model, node)
        self.directions = self.weights.shape[0]
        self.hidden = self.recurrence.shape[2]
        self.width = self.weights.shape[2]
        self.parts = _parts(node)

    @property
    def recurrence(self) -> Tensor:
        """The weights of previous states, as they are now."""
        found = self.model.constant(self.node.input(2))
        assert found is not None
        return found

    @property
    def inputs(self) -> list[Value]:
        """What has a part in a run besides the weights."""
        values = [self.node.input(position) for position in (0, _LENGTHS, _STATE, _CELL)]
        return [v for v in values if v is not None and self.model.constant(v) is None]

    def read(self) -> tuple[Doubles, Doubles]:
        of_inputs, of_states, biases = self._split()
        matrices, shifts = [], []
        for direction in range(self.directions):
            for part in self.parts:
                gates = list(part.gates)
                w, r = of_inputs[direction, gates], of_states[direction, gates]
                stacked = [w if part.of_inputs else 0 * w, r if part.of_states else 0 * r]
                joined = np.concatenate(stacked, axis=2)  # gates, hidden, in
                matrices.append(joined.reshape(-1, joined.shape[2]).T)
                both = biases[direction, :, gates]  # gates, 2, hidden
                counts = np.array([part.of_inputs, part.of_states], np.float64)
                shifts.append(np.einsum("gbh,b->gh", both, counts).reshape(-1))
        return np.stack(matrices), np.stack(shifts)

    def write(self, matrix: Doubles, bias: Doubles) -> None:
        of_inputs, of_states, biases = self._split()
        group = 0
        for direction in range(self.directions):
            for part in self.parts:
                gates = list(part.gates)
                shape = (len(gates), self.hidden, -1)
                both = matrix[group].T.reshape(shape)
                shift = bias[group].reshape(len(gates), self.hidden)
                if part.of_inputs:
                    of_inputs[direction, gates] = both[..., : self.width]
                    rest = biases[direction, 1, gates] if part.of_states else 0
                    biases[direction, 0, gates] = shift - rest
                else:
                    biases[direction, 1, gates] = shift
                if part.of_states:
                    of_states[direction, gates] = both[..., self.width :]
                group += 1
        self._replace_weights(of_inputs.reshape(self.weights.shape))
        replace(self.model, self.node, 2, of_states.reshape(self.recurrence.shape), self.weights)
        replace(self.model, self.node, 3, biases.reshape(self.directions, -1), self.weights)

    def steps(self, feeds: Mapping[str, Array]) -> Steps:
        """What the layer sees in a run of its `inputs`, by their names."""
        states = self._states(feeds)
        batch_first = bool(self.node.get("layout", 0))
        if batch_first:
            states = states.transpose(1, 2, 0, 3)
        x, inside = self._inputs(feeds)
        before = self._before(states, feeds, batch_first)
        steps = Steps(x[inside], before[:, inside], None)
        if any(part.resets for part in self.parts):
            return Steps(steps.inputs, steps.states, self._reset(steps))
        return steps

    def inputs_of(self, feeds: Mapping[str, Array]) -> Array:
        """The inputs of the same steps, [steps, in]."""
        x, inside = self._inputs(feeds)
        return x[inside]

    def _inputs(self, feeds: Mapping[str, Array]) -> tuple[Array, Array]:
        """[steps, batch, in], and which of the steps are in front of the sequences' ends."""
        x = self._array(0, feeds)
        assert x is not None
        if self.node.get("layout", 0):
            x = x.swapaxes(0, 1)
        lengths = self._array(_LENGTHS, feeds)
        if lengths is None:
            return x, np.ones(x.shape[:2], bool)
        return x, np.arange(len(x))[:, None] < lengths[None, :]

    def rows(self, steps: Steps) -> Array:
        """What the matrices multiply: [directions * parts, steps, in + hidden]."""
        found = []
        for direction in range(self.directions):
            for part in self.parts:
                states = steps.states[direction]
                if part.resets:
                    assert steps.reset is not None
                    states = states * steps.reset[direction]
                x = steps.inputs
                halves = [x if part.of_inputs else 0 * x, states if part.of_states else 0 * states]
                found.append(np.concatenate(halves, axis=1))
        return np.stack(found).astype(np.float32)

    def _split(self) -> tuple[Doubles, Doubles, Doubles]:
        """Weights of inputs and of states [directions, gates, hidden, in], and both biases."""
        gates = GATES[self.node.op_type]
        shape = (self.directions, gates, self.hidden, -1)
        of_inputs = np.array(self.weights.numpy(), np.float64).reshape(shape)
        of_states = np.array(self.recurrence.numpy(), np.float64).reshape(shape)
        tensor = self.model.constant(self.node.input(3))
        biases = np.zeros((self.directions, 2, gates, self.hidden))
        if tensor is not None:
            biases += np.asarray(tensor.numpy(), np.float64).reshape(biases.shape)
        return of_inputs, of_states, biases

    def _array(self, position: int, feeds: Mapping[str, Array]) -> Array | None:
        value = self.node.input(position)
        if value is None:
            return None
        tensor = self.model.constant(value)
        return feeds[value.name] if tensor is None else tensor.numpy()

    def _states(self, feeds: Mapping[str, Array]) -> Array:
        """The state after each step, as the operator's first result."""
        kept = [v for v in self.node.outputs if v is not None]
        model, origin = extract(self.model, [self.node], kept[:1])
        (copy,) = (n for n, of in origin.items() if of is self.node)
        result = copy.output(0)
        if result is None:
            result = Value(model.fresh_name("states"))
            result.set_tensor_type(self.weights.dtype, None)
            copy.outputs = (result, *copy.outputs[1:])
            result.producer, result.output_index = copy, 0
            model.graph.add_output(result)
        session = Session(model, threads=0)
        return session.run({name: feeds[name] for name in session.input_names})[result.name]

    def _before(self, states: Array, feeds: Mapping[str, Array], batch_first: bool) -> Array:
        """From states after each step those before it, [directions, steps, batch, hidden]."""
        first = self._array(_STATE, feeds)
        if first is None:
            first = np.zeros_like(states[0])
        elif batch_first:
            first = first.swapaxes(0, 1)
        lengths = self._array(_LENGTHS, feeds)
        found = []
        for direction in range(self.directions):
            after, start = states[:, direction], first[direction]
            backwards = direction == 1 or self.node.get("direction", "forward") == "reverse"
            if not backwards:
                found.append(np.concatenate([start[None], after[:-1]]))
                continue
            before = np.concatenate([after[1:], start[None]])
            if lengths is not None:
                batch = np.flatnonzero(lengths > 0)
                before[lengths[batch] - 1, batch] = start[batch]
            found.append(before)
        return np.stack(found)

    def _reset(self, steps: Steps) -> Array:
        matrix, bias = self.read()
        rows = self.rows(Steps(steps.inputs, steps.states, np.ones_like(steps.states)))
        sums = rows @ matrix.astype(np.float32) + bias[:, None].astype(np.float32)
        ours = [d * len(self.parts) + 1 for d in range(self.directions)]  # z, r, h
        found: Array = 1 / (1 + np.exp(-sums[ours]))
        return found


def find_recurrent(model: Model, node: Node) -> RecurrentLayer | str:
    """the layer that a node is, or why it can't be solved."""
    if any(model.constant(node.input(position)) is None for position in (1, 2)):
        return "its weights are computed"
    if node.input(3) is not None and model.constant(node.input(3)) is None:
        return "its bias is computed"
    value = node.input(2)
    assert value is not None
    if len(value.uses) > 1:
        return "other nodes read its weights, too"
    first = (node.get("activations") or DEFAULT_ACTIVATIONS["GRU"])[::2]
    if node.op_type == "GRU" and any(str(name).lower() != "sigmoid" for name in first):
        return "its reset gate has another activation than the usual one"
    return RecurrentLayer(model, node)


def _parts(node: Node) -> list[GateSum]:
    if node.op_type != "GRU":
        return [GateSum(tuple(range(GATES[node.op_type])))]
    update, reset = GateSum((0,)), GateSum((1,))
    if node.get("linear_before_reset", 0):
        return [update, reset, GateSum((2,), of_states=False), GateSum((2,), of_inputs=False)]
    return [update, reset, GateSum((2,), resets=True)]


def kept_sums(layer: RecurrentLayer, sums: Array, kept: Array | None) -> Array:
    """Of sums [groups, steps, gates * hidden] those of the hidden units that are kept."""
    if kept is None:
        return sums
    split = sums.reshape(*sums.shape[:2], -1, layer.hidden)
    return np.compress(kept, split, axis=3).reshape(*sums.shape[:2], -1)
