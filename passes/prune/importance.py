"""How much each index of a group matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ...ir.axes.dims import Axis, Dim, resolve, term_size
from ...ir.tensor import Array
from .groups import Group, Tie

Scores = npt.NDArray[np.float64]


def magnitude(power: int) -> Callable[[Array], Array]:
    return lambda weights: np.abs(weights) ** power


IMPORTANCE: dict[str, Callable[[Array], Array]] = {"l1": magnitude(1), "l2": magnitude(2)}
"""Elementwise measures that are summed over everything an index takes with it.

Magnitude of filters: Li et al., "Pruning Filters for Efficient ConvNets", 2017; summed
over all tied layers as in Fang et al., "DepGraph", 2023.
"""


def group_scores(groups: Sequence[Group], importance: str = "l2") -> dict[Dim, Scores]:
    """A score for each index of each dim of the given groups (higher: more important).

    The share of a weight's measure that goes with the index, summed over every tied
    weight of two or more axes: an index that many layers depend on weighs as many
    shares, so scores of different groups compare. Vectors (biases, scales) count only
    where a dim has nothing else.
    """
    measure = IMPORTANCE[importance]
    wanted = {dim for group in groups for dim in group.dims}
    matrix = {d: np.zeros(d.size or 0) for d in wanted}
    vector = {d: np.zeros(d.size or 0) for d in wanted}
    for tie in _tied_axes(groups):
        parameter = tie.parameter
        marginal = _marginal(tie, measure)
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


def _marginal(tie: Tie, measure: Callable[[Array], Array]) -> Scores:
    """Each index's share of the measure of one block."""
    array = tie.parameter.tensor.numpy()
    blocks = len(tie.parameter.blocks)
    if blocks > 1:
        rows = array.shape[0] // blocks
        array = array[tie.block * rows : (tie.block + 1) * rows]
    others = tuple(i for i in range(array.ndim) if i != tie.axis)
    sums: Scores = measure(np.asarray(array, np.float32)).sum(axis=others, dtype=np.float64)
    total = sums.sum()
    return sums / total if total > 0 else sums


def _distribute(axis: Axis, marginal: Scores, scores: dict[Dim, Scores]) -> None:
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
