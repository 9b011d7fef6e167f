"""What a model's kernels cost at every width: what budgets of latency are allocated by.

The compiler's own models of its kernels say how the time of each depends on the sizes of what it
reads and writes. Measurements of the model at some widths correct them node by node, where this
machine runs the target's code.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from ...ir.graph import Value
from ...ir.model import Model
from ...ir.tensor import Array
from ...passes.batch import check_batch
from .cache import Cache
from .compile import one_sample
from .emission.choices import COPIES, Choices, limit_copies, read_table
from .emission.estimate import Estimate, Estimator, Shape
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
        measured = read_table(None if cache is None else cache.table, target)
        choices = Choices(target, {key: m.choice for key, m in measured.items()})
        choices = limit_copies(plan, choices, COPIES)
        layouts, _ = choose_layouts(plan, target.block, choices.needed_pads)
        found: dict[str, list[Estimator]] = defaultdict(list)
        for op in plan.operations:
            found[op.label].append(Estimator(op, target, choices, layouts))
        self._estimators = dict(found)
        nodes = {node.label: node.outputs[0] for node in work.graph.nodes if node.outputs}
        self._results = {label: v.name for label, v in nodes.items() if v is not None}
        self._rates = _Rates()
        self._fixed = 0.0

    def estimates(self) -> dict[str, Estimate]:
        """Of each node's kernels, at the model's own widths."""
        return {
            label: _together([each(lambda tensor: tensor.shape) for each in estimators])
            for label, estimators in self._estimators.items()
        }

    def correct(self, estimates: Mapping[str, Estimate], times: NodeTimes) -> None:
        """Learn from measurements of the model at some widths, of which there are `estimates`."""
        for label in self._estimators:
            estimate, microseconds = estimates.get(label), times.nodes.get(label, 0.0)
            if estimate is not None and estimate.cycles > 0 and microseconds > 0:
                self._rates.add(label, estimate, microseconds)
        known = sum(times.nodes.get(label, 0.0) for label in self._estimators)
        rest = max(times.whole - known, 0.0)  # changes of layout at outputs, the call itself
        self._fixed = rest if not self._fixed else min(self._fixed, rest)

    def kernels(self) -> list[Kernel]:
        """What each node's kernels cost; the first stands for what widths don't change."""
        rates = self._rates.copy()
        found = [Kernel("", "", (), {}, rates, self._fixed)]
        for label, estimators in self._estimators.items():
            names = {
                tensor: self._origins.get(tensor.name, tensor.name)
                for estimator in estimators
                for tensor in estimator.tensors
                if tensor.const is None
            }
            result = self._origins.get(self._results.get(label, ""), self._results.get(label, ""))
            found.append(Kernel(label, result, tuple(estimators), names, rates))
        return found


def _together(estimates: Sequence[Estimate]) -> Estimate:
    """One estimate of a node's kernels: the sum, with the form of the one that takes longest."""
    longest = max(estimates, key=lambda each: each.cycles)
    return Estimate(longest.form, sum(each.cycles for each in estimates))


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


class _Rates:
    """Microseconds per estimated cycle, of each node's kernel of each form, else of the form.

    Between numbers of cycles that were measured they are interpolated. Asking keeps tables, so
    whoever learns on asks a `copy`.
    """

    def __init__(self) -> None:
        self._points: dict[tuple[str, str], dict[float, list[float]]] = {}

    def copy(self) -> _Rates:
        other = _Rates()
        other._points = {key: dict(points) for key, points in self._points.items()}
        return other

    def add(self, label: str, estimate: Estimate, microseconds: float) -> None:
        points = self._points.setdefault((label, estimate.form), {})
        known = points.get(estimate.cycles, [])
        points[estimate.cycles] = [*known, microseconds / estimate.cycles]

    def microseconds(self, label: str, estimate: Estimate) -> float:
        if estimate.cycles <= 0:
            return 0.0
        curve = self._curves.get((label, estimate.form))
        if curve is None:
            return estimate.cycles * self._usual(estimate.form)
        return estimate.cycles * float(np.exp(np.interp(np.log(estimate.cycles), *curve)))

    @functools.cached_property
    def _curves(self) -> dict[tuple[str, str], tuple[Array, Array]]:
        """Logarithms of the cycles that were measured, and of their median rates."""
        found = {}
        for key, points in self._points.items():
            cycles = sorted(points)
            found[key] = np.log(cycles), np.log([np.median(points[c]) for c in cycles])
        return found

    @functools.cached_property
    def _forms(self) -> dict[str, float]:
        forms: dict[str, list[float]] = defaultdict(list)
        for (_, form), points in self._points.items():
            forms[form] += [rate for rates in points.values() for rate in rates]
        everything = [rate for rates in forms.values() for rate in rates]
        found = {form: float(np.median(rates)) for form, rates in forms.items()}
        found[""] = float(np.median(everything)) if everything else 1 / (1000 * GIGAHERTZ)
        return found

    def _usual(self, form: str) -> float:
        return self._forms.get(form, self._forms[""])


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernels of one node: nanoseconds as a function of the sizes of some values.

    `result` is the value that the node defines, `names` are those that tensors stand for.
    """

    node: str
    result: str
    estimators: tuple[Estimator, ...]
    names: Mapping[PlanTensor, str]
    rates: _Rates
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

        if not self.estimators:
            return round(1000 * self.fixed)
        estimate = _together([each(shape_of, weights) for each in self.estimators])
        return round(1000 * (self.fixed + self.rates.microseconds(self.node, estimate)))


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
