"""The layers that read a group's indices, with statistics of what they read.

One run of the original over the samples serves every criterion that looks at activations.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ...ir.axes.dims import Axis, Dim, product, resolve, term_size
from ...ir.axes.facts import Analysis
from ...ir.cost import count
from ...ir.errors import SecateurError
from ...ir.graph import Node, Use
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.scratch import scratch_folder
from ...ir.tensor import FLOAT_TYPES, Array
from ..body_results import WITH_BODIES
from ..linear.bodies import BodyError, WholeBody
from ..linear.contraction import Contraction
from ..linear.divergence import Divergence
from ..linear.find import find_layer
from ..linear.layers import ConvolutionLayer, Layer
from ..linear.moments import Doubles, Moments
from ..linear.walk import Walk
from ..sizes import CountedSizes

ROWS = 8192
"""Rows, one for each position of an output, that a layer's statistics take if there are as many."""

ROWS_FOR_EACH = 3
"""Rows for each input of the layer, where that makes more than `ROWS`."""

WIDEST = 2304
"""Unknowns beyond which a convolution's taps count together, so that the inverse stays small."""

NOISE = 0.05
"""Variance, relative to that of a layer's output, of the noise added there to measure how much
the model's outputs depend on it."""

NOISY_SAMPLES = 1024
"""Samples on which that is measured, of all layers together."""

NOISY_LEAST, NOISY_MOST = 8, 64
"""Samples of one layer."""

NOISY_MACS = 1e12
"""Multiply-accumulates of the runs of all layers, unless `NOISY_LEAST` samples take more."""

NOISY_LAYERS = 96
"""Layers that are measured at most; others are taken for what the nearest of these are."""

Labels = npt.NDArray[np.int64]


@dataclasses.dataclass
class Reader:
    """A layer, or one group of it, whose inputs a dim's indices are.

    `labels` says for each input which index of the dim it belongs to, -1 for none. Of the
    inputs [in]: `covariance` [in, in], kept in float32 as there may be many, `mean`, mean
    `magnitude`, and the share of `zeros`. `weights` [in, out] are those of the original;
    `importance` is what a squared error of the layer's output counts.
    """

    labels: dict[Dim, Labels]
    covariance: Array
    mean: Doubles
    magnitude: Doubles
    zeros: Doubles
    weights: Doubles
    importance: float

    @property
    def variance(self) -> Doubles:
        return np.maximum(np.diagonal(self.covariance).astype(np.float64), 0.0)

    @property
    def energy(self) -> Doubles:
        """Mean square."""
        return self.variance + np.square(self.mean)


def find_readers(
    analysis: Analysis, dims: Sequence[Dim], runs: Sequence[Mapping[str, Array]], *, seed: int = 0
) -> list[Reader]:
    """Every layer that reads some of the dims. `runs` are inputs of the analyzed model."""
    model = analysis.model
    wanted = set(dims)
    positions = {node: i for i, node in enumerate(model.graph.nodes)}
    plan: list[_Place] = []
    for node in model.graph.nodes:
        for inner in (*(n for graph in node.subgraphs() for n in graph.nodes), node):
            layer = find_layer(model, inner)
            labels = _labels(analysis, layer, wanted) if isinstance(layer, Layer) else []
            if isinstance(layer, Layer) and any(labels):
                place = _place(model, layer, labels, node, positions)
                plan += [] if place is None else [place]
    found: list[Reader] = []
    with scratch_folder() as folder:
        walk = Walk(model, runs, folder)
        for place in plan:
            for name in (*place.reads, place.noisy):
                walk.keep(name, place.end)
        noise = _OutputNoise(model, walk, runs, len(plan), seed)
        for place in sorted(plan, key=lambda place: place.end):
            walk.advance(place.end)
            with contextlib.suppress(BodyError):
                found += _measured(place, walk, noise, seed)
    return found


@dataclasses.dataclass(frozen=True)
class _Place:
    """A layer that is measured once a walk has got to `end`, where `reads` are kept.

    `labels` are those of each group of it. Noise is added to `noisy`: the layer's output, or
    for one in a subgraph that of the node around it.
    """

    layer: Layer
    labels: list[dict[Dim, Labels]]
    end: int
    reads: list[str]
    noisy: str
    body: WholeBody | None = None

    def values(self, walk: Walk) -> Iterator[tuple[Array, Array, int]]:
        """What the layer reads, what it puts out, and in how many pieces a run has that."""
        source, result = self.layer.source.name, self.layer.result.name
        for run in range(walk.runs):
            if self.body is None:
                yield walk.value(source, run), walk.value(result, run), 1
                continue
            turns = list(self.body.turns(walk, run))
            for turn in turns:
                yield turn.value(source, 0), turn.value(result, 0), len(turns)


