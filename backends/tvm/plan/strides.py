"""Arithmetic of strides: row-major tensors, and views of views as one view."""

from __future__ import annotations

from collections.abc import Sequence

from .sizes import is_open


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Elements between neighbours on each axis of a tensor without gaps."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def collapse(
    shape: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[list[int], list[list[int]]]:
    """Merge axes that every input walks as one. Returns the sizes and strides left."""
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for axis in range(len(shape)):
        if shape[axis] == 1:
            continue
        if sizes and all(
            m[-1] == s[axis] * shape[axis] for m, s in zip(merged, strides, strict=True)
        ):
            sizes[-1] *= shape[axis]
            for m, s in zip(merged, strides, strict=True):
                m[-1] = s[axis]
        else:
            sizes.append(shape[axis])
            for m, s in zip(merged, strides, strict=True):
                m.append(s[axis])
    if not sizes:
        return [1], [[0] for _ in strides]
    return sizes, merged


def compose(
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int,
    inner_shape: Sequence[int],
    inner_strides: Sequence[int],
    inner_offset: int,
) -> tuple[tuple[int, ...], int] | None:
    """Strides and offset of a view (`shape`, ...) of a copy that is itself a view.

    None where the two together are no strides: where an axis of the outer view runs
    over the edge of an axis of the inner one.
    """
    sizes, [walked] = collapse(inner_shape, [list(inner_strides)])
    steps = row_major(sizes)
    if is_open(*shape, *strides, offset, *sizes):
        if offset != 0:
            return None
        own = _compose_open(shape, strides, sizes, walked)
        if own is None and sum(is_open(n) for n in inner_shape) <= 2:  # as far as proofs follow
            own = _compose_open(shape, strides, inner_shape, inner_strides)
        return None if own is None else (own, inner_offset)
    first = [offset // step % size for step, size in zip(steps, sizes, strict=True)]
    furthest = list(first)
    result = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1 or stride == 0:
            result.append(0)
            continue
        axis = next((a for a, step in enumerate(steps) if 0 < step <= stride), None)
        if axis is None or stride % steps[axis]:
            return None
        count = stride // steps[axis]
        furthest[axis] += count * (size - 1)
        if furthest[axis] >= sizes[axis]:
            return None
        result.append(count * walked[axis])
    at = sum(f * w for f, w in zip(first, walked, strict=True))
    return tuple(result), inner_offset + at


def _compose_open(
    shape: Sequence[int], strides: Sequence[int], sizes: Sequence[int], walked: Sequence[int]
) -> tuple[int, ...] | None:
    """As `compose`, for a view that walks whole axes of the copy in another order, each once."""
    result, steps = [], row_major(sizes)
    left = dict.fromkeys(range(len(sizes)))
    for size, stride in zip(shape, strides, strict=True):
        if size == 1 or stride == 0:
            result.append(0)
            continue
        axis = next((a for a in left if steps[a] == stride and sizes[a] == size), None)
        if axis is None:
            return None
        del left[axis]
        result.append(walked[axis])
    return tuple(result)
