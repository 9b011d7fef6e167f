"""A choice of indices to keep, and what it means for an axis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .dims import Axis, Dim, Term, axis_size, dims_of, resolve, term_size

Indices = npt.NDArray[np.int64]


class Selection:
    """Kept indices, sorted and at least one, of some free dims; all other dims stay whole."""

    def __init__(self, kept: Mapping[Dim, Indices]) -> None:
        self.kept = {
            dim: np.asarray(indices, np.int64)
            for dim, indices in kept.items()
            if len(indices) != dim.size
        }
        self._cache: dict[Axis, Indices | None] = {}

    def __bool__(self) -> bool:
        return bool(self.kept)

    def changes(self, axis: Axis) -> bool:
        """Whether an axis loses elements; its size needn't be known."""
        return any(dim in self.kept for dim in dims_of(axis))

    def indices(self, axis: Axis) -> Indices | None:
        """Kept element numbers of an axis of known size in ascending order, or None where
        it stays whole."""
        if axis in self._cache:
            return self._cache[axis]
        result = self._indices(axis)
        self._cache[axis] = result
        return result

    def size(self, axis: Axis) -> int | None:
        """Elements that an axis has left; None where its size is unknown."""
        size = axis_size(axis)
        indices = None if size is None else self.indices(axis)
        return size if indices is None else len(indices)

    def _indices(self, axis: Axis) -> Indices | None:
        resolved = resolve(axis)
        parts = [self._term_indices(term) for term in resolved]
        if all(part is None for part in parts):
            return None
        offset, pieces = 0, []
        for term, part in zip(resolved, parts, strict=True):
            size = term_size(term)
            assert size is not None
            pieces.append((np.arange(size) if part is None else part) + offset)
            offset += size
        return np.concatenate(pieces)

    def _term_indices(self, term: Term) -> Indices | None:
        if len(term) == 1:
            return self._factor_indices(term[0])
        factors = [self._factor_indices(dim) for dim in term]
        if all(factor is None for factor in factors):
            return None
        result = np.zeros(1, np.int64)
        for dim, factor in zip(term, factors, strict=True):
            assert dim.size is not None
            inner = np.arange(dim.size) if factor is None else factor
            result = (result[:, None] * dim.size + inner[None, :]).ravel()
        return result

    def _factor_indices(self, dim: Dim) -> Indices | None:
        return self.kept.get(dim) if dim.binding is None else self.indices(dim.binding)
