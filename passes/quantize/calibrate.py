"""Calibration: ranges of activations, measured by running the model on sample data.

Samples stream through ONNX Runtime; nothing but the observers' state outlives a run.
Where the watched values of one run would exceed a memory budget, they are split over
several sweeps of the data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from ...ir.advance import advanced
from ...ir.errors import SecateurError
from ...ir.graph import Graph, Node, Value
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.tensor import Array, Tensor, element_bits
from ..samples import Samples
from .bodies import computed_rows, is_inner, surface
from .observers import MinMax, Observer
from .parameters import ValueRange

BUDGET = 256 * 2**20
"""Bytes of watched values that one run may hand out."""

BATCH = 1
"""Samples in one run where the batch is free: a free batch is often declared, but not meant."""

BLOCK = 16
"""Samples of an input that are looked at together."""

ALL_CORES = 0

LARGEST_OPTIMIZED = 5000
"""Nodes above which ONNX Runtime's optimizer, quadratic in them, costs more than it gains."""


def calibrate(
    model: Model,
    values: Sequence[Value],
    samples: Samples,
    *,
    observers: Mapping[Value, Callable[[], Observer]] | None = None,
    budget: int = BUDGET,
) -> dict[Value, ValueRange]:
    """Ranges of float values, also of those in bodies, over all samples, by default the seen ones.

    Raises SecateurError, naming value and sample, where one becomes NaN.
    """
    made = observers or {}
    watch = Watch({value: made.get(value, MinMax)() for value in values})
    inputs = [value for value in values if value.is_input and not is_inner(model, value)]
    for start in range(0, len(samples) if inputs else 0, BLOCK):
        for value in inputs:
            block = samples.arrays[value.name][start : start + BLOCK]
            watch.update(value, block, range(start, start + len(block)))
    watched = [v for v in values if v not in set(inputs)]
    sweep(model, watched, samples, watch.update, budget=budget)
    return watch.ranges()


class Watch:
    """Observers of several values, and which sample first made each infinite or NaN."""

    def __init__(self, observers: dict[Value, Observer]) -> None:
        self._observers = observers
        self._samples: dict[Value, int] = {}
        self._seen: set[Value] = set()

    def update(self, value: Value, array: Array, samples: range) -> None:
        """Take in what a run of these samples gave."""
        self._observers[value].update(array)
        if not array.size:
            return
        self._seen.add(value)
        if value not in self._samples and not np.isfinite([array.min(), array.max()]).all():
            count = len(samples) if array.ndim and len(array) == len(samples) else 1
            rows = np.isfinite(array).reshape(count, -1).all(axis=1)
            self._samples[value] = samples[int(np.argmin(rows))]

    def ranges(self) -> dict[Value, ValueRange]:
        found = {
            value: dataclasses.replace(
                watcher.range(), broken=self._samples.get(value), seen=value in self._seen
            )
            for value, watcher in self._observers.items()
        }
        _refuse_nan(found)
        return found


def sweep(
    model: Model,
    values: Sequence[Value],
    samples: Samples,
    visit: Callable[[Value, Array, range], None],
    *,
    budget: int = BUDGET,
) -> None:
    """Call `visit` with each of the computed values in every run, and the run's samples.

    Runs over the samples as often as it takes to hand out no more than `budget` bytes at once.
    """
    for chunk in _chunks(values, _sizes(model, values, samples), budget):
        _sweep(model, chunk, samples, visit)


def _sweep(
    model: Model,
    values: Sequence[Value],
    samples: Samples,
    visit: Callable[[Value, Array, range], None],
) -> None:
    names = {value.name: value for value in values}
    inner = {value for value in values if is_inner(model, value)}
    session = observing(model, names)
    start = 0
    count = math.ceil(len(samples) / (samples.batch or BATCH))
    for feeds, valid in advanced(samples.feeds(BATCH), count):
        for name, array in session.run(feeds).items():
            value = names[name]
            own = computed_rows(array) if value in inner else array
            visit(value, own, range(start, start + valid))
        start += valid


def check_runs(model: Model, samples: Samples) -> None:
    """Raise SecateurError, naming it, for the first sample that a model doesn't run on."""
    session = Session(model, optimize=False)
    start = 0
    for feeds, valid in samples.feeds(BATCH):
        try:
            session.run(feeds)
        except SecateurError as error:
            raise SecateurError(f"calibration: sample {start}: {error}") from None
        start += valid


