"""What becomes of layers' outputs, compared between the original and a pruned model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

from ...ir.graph import Node, Value
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.tensor import Array
from ..linear.gradient_rules import Builder
from ..linear.gradients import Loss
from ..linear.mixtures import rows
from .equations import take
from .masking import Keep

FEATURE = 3.0
"""Weight of the squared error, as a share of the variance, of what becomes of a layer's output,
beside the divergence of the outputs."""

LARGEST = 2**28
"""Bytes of such values of one run at most, where sizes that a model leaves open count as 1; the
smallest ones are compared first."""


class Features:
    """What becomes of layers' outputs, in both models: `teacher` runs the original with these
    as outputs, and the gradients are those of `student`."""

    def __init__(
        self,
        original: Model,
        student: Model,
        kept: Mapping[str, tuple[Keep | None, ...]],
        names: Sequence[str],
        runs: Sequence[Mapping[str, Array]],
    ) -> None:
        self._kept = kept
        teacher, self.student = original.clone(), student.clone()
        values = [_computed(model) for model in (teacher, self.student)]
        there = [n for n in names if all(n in known for known in values)]
        self._variances = dict.fromkeys(_smallest(there, values[0], rows(runs[0])), 0.0)
        for model, known in zip((teacher, self.student), values, strict=True):
            for name in self._variances:
                model.graph.add_output(known[name])
        self.teacher = Session(teacher, threads=0)
        pruned = Session(self.student, threads=0).run(runs[0])
        for position, run in enumerate(runs):
            found = self.teacher.run(run)
            if not position:
                self._keep_like(found, pruned)
            for name in self._variances:
                self._variances[name] += variance_of(self.cut(name, found[name])) / len(runs)
        self._variances = {n: v for n, v in self._variances.items() if v > 0}

    def _keep_like(self, found: Mapping[str, Array], pruned: Mapping[str, Array]) -> None:
        """Only values that the models agree about count."""
        for name in list(self._variances):
            if self.cut(name, found[name]).shape != pruned[name].shape:
                del self._variances[name]

    def cut(self, name: str, array: Array) -> Array:
        """What is left of a value of the original; of other outputs all."""
        return take(array, self._kept.get(name, ())) if name in self._variances else array

    def losses(self) -> dict[str, Loss]:
        return {n: squared_error(FEATURE / variance) for n, variance in self._variances.items()}


def _smallest(names: Sequence[str], values: Mapping[str, Value], samples: int) -> list[str]:
    """As many as a run of some samples may hold at a time (`LARGEST`), the smallest first."""

    def nbytes(name: str) -> int:
        shape = values[name].shape or ()
        return 4 * samples * math.prod(size for size in shape[1:] if isinstance(size, int))

    found, total = [], 0
    for name in sorted(names, key=nbytes):
        total += nbytes(name)
        if total <= LARGEST:
            found.append(name)
    return found


def feature_of(value: Value) -> Value:
    """What a value becomes by sums, activations and the like that alone read it."""
    while len(value.uses) == 1:
        (user, _), found = next(iter(value.uses)), None
        if isinstance(user, Node):
            found = user.output(0)
        if found is None or found.is_graph_output or found.shape != value.shape:
            break
        value = found
    return value


def _computed(model: Model) -> dict[str, Value]:
    """Floats that nodes of the graph compute and that aren't outputs, by name."""
    values = (v for node in model.graph.nodes for v in node.outputs if v is not None)
    return {
        v.name: v
        for v in values
        if v.dtype == TensorProto.FLOAT and v.rank and not v.is_graph_output
    }


def variance_of(array: Array) -> float:
    """Sum of squared differences from the samples' mean, for each sample (the first axis)."""
    array = array.astype(np.float64)
    samples = len(array) if array.ndim else 1
    mean = array.mean(axis=0) if samples > 1 else array.mean()
    return float(np.square(array - mean).sum()) / samples


def squared_error(weight: float) -> Loss:
    """The sum of squared differences, times a weight."""

    def loss(b: Builder, output: Value, target: Value) -> Value:
        return b.scaled(b.op("Sub", output, target), 2 * weight)

    return loss
