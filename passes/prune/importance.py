"""How much each index of a group matters, by the criterion of one's choice.

A criterion looks at weights, or also at what the layers that read an index get to see on
samples. Scores of different groups compare: shares of a parameter's or a reader's whole,
summed over all parameters that are tied to the index, or over all readers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...ir.axes.dims import Axis, Dim, resolve, term_size
from ...ir.errors import SecateurError
from ...ir.plugins import imported, plugins
from .groups import Group, Tie
from .readers import Reader
from .surgeon import Inverses, surgeon_scores

Scores = npt.NDArray[np.float64]

OfWeights = Callable[[Scores], Scores]
"""From weights [indices, weights of each] to a value for each index."""

Readers = Sequence[Reader]


@dataclass(frozen=True)
class Criterion:
    """Scores from weights (`of_weights`), or from what a reader sees (`of_reader`).

    The latter gives a value for each of the reader's inputs; `by_reconstruction` scores by
    the order of `surgeon_scores` instead. `shares` divides by the sum over the indices.
    """

    source: str
    of_weights: OfWeights | None = None
    of_reader: Callable[[Reader], Scores] | None = None
    by_reconstruction: bool = False
    shares: bool = True

    @property
    def needs_samples(self) -> bool:
        return self.of_weights is None


def _power(weights: Scores, power: int) -> Scores:
    return np.asarray(np.sum(np.abs(weights) ** power, axis=1), np.float64)


def _distance_to_others(weights: Scores) -> Scores:
    squares: Scores = np.square(weights).sum(axis=1)
    between = squares[:, None] + squares[None, :] - 2 * weights @ weights.T
    found: Scores = np.sqrt(np.maximum(between, 0.0)).sum(axis=1)
    return found


def _share_of_larger(weights: Scores) -> Scores:
    squares: Scores = np.square(weights).sum(axis=1)
    order = np.argsort(squares, kind="stable")
    behind = np.cumsum(squares[order][::-1])[::-1]  # its own and all larger ones
    found = np.zeros(len(squares))
    found[order] = squares[order] / np.maximum(behind, 1e-300)
    return found


def _output_weight(reader: Reader, power: int) -> Scores:
    return _power(reader.weights, power)


CRITERIA: dict[str, Criterion] = {
    "l1": Criterion(
        "Li et al., Pruning Filters for Efficient ConvNets, 2017; over tied weights as in "
        "Fang et al., DepGraph, 2023",
        of_weights=lambda weights: _power(weights, 1),
    ),
    "l2": Criterion(
        "the same, by squares",
        of_weights=lambda weights: _power(weights, 2),
    ),
    "fpgm": Criterion(
        "He et al., Filter Pruning via Geometric Median, 2019",
        of_weights=_distance_to_others,
    ),
    "lamp": Criterion(
        "Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, 2021",
        of_weights=_share_of_larger,
        shares=False,
    ),
    "bn-scale": Criterion(
        "Liu et al., Network Slimming, 2017; l2 where no BatchNormalization is left",
        of_weights=lambda weights: _power(weights, 2),
    ),
    "random": Criterion("a control", of_weights=lambda weights: np.ones(len(weights))),
    "activation": Criterion(
        "mean magnitude of what is read; Molchanov et al., Pruning Convolutional Neural "
        "Networks for Resource Efficient Inference, 2017",
        of_reader=lambda reader: reader.magnitude,
    ),
    "nonzero": Criterion(
        "share of values that aren't zero; Hu et al., Network Trimming, 2016 (APoZ)",
        of_reader=lambda reader: 1.0 - reader.zeros,
    ),
    "wanda": Criterion(
        "weight times norm of what is read; Sun et al., Wanda, 2024, over channels",
        of_reader=lambda reader: _output_weight(reader, 1) * np.sqrt(reader.energy),
    ),
    "flap": Criterion(
        "squared weight times variance of what is read; An et al., FLAP, 2024",
        of_reader=lambda reader: _output_weight(reader, 2) * reader.variance,
    ),
    "reconstruction": Criterion(
        "Hassibi and Stork, Optimal Brain Surgeon, 1993; Kurtic et al., ZipLM, 2023",
        by_reconstruction=True,
    ),
}

WITHOUT_SAMPLES = tuple(name for name, c in CRITERIA.items() if not c.needs_samples)

DEFAULT, DEFAULT_WITH_SAMPLES = "l2", "reconstruction"


def find_criterion(name: str) -> Criterion:
    """The criterion of a name, or a user's function as `module:function`.

    The function gets weights [indices, weights of each] of one parameter and returns a value
    for each index. Raises SecateurError where there is none of that name.
    """
    if ":" in name:
        return Criterion("a function of the user's", of_weights=_imported(name))
    known_ones = {**plugins("importance", Criterion), **CRITERIA}
    if name not in known_ones:
        known = ", ".join(known_ones)
        raise SecateurError(f"unknown importance '{name}' (there are {known}, and module:function)")
    found: Criterion = known_ones[name]
    return found


def _imported(name: str) -> OfWeights:
    function = imported(name, "importance")

    def measure(weights: Scores) -> Scores:
        found = np.asarray(function(weights), np.float64)
        if found.shape != (len(weights),) or not np.isfinite(found).all():
            raise SecateurError(
                f"importance '{name}' returned {list(found.shape)} values, or some that are not "
                f"finite, for {len(weights)} indices"
            )
        return found - min(float(found.min(initial=0.0)), 0.0)

    return measure


def group_scores(
    groups: Sequence[Group],
    importance: str = DEFAULT,
    readers: Readers | None = None,
    *,
    seed: int = 0,
) -> dict[Dim, Scores]:
    """A score for each index of each dim of the given groups (higher: more important).

    `readers` are what criteria that need samples look at. Dims that no reader reads get
    scores from weights (`l2`), scaled to the others. Raises SecateurError where there are
    no readers and the criterion needs them.
    """
    criterion = find_criterion(importance)
    if importance == "random":
        return _random(groups, seed)
    if not criterion.needs_samples:
        only = "BatchNormalization" if importance == "bn-scale" else ""
        found = _by_weights(groups, criterion, only)
        rest = _by_weights(groups, CRITERIA[DEFAULT]) if only else {}
        return {d: s if s.any() or d not in rest else rest[d] for d, s in found.items()}
    if readers is None:
        known = ", ".join(WITHOUT_SAMPLES)
        raise SecateurError(
            f"importance '{importance}' needs calibration samples (without: {known})"
        )
    magnitudes = _by_weights(groups, CRITERIA[DEFAULT])
    found = dict(_by_readers(list(magnitudes), criterion, readers))
    ratios = [
        found[dim].sum() / magnitudes[dim].sum() for dim in found if magnitudes[dim].sum() > 0
    ]
    scale = float(np.median(ratios)) if ratios else 1.0
    return {dim: found.get(dim, scores * scale) for dim, scores in magnitudes.items()}


def _random(groups: Sequence[Group], seed: int) -> dict[Dim, Scores]:
    found = {}
    for group in groups:
        generator = np.random.default_rng([seed, zlib.crc32(group.name.encode())])
        for dim in group.move:
            found[dim] = generator.random(dim.size or 0)
    return found


def _by_readers(
    dims: Sequence[Dim], criterion: Criterion, readers: Readers
) -> Iterator[tuple[Dim, Scores]]:
    inverses = Inverses(dims, readers)
    for dim in dims:
        those = [reader for reader in readers if dim in reader.labels]
        if not those:
            continue
        if criterion.by_reconstruction:
            yield dim, surgeon_scores(dim, those, inverses)
            continue
        assert criterion.of_reader is not None
        total = np.zeros(dim.size or 0)
        for reader in those:
            labels, values = reader.labels[dim], criterion.of_reader(reader)
            sums = np.bincount(labels[labels >= 0], values[labels >= 0], minlength=len(total))
            whole = sums.sum()
            total += sums / whole if whole > 0 else sums
        yield dim, total


def _by_weights(groups: Sequence[Group], criterion: Criterion, only: str = "") -> dict[Dim, Scores]:
    """From every tied weight of two or more axes, or of the operator `only`.

    An index that many layers depend on weighs as many shares. Vectors (biases, scales)
    count only where a dim has nothing else.
    """
    measure = criterion.of_weights
    assert measure is not None
    wanted = {dim for group in groups for dim in group.dims}
    matrix = {d: np.zeros(d.size or 0) for d in wanted}
    vector = {d: np.zeros(d.size or 0) for d in wanted}
    for tie in _tied_axes(groups):
        parameter = tie.parameter
        if only and (parameter.node.op_type != only or parameter.use.position != 1):
            continue
        marginal = _marginal(tie, measure, criterion.shares)
        is_vector = marginal.size == parameter.tensor.size // len(parameter.blocks)
        _distribute(
            resolve(parameter.blocks[tie.block][tie.axis]),
            marginal,
            vector if is_vector else matrix,
        )
    return {d: matrix[d] if matrix[d].any() else vector[d] for d in wanted}


def _tied_axes(groups: Sequence[Group]) -> list[Tie]:
    """Each tied axis once, however many dims of it the groups have."""
    found: dict[tuple[int, int, int], Tie] = {}
    for group in groups:
        for ties in group.ties.values():
            for tie in ties:
                found.setdefault((id(tie.parameter), tie.block, tie.axis), tie)
    return list(found.values())


def _marginal(tie: Tie, measure: OfWeights, shares: bool) -> Scores:
    """Each index's value in one block, as a share of all where those compare."""
    array = tie.parameter.tensor.numpy()
    blocks = len(tie.parameter.blocks)
    if blocks > 1:
        rows = array.shape[0] // blocks
        array = array[tie.block * rows : (tie.block + 1) * rows]
    weights = np.moveaxis(np.asarray(array, np.float32), tie.axis, 0)
    values = measure(weights.reshape(len(weights), -1).astype(np.float64))
    total = values.sum()
    return values / total if shares and total > 0 else values


def _distribute(axis: Axis, marginal: Scores, scores: Mapping[Dim, Scores]) -> None:
    """Add an axis's vector to the dims it is made of."""
    offset = 0
    for term in axis:
        size = term_size(term)
        assert size is not None
        part = marginal[offset : offset + size].reshape([d.size or 1 for d in term])
        for position, dim in enumerate(term):
            others = tuple(i for i in range(len(term)) if i != position)
            if dim.binding is not None:
                _distribute(resolve(dim.binding), part.sum(axis=others), scores)
            elif dim in scores:
                scores[dim] += part.sum(axis=others)
        offset += size
