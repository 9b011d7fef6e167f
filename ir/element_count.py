"""How many elements an array has whose shape is only a claim: a file's, or a computation's."""

from __future__ import annotations

from collections.abc import Iterable

MOST_AXES = 64
"""Axes that numpy's arrays can have."""

MOST_ELEMENTS = 2**59
"""More than any memory holds; 16 bytes for each still fit a signed word."""


def element_count(shape: Iterable[int], most: int = MOST_ELEMENTS) -> int | None:
    """The number of elements; None where no array has this shape, or none of at most `most`.

    Sizes besides 0 count where there is a 0, too, since numpy multiplies them. Costs no more
    than reading `MOST_AXES` sizes, however long the shape.
    """
    count, is_empty = 1, False
    for axis, size in enumerate(shape):
        if axis == MOST_AXES or size < 0:
            return None
        is_empty |= size == 0
        count *= size or 1
        if count > most:
            return None
    return 0 if is_empty else count