def _place(
    model: Model,
    layer: Layer,
    labels: list[dict[Dim, Labels]],
    node: Node,
    positions: Mapping[Node, int],
) -> _Place | None:
    """That of a layer which is a node of the main graph, or lies in one of its subgraphs; None
    where what it reads can't be had."""
    names = [layer.source.name, layer.result.name]
    if layer.node is node:
        assert layer.result.producer is not None
        end = positions[layer.result.producer] + 1
        return _Place(layer, labels, end, names, layer.result.name)
    results = [v for v in node.outputs if v is not None and v.uses]
    floats = [v.name for v in results if v.dtype in FLOAT_TYPES]
    if node.op_type not in WITH_BODIES or not floats:
        return None
    try:
        assert layer.node.graph is not None
        body = WholeBody(model, layer.node.graph, names)
    except BodyError:
        return None
    return _Place(layer, labels, positions[node] + 1, body.reads, floats[0], body)


def _measured(place: _Place, walk: Walk, noise: _OutputNoise, seed: int) -> list[Reader]:
    layer, labels = place.layer, place.labels
    matrix, _ = layer.read()
    groups, width, out = matrix.shape
    taps = _taps(layer)
    together = taps > 1 and width > WIDEST
    width = width // taps if together else width
    moments = Moments.zeros(groups, width, out)
    magnitude, zeros = np.zeros((groups, width)), np.zeros((groups, width))
    generator = np.random.default_rng(seed)
    wanted = max(ROWS, ROWS_FOR_EACH * width) / walk.runs
    for source, result, pieces in place.values(walk):
        picked = layer.pick(generator, result, wanted / pieces)
        rows = layer.rows(source, result.shape, picked)
        if together:
            rows = np.ascontiguousarray(rows.reshape(*rows.shape[:2], -1, taps).mean(axis=3))
        moments.add(rows, layer.targets(result, picked))
        magnitude += np.abs(rows).sum(axis=1, dtype=np.float64)
        zeros += (rows == 0).sum(axis=1)
    if not moments.rows:  # of a branch that no sample takes
        return []
    covariance, mean = moments.covariance(), moments.mean
    if not np.isfinite(covariance).all():
        node = layer.node
        raise SecateurError(
            f"values that node '{node.label}' ({node.op_type}) reads are not finite"
        )
    if together:
        matrix = matrix.reshape(groups, -1, taps, out).sum(axis=2)
    importance = noise.sensitivity(place.noisy) / max(moments.spread(), 1e-30)
    found = []
    for group in range(groups):
        named = labels[group]
        if not together:
            named = {dim: np.repeat(indices, taps) for dim, indices in named.items()}
        if named:
            reader = Reader(
                named,
                covariance[group].astype(np.float32),
                mean[group],
                magnitude[group] / moments.rows,
                zeros[group] / moments.rows,
                matrix[group],
                importance,
            )
            found.append(reader)
    return found


