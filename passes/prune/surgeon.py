"""Importance by reconstruction: what no combination of the other channels can make up for.

Channel-level Optimal Brain Surgeon: Hassibi and Stork, "Second Order Derivatives for Network
Pruning", 1993; Kurtic et al., "ZipLM", 2023. A channel's damage is the least squared error at
the layers that read it when their other weights are adapted; the least one goes, weights and
inverse covariance are updated, and so on. Errors at different layers compare by how much the
model's outputs move with noise there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ...ir.axes.dims import Axis, Dim, resolve, term_size
from ...ir.axes.facts import Analysis
from ...ir.graph import Node, Use
from ...ir.scratch import scratch_folder
from ...ir.tensor import Array
from ..linear.divergence import Divergence
from ..linear.find import find_layer
from ..linear.layers import ConvolutionLayer, Layer, Normalization, Product, pick
from ..linear.moments import RIDGE, Doubles, Moments
from ..linear.walk import Walk
from .importance import Scores

ROWS = 8192
"""Rows that a layer's statistics are of, where its outputs have so many positions."""

ROWS_FOR_EACH = 3
"""Rows for each unknown, where that is more."""

WIDEST = 2304
"""Unknowns beyond which a convolution's taps count together, so that the inverse stays small."""

BATCHES = 48
"""Rounds in which a wide group's channels go: several at once, with the same inverse."""

NOISE = 0.05
"""Share of an output's variance that noise has which tells how much the output matters."""

NOISY_RUNS = 2
"""Runs on which that is measured."""

Labels = npt.NDArray[np.int64]


@dataclasses.dataclass
class Consumer:
    """A layer, or one group of it, whose inputs a dim's indices are.

    `labels` says for each unknown which index of the dim it belongs to, -1 for none.
    `covariance` [in, in] and `weights` [in, out] are those of the original; `importance`
    is what a squared error of it counts.
    """

    labels: dict[Dim, Labels]
    covariance: Doubles
    weights: Doubles
    importance: float

    @functools.cached_property
    def inverse(self) -> Doubles:
        ridge = RIDGE * float(np.trace(self.covariance)) / len(self.covariance)
        regular = self.covariance + (ridge or 1.0) * np.eye(len(self.covariance))
        return np.asarray(np.linalg.inv(regular), np.float64)


def reconstruction_scores(
    analysis: Analysis,
    dims: Sequence[Dim],
    runs: Sequence[Mapping[str, Array]],
    *,
    seed: int = 0,
) -> dict[Dim, Scores]:
    """For each of the dims that layers read, the damage that each index does when it goes.

    `runs` are inputs of the analyzed model. Indices are scored in the order in which they
    go, so that the least scores first is that order. Dims that no layer reads are left out.
    """
    consumers = _consumers(analysis, dims, runs, seed)
    found = {}
    for dim in dims:
        readers = [consumer for consumer in consumers if dim in consumer.labels]
        if readers and dim.size is not None:
            found[dim] = _order(dim, dim.size, readers)
    return found


