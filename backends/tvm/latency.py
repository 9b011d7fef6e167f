"""What a model's kernels cost at every width: what budgets of latency are allocated by.

The compiler's own models of its kernels say how the time of each depends on the sizes of what it
reads and writes. Measurements of the model at some widths correct them node by node, where this
machine runs the target's code.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from ...ir.graph import Value
from ...ir.model import Model
from ...passes.batch import check_batch
from .cache import Cache
from .compile import one_sample
from .emission.choices import Choices, read_table
from .emission.estimate import Estimator, Shape
from .lowering.loops.expectations import refuse_sizes_of_inputs
from .lowering.lower import lower
from .plan.layouts import choose_layouts
from .plan.tensors import PlanTensor
from .targets import Target
from .tuning.measure import NodeTimes

GIGAHERTZ = 3.0
"""Clock at which cycles count where nothing was measured."""

Sizes = Mapping[str, tuple[Shape, Shape]]
"""Shapes of values by name: in the model as it is, and as they are to be."""


class LatencyModel:
    """The kernels of a model on a target.

    Raises UnsupportedError where the model can't be compiled whole.
    """

    def __init__(self, model: Model, target: Target, cache: Cache | None = None) -> None:
        work, batch = one_sample(model)
        check_batch(batch)
        refuse_sizes_of_inputs(work)
        self._origins = _origins(work)
        plan = lower(work, target)
        table = cache.table if cache is not None else None
        measured = read_table(table, target) if table is not None else {}
        choices = Choices(target, {key: m.choice for key, m in measured.items()})
        layouts, _ = choose_layouts(plan, target.block, choices.needed_pads)
        found: dict[str, list[Estimator]] = defaultdict(list)
        for op in plan.operations:
            found[op.label].append(Estimator(op, target, choices, layouts))
        self._estimators = dict(found)
        nodes = {node.label: node.outputs[0] for node in work.graph.nodes if node.outputs}
        self._results = {label: v.name for label, v in nodes.items() if v is not None}
        self._points: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._fixed = 0.0

    def cycles(self) -> dict[str, float]:
        """Estimated cycles of each node's kernels, at the model's own widths."""
        return {
            label: sum(each(lambda tensor: tensor.shape) for each in estimators)
            for label, estimators in self._estimators.items()
        }

    def correct(self, cycles: Mapping[str, float], times: NodeTimes) -> None:
        """Learn from measurements of the model at some widths, for which it has such `cycles`."""
        for label in self._estimators:
            if cycles.get(label, 0) > 0 and times.nodes.get(label, 0) > 0:
                self._points[label].append((cycles[label], times.nodes[label]))
        known = sum(times.nodes.get(label, 0.0) for label in self._estimators)
        rest = max(times.whole - known, 0.0)  # changes of layout at outputs, the call itself
        self._fixed = rest if not self._fixed else min(self._fixed, rest)

    def kernels(self) -> list[Kernel]:
        """What each node's kernels cost; the first stands for what widths don't change."""
        ratios = [us / c for points in self._points.values() for c, us in points]
        usual = float(np.median(ratios)) if ratios else 1 / (1000 * GIGAHERTZ)
        found = [Kernel("", "", (), {}, _Correction((), 0.0), self._fixed)]
        for label, estimators in self._estimators.items():
            correction = _Correction.of(self._points.get(label, []), usual)
            names = {
                tensor: self._origins.get(tensor.name, tensor.name)
                for estimator in estimators
                for tensor in estimator.tensors
                if tensor.const is None
            }
            result = self._origins.get(self._results.get(label, ""), self._results.get(label, ""))
            found.append(Kernel(label, result, tuple(estimators), names, correction))
        return found


def _origins(model: Model) -> dict[str, str]:
    """For the name of each value that only quantization made, that of what it stands for."""

    def origin(value: Value) -> Value:
        while value.producer is not None and value.producer.op_type in _STEPS:
            source = value.producer.input(0)
            if source is None:
                break
            value = source
        return value

    found = {}
    for node in model.graph.nodes:
        for value in node.outputs:
            if value is not None and (source := origin(value)) is not value:
                found[value.name] = source.name
    return found


_STEPS = ("QuantizeLinear", "DequantizeLinear")


@dataclasses.dataclass(frozen=True)
class _Correction:
    """Microseconds per cycle, between what was measured at some numbers of cycles."""

    cycles: tuple[float, ...]
    usual: float
    rates: tuple[float, ...] = ()

    @classmethod
    def of(cls, points: list[tuple[float, float]], usual: float) -> _Correction:
        by_cycles: dict[float, list[float]] = defaultdict(list)
        for cycles, microseconds in points:
            by_cycles[cycles].append(microseconds / cycles)
        ordered = sorted(by_cycles)
        return cls(tuple(ordered), usual, tuple(float(np.median(by_cycles[c])) for c in ordered))

    def microseconds(self, cycles: float) -> float:
        if cycles <= 0:
            return 0.0
        if not self.cycles:
            return cycles * self.usual
        rate = np.exp(np.interp(np.log(cycles), np.log(self.cycles), np.log(self.rates)))
        return cycles * float(rate)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernels of one node: nanoseconds as a function of the sizes of some values.

    `result` is the value that the node defines, `names` are those that tensors stand for.
    """

    node: str
    result: str
    estimators: tuple[Estimator, ...]
    names: Mapping[PlanTensor, str]
    correction: _Correction
    fixed: float = 0.0

    @property
    def values(self) -> list[str]:
        """Names of the values whose sizes count."""
        return sorted({self.result, *self.names.values()} - {""})

    def cost(self, sizes: Sizes, weights: Shape | None = None) -> int:
        """Nanoseconds where values have these sizes; others keep theirs.

        `weights` is the shape of the node's weights, where it has some.
        """

        def shape_of(tensor: PlanTensor) -> Shape:
            name = self.names.get(tensor)
            if name is None or not tensor.shape:
                return tensor.shape
            if name in sizes:
                return _resized(tensor.shape, *sizes[name])
            if self.result not in sizes:
                return tensor.shape
            # Of a tensor that lies within the node, such as gates, the last axis goes along.
            before, after = (shape[-1] if shape else 1 for shape in sizes[self.result])
            return (*tensor.shape[:-1], max(1, tensor.shape[-1] * after // max(before, 1)))

        cycles = sum(each(shape_of, weights) for each in self.estimators)
        return round(1000 * (self.fixed + self.correction.microseconds(cycles)))


def _resized(shape: Shape, before: Shape, after: Shape) -> Shape:
    """The shape of a plan's tensor when the value that it stands for changes its own.

    Axes agree, but for a batch of another size, or an axis of one element in between; else the
    last axis takes the change as a whole.
    """
    if before == after:
        return shape
    changed = [axis for axis, (b, a) in enumerate(zip(before, after, strict=True)) if b != a]
    found = list(shape)
    for axis in changed:
        at = axis if axis < len(shape) and shape[axis] == before[axis] else None
        if at is None:
            places = [i for i, size in enumerate(shape) if size == before[axis]]
            if not places:
                size = int(np.prod(after)) / max(int(np.prod(before)), 1)
                return (*shape[:-1], max(1, round(shape[-1] * size))) if shape else shape
            at = places[0]
        found[at] = after[axis]
    return tuple(found)
