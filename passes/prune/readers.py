"""The layers that read a group's indices, with statistics of what they read.

One run of the original over the samples serves every criterion that looks at activations.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ...ir.axes.dims import Axis, Dim, product, resolve, term_size
from ...ir.axes.facts import Analysis
from ...ir.errors import SecateurError
from ...ir.graph import Node, Use
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.scratch import scratch_folder
from ...ir.tensor import Array
from ..linear.contraction import Contraction
from ..linear.divergence import Divergence
from ..linear.find import find_layer
from ..linear.layers import ConvolutionLayer, Layer
from ..linear.moments import Doubles, Moments
from ..linear.walk import Walk

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

NOISY_LAYERS = 96
"""Layers that are measured at most; others are taken for what the nearest of these are."""

Labels = npt.NDArray[np.int64]


@dataclasses.dataclass
class Reader:
    """A layer, or one group of it, whose inputs a dim's indices are.

    `labels` says for each input which index of the dim it belongs to, -1 for none. Of the
    inputs [in]: `covariance` [in, in], `mean`, mean `magnitude`, and the share of `zeros`.
    `weights` [in, out] are those of the original; `importance` is what a squared error of
    the layer's output counts.
    """

    labels: dict[Dim, Labels]
    covariance: Doubles
    mean: Doubles
    magnitude: Doubles
    zeros: Doubles
    weights: Doubles
    importance: float

    @property
    def variance(self) -> Doubles:
        return np.maximum(np.diagonal(self.covariance), 0.0)

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
    plan: list[tuple[Layer, list[dict[Dim, Labels]]]] = []
    for node in model.graph.nodes:
        layer = find_layer(model, node)
        if isinstance(layer, Layer):
            labels = _labels(analysis, layer, wanted)
            if any(labels):
                plan.append((layer, labels))
    positions = {node: i for i, node in enumerate(model.graph.nodes)}
    found: list[Reader] = []
    with scratch_folder() as folder:
        walk = Walk(model, runs, folder)
        ends = [_end(layer, positions) for layer, _ in plan]
        for (layer, _), end in zip(plan, ends, strict=True):
            walk.keep(layer.source.name, end)
            walk.keep(layer.result.name, end)
        noise = _OutputNoise(model, walk, runs, len(plan), seed)
        for (layer, labels), end in sorted(zip(plan, ends, strict=True), key=lambda p: p[1]):
            walk.advance(end)
            found += _measured(layer, labels, walk, noise, seed)
    return found


def _end(layer: Layer, positions: Mapping[Node, int]) -> int:
    assert layer.result.producer is not None
    return positions[layer.result.producer] + 1


def _measured(
    layer: Layer, labels: list[dict[Dim, Labels]], walk: Walk, noise: _OutputNoise, seed: int
) -> list[Reader]:
    matrix, _ = layer.read()
    groups, width, out = matrix.shape
    taps = _taps(layer)
    together = taps > 1 and width > WIDEST
    width = width // taps if together else width
    moments = Moments.zeros(groups, width, out)
    magnitude, zeros = np.zeros((groups, width)), np.zeros((groups, width))
    generator = np.random.default_rng(seed)
    wanted = max(ROWS, ROWS_FOR_EACH * width) / walk.runs
    for run in range(walk.runs):
        result = walk.value(layer.result.name, run)
        source = walk.value(layer.source.name, run)
        picked = layer.pick(generator, result, wanted)
        rows = layer.rows(source, result.shape, picked)
        if together:
            rows = np.ascontiguousarray(rows.reshape(*rows.shape[:2], -1, taps).mean(axis=3))
        moments.add(rows, layer.targets(result, picked))
        magnitude += np.abs(rows).sum(axis=1, dtype=np.float64)
        zeros += (rows == 0).sum(axis=1)
    covariance, mean = moments.covariance(), moments.mean
    if not np.isfinite(covariance).all():
        node = layer.node
        raise SecateurError(
            f"values that node '{node.label}' ({node.op_type}) reads are not finite"
        )
    if together:
        matrix = matrix.reshape(groups, -1, taps, out).sum(axis=2)
    importance = noise.sensitivity(layer) / max(moments.spread(), 1e-30)
    found = []
    for group in range(groups):
        named = labels[group]
        if not together:
            named = {dim: np.repeat(indices, taps) for dim, indices in named.items()}
        if named:
            reader = Reader(
                named,
                covariance[group],
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
        samples = min(max(NOISY_SAMPLES // max(layers, 1), NOISY_LEAST), NOISY_MOST)
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

    def sensitivity(self, layer: Layer) -> float:
        """Divergence of the outputs per relative variance of noise at a layer's output."""
        name = layer.result.name
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