def observing(model: Model, names: Iterable[str]) -> Session:
    """The model in ONNX Runtime, handing out the named values."""
    optimize = len(model.graph.nodes) <= LARGEST_OPTIMIZED
    return Session(exposing(model, names), optimize=optimize, threads=ALL_CORES)


def exposing(model: Model, names: Iterable[str]) -> Model:
    """A copy of the model whose outputs are the named values; those in bodies as `surface` has
    them."""
    clone, wanted = model.clone(), list(names)
    found = surface(clone, wanted)
    return _with_outputs(clone, [found[name] for name in wanted])


def _with_outputs(model: Model, outputs: Iterable[Value]) -> Model:
    old = model.graph
    graph = Graph(old.name, old.extra)
    for value in old.inputs:
        graph.add_input(value)
    graph.initializers = old.initializers
    for node in old.nodes:
        graph.add_node(node)
    for value in outputs:
        graph.add_output(value)
    return Model(graph, model.extra, list(model.functions.values()), model.path)


def _sizes(model: Model, values: Sequence[Value], samples: Samples) -> dict[Value, int]:
    """Bytes of each value in one run."""
    sizes: dict[Value, int] = {}
    open_sizes = []
    for value in values:
        shape = value.shape if not is_inner(model, value) else None
        if shape is not None and all(isinstance(s, int) for s in shape):
            sizes[value] = math.prod(s for s in shape if isinstance(s, int)) * 4
        else:
            open_sizes.append(value)
    if open_sizes:
        sizes.update(_measured_sizes(model, open_sizes, samples))
    return sizes


def _measured_sizes(model: Model, values: Sequence[Value], samples: Samples) -> dict[Value, int]:
    """As `_sizes`, of values whose shape is not static: run once, reading shapes only."""
    clone = model.clone()
    found = surface(clone, [value.name for value in values])
    outputs: dict[str, Value] = {}
    for value in values:
        shape = Value(model.fresh_name("shape"))
        clone.graph.add_node(Node("Shape", [found[value.name]], [shape]))
        outputs[shape.name] = value
    probes = [node.outputs[0] for node in clone.graph.nodes[-len(values) :]]
    session = Session(_with_outputs(clone, [p for p in probes if p is not None]), optimize=False)
    feeds, _ = next(samples.feeds(BATCH))
    return {
        outputs[name]: int(np.prod(shape)) * element_bits(outputs[name].dtype) // 8
        for name, shape in session.run(feeds).items()
    }


def _chunks(values: Sequence[Value], sizes: dict[Value, int], budget: int) -> Iterator[list[Value]]:
    chunk: list[Value] = []
    total = 0
    for value in values:
        if chunk and total + sizes[value] > budget:
            yield chunk
            chunk, total = [], 0
        chunk.append(value)
        total += sizes[value]
    if chunk:
        yield chunk


def _refuse_nan(ranges: dict[Value, ValueRange]) -> None:
    """Raise SecateurError where a value is NaN, naming the first that is not finite."""
    limits = [(value, limit) for value, r in ranges.items() for limit in (r.low, r.high)]
    if not any(math.isnan(limit) for _, limit in limits):
        return
    value, limit = next((v, limit) for v, limit in limits if not math.isfinite(limit))
    where = f"input '{value.name}'"
    if value.producer is not None:
        node = f"node '{value.producer.label}' ({value.producer.op_type})"
        for operand in value.producer.inputs:
            if operand is not None and operand.const is not None and _is_broken(operand.const):
                raise SecateurError(f"{node}: constant '{operand.name}' holds NaN or infinity")
        where = f"value '{value.name}' of {node}"
    what = "NaN" if math.isnan(limit) else "infinite"
    raise SecateurError(
        f"calibration: {where} becomes {what}{at_sample(ranges[value])}; "
        "check the samples and the model"
    )


def _is_broken(tensor: Tensor) -> bool:
    array = tensor.numpy()
    return array.dtype.kind == "f" and not bool(np.isfinite(array).all())


def at_sample(range: ValueRange) -> str:
    """Words that say which sample made a value infinite or NaN."""
    return "" if range.broken is None else f" with sample {range.broken}"