class _OutputNoise:
    """How much the model's outputs move with noise at one layer after another.

    Every layer of the graph's order takes a run of all that is behind it, so that deep models
    are measured on fewer samples and at some of the layers only.
    """

    def __init__(
        self,
        model: Model,
        walk: Walk,
        runs: Sequence[Mapping[str, Array]],
        layers: int,
        seed: int,
    ) -> None:
        self._walk = walk
        self._outputs = {value.name for value in model.graph.outputs}
        self._every = -(-layers // NOISY_LAYERS)
        self._seed = seed
        self._count = 0
        self._last = 1.0
        measured = max(min(layers, NOISY_LAYERS), 1)
        _, shape_of = CountedSizes.usual(model)
        behind = count(model, shape_of).macs / 2  # a layer, in the mean
        most = min(NOISY_SAMPLES // max(layers, 1), int(NOISY_MACS / max(measured * behind, 1)))
        samples = min(max(most, NOISY_LEAST), NOISY_MOST)
        session = Session(model, threads=0)
        self._runs: list[tuple[int, int, dict[str, Array]]] = []
        for number, run in enumerate(runs):
            if samples <= 0:
                break
            outputs = session.run(run)
            size = _batch([*run.values(), *outputs.values()])
            taken = min(samples, size) if size else 0
            self._runs.append((number, taken, outputs))
            samples -= size or 1

    def sensitivity(self, name: str) -> float:
        """Divergence of the outputs per relative variance of noise that a value is given."""
        if name in self._outputs:
            return 1.0
        if self._count % self._every == 0:
            self._last = self._measured(name)
        self._count += 1
        return self._last

    def _measured(self, name: str) -> float:
        session = self._walk.rest()
        if name not in session.input_names:
            return 1.0
        generator = np.random.default_rng(self._seed)
        distance = Divergence()
        for run, samples, outputs in self._runs:
            feeds = {n: self._walk.value(n, run) for n in session.input_names}
            if samples and _batch(list(feeds.values())):
                feeds, outputs = _first(feeds, samples), _first(outputs, samples)
            result = feeds[name]
            deviation = np.sqrt(NOISE * float(result.var(dtype=np.float64)))
            noise = generator.standard_normal(result.shape, np.float32) * deviation
            noisy = {**feeds, name: (result + noise).astype(result.dtype)}
            moved = session.run(noisy)
            distance.add({n: outputs[n] for n in moved}, moved)
        return distance.value / NOISE


def _batch(arrays: Sequence[Array]) -> int:
    """The size that the first axes of all arrays have; 0 where they differ."""
    sizes = {array.shape[0] if array.ndim else 0 for array in arrays}
    return sizes.pop() if len(sizes) == 1 else 0


def _first(arrays: Mapping[str, Array], samples: int) -> dict[str, Array]:
    """Of each array the first samples."""
    return {name: array[:samples] for name, array in arrays.items()}


def _taps(layer: Layer) -> int:
    return int(np.prod(layer.kernel)) if isinstance(layer, ConvolutionLayer) else 1


def _labels(analysis: Analysis, layer: Layer, wanted: set[Dim]) -> list[dict[Dim, Labels]]:
    """For each group of a layer and each dim that its inputs have, the index of each input."""
    parameter = analysis.parameters.get(Use(layer.node, layer.position))
    if parameter is None:
        return []
    if isinstance(layer, Contraction):
        if layer.labelling.groups or len(parameter.blocks) > 1:
            return []
        weights = layer.labelling.weights
        inner = [parameter.blocks[0][weights.index(label)] for label in layer.labelling.inner]
        labels = axis_labels(product(inner), wanted)
        return [{dim: indices for dim, indices in labels.items() if (indices >= 0).any()}]
    if not isinstance(layer, ConvolutionLayer):
        return []
    groups = layer.groups
    position = 0 if layer.transposed else 1
    axes = [block[position] for block in parameter.blocks]
    if len(axes) not in (1, groups):
        return []
    found: list[dict[Dim, Labels]] = []
    for group in range(groups):
        labels = axis_labels(axes[group if len(axes) > 1 else 0], wanted)
        if position == 0 and groups > 1 and len(axes) == 1:
            labels = {dim: np.split(indices, groups)[group] for dim, indices in labels.items()}
        found.append({dim: indices for dim, indices in labels.items() if (indices >= 0).any()})
    return found


def axis_labels(axis: Axis, wanted: set[Dim]) -> dict[Dim, Labels]:
    """For each wanted dim of an axis, which index of it each element has; -1 where none."""
    found: dict[Dim, list[tuple[int, Labels]]] = defaultdict(list)
    offset = 0
    for term in resolve(axis):
        size = term_size(term)
        if size is None:
            return {}
        inner = size
        for dim in term:
            assert dim.size is not None
            inner //= dim.size
            indices = np.arange(size) // inner % dim.size
            if dim.binding is not None:
                for part, labels in axis_labels(dim.binding, wanted).items():
                    found[part].append((offset, labels[indices]))
            elif dim in wanted:
                found[dim].append((offset, indices))
        offset += size
    result = {}
    for dim, pieces in found.items():
        whole = np.full(offset, -1, np.int64)
        for start, labels in pieces:
            whole[start : start + len(labels)] = labels
        result[dim] = whole
    return result