def _order(dim: Dim, size: int, readers: Sequence[Consumer]) -> Scores:
    """Damage of each index at the moment when it goes, never less than of the one before."""
    states = [_State.of(reader, dim) for reader in readers]
    alive = np.arange(size)
    scores = np.zeros(size)
    floor = 0.0
    while len(alive) > 1:
        damage = np.zeros(size)
        for state in states:
            state.add_damage(damage)
        many = max(1, len(alive) // BATCHES) if size > BATCHES else 1
        gone = alive[np.argsort(damage[alive], kind="stable")[:many]]
        for index in gone:
            floor = max(floor, float(damage[index]))
            scores[index] = floor
        for state in states:
            state.remove(gone)
        alive = np.setdiff1d(alive, gone, assume_unique=True)
    scores[alive] = 2 * floor
    return scores


@dataclasses.dataclass
class _State:
    """A consumer after some indices have gone."""

    labels: Labels
    inverse: Doubles
    weights: Doubles
    importance: float

    @classmethod
    def of(cls, consumer: Consumer, dim: Dim) -> _State:
        labels = consumer.labels[dim]
        return cls(labels, consumer.inverse.copy(), consumer.weights.copy(), consumer.importance)

    def add_damage(self, damage: Doubles) -> None:
        """trace(W_c' (A_cc)^-1 W_c) for the unknowns c of each index."""
        for unknowns, indices in self._blocks():
            blocks = self.inverse[unknowns[:, :, None], unknowns[:, None, :]]
            weights = self.weights[unknowns]
            solved = np.linalg.solve(blocks, weights)
            np.add.at(damage, indices, self.importance * (weights * solved).sum(axis=(1, 2)))

    def remove(self, gone: npt.NDArray[np.int64]) -> None:
        dead = np.isin(self.labels, gone)
        if not dead.any():
            return
        rest = ~dead
        across = self.inverse[np.ix_(dead, rest)]
        factors = np.linalg.solve(self.inverse[np.ix_(dead, dead)], across)
        self.weights = self.weights[rest] - factors.T @ self.weights[dead]
        self.inverse = self.inverse[np.ix_(rest, rest)] - across.T @ factors
        self.labels = self.labels[rest]

    def _blocks(self) -> list[tuple[Labels, Labels]]:
        """Unknowns of each index, [indices, unknowns], by how many there are."""
        order = np.argsort(self.labels, kind="stable")
        indices, starts, counts = np.unique(
            self.labels[order], return_index=True, return_counts=True
        )
        found = []
        for count in np.unique(counts[indices >= 0]):
            same = (counts == count) & (indices >= 0)
            found.append((order[starts[same][:, None] + np.arange(count)], indices[same]))
        return found


def _consumers(
    analysis: Analysis, dims: Sequence[Dim], runs: Sequence[Mapping[str, Array]], seed: int
) -> list[Consumer]:
    """Every layer that reads some of the dims, with statistics of what it reads."""
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
    found: list[Consumer] = []
    outputs = [value.name for value in model.graph.outputs]
    with scratch_folder() as folder:
        walk = Walk(model, runs, folder)
        ends = [_end(layer, positions) for layer, _ in plan]
        for (layer, _), end in zip(plan, ends, strict=True):
            walk.keep(layer.source.name, end)
            walk.keep(layer.result.name, end)
        for (layer, labels), end in sorted(zip(plan, ends, strict=True), key=lambda p: p[1]):
            walk.advance(end)
            found += _measured(layer, labels, walk, outputs, seed)
    return found


def _end(layer: Layer, positions: Mapping[Node, int]) -> int:
    assert layer.result.producer is not None
    return positions[layer.result.producer] + 1


def _measured(
    layer: Layer, labels: list[dict[Dim, Labels]], walk: Walk, outputs: Sequence[str], seed: int
) -> list[Consumer]:
    matrix, _ = layer.read()
    groups, width, out = matrix.shape
    taps = _taps(layer)
    together = taps > 1 and width > WIDEST
    moments = Moments.zeros(groups, width // taps if together else width, out)
    generator = np.random.default_rng(seed)
    wanted = max(ROWS, ROWS_FOR_EACH * width) / walk.runs
    for run in range(walk.runs):
        result = walk.value(layer.result.name, run)
        source = walk.value(layer.source.name, run)
        picked = pick(generator, layer.places(result), wanted / max(len(result), 1))
        rows = layer.rows(source, result.shape, picked)
        if together:
            rows = np.ascontiguousarray(rows.reshape(*rows.shape[:2], -1, taps).mean(axis=3))
        moments.add(rows, layer.targets(result, picked))
    covariance = moments.covariance()
    if together:
        matrix = matrix.reshape(groups, -1, taps, out).sum(axis=2)
    importance = _sensitivity(layer, walk, outputs, seed) / max(moments.spread(), 1e-30)
    found = []
    for group in range(groups):
        named = labels[group]
        if not together:
            named = {dim: np.repeat(indices, taps) for dim, indices in named.items()}
        if named:
            found.append(Consumer(named, covariance[group], matrix[group], importance))
    return found


def _sensitivity(layer: Layer, walk: Walk, outputs: Sequence[str], seed: int) -> float:
    """Divergence of the model's outputs per relative variance of noise at a layer's output."""
    name = layer.result.name
    if name in outputs:
        return 1.0
    session = walk.rest()
    generator = np.random.default_rng(seed)
    distance = Divergence()
    for run in range(min(walk.runs, NOISY_RUNS)):
        feeds = {n: walk.value(n, run) for n in session.input_names}
        if name not in feeds:
            return 1.0
        result = feeds[name]
        deviation = np.sqrt(NOISE * float(result.var(dtype=np.float64)))
        noise = generator.standard_normal(result.shape, np.float32) * deviation
        noisy = (result + noise).astype(result.dtype)
        distance.add(session.run(feeds), session.run({**feeds, name: noisy}))
    return distance.value / NOISE


def _taps(layer: Layer) -> int:
    return int(np.prod(layer.kernel)) if isinstance(layer, ConvolutionLayer) else 1


def _labels(analysis: Analysis, layer: Layer, wanted: set[Dim]) -> list[dict[Dim, Labels]]:
    """For each group of a layer and each dim that its inputs have, the index of each input."""
    parameter = analysis.parameters.get(Use(layer.node, 1))
    if parameter is None or isinstance(layer, Normalization):
        return []
    groups = layer.groups if isinstance(layer, ConvolutionLayer) else 1
    position = 0
    if isinstance(layer, Product):
        position = 1 if layer.transposed else 0
    elif isinstance(layer, ConvolutionLayer):
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
