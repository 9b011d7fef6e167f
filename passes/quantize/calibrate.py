"""Calibration: ranges of activations, measured by running the model on sample data.

Samples stream through ONNX Runtime; nothing but the observers' state outlives a run.
Where the watched values of one run would exceed a memory budget, they are split over
several sweeps of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from ...ir.errors import SecateurError
from ...ir.graph import Graph, Node, Value
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.tensor import element_bits
from ..samples import Samples
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
    observer: Callable[[], Observer] = MinMax,
    budget: int = BUDGET,
) -> dict[Value, ValueRange]:
    """Ranges of float values of the main graph over all samples.

    Raises SecateurError, naming the value, where one becomes NaN.
    """
    observers = {value: observer() for value in values}
    inputs = [value for value in values if value.is_input]
    for start in range(0, len(samples) if inputs else 0, BLOCK):
        for value in inputs:
            observers[value].update(samples.arrays[value.name][start : start + BLOCK])
    watched = [v for v in values if not v.is_input]
    for chunk in _chunks(watched, _sizes(model, watched, samples), budget):
        _sweep(model, chunk, samples, observers)
    ranges = {value: watcher.range() for value, watcher in observers.items()}
    _refuse_nan(ranges)
    return ranges


def _sweep(
    model: Model,
    values: Sequence[Value],
    samples: Samples,
    observers: dict[Value, Observer],
) -> None:
    names = {value.name: value for value in values}
    optimize = len(model.graph.nodes) <= LARGEST_OPTIMIZED
    session = Session(exposing(model, names), optimize=optimize, threads=ALL_CORES)
    for feeds, _ in samples.feeds(BATCH):
        for name, array in session.run(feeds).items():
            observers[names[name]].update(array)


def exposing(model: Model, names: Iterable[str]) -> Model:
    """A copy of the model whose outputs are the named values of its main graph."""
    clone = model.clone()
    found = {value.name: value for value in clone.graph.values()}
    return _with_outputs(clone, [found[name] for name in names])


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
        shape = value.shape
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
    found = {value.name: value for value in clone.graph.values()}
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
        where = f"value '{value.name}' of node '{value.producer.label}' ({value.producer.op_type})"
    what = "NaN" if math.isnan(limit) else "infinite"
    raise SecateurError(f"calibration: {where} becomes {what}; check the samples and the model")
