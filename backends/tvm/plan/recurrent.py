"""Recurrent layers in a plan: what is known of one, and how its weights are packed."""

from __future__ import annotations

import dataclasses

import numpy as np

from ....ir.ops.recurrent import GATES
from ....ir.tensor import Array
from ..targets import Target

ACTIVATIONS = ("sigmoid", "tanh", "relu")


@dataclasses.dataclass(frozen=True)
class Recurrent:
    """One layer; `reverse` says of each direction whether it starts at the end.

    Gates are in ONNX's order: input, output, forget, cell; update, reset, hidden.
    `activations` has a tuple for each direction. `initial_h` and `initial_c` say whether
    these are given. `reset_after` is GRU's linear_before_reset. `weight_dtype` is that of the
    recurrent weights, "float32" or "int8": of bytes each gate of a unit has a scale.
    """

    kind: str
    steps: int
    batch: int
    hidden: int
    reverse: tuple[bool, ...]
    activations: tuple[tuple[str, ...], ...]
    clip: float
    reset_after: bool
    initial_h: bool
    initial_c: bool
    weight_dtype: str = "float32"

    @property
    def gates(self) -> int:
        return GATES[self.kind]

    def units(self, target: Target) -> int:
        """Vectors of hidden units."""
        return -(-self.hidden // target.lanes)

    def columns(self, target: Target) -> int:
        """Columns of an input projection: of each vector of units all gates."""
        return self.units(target) * self.gates * target.lanes

    def arrange(self, target: Target, gates: Array) -> Array:
        """[..., gates * hidden] to [..., columns], zero past the last hidden unit."""
        lanes, units = target.lanes, self.units(target)
        lead = gates.shape[:-1]
        padded = np.zeros((*lead, self.gates, units * lanes), gates.dtype)
        padded[..., : self.hidden] = gates.reshape(*lead, self.gates, self.hidden)
        split = padded.reshape(*lead, self.gates, units, lanes)
        return np.ascontiguousarray(np.moveaxis(split, -3, -2)).reshape(*lead, -1)

    def pack(self, target: Target, weights: Array) -> Array:
        """Recurrent weights [directions, gates * hidden, hidden] to [direction, unit, k, lanes]."""
        arranged = self.arrange(target, weights.transpose(0, 2, 1))
        units, width = self.units(target), self.gates * target.lanes
        split = arranged.reshape(len(self.reverse), self.hidden, units, width)
        return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(-1, self.hidden, width)

    def pack_words(self, target: Target, weights: Array) -> Array:
        """The same, int8, to [direction, unit, word, lanes * 4]: a word is four neighbours of k."""
        words = -(-self.hidden // 4)
        padded = np.zeros((*weights.shape[:2], 4 * words), weights.dtype)
        padded[..., : self.hidden] = weights
        arranged = self.arrange(target, padded.transpose(0, 2, 1))
        units, width = self.units(target), self.gates * target.lanes
        split = arranged.reshape(len(self.reverse), words, 4, units, width)
        return np.ascontiguousarray(split.transpose(0, 3, 1, 4, 2)).reshape(-1, words, 4 * width)
